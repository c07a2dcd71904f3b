// Between rows (one example after another) and slices (examples innermost).
//
// A slice is an array [units][kLanes] of up to kLanes examples. A row begins at a
// multiple of its stride.
#pragma once

#include "vector.hpp"

template <class T>
INLINE int64_t slices_of(int64_t examples) {
  return (examples + kLanes<T> - 1) / kLanes<T>;
}

// Calls body(Size<vectors>, slice, examples in it): one vector if all fit into it.
template <class T, class Body>
INLINE void in_slices(int64_t examples, Body&& body) {
  for (int64_t s = 0; s < slices_of<T>(examples); ++s) {
    const int64_t n = smaller(examples - s * kLanes<T>, kLanes<T>);
    if (n > kWidth<T>)
      body(Size<2>{}, s, n);
    else
      body(Size<1>{}, s, n);
  }
}

// Units copied at a time, so that what is strided stays in the first-level cache.
constexpr int64_t kBlock = 16;

// Copies rows[0 .. n - 1] into one slice; lanes up to a whole vector are zero.
template <class T, class Rows>
INLINE void to_slice(const Rows& rows, int64_t n, int64_t units, T* slice) {
  const int64_t lanes = up_to(n, kWidth<T>);
  for (int64_t i = 0; i < units; i += kBlock) {
    const int64_t end = smaller(i + kBlock, units);
    for (int64_t r = 0; r < n; ++r) {
      const T* row = rows(r);
      for (int64_t k = i; k < end; ++k) slice[k * kLanes<T> + r] = row[k];
    }
    for (int64_t k = i; k < end; ++k)
      for (int64_t r = n; r < lanes; ++r) slice[k * kLanes<T> + r] = 0;
  }
}

// Copies one slice into rows[0 .. n - 1].
template <class T>
INLINE void to_rows(const T* slice, int64_t n, int64_t units, T* rows, int64_t stride) {
  for (int64_t i = 0; i < units; i += kBlock) {
    const int64_t end = smaller(i + kBlock, units);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t k = i; k < end; ++k)
        rows[r * stride + k] = slice[k * kLanes<T> + r];
  }
}
