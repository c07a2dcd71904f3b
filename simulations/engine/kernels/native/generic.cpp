// Built for the baseline of the processor's family; also says which other builds the
// processor at hand can run.
#include "train.hpp"

// In double precision, for tests.
EXPORT int64_t train64(const int64_t* shape, const Order* order) {
  return train<double>(shape, *order);
}

EXPORT int64_t runs_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
#else
  return 0;
#endif
}

EXPORT int64_t runs_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 0;
#endif
}
