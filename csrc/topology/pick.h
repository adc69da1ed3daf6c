// Passes over values by magnitude. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/simd.h"
#include "topology/kernels.h"
#include "topology/magnitude.h"

namespace sparsekern {
namespace SK_ISA {

#if defined(__AVX512F__)
SK_INLINE __m512i magnitude_keys(const float* values, uint32_t flip) {
  const __m512i bits = _mm512_loadu_si512(values) & _mm512_set1_epi32(0x7fffffff);
  const uint16_t numbers = _mm512_cmple_epu32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __m512i keys = _mm512_maskz_add_epi32(numbers, bits, _mm512_set1_epi32(1));
  return keys ^ _mm512_set1_epi32(static_cast<int>(flip));
}
#endif

template <class T, class Key>
Key* keys_between(const T* values, int64_t size, const KeyRange<Key>& range, int64_t* below, Key* out) {
  int64_t i = 0, smaller = 0;
  const Key span = range.high - range.low;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i low = _mm512_set1_epi32(static_cast<int>(range.low)), span_all = _mm512_set1_epi32(static_cast<int>(span));
    for (; i + 16 <= size; i += 16) {
      const __m512i keys = magnitude_keys(values + i, range.flip);
      smaller += __builtin_popcount(_mm512_cmplt_epu32_mask(keys, low));
      const uint16_t inside = _mm512_cmple_epu32_mask(_mm512_sub_epi32(keys, low), span_all);
      const int count = __builtin_popcount(inside);
      _mm512_mask_storeu_epi32(out, static_cast<uint16_t>((1u << count) - 1), _mm512_maskz_compress_epi32(inside, keys));
      out += count;
    }
  }
#endif
  for (; i < size; ++i) {
    const Key key = magnitude_key(values[i]) ^ range.flip;
    smaller += key < range.low;
    if (key - range.low <= span) *out++ = key;
  }
  *below = smaller;
  return out;
}

template <class T, class Key>
void positions_up_to(const T* values, int64_t begin, int64_t end, Key flip, Key last, int64_t ties, int64_t* out) {
  int64_t i = begin;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i last_all = _mm512_set1_epi32(static_cast<int>(last));
    const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    for (; i + 16 <= end; i += 16) {
      const __m512i keys = magnitude_keys(values + i, flip);
      uint16_t taken = _mm512_cmplt_epu32_mask(keys, last_all);
      for (uint16_t equal = _mm512_cmpeq_epu32_mask(keys, last_all); equal && ties > 0; --ties) {
        taken |= equal & -equal;
        equal &= equal - 1;
      }
      SK_UNROLL
      for (int half = 0; half < 2; ++half, taken >>= 8) {
        const uint8_t here = static_cast<uint8_t>(taken);
        const int count = __builtin_popcount(here);
        const __m512i places = _mm512_add_epi64(_mm512_set1_epi64(i + 8 * half), lanes);
        _mm512_mask_storeu_epi64(out, static_cast<uint8_t>((1u << count) - 1), _mm512_maskz_compress_epi64(here, places));
        out += count;
      }
    }
  }
#endif
  for (; i < end; ++i) {
    const Key key = magnitude_key(values[i]) ^ flip;
    const bool tied = key == last && ties > 0;
    if (key < last || tied) *out++ = i;
    ties -= tied;
  }
}

}  // namespace SK_ISA
}  // namespace sparsekern
