// Exponentials of vectors. Included by the files that are compiled once per instruction set: nothing here may come from
// std::.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// The exponent of a power of two, -126 <= n + r <= 127, as a whole number n in the lowest bits of `shifted` and the
// rest -1/2 <= r <= 1/2.
struct Exponent {
  Vec<float> shifted, whole, rest;
};

// Adding 1.5 * 2^23 rounds to whole numbers and leaves them in the lowest bits.
SK_INLINE Exponent round_exponent(Vec<float> x, float factor) {
  const Vec<float> magic = broadcast(12582912.0f);
  const Vec<float> shifted = x * factor + magic;
  const Vec<float> whole = shifted - magic;
  return {shifted, whole, x * factor - whole};
}

// 2^(n + r), within 2 units in the last place of what r says: 2^r as the degree-6 polynomial, minimax to 2e-9.
SK_INLINE Vec<float> power_of_two(const Exponent& exponent) {
  const Vec<float> r = exponent.rest;
  Vec<float> p = r * 1.5353362e-4f + 1.3398874e-3f;
  p = p * r + 9.6184374e-3f;
  p = p * r + 5.5503325e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  p = p * r + 1.0f;
  typedef typename VectorOf<float>::index Bits;
  return (Vec<float>)((Bits)p + ((Bits)exponent.shifted << 23));
}

// e^x for -87 <= x <= 88, within 2 units in the last place where there is a fused multiply-add; a NaN stays one. Beyond
// that range, any number.
SK_INLINE Vec<float> exp_in_range(Vec<float> x) {
  Exponent exponent = round_exponent(x, 1.44269502f);
  exponent.rest += x * 1.92596299e-8f;  // what rounding the logarithm of e to base 2 took off
  return power_of_two(exponent);
}

}  // namespace SK_ISA
}  // namespace sparsekern
