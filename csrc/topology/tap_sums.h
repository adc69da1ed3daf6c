// Dot products of planes with a few others: what a convolution's kernel positions see of each channel, under signs.
#pragma once

#include <stddef.h>

#include "isa/simd.h"
#include "topology/kernels.h"

namespace sparsekern {
namespace SK_ISA {

// Adds those of C channels and K taps to their sums. Channels lie `stride` elements apart.
template <class A, class T, int C, int K>
SK_INLINE void add_tap_tile(const T* x, int64_t stride, int64_t size, const A* factors, int64_t factor_stride, char* sums,
                            int64_t channel_bytes) {
  constexpr int kWidth = kLanes<A>;
  Vec<A> sum[C][K];
  SK_UNROLL
  for (int c = 0; c < C; ++c)
    SK_UNROLL
    for (int k = 0; k < K; ++k) sum[c][k] = load<A>(reinterpret_cast<A*>(sums + c * channel_bytes + k * kTapSumBytes));
  const auto add = [&](Vec<A>* values, int64_t at) __attribute__((always_inline)) {
    SK_UNROLL
    for (int k = 0; k < K; ++k) {
      Vec<A> factor = load<A>(factors + k * factor_stride + at);
      pin(factor);
      SK_UNROLL
      for (int c = 0; c < C; ++c) sum[c][k] += values[c] * factor;
    }
  };
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    Vec<A> values[C];
    SK_UNROLL
    for (int c = 0; c < C; ++c) {
      values[c] = load_widened<A>(x + c * stride + i);
      pin(values[c]);
    }
    add(values, i);
  }
  if (i < size) {
    Vec<A> values[C];
    SK_UNROLL
    for (int c = 0; c < C; ++c) values[c] = load_widened<A>(x + c * stride + i, size - i);
    add(values, i);
  }
  SK_UNROLL
  for (int c = 0; c < C; ++c)
    SK_UNROLL
    for (int k = 0; k < K; ++k) store<A>(reinterpret_cast<A*>(sums + c * channel_bytes + k * kTapSumBytes), sum[c][k]);
}

template <class A, class T, int C>
SK_INLINE void add_taps(const TapSumTask& t, int64_t c) {
  const T* x = static_cast<const T*>(t.x) + c * t.stride;
  const A* factors = static_cast<const A*>(t.factors);
  const int64_t channel_bytes = t.taps * kTapSumBytes;
  char* sums = static_cast<char*>(t.sums) + c * channel_bytes;
  int64_t k = 0;
  for (; k + 3 <= t.taps; k += 3)
    add_tap_tile<A, T, C, 3>(x, t.stride, t.size, factors + k * t.factor_stride, t.factor_stride, sums + k * kTapSumBytes,
                             channel_bytes);
  for (; k < t.taps; ++k)
    add_tap_tile<A, T, C, 1>(x, t.stride, t.size, factors + k * t.factor_stride, t.factor_stride, sums + k * kTapSumBytes,
                             channel_bytes);
}

template <class A, class T>
void add_tap_sums(const TapSumTask& t) {
  int64_t c = 0;
  for (; c + 4 <= t.channels; c += 4) add_taps<A, T, 4>(t, c);
  for (; c < t.channels; ++c) add_taps<A, T, 1>(t, c);
}

}  // namespace SK_ISA
}  // namespace sparsekern
