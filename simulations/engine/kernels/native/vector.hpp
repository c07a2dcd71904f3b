// Vectors of the width the file is compiled for, and loops over register tiles.
//
// GCC's and Clang's vector extensions: the same source gives AVX-512, AVX2 or whatever
// the processor's baseline is. Comparisons are written so that NaN stays NaN.
#pragma once

#include <cstdint>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 4;
#else
constexpr int kVectorBytes = 16, kTileRows = 4;
#endif

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;

// Numbers in a vector.
template <class T>
constexpr int64_t kWidth = kVectorBytes / sizeof(T);

// Examples of a batch that are worked on together where examples are innermost: two
// vectors, so that a weight that was loaded is used twice.
template <class T>
constexpr int64_t kLanes = 2 * kWidth<T>;

INLINE int64_t up_to(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// All our own memory is aligned to a vector.
template <class T>
INLINE Vec<T> load(const T* at) {
  return *reinterpret_cast<const Vec<T>*>(at);
}
template <class T>
INLINE void store(T* at, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(at) = v;
}
template <class T>
INLINE Vec<T> all(T value) {
  return value - Vec<T>{};
}

// max(v, 0), but NaN for NaN.
template <class V>
INLINE V relu(V v) {
  return v < V{} ? V{} : v;
}
// The slope below a ReLU whose output is known; torch lets it pass at NaN.
template <class V>
INLINE V relu_slope(V out, V slope) {
  return out <= V{} ? V{} : slope;
}
// The larger one; NaN if one is NaN.
template <class V>
INLINE V maximum(V a, V b) {
  return ((b > a) | (b != b)) ? b : a;
}

// The sum of a vector's numbers, by halves.
template <class T>
INLINE T total(Vec<T> v) {
  T parts[kWidth<T>];
  __builtin_memcpy(parts, &v, sizeof v);
  UNROLL
  for (int64_t half = kWidth<T> / 2; half; half /= 2)
    for (int64_t k = 0; k < half; ++k) parts[k] += parts[k + half];
  return parts[0];
}

// A number known to the compiler, as an argument.
template <int N>
struct Size {
  static constexpr int value = N;
};

template <int Max, class Body>
INLINE void with_size(int64_t n, Body&& body) {
  if (n == Max) return body(Size<Max>{});
  if constexpr (Max > 1) with_size<Max - 1>(n, body);
}

// Calls body(Size, begin) for stretches that cover 0 .. n - 1, of Max numbers or
// nearly: 10 becomes 5 + 5 and not 8 + 2, whose second tile would starve.
template <int Max, class Body>
INLINE void in_tiles(int64_t n, Body&& body) {
  if (n <= 0) return;
  const int64_t tiles = (n + Max - 1) / Max, size = n / tiles, longer = n % tiles;
  for (int64_t t = 0, at = 0; t < tiles; at += size + (t < longer), ++t)
    with_size<Max>(size + (t < longer), [&](auto s) { body(s, at); });
}
