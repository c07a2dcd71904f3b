// A convolution of stride 1. Activations are [channels][rows][columns][kLanes] in each
// slice of examples: every number of the kernel is used by whole vectors of examples.
#pragma once

#include "descent.hpp"
#include "lanes.hpp"

#if defined(__AVX512F__)
constexpr int kChannels = 8, kSlopeChannels = 4;
#elif defined(__AVX2__)
constexpr int kChannels = 6, kSlopeChannels = 2;
#else
constexpr int kChannels = 4, kSlopeChannels = 2;
#endif
constexpr int kSlopeColumns = 5;

template <class T>
struct Conv {
  int64_t in, out, kernel, pad;
  int64_t height, width;  // of the input, without its padding
  bool relu, pool;
  int64_t rows, columns;  // of the sums; what pooling drops is not computed
  int64_t weight, bias;   // where they begin among the packed weights, as in torch
  T* x;                   // input with its padding, slice after slice
  T* y;                   // sums, then the slope of the loss at them

  int64_t tall() const { return height + 2 * pad; }
  int64_t wide() const { return width + 2 * pad; }
  int64_t taps() const { return in * kernel * kernel; }
  int64_t out_rows() const { return pool ? rows / 2 : rows; }
  int64_t out_columns() const { return pool ? columns / 2 : columns; }
  int64_t features() const { return out * out_rows() * out_columns(); }
  T* x_slice(int64_t s) const { return x + s * in * tall() * wide() * kLanes<T>; }
  T* y_slice(int64_t s) const { return y + s * out * rows * columns * kLanes<T>; }
  T* y_at(T* slice, int64_t o, int64_t i, int64_t j) const {
    return slice + ((o * rows + i) * columns + j) * kLanes<T>;
  }
};

// Calls body(Size<K>), with 0 for a kernel whose size the compiler need not know.
template <class Body>
INLINE void with_kernel(int64_t kernel, Body&& body) {
  if (kernel == 3) return body(Size<3>{});
  if (kernel == 5) return body(Size<5>{});
  body(Size<0>{});
}

// Reorders weights so that those of a tile of output channels lie side by side:
// tile after tile, [in][kernel][kernel][tile].
template <class T>
void pack_forward(const Conv<T>& layer, const T* w, T* packed) {
  in_tiles<kChannels>(layer.out, [&](auto tile, int64_t o) {
    for (int64_t k = 0; k < layer.taps(); ++k)
      for (int r = 0; r < tile.value; ++r) *packed++ = w[(o + r) * layer.taps() + k];
  });
}

// The same for tiles of input channels: [out][kernel][kernel][tile].
template <class T>
void pack_below(const Conv<T>& layer, const T* w, T* packed) {
  const int64_t area = layer.kernel * layer.kernel;
  in_tiles<kChannels>(layer.in, [&](auto tile, int64_t c) {
    for (int64_t o = 0; o < layer.out; ++o)
      for (int64_t k = 0; k < area; ++k)
        for (int r = 0; r < tile.value; ++r)
          *packed++ = w[(o * layer.in + c + r) * area + k];
  });
}

// Adds R channels' weights times one pixel of B vectors.
template <class T, int B, int R>
INLINE void add_pixel(Vec<T> (&sum)[R][B], const T* pixel, const T* w) {
  Vec<T> value[B];
  UNROLL
  for (int b = 0; b < B; ++b) value[b] = load(pixel + b * kWidth<T>);
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int b = 0; b < B; ++b) sum[r][b] += w[r] * value[b];
}

template <class T, int B, int R, int K>
INLINE void forward_pixel(const Conv<T>& layer, const T* x, const T* w, const T* bias,
                          T* y) {
  const int64_t kernel = K ? K : layer.kernel;
  Vec<T> sum[R][B];
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int b = 0; b < B; ++b) sum[r][b] = all(bias[r]);
  for (int64_t c = 0; c < layer.in; ++c)
    for (int64_t p = 0; p < kernel; ++p) {
      const T* row = x + (c * layer.tall() + p) * layer.wide() * kLanes<T>;
      UNROLL
      for (int64_t q = 0; q < kernel; ++q, w += R)
        add_pixel<T, B, R>(sum, row + q * kLanes<T>, w);
    }
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int b = 0; b < B; ++b)
      store<T>(y + r * layer.rows * layer.columns * kLanes<T> + b * kWidth<T>, sum[r][b]);
}

// The sums of one slice of B vectors, from packed weights.
template <class T, int B>
void conv_forward(const Conv<T>& layer, int64_t s, const T* packed, const T* bias) {
  const T* x = layer.x_slice(s);
  T* y = layer.y_slice(s);
  with_kernel(layer.kernel, [&](auto kernel) {
    in_tiles<kChannels>(layer.out, [&](auto tile, int64_t o) {
      for (int64_t i = 0; i < layer.rows; ++i)
        for (int64_t j = 0; j < layer.columns; ++j)
          forward_pixel<T, B, tile.value, kernel.value>(
              layer, x + (i * layer.wide() + j) * kLanes<T>, packed + o * layer.taps(),
              bias + o, layer.y_at(y, o, i, j));
    });
  });
}

// The slope at R channels of one pixel of the input: over all outputs it went into.
template <class T, int B, int R>
INLINE void below_pixel(const Conv<T>& layer, const T* slope, int64_t i, int64_t j,
                        const T* w, T* below) {
  const int64_t kernel = layer.kernel, area = kernel * kernel;
  const int64_t p0 = larger(0, i - layer.rows + 1), p1 = smaller(kernel - 1, i);
  const int64_t q0 = larger(0, j - layer.columns + 1), q1 = smaller(kernel - 1, j);
  Vec<T> sum[R][B] = {};
  for (int64_t o = 0; o < layer.out; ++o)
    for (int64_t p = p0; p <= p1; ++p) {
      const T* row = slope + ((o * layer.rows + i - p) * layer.columns + j) * kLanes<T>;
      const T* weights = w + (o * area + p * kernel) * R;
      for (int64_t q = q0; q <= q1; ++q)
        add_pixel<T, B, R>(sum, row - q * kLanes<T>, weights + q * R);
    }
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int b = 0; b < B; ++b)
      store<T>(below + r * layer.height * layer.width * kLanes<T> + b * kWidth<T>,
               sum[r][b]);
}

// The slope at the input of one slice, [in][height][width][kLanes].
template <class T, int B>
void conv_below(const Conv<T>& layer, int64_t s, const T* packed, T* below) {
  const T* slope = layer.y_slice(s);
  in_tiles<kChannels>(layer.in, [&](auto tile, int64_t c) {
    const T* w = packed + c * layer.out * layer.kernel * layer.kernel;
    for (int64_t i = 0; i < layer.height; ++i)
      for (int64_t j = 0; j < layer.width; ++j)
        below_pixel<T, B, tile.value>(
            layer, slope, i + layer.pad, j + layer.pad, w,
            below + ((c * layer.height + i) * layer.width + j) * kLanes<T>);
  });
}

// Adds the gradient of R output channels times Q neighbouring columns of the kernel.
template <class T, int B, int R, int Q>
INLINE void gradient_tile(const Conv<T>& layer, const T* x, const T* slope, T* gradient) {
  const int64_t next = layer.rows * layer.columns * kLanes<T>;
  Vec<T> sum[R][Q] = {};
  for (int64_t i = 0; i < layer.rows; ++i) {
    const T* pixel = x + i * layer.wide() * kLanes<T>;
    const T* at = slope + i * layer.columns * kLanes<T>;
    for (int64_t j = 0; j < layer.columns; ++j, pixel += kLanes<T>, at += kLanes<T>) {
      UNROLL
      for (int b = 0; b < B; ++b) {
        Vec<T> value[Q];
        UNROLL
        for (int q = 0; q < Q; ++q)
          value[q] = load(pixel + q * kLanes<T> + b * kWidth<T>);
        UNROLL
        for (int r = 0; r < R; ++r) {
          const Vec<T> s = load(at + r * next + b * kWidth<T>);
          UNROLL
          for (int q = 0; q < Q; ++q) sum[r][q] += s * value[q];
        }
      }
    }
  }
  UNROLL
  for (int r = 0; r < R; ++r) UNROLL
    for (int q = 0; q < Q; ++q) gradient[r * layer.taps() + q] += total<T>(sum[r][q]);
}

template <class T, int B>
void bias_gradient(const Conv<T>& layer, const T* slope, T* gradient) {
  for (int64_t o = 0; o < layer.out; ++o) {
    Vec<T> sum = {};
    for (int64_t k = 0; k < layer.rows * layer.columns; ++k, slope += kLanes<T>)
      UNROLL
      for (int b = 0; b < B; ++b) sum += load(slope + b * kWidth<T>);
    gradient[o] += total<T>(sum);
  }
}

// Adds one slice's gradient, in the order of the packed weights.
template <class T, int B>
void conv_gradient(const Conv<T>& layer, int64_t s, T* gradient) {
  T* slope = layer.y_slice(s);
  in_tiles<kSlopeChannels>(layer.out, [&](auto tile, int64_t o) {
    in_tiles<kSlopeColumns>(layer.kernel, [&](auto wide, int64_t q) {
      for (int64_t c = 0; c < layer.in; ++c)
        for (int64_t p = 0; p < layer.kernel; ++p) {
          const T* x = layer.x_slice(s) +
                       ((c * layer.tall() + p) * layer.wide() + q) * kLanes<T>;
          const int64_t at = o * layer.taps() + (c * layer.kernel + p) * layer.kernel + q;
          gradient_tile<T, B, tile.value, wide.value>(
              layer, x, layer.y_at(slope, o, 0, 0), gradient + at);
        }
    });
  });
  bias_gradient<T, B>(layer, slope, gradient + layer.bias - layer.weight);
}
