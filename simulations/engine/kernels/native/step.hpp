// One SGD step: forward, loss, backward. A layer's weights move as soon as the slope
// below it is known.
#pragma once

#include <cstring>

#include "loss.hpp"
#include "model.hpp"

// The examples of a step.
template <class T>
struct Batch {
  const T* x;
  const int64_t* y;
  const int64_t* rows;
  int64_t n;
};

// Copies the images into the first convolution's padded input.
template <class T>
void read_images(const Conv<T>& layer, const Batch<T>& batch) {
  const int64_t image = layer.in * layer.height * layer.width;
  in_slices<T>(batch.n, [&](auto, int64_t s, int64_t n) {
    const int64_t* rows = batch.rows + s * kLanes<T>;
    const Picture<T> to = input_of(layer, s);
    for (int64_t c = 0; c < layer.in; ++c)
      for (int64_t i = 0; i < layer.height; ++i) {
        const T* from = batch.x + (c * layer.height + i) * layer.width;
        to_slice([&](int64_t r) { return from + rows[r] * image; }, n, layer.width,
                 to.pixel(c, i, 0));
      }
  });
}

template <class T>
Picture<T> output_of(const Model<T>& model, int64_t l, int64_t s) {
  if (l + 1 < model.convs) return input_of(model.conv[l + 1], s);
  return features_of(model.conv[l], model.pooled + s * model.features * kLanes<T>);
}

template <class T>
void convs_forward(const Model<T>& model, const Batch<T>& batch, const T* weights) {
  read_images(model.conv[0], batch);
  for (int64_t l = 0; l < model.convs; ++l) {
    const Conv<T>& layer = model.conv[l];
    pack_forward(layer, weights + layer.weight, model.reordered);
    in_slices<T>(batch.n, [&](auto vectors, int64_t s, int64_t) {
      conv_forward<T, vectors.value>(layer, s, model.reordered, weights + layer.bias);
      pool_forward<T, vectors.value>(layer, s, output_of(model, l, s));
    });
  }
  in_slices<T>(batch.n, [&](auto, int64_t s, int64_t n) {
    to_rows(model.pooled + s * model.features * kLanes<T>, n, model.features,
            model.flat + s * kLanes<T> * model.row, model.row);
  });
}

// On entry model.below holds the slope at the last convolution's output.
template <class T>
void convs_backward(const Model<T>& model, int64_t examples, const Descent<T>& descent) {
  for (int64_t l = model.convs - 1; l >= 0; --l) {
    const Conv<T>& layer = model.conv[l];
    const int64_t count = layer.bias + up_to(layer.out, kWidth<T>) - layer.weight;
    const int64_t inputs = layer.in * layer.height * layer.width;
    std::memset(model.gradient, 0, count * sizeof(T));
    if (l) pack_below(layer, descent.weights + layer.weight, model.reordered);
    in_slices<T>(examples, [&](auto vectors, int64_t s, int64_t) {
      const T* slopes = model.below + s * layer.features() * kLanes<T>;
      pool_backward<T, vectors.value>(layer, s, output_of(model, l, s),
                                      features_of(layer, const_cast<T*>(slopes)));
      conv_gradient<T, vectors.value>(layer, s, model.gradient);
    });
    if (l) in_slices<T>(examples, [&](auto vectors, int64_t s, int64_t) {
        conv_below<T, vectors.value>(layer, s, model.reordered,
                                     model.below + s * inputs * kLanes<T>);
      });
    for (int64_t k = 0; k < count; k += kWidth<T>)
      descent.move(layer.weight + k, load(model.gradient + k));
  }
}

// Leaves the slope at a linear layer's input in model.below.
template <class T>
void slope_below(const Model<T>& model, const Dense<T>& layer, int64_t examples,
                 const T* weights) {
  in_slices<T>(examples, [&](auto vectors, int64_t s, int64_t n) {
    const T* rows = layer.slope + s * kLanes<T> * layer.stride;
    to_slice([&](int64_t r) { return rows + r * layer.stride; }, n, layer.outputs,
             model.slice);
    dense_below<T, vectors.value>(layer, model.slice, weights,
                                  model.below + s * layer.inputs * kLanes<T>);
  });
}

// Moves the slope in model.below to where the layer below wants it.
template <class T>
void take_slope(const Model<T>& model, const Dense<T>& layer, int64_t examples) {
  in_slices<T>(examples, [&](auto, int64_t s, int64_t n) {
    to_rows(model.below + s * layer.outputs * kLanes<T>, n, layer.outputs,
            layer.slope + s * kLanes<T> * layer.stride, layer.stride);
  });
  if (!layer.relu) return;
  for (int64_t k = 0; k < examples * layer.stride; k += kWidth<T>)
    store<T>(layer.slope + k, relu_slope(load(layer.out + k), load(layer.slope + k)));
}

// Returns the sum of the examples' losses.
template <class T>
double scores_slope(const Model<T>& model, const Batch<T>& batch) {
  const Dense<T>& last = model.dense[model.denses - 1];
  const T share = T(1) / static_cast<T>(batch.n);
  double loss = 0;
  for (int64_t n = 0; n < batch.n; ++n)
    loss += cross_entropy(last.out + n * last.stride, model.classes,
                          batch.y[batch.rows[n]], share, last.slope + n * last.stride);
  return loss;
}

// Takes one step; returns the mean loss before it.
template <class T>
double step(const Model<T>& model, const Batch<T>& batch, const Descent<T>& descent) {
  const T* weights = descent.weights;
  if (model.convs)
    convs_forward(model, batch, weights);
  else
    for (int64_t n = 0; n < batch.n; ++n)
      model.input(0)[n] = batch.x + batch.rows[n] * model.features;
  for (int64_t l = 0; l < model.denses; ++l)
    dense_forward(model.dense[l], model.input(l), batch.n, weights);
  const double loss = scores_slope(model, batch);
  for (int64_t l = model.denses - 1; l >= 0; --l) {
    const Dense<T>& layer = model.dense[l];
    if (l || model.convs) slope_below(model, layer, batch.n, weights);
    dense_update(layer, model.input(l), batch.n, descent);
    if (l) take_slope(model, model.dense[l - 1], batch.n);
  }
  if (model.convs) convs_backward(model, batch.n, descent);
  return loss / static_cast<double>(batch.n);
}
