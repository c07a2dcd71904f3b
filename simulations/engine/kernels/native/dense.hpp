// A linear layer. Its weights lie in panels of up to three vectors of outputs:
// panel after panel, in each input after input. So the forward pass and the weights'
// gradient both read one vector of outputs and one number of the input at a time, and
// the input is read where it lies.
#pragma once

#include "descent.hpp"
#include "lanes.hpp"

constexpr int kPanel = 3;

template <class T>
struct Dense {
  int64_t inputs, outputs;
  bool relu;
  int64_t stride;        // outputs rounded up to whole vectors
  int64_t weight, bias;  // where they begin among the packed weights
  T *out, *slope;        // [batch][stride]; slope of the loss at the sums, in place

  int64_t vectors() const { return stride / kWidth<T>; }
};

// Calls body(Size<vectors>, first output, where the panel begins).
template <class T, class Body>
INLINE void in_panels(const Dense<T>& layer, Body&& body) {
  in_tiles<kPanel>(layer.vectors(), [&](auto size, int64_t vector) {
    const int64_t first = vector * kWidth<T>;
    body(size, first, layer.weight + first * layer.inputs);
  });
}

// Copies between torch's [outputs][inputs] and the panels.
template <class T, class Copy>
INLINE void each_weight(const Dense<T>& layer, Copy&& copy) {
  in_panels(layer, [&](auto size, int64_t first, int64_t panel) {
    constexpr int64_t wide = size.value * kWidth<T>;
    const int64_t end = smaller(first + wide, layer.outputs);
    for (int64_t begin = 0; begin < layer.inputs; begin += kBlock)
      for (int64_t o = first; o < end; ++o)
        for (int64_t i = begin; i < smaller(begin + kBlock, layer.inputs); ++i)
          copy(o * layer.inputs + i, panel + i * wide + o - first);
  });
}

template <class T, int R, int V>
INLINE void forward_tile(const Dense<T>& layer, const T* const* x, const T* w,
                         const T* bias, T* out) {
  Vec<T> sum[R][V];
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int v = 0; v < V; ++v) sum[r][v] = load(bias + v * kWidth<T>);
  const T* row[R];
  UNROLL
  for (int r = 0; r < R; ++r) row[r] = x[r];
  for (int64_t i = 0; i < layer.inputs; ++i, w += V * kWidth<T>) {
    Vec<T> weight[V];
    UNROLL
    for (int v = 0; v < V; ++v) weight[v] = load(w + v * kWidth<T>);
    UNROLL
    for (int r = 0; r < R; ++r) {
      const T value = row[r][i];
      UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] += value * weight[v];
    }
  }
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int v = 0; v < V; ++v)
      store<T>(out + r * layer.stride + v * kWidth<T>,
               layer.relu ? relu(sum[r][v]) : sum[r][v]);
}

// out[n][o] = sum_i x[n][i] w[i][o] + bias[o], then ReLU.
template <class T>
void dense_forward(const Dense<T>& layer, const T* const* x, int64_t n, const T* weights) {
  in_panels(layer, [&](auto wide, int64_t first, int64_t panel) {
    in_tiles<kTileRows>(n, [&](auto high, int64_t at) {
      forward_tile<T, high.value, wide.value>(layer, x + at, weights + panel,
                                              weights + layer.bias + first,
                                              layer.out + at * layer.stride + first);
    });
  });
}

template <class T, int R, int V>
INLINE void update_tile(const Dense<T>& layer, const T* const* x, int64_t n, int64_t i,
                        const T* slope, int64_t at, const Descent<T>& descent) {
  Vec<T> sum[R][V] = {};
  for (int64_t k = 0; k < n; ++k, slope += layer.stride) {
    Vec<T> s[V];
    UNROLL
    for (int v = 0; v < V; ++v) s[v] = load(slope + v * kWidth<T>);
    const T* row = x[k] + i;
    UNROLL
    for (int r = 0; r < R; ++r) {
      const T value = row[r];
      UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] += value * s[v];
    }
  }
  descent.move_tile(at, sum);
}

// Moves w[i][o] along sum_n x[n][i] slope[n][o] and bias[o] along sum_n slope[n][o].
// The gradient lives in registers only.
template <class T>
void dense_update(const Dense<T>& layer, const T* const* x, int64_t n,
                  const Descent<T>& descent) {
  in_panels(layer, [&](auto wide, int64_t first, int64_t panel) {
    in_tiles<kTileRows>(layer.inputs, [&](auto high, int64_t i) {
      const int64_t at = panel + i * wide.value * kWidth<T>;
      update_tile<T, high.value, wide.value>(layer, x, n, i, layer.slope + first, at,
                                             descent);
    });
  });
  for (int64_t o = 0; o < layer.stride; o += kWidth<T>) {
    Vec<T> sum = {};
    for (int64_t k = 0; k < n; ++k) sum += load(layer.slope + k * layer.stride + o);
    descent.move(layer.bias + o, sum);
  }
}

template <class T, int B, int R, int V>
INLINE void below_panel(Vec<T> (&sum)[R][B], const T* w, const T* slope, int64_t outputs) {
  for (int64_t o = 0; o < outputs; ++o, slope += kLanes<T>) {
    Vec<T> s[B];
    UNROLL
    for (int b = 0; b < B; ++b) s[b] = load(slope + b * kWidth<T>);
    UNROLL
    for (int r = 0; r < R; ++r) {
      const T value = w[r * V * kWidth<T> + o];
      UNROLL
      for (int b = 0; b < B; ++b) sum[r][b] += value * s[b];
    }
  }
}

// below[i][lane] = sum_o w[i][o] slope[o][lane] for one slice of B vectors. Here the
// examples are innermost: the panels hold no vector of inputs.
template <class T, int B>
void dense_below(const Dense<T>& layer, const T* slope, const T* weights, T* below) {
  in_tiles<kTileRows>(layer.inputs, [&](auto high, int64_t i) {
    constexpr int R = high.value;
    Vec<T> sum[R][B] = {};
    in_panels(layer, [&](auto wide, int64_t first, int64_t panel) {
      constexpr int V = wide.value;
      const int64_t outputs = smaller(V * kWidth<T>, layer.outputs - first);
      below_panel<T, B, R, V>(sum, weights + panel + i * V * kWidth<T>,
                              slope + first * kLanes<T>, outputs);
    });
    UNROLL
    for (int r = 0; r < R; ++r) UNROLL
      for (int b = 0; b < B; ++b)
        store<T>(below + (i + r) * kLanes<T> + b * kWidth<T>, sum[r][b]);
  });
}
