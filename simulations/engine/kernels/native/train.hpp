// What Python calls: all local steps of all clients of a part of a cohort.
#pragma once

#include <cstdlib>

#include "step.hpp"

extern "C" {
// Clients' data, starts and orders; as fedunlearn.cohort.Cohort, with addresses for
// arrays. 64-bit fields only, so that Python's view of it is plain.
struct Order {
  int64_t clients;
  const int64_t* x;         // [clients] addresses of [n][...]
  const int64_t* y;         // [clients] addresses of int64 [n]
  const int64_t* examples;  // [clients] n
  const int64_t* start;     // [clients] addresses of [parameters]
  const double* mu;         // [clients]
  const int64_t* rows;
  const int64_t* bounds;
  const int64_t* first;
  double lr, momentum, decay;
  void* out;        // [clients][out_stride]
  int64_t out_stride;
  double* losses;   // [clients]
};
}

constexpr int64_t kDone = -1, kNoMemory = -2, kTooManyLayers = -3;

// The client's steps name only rows and labels that are there.
template <class T>
bool sound(const Model<T>& model, const Order& order, int64_t k) {
  const auto* y = reinterpret_cast<const int64_t*>(order.y[k]);
  const int64_t end = order.bounds[order.first[k + 1]];
  for (int64_t r = order.bounds[order.first[k]]; r < end; ++r) {
    const int64_t row = order.rows[r];
    if (row < 0 || row >= order.examples[k]) return false;
    if (y[row] < 0 || y[row] >= model.classes) return false;
  }
  return true;
}

// Packed vectors: the weights, where they started, momentum's buffer.
template <class T>
struct Memory {
  T *weights, *start, *buffer;
};

template <class T>
void train_client(const Model<T>& model, const Order& order, int64_t k,
                  const Memory<T>& memory) {
  const T* from = reinterpret_cast<const T*>(order.start[k]);
  T* to = static_cast<T*>(order.out) + k * order.out_stride;
  const size_t bytes = model.packed * sizeof(T);
  const bool pulled = order.mu[k] != 0, moves = order.momentum != 0;
  each_packed(model, [&](int64_t torch, int64_t at) { memory.weights[at] = from[torch]; });
  if (pulled) std::memcpy(memory.start, memory.weights, bytes);
  if (moves) std::memset(memory.buffer, 0, bytes);
  const Descent<T> descent{static_cast<T>(order.lr),
                           static_cast<T>(order.momentum),
                           static_cast<T>(order.decay),
                           static_cast<T>(order.mu[k]),
                           memory.weights,
                           pulled ? memory.start : nullptr,
                           moves ? memory.buffer : nullptr};
  double loss = 0;
  const int64_t begin = order.first[k], end = order.first[k + 1];
  for (int64_t s = begin; s < end; ++s)
    loss += step(model,
                 Batch<T>{reinterpret_cast<const T*>(order.x[k]),
                          reinterpret_cast<const int64_t*>(order.y[k]),
                          order.rows + order.bounds[s],
                          order.bounds[s + 1] - order.bounds[s]},
                 descent);
  order.losses[k] = end > begin ? loss / static_cast<double>(end - begin) : 0;
  each_packed(model, [&](int64_t torch, int64_t at) { to[torch] = memory.weights[at]; });
}

inline int64_t largest_batch(const Order& order) {
  int64_t most = 1;
  for (int64_t s = order.first[0]; s < order.first[order.clients]; ++s)
    most = larger(most, order.bounds[s + 1] - order.bounds[s]);
  return most;
}

template <class T>
Memory<T> memory_of(const Model<T>& model, bool momentum, Arena<T>& arena) {
  return {arena.take(model.packed), arena.take(model.packed),
          arena.take(momentum ? model.packed : 0)};
}

// Returns kDone, another negative code, or the index of a client with a row or label
// that is not there; nothing is trained then.
template <class T>
int64_t train(const int64_t* numbers, const Order& order) {
  const Shape shape{numbers};
  if (shape.convs() > kMostLayers || shape.denses() > kMostLayers) return kTooManyLayers;
  const int64_t most = largest_batch(order);
  Arena<T> count;
  memory_of(Model<T>(shape, most, count), order.momentum != 0, count);
  const size_t bytes = up_to(count.used * sizeof(T), 64);
  void* block = std::aligned_alloc(64, bytes);
  if (!block) return kNoMemory;
  std::memset(block, 0, bytes);  // paddings are read and stay zero
  Arena<T> arena{static_cast<T*>(block)};
  const Model<T> model(shape, most, arena);
  const Memory<T> memory = memory_of(model, order.momentum != 0, arena);
  int64_t result = kDone;
  for (int64_t k = 0; k < order.clients && result == kDone; ++k)
    if (!sound(model, order, k)) result = k;
  for (int64_t k = 0; k < order.clients && result == kDone; ++k)
    train_client(model, order, k, memory);
  std::free(block);
  return result;
}

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int64_t train32(const int64_t* shape, const Order* order) {
  return train<float>(shape, *order);
}
