// What follows a convolution: 2x2 max pooling and ReLU, if the layer has them.
#pragma once

#include "conv.hpp"

// Where a layer's output goes: its channels and rows may lie apart by a padding.
template <class T>
struct Picture {
  T* at;
  int64_t channel, row;  // strides
  T* pixel(int64_t c, int64_t i, int64_t j) const {
    return at + c * channel + i * row + j * kLanes<T>;
  }
};

// The inside of the padded input of the layer above.
template <class T>
Picture<T> input_of(const Conv<T>& layer, int64_t s) {
  const int64_t row = layer.wide() * kLanes<T>;
  T* first = layer.x_slice(s) + layer.pad * (row + kLanes<T>);
  return {first, layer.tall() * row, row};
}

// Features of one slice, [out][rows][columns][kLanes].
template <class T>
Picture<T> features_of(const Conv<T>& layer, T* features) {
  const int64_t row = layer.out_columns() * kLanes<T>;
  return {features, layer.out_rows() * row, row};
}

// Calls body(c, i, j, offset in the vector) for all vectors of the output.
template <class T, int B, class Body>
INLINE void each_output(const Conv<T>& layer, Body&& body) {
  for (int64_t c = 0; c < layer.out; ++c)
    for (int64_t i = 0; i < layer.out_rows(); ++i)
      for (int64_t j = 0; j < layer.out_columns(); ++j) UNROLL
        for (int b = 0; b < B; ++b) body(c, i, j, b * kWidth<T>);
}

template <class T, int B>
void pool_forward(const Conv<T>& layer, int64_t s, const Picture<T>& out) {
  T* y = layer.y_slice(s);
  each_output<T, B>(layer, [&](int64_t c, int64_t i, int64_t j, int64_t lane) {
    Vec<T> v;
    if (layer.pool) {
      const T* top = layer.y_at(y, c, 2 * i, 2 * j) + lane;
      const T* bottom = top + layer.columns * kLanes<T>;
      v = maximum(maximum(load(top), load(top + kLanes<T>)),
                  maximum(load(bottom), load(bottom + kLanes<T>)));
    } else {
      v = load(layer.y_at(y, c, i, j) + lane);
    }
    store<T>(out.pixel(c, i, j) + lane, layer.relu ? relu(v) : v);
  });
}

// Gives an output's slope to the first largest of its four sums, as torch does. The
// last takes what nobody took: that keeps a slope that is NaN.
template <class T>
INLINE void give_to_largest(T* top, T* bottom, Vec<T> out, Vec<T> slope) {
  T* members[] = {top, top + kLanes<T>, bottom};
  UNROLL
  for (T* member : members) {
    const auto hit = load(member) == out;
    store<T>(member, hit ? slope : Vec<T>{});
    slope = hit ? Vec<T>{} : slope;
  }
  store<T>(bottom + kLanes<T>, slope);
}

// Replaces the sums by the loss's slope at them, given that at the output.
template <class T, int B>
void pool_backward(const Conv<T>& layer, int64_t s, const Picture<T>& out,
                   const Picture<T>& slopes) {
  T* y = layer.y_slice(s);
  each_output<T, B>(layer, [&](int64_t c, int64_t i, int64_t j, int64_t lane) {
    const Vec<T> value = load(out.pixel(c, i, j) + lane);
    Vec<T> slope = load(slopes.pixel(c, i, j) + lane);
    if (layer.relu) slope = relu_slope(value, slope);
    if (layer.pool) {
      T* top = layer.y_at(y, c, 2 * i, 2 * j) + lane;
      give_to_largest<T>(top, top + layer.columns * kLanes<T>, value, slope);
    } else {
      store<T>(layer.y_at(y, c, i, j) + lane, slope);
    }
  });
}
