// One step of torch.optim.SGD, with FedProx's pull towards where the client started.
#pragma once

#include "vector.hpp"

template <class T>
struct Descent {
  T lr, momentum, decay, mu;
  T* weights;
  const T* start;  // null without FedProx's term
  T* buffer;       // null without momentum

  // Moves the weights at `at` along their gradient.
  INLINE void move(int64_t at, Vec<T> gradient) const {
    Vec<T> w = load(weights + at);
    if (start) gradient += mu * (w - load(start + at));
    gradient += decay * w;
    if (buffer) {
      gradient += momentum * load(buffer + at);
      store(buffer + at, gradient);
    }
    store(weights + at, w - lr * gradient);
  }

  INLINE bool plain() const { return !start && !buffer && decay == 0; }

  // Moves a tile of R rows of V vectors; what most runs need has its own short loop.
  template <int R, int V>
  INLINE void move_tile(int64_t at, const Vec<T> (&gradient)[R][V]) const {
    constexpr int64_t row = V * kWidth<T>;
    if (plain()) {
      UNROLL
      for (int r = 0; r < R; ++r) UNROLL
        for (int v = 0; v < V; ++v) {
          T* w = weights + at + r * row + v * kWidth<T>;
          store<T>(w, load(w) - lr * gradient[r][v]);
        }
    } else {
      UNROLL
      for (int r = 0; r < R; ++r) UNROLL
        for (int v = 0; v < V; ++v) move(at + r * row + v * kWidth<T>, gradient[r][v]);
    }
  }
};
