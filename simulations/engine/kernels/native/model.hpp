// A stack of convolutions and linear layers with all the memory its training needs.
#pragma once

#include "dense.hpp"
#include "pool.hpp"

// Hands out aligned stretches of one block of memory, or only counts while there is none.
template <class T>
struct Arena {
  T* base = nullptr;
  int64_t used = 0;
  T* take(int64_t count) {
    const int64_t at = used;
    used += up_to(count, kVectorBytes / sizeof(T));
    return base ? base + at : nullptr;
  }
};

// What the caller says about the model: height, width and channels of the input, then
// the numbers of convolutions and of linear layers, then five numbers each
// (channels, kernel, padding, relu, pool) and two each (outputs, relu).
struct Shape {
  const int64_t* numbers;
  int64_t convs() const { return numbers[3]; }
  int64_t denses() const { return numbers[4]; }
  const int64_t* conv(int64_t l) const { return numbers + 5 + 5 * l; }
  const int64_t* dense(int64_t l) const { return numbers + 5 + 5 * convs() + 2 * l; }
};

constexpr int64_t kMostLayers = 32;

template <class T>
struct Model {
  int64_t convs = 0, denses = 0, packed = 0;  // numbers of layers and of packed weights
  Conv<T> conv[kMostLayers];
  Dense<T> dense[kMostLayers];
  int64_t classes = 0, features = 0, row = 0;
  T* reordered = nullptr;          // a convolution's weights, for the pass under way
  T* gradient = nullptr;           // a convolution's
  T *slice = nullptr, *below = nullptr;  // slopes with examples innermost
  T *pooled = nullptr, *flat = nullptr;  // the last convolution's output: slices, rows
  const T** x = nullptr;           // what each linear layer reads, [denses][batch]
  int64_t batch = 0;

  const T** input(int64_t l) const { return x + l * batch; }

  Model(const Shape& shape, int64_t most, Arena<T>& arena) : batch(most) {
    int64_t sizes[3] = {shape.numbers[0], shape.numbers[1], shape.numbers[2]};
    const int64_t examples = slices_of<T>(most) * kLanes<T>;
    int64_t widest = 0, weights = 0;
    for (int64_t l = 0; l < shape.convs(); ++l) {
      const Conv<T>& c = add_conv(shape.conv(l), sizes, examples, arena);
      widest = larger(widest, larger(c.features(), c.in * c.height * c.width));
      weights = larger(weights, packed - c.weight);
    }
    features = sizes[0] * sizes[1] * sizes[2];
    row = up_to(features, kWidth<T>);
    int64_t inputs = features;
    for (int64_t l = 0; l < shape.denses(); ++l) {
      widest = larger(widest, inputs);
      inputs = add_dense(shape.dense(l), inputs, arena).outputs;
    }
    classes = inputs;
    widest = larger(widest, classes);
    reordered = arena.take(weights);
    gradient = arena.take(weights);
    slice = arena.take(widest * examples);
    below = arena.take(widest * examples);
    pooled = arena.take(convs ? features * examples : 0);
    flat = arena.take(convs ? row * most : 0);
    const int64_t pointers = denses * most * sizeof(T*) / sizeof(T);
    x = reinterpret_cast<const T**>(arena.take(pointers));
    for (int64_t l = 0; l < denses && arena.base; ++l)
      for (int64_t n = 0; n < most; ++n)
        input(l)[n] = l ? dense[l - 1].out + n * dense[l - 1].stride : flat + n * row;
  }

 private:
  const Conv<T>& add_conv(const int64_t* given, int64_t (&sizes)[3], int64_t examples,
                          Arena<T>& arena) {
    Conv<T>& c = conv[convs++];
    c.in = sizes[0], c.height = sizes[1], c.width = sizes[2];
    c.out = given[0], c.kernel = given[1], c.pad = given[2];
    c.relu = given[3], c.pool = given[4];
    c.rows = c.tall() - c.kernel + 1, c.columns = c.wide() - c.kernel + 1;
    if (c.pool) c.rows -= c.rows % 2, c.columns -= c.columns % 2;
    c.weight = take_weights(c.out * c.taps());
    c.bias = take_weights(c.out);
    c.x = arena.take(c.in * c.tall() * c.wide() * examples);
    c.y = arena.take(c.out * c.rows * c.columns * examples);
    sizes[0] = c.out, sizes[1] = c.out_rows(), sizes[2] = c.out_columns();
    return c;
  }

  const Dense<T>& add_dense(const int64_t* given, int64_t inputs, Arena<T>& arena) {
    Dense<T>& d = dense[denses++];
    d.inputs = inputs, d.outputs = given[0], d.relu = given[1];
    d.stride = up_to(d.outputs, kWidth<T>);
    d.weight = take_weights(inputs * d.stride);
    d.bias = take_weights(d.stride);
    d.out = arena.take(batch * d.stride);
    d.slope = arena.take(batch * d.stride);
    return d;
  }

  int64_t take_weights(int64_t count) {
    const int64_t at = packed;
    packed += up_to(count, kWidth<T>);
    return at;
  }
};

// Calls copy(index in torch's order, index among the packed weights) for all weights.
template <class T, class Copy>
INLINE void each_packed(const Model<T>& model, Copy&& copy) {
  int64_t at = 0;
  auto run = [&](int64_t count, int64_t packed) {
    for (int64_t k = 0; k < count; ++k) copy(at + k, packed + k);
    at += count;
  };
  for (int64_t l = 0; l < model.convs; ++l) {
    run(model.conv[l].out * model.conv[l].taps(), model.conv[l].weight);
    run(model.conv[l].out, model.conv[l].bias);
  }
  for (int64_t l = 0; l < model.denses; ++l) {
    const Dense<T>& d = model.dense[l];
    each_weight(d, [&](int64_t torch, int64_t packed) { copy(at + torch, packed); });
    at += d.inputs * d.outputs;
    run(d.outputs, d.bias);
  }
}
