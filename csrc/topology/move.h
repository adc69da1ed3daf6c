// Values whose edges go or come, by marks. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/simd.h"
#include "topology/kernels.h"

namespace sparsekern {
namespace SK_ISA {

inline int64_t count_marks(const uint64_t* marks, int64_t begin, int64_t end) {
  if (begin >= end) return 0;
  const int64_t first = begin / 64, last = (end - 1) / 64;
  const uint64_t from_begin = ~uint64_t{0} << (begin & 63), to_end = ~uint64_t{0} >> (63 - ((end - 1) & 63));
  if (first == last) return __builtin_popcountll(marks[first] & from_begin & to_end);
  int64_t count = __builtin_popcountll(marks[first] & from_begin) + __builtin_popcountll(marks[last] & to_end);
  for (int64_t w = first + 1; w < last; ++w) count += __builtin_popcountll(marks[w]);
  return count;
}

SK_INLINE bool is_marked(const uint64_t* marks, int64_t i) { return marks[i / 64] >> (i & 63) & 1; }

#if defined(__AVX512F__)
// Vectors of kMoveStep values, 8 of 64 bits, else 16; those of 16 bits are widened.
template <class Word>
constexpr int kMoveStep = sizeof(Word) == 8 ? 8 : 16;

SK_INLINE __m512i load_words_of(const uint16_t* p) {
  return _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SK_INLINE __m512i load_words_of(const uint32_t* p) { return _mm512_loadu_si512(p); }
SK_INLINE __m512i load_words_of(const uint64_t* p) { return _mm512_loadu_si512(p); }
SK_INLINE void store_words_of(uint16_t* p, __m512i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, v));
}
SK_INLINE void store_words_of(uint32_t* p, __m512i v) { _mm512_storeu_si512(p, v); }
SK_INLINE void store_words_of(uint64_t* p, __m512i v) { _mm512_storeu_si512(p, v); }
template <class Word>
SK_INLINE __m512i squeezed(uint32_t lanes, __m512i v) {
  if constexpr (sizeof(Word) == 8) return _mm512_maskz_compress_epi64(static_cast<uint8_t>(lanes), v);
  else return _mm512_maskz_compress_epi32(static_cast<uint16_t>(lanes), v);
}
template <class Word>
SK_INLINE __m512i spread_out(uint32_t lanes, __m512i v) {
  if constexpr (sizeof(Word) == 8) return _mm512_maskz_expand_epi64(static_cast<uint8_t>(lanes), v);
  else return _mm512_maskz_expand_epi32(static_cast<uint16_t>(lanes), v);
}
#endif

template <class Word>
void squeeze(const Word* values, const uint64_t* marks, bool marked, int64_t begin, int64_t end, Word* out,
             const Word* out_end) {
  const uint64_t flip = marked ? 0 : ~uint64_t{0};
  int64_t i = begin;
  const auto one = [&] {
    if (is_marked(marks, i) == marked) *out++ = values[i];
    ++i;
  };
#if defined(__AVX512F__)
  constexpr int kStep = kMoveStep<Word>;
  constexpr uint32_t kAll = (1u << kStep) - 1;
  while (i < end && i % 64) one();
  // Whole vectors are written: what lies behind is overwritten next.
  for (; i + 64 <= end && out + 64 + kStep <= out_end; i += 64) {
    uint64_t taken = marks[i / 64] ^ flip;
    SK_UNROLL
    for (int j = 0; j < 64; j += kStep, taken >>= kStep % 64) {
      const uint32_t lanes = static_cast<uint32_t>(taken) & kAll;
      store_words_of(out, squeezed<Word>(lanes, load_words_of(values + i + j)));
      out += __builtin_popcount(lanes);
    }
  }
#else
  (void)out_end;
  (void)flip;
#endif
  while (i < end) one();
}

template <class Word>
void spread(const Word* kept, const Word* grown, const uint64_t* marks, int64_t begin, int64_t end, Word* values) {
  int64_t i = begin;
#if defined(__AVX512F__)
  constexpr int kStep = kMoveStep<Word>;
  constexpr uint32_t kAll = (1u << kStep) - 1;
  for (; i + 64 <= end; i += 64) {
    uint64_t word = marks[i / 64];
    SK_UNROLL
    for (int j = 0; j < 64; j += kStep, word >>= kStep % 64) {
      const uint32_t fresh = static_cast<uint32_t>(word) & kAll, lanes = fresh ^ kAll;
      __m512i v = spread_out<Word>(lanes, load_words_of(kept));
      kept += __builtin_popcount(lanes);
      if (grown) {
        v |= spread_out<Word>(fresh, load_words_of(grown));
        grown += __builtin_popcount(fresh);
      }
      store_words_of(values + i + j, v);
    }
  }
#endif
  for (; i < end; ++i) {
    if (!is_marked(marks, i)) values[i] = *kept++;
    else values[i] = grown ? *grown++ : Word{0};
  }
}

// How many of ascending rows at `rows`, at most kMovePadding, are below `bound` before the first that is not.
SK_INLINE int64_t first_rows_below(const int32_t* rows, int32_t bound) {
#if defined(__AVX512F__)
  static_assert(kMovePadding == 16, "rows of a vector");
  const uint32_t below = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(rows), _mm512_set1_epi32(bound));
  return __builtin_ctz(~below);
#else
  int64_t count = 0;
  while (count < kMovePadding && rows[count] < bound) ++count;
  return count;
#endif
}

template <class P>
void place_grown(const PlaceTask<P>& t) {
  int64_t kept = t.kept_begin, g = t.grown_begin, word = 0;
  uint64_t bits = 0;
  // Tasks may share a word.
  const auto flush = [&] {
    if (bits) __atomic_fetch_or(t.grown + word, bits, __ATOMIC_RELAXED);
  };
  for (int64_t c = t.first; c < t.last; ++c) {
    t.new_ccol[c] = static_cast<P>(kept + g);
    const int64_t begin = t.ccol[c], end = t.ccol[c + 1];
    const int64_t kept_end = kept + (end - begin) - count_marks(t.pruned, begin, end);
    const int64_t grown_end = g + count_marks(t.chosen, t.grown_ccol[c], t.grown_ccol[c + 1]);
    for (int64_t i = kept; g < grown_end; ++g) {
      const int32_t row = t.grown_rows[g];
      while (true) {
        const int64_t below = first_rows_below(t.kept_rows + i, row);
        i += below;
        if (below < kMovePadding || i >= kept_end) break;
      }
      if (i > kept_end) i = kept_end;  // what lies behind are other columns' rows
      const int64_t slot = i + g;
      if (slot / 64 != word) {
        flush();
        word = slot / 64;
        bits = 0;
      }
      bits |= uint64_t{1} << (slot & 63);
    }
    kept = kept_end;
  }
  flush();
}

}  // namespace SK_ISA
}  // namespace sparsekern
