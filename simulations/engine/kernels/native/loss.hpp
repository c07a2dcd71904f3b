// Cross-entropy.
#pragma once

#include <cmath>

#include "vector.hpp"

// Writes the slope of a batch's mean cross-entropy at the scores of one example, that
// is (softmax - one hot) * share; returns the example's loss.
template <class T>
T cross_entropy(const T* scores, int64_t classes, int64_t label, T share, T* slope) {
  T most = scores[0], sum = 0;
  for (int64_t k = 1; k < classes; ++k) most = scores[k] > most ? scores[k] : most;
  for (int64_t k = 0; k < classes; ++k) {
    slope[k] = std::exp(scores[k] - most);
    sum += slope[k];
  }
  const T loss = std::log(sum) - (scores[label] - most);
  for (int64_t k = 0; k < classes; ++k)
    slope[k] = (slope[k] / sum - static_cast<T>(k == label)) * share;
  return loss;
}
