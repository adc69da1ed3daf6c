// Pairs of half-precision elements in 32-bit words: bfloat16 activations that stay in half the memory until an
// instruction needs them, and results on their way to memory. Nothing here may come from std::.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// The bits of a vector's worth of elements, one to a word.
SK_INLINE WordVec load_words(const bf16* p) {
  HalfVec bits;
  memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, WordVec);
}
// The first `count` of them, and zeros.
SK_INLINE WordVec load_words(const bf16* p, int64_t count) {
  if (count >= kLanes<float>) return load_words(p);
  HalfVec bits{};
  for (int64_t i = 0; i < count; ++i) bits[i] = p[i].bits;
  return __builtin_convertvector(bits, WordVec);
}

SK_INLINE Vec<float> pair(WordVec lower, WordVec upper) { return reinterpret_cast<Vec<float>>(lower | (upper << 16)); }
// A vector of pairs of bfloat16, widened.
SK_INLINE Vec<float> widen_lower(Vec<float> pairs) {
  return reinterpret_cast<Vec<float>>(reinterpret_cast<WordVec>(pairs) << 16);
}
SK_INLINE Vec<float> widen_upper(Vec<float> pairs) {
  return reinterpret_cast<Vec<float>>(reinterpret_cast<WordVec>(pairs) & 0xffff0000u);
}

// sums + the products of the words' lower elements + those of their upper ones, where one instruction does that. It takes
// and gives zeros for numbers below the normal ones.
#if defined(__AVX512BF16__)
constexpr bool kPairProducts = true;
SK_INLINE Vec<float> add_pair_products(Vec<float> sums, Vec<float> a, Vec<float> b) {
  return reinterpret_cast<Vec<float>>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}
#else
constexpr bool kPairProducts = false;
#endif

// Both rounded to the pointer's type and paired.
SK_INLINE Vec<float> narrow_pair(Vec<float> lower, Vec<float> upper, const bf16*) {
  return reinterpret_cast<Vec<float>>((bf16_in_upper_half(lower) >> 16) | (bf16_in_upper_half(upper) & 0xffff0000u));
}
SK_INLINE Vec<float> narrow_pair(Vec<float> lower, Vec<float> upper, const f16*) {
  f16 halves[2 * kLanes<float>];
  narrow_all(lower, halves);
  narrow_all(upper, halves + kLanes<float>);
  HalfVec bits[2];
  memcpy(bits, halves, sizeof bits);
  return pair(__builtin_convertvector(bits[0], WordVec), __builtin_convertvector(bits[1], WordVec));
}

}  // namespace SK_ISA
}  // namespace sparsekern
