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
void mark_up_to(const T* values, int64_t begin, int64_t end, Key flip, Key last, int64_t ties, uint64_t* marks) {
  int64_t i = begin;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i last_all = _mm512_set1_epi32(static_cast<int>(last));
    for (; i + 64 <= end; i += 64) {
      uint64_t taken = 0, equal = 0;
      SK_UNROLL
      for (int part = 0; part < 4; ++part) {
        const __m512i keys = magnitude_keys(values + i + 16 * part, flip);
        taken |= uint64_t{_mm512_cmplt_epu32_mask(keys, last_all)} << 16 * part;
        equal |= uint64_t{_mm512_cmpeq_epu32_mask(keys, last_all)} << 16 * part;
      }
      for (; equal && ties > 0; equal &= equal - 1, --ties) taken |= equal & -equal;
      marks[i / 64] = taken;
    }
  }
#endif
  for (; i < end; i += 64) {
    uint64_t taken = 0;
    for (int64_t j = 0; j < 64 && i + j < end; ++j) {
      const Key key = magnitude_key(values[i + j]) ^ flip;
      const bool tied = key == last && ties > 0;
      ties -= tied;
      taken |= static_cast<uint64_t>(key < last || tied) << j;
    }
    marks[i / 64] = taken;
  }
}

}  // namespace SK_ISA
}  // namespace sparsekern
