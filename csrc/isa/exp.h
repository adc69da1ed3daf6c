// exp of vectors. Included by the files that are compiled once per instruction set: nothing here may come from std::.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// e^x for -87 <= x <= 88, within 2 units in the last place; a NaN stays one. Beyond that range, any number.
SK_INLINE Vec<float> exp_in_range(Vec<float> x) {
  // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves n, rounded, in the lowest bits.
  const Vec<float> magic = broadcast(12582912.0f);
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> n = shifted - magic;
  Vec<float> r = x - n * 0.693359375f;  // ln 2 in two parts, of which the first has few bits: n times it is exact
  r = r - n * -2.12194440054690583e-4f;
  // The degree-6 polynomial of e^r, minimax on the interval: Cephes' coefficients.
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  typedef typename VectorOf<float>::index Bits;
  return (Vec<float>)((Bits)p + ((Bits)shifted << 23));
}

}  // namespace SK_ISA
}  // namespace sparsekern
