// A tile of 16-bit activations in shared memory: features, each with kTokens adjacent tokens, in units of 16 bytes.
#pragma once

#include "cuda/device.h"

namespace sparsekern::cuda {

inline constexpr int kUnitTokens = 8;

// Where a unit of a feature lies. Units of one number lie in different banks for 8 features that differ modulo 8. The
// next but one unit lies at the offset with bit 5 flipped, two further with bit 6 flipped.
template <int kTokens>
SK_DEVICE uint32_t unit_offset(uint32_t feature, uint32_t unit) {
  static_assert(kTokens == 16 || kTokens == 32 || kTokens == 64);
  constexpr uint32_t kUnits = kTokens / kUnitTokens, kRepeat = 8 / kUnits;  // features that fill the banks once
  return feature * (kTokens * 2) + ((feature * (16 / kRepeat) & (kUnits - 1) << 4) ^ unit << 4);
}

// Asks for a tile of tokens from `first` on of `features` features, by all kThreads threads of the block; order[i] is the
// i-th of them. Tokens from `stride` on, which separates features, are 0. x is aligned to 16 bytes and stride a multiple
// of a unit.
template <int kTokens, int kThreads, class T>
SK_DEVICE void copy_tile(char* tile, const T* x, int64_t stride, const uint16_t* order, int features, int64_t first) {
  constexpr int kUnits = kTokens / kUnitTokens, kStep = kThreads / kUnits;
  static_assert(kStep % 8 == 0, "a thread's units lie at one place of their banks");
  const int unit = threadIdx.x % kUnits, own = threadIdx.x / kUnits;
  const int64_t token = first + unit * kUnitTokens;
  const bool inside = token < stride;
  const T* const from = inside ? x + token : x;
  const int64_t step = inside ? stride : 0;
  char* to = tile + unit_offset<kTokens>(own, unit);
  for (int feature = own; feature < features; feature += kStep) {
    copy_async_16(to, from + load_constant(order + feature) * step, inside);
    to += kThreads * 16;
  }
}

}  // namespace sparsekern::cuda
