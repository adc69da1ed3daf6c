// Sorting out drawn rows. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/simd.h"
#include "topology/kernels.h"

namespace sparsekern {
namespace SK_ISA {

// So many rows of a column are compared pair by pair.
constexpr int kFewRows = 16;
constexpr int64_t kFewEdges = 4 * kFewRows;
constexpr int32_t kNoRow = 0x7fffffff;  // above every row

// A part of kFewRows rows.
typedef int32_t RowVec __attribute__((vector_size(SK_VECTOR_BYTES), may_alias));
constexpr int kRowLanes = SK_VECTOR_BYTES / 4, kRowParts = kFewRows / kRowLanes;

#if defined(__AVX512F__)
SK_INLINE uint16_t first_lanes(int64_t count) {
  return static_cast<uint16_t>(count < kFewRows ? (1u << count) - 1 : 0xffffu);
}
#endif
// The first `count` rows at p, or kFewRows of them, and `fill` in the place of those missing.
SK_INLINE void copy_rows(const int32_t* p, int64_t count, int32_t fill, int32_t* rows) {
#if defined(__AVX512F__)
  _mm512_store_si512(rows, _mm512_mask_loadu_epi32(_mm512_set1_epi32(fill), first_lanes(count), p));
#else
  for (int i = 0; i < kFewRows; ++i) rows[i] = i < count ? p[i] : fill;
#endif
}

// Makes the compiler read rows that it has just stored as a vector from memory: it would take them out of the vector one
// by one, which costs more.
SK_INLINE void settle(int32_t* rows) { asm("" : "+m"(*reinterpret_cast<int32_t(*)[kFewRows]>(rows))); }

#if defined(__AVX512F__)
// Sorted, by a bitonic network: lane i against lane i ^ distance, ascending where i has no bit of `run`.
template <int run, int distance>
SK_INLINE __m512i sort_step(__m512i v) {
  constexpr auto takes_larger = [] {
    uint32_t lanes = 0;
    for (int i = 0; i < 16; ++i) lanes |= uint32_t{((i & distance) != 0) != ((i & run) != 0)} << i;
    return static_cast<uint16_t>(lanes);
  }();
  __m512i other;
  if constexpr (distance == 1) other = _mm512_maskz_shuffle_epi32(0xffff, v, _MM_PERM_CDAB);
  else if constexpr (distance == 2) other = _mm512_maskz_shuffle_epi32(0xffff, v, _MM_PERM_BADC);
  else if constexpr (distance == 4) other = _mm512_maskz_shuffle_i32x4(0xffff, v, v, 0xb1);
  else other = _mm512_maskz_shuffle_i32x4(0xffff, v, v, 0x4e);
  return _mm512_mask_max_epi32(_mm512_maskz_min_epi32(0xffff, v, other), takes_larger, v, other);
}
template <int run>
SK_INLINE __m512i sort_runs(__m512i v) {
  if constexpr (run > 8) v = sort_step<run, 8>(v);
  if constexpr (run > 4) v = sort_step<run, 4>(v);
  if constexpr (run > 2) v = sort_step<run, 2>(v);
  return sort_step<run, 1>(v);
}

// At most kFewRows rows.
SK_INLINE int32_t sift_few(const int32_t* edges, int64_t edge_count, int32_t* drawn, int64_t count) {
  const __m512i none = _mm512_set1_epi32(kNoRow);
  __m512i rows = _mm512_mask_loadu_epi32(none, first_lanes(count), drawn);
  alignas(64) int32_t each[kFewRows];
  uint32_t known = 0;
  for (int64_t first = 0; first < edge_count; first += kFewRows) {
    copy_rows(edges + first, edge_count - first, -1, each);
    settle(each);
    SK_UNROLL
    for (int j = 0; j < kFewRows; ++j) known |= _mm512_cmpeq_epi32_mask(rows, _mm512_set1_epi32(each[j]));
  }
  rows = _mm512_mask_mov_epi32(rows, static_cast<uint16_t>(known), none);
  rows = sort_runs<16>(sort_runs<8>(sort_runs<4>(sort_runs<2>(rows))));
  const __m512i previous = _mm512_maskz_alignr_epi32(0xffff, rows, _mm512_set1_epi32(-1), 15);
  const uint16_t fresh = _mm512_cmpneq_epi32_mask(rows, previous) & _mm512_cmpneq_epi32_mask(rows, none);
  const int32_t size = __builtin_popcount(fresh);
  _mm512_mask_storeu_epi32(drawn, first_lanes(size), _mm512_maskz_compress_epi32(fresh, rows));
  return size;
}
#else
// At most kFewRows rows.
SK_INLINE int32_t sift_few(const int32_t* edges, int64_t edge_count, int32_t* drawn, int64_t count) {
  alignas(64) int32_t each[kFewRows], lane[kFewRows], places[kFewRows], sorted[kFewRows + 1];
  RowVec rows[kRowParts], known[kRowParts] = {}, before[kRowParts] = {};
  const auto for_parts = [](const auto& body) {
    SK_UNROLL
    for (int p = 0; p < kRowParts; ++p) body(p, p * kRowLanes);
  };
  copy_rows(drawn, count, kNoRow, each);
  for_parts([&](int p, int at) { rows[p] = *reinterpret_cast<RowVec*>(each + at); });
  for (int64_t first = 0; first < edge_count; first += kFewRows) {
    copy_rows(edges + first, edge_count - first, -1, each);
    settle(each);
    SK_UNROLL
    for (int j = 0; j < kFewRows; ++j) for_parts([&](int p, int) { known[p] |= rows[p] == RowVec{} + each[j]; });
  }
  SK_UNROLL
  for (int j = 0; j < kFewRows; ++j) lane[j] = j;
  for_parts([&](int p, int at) { *reinterpret_cast<RowVec*>(each + at) = rows[p]; });
  settle(each);
  SK_UNROLL
  for (int j = 0; j < kFewRows - 1; ++j)
    for_parts([&](int p, int at) {
      known[p] |= (rows[p] == RowVec{} + each[j]) & (*reinterpret_cast<RowVec*>(lane + at) > j);
    });
  for_parts([&](int p, int at) {
    rows[p] = (known[p] & kNoRow) | (~known[p] & rows[p]);
    *reinterpret_cast<RowVec*>(each + at) = rows[p];
  });
  settle(each);
  // Each row's place is the number of smaller ones. Those left out all fall on one place, behind the others.
  SK_UNROLL
  for (int j = 0; j < kFewRows; ++j) for_parts([&](int p, int) { before[p] -= rows[p] > RowVec{} + each[j]; });
  for_parts([&](int p, int at) { *reinterpret_cast<RowVec*>(places + at) = before[p]; });
  settle(places);
  int32_t size = 0;
  SK_UNROLL
  for (int i = 0; i < kFewRows; ++i) {
    sorted[places[i]] = each[i];
    size += each[i] != kNoRow;
  }
  for (int32_t i = 0; i < size; ++i) drawn[i] = sorted[i];
  return size;
}
#endif

SK_INLINE void set_bits(const int32_t* rows, int64_t count, uint64_t* words) {
  for (int64_t i = 0; i < count; ++i) words[rows[i] >> 6] |= uint64_t{1} << (rows[i] & 63);
}

SK_INLINE int32_t* write_bits(uint64_t bits, int64_t word, int32_t* out) {
  for (; bits; bits &= bits - 1) *out++ = static_cast<int32_t>(word * 64 + __builtin_ctzll(bits));
  return out;
}

// Write the rows, ascending, and empty the set; nothing is written from `limit` on. Return their end.
SK_INLINE int32_t* drain_bytes(const RowBits& set, int32_t* out, const int32_t* limit) {
  for (int64_t w = 0; w < set.words; ++w) {
    uint8_t* bytes = set.bytes + w * 64;
#if defined(__AVX512F__)
    const __m512i all = _mm512_loadu_si512(bytes);
    uint64_t bits = _mm512_test_epi8_mask(all, all);
    _mm512_storeu_si512(bytes, _mm512_setzero_si512());
    if (out + 64 + 16 <= limit) {
      const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      __m512i rows = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(w * 64)), lanes);
      SK_UNROLL
      for (int part = 0; part < 4; ++part, bits >>= 16) {
        _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<uint16_t>(bits), rows));
        out += __builtin_popcount(static_cast<uint16_t>(bits));
        rows = _mm512_add_epi32(rows, _mm512_set1_epi32(16));
      }
      continue;
    }
#else
    uint64_t bits = 0;
    for (int part = 0; part < 8; ++part) {
      uint64_t eight;
      __builtin_memcpy(&eight, bytes + 8 * part, sizeof eight);
      if (eight == 0) continue;
      for (int i = 0; i < 8; ++i) bits |= static_cast<uint64_t>(bytes[8 * part + i]) << (8 * part + i);
    }
    __builtin_memset(bytes, 0, 64);
    (void)limit;
#endif
    out = write_bits(bits, w, out);
  }
  return out;
}

// The same of a set of bits.
SK_INLINE int32_t* drain_all(const RowBits& set, int32_t* out) {
  uint64_t* const words = set.level[0];
  int64_t w = 0;
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  alignas(64) uint16_t parts[32];
  for (; w + 8 <= set.words; w += 8) {
    const __m512i bits = ~_mm512_loadu_si512(set.blocked + w) & _mm512_loadu_si512(words + w);
    _mm512_storeu_si512(words + w, _mm512_setzero_si512());
    _mm512_storeu_si512(set.blocked + w, _mm512_setzero_si512());
    _mm512_store_si512(parts, bits);
    for (uint32_t some = _mm512_test_epi16_mask(bits, bits); some; some &= some - 1) {
      const int i = __builtin_ctz(some);
      const __m512i rows = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(w * 64 + i * 16)), lanes);
      const int count = __builtin_popcount(parts[i]);
      _mm512_mask_storeu_epi32(out, static_cast<uint16_t>((1u << count) - 1), _mm512_maskz_compress_epi32(parts[i], rows));
      out += count;
    }
  }
#endif
  for (; w < set.words; ++w) {
    const uint64_t bits = words[w] & ~set.blocked[w];
    words[w] = 0;
    set.blocked[w] = 0;
    out = write_bits(bits, w, out);
  }
  return out;
}

inline int32_t* drain(const RowBits& set, int level, int64_t word, int32_t* out) {
  uint64_t bits = set.level[level][word];
  set.level[level][word] = 0;
  if (level == 0) return write_bits(bits & ~set.blocked[word], word, out);
  for (; bits; bits &= bits - 1) out = drain(set, level - 1, word * 64 + __builtin_ctzll(bits), out);
  return out;
}

SK_INLINE int32_t sift_many(const RowBits& set, const int32_t* edges, int64_t edge_count, int32_t* drawn, int64_t count) {
  if (count >= 2 * set.words) {
    for (int64_t i = 0; i < count; ++i) set.bytes[drawn[i]] = 1;
    for (int64_t i = 0; i < edge_count; ++i) set.bytes[edges[i]] = 0;
    return static_cast<int32_t>(drain_bytes(set, drawn, drawn + count) - drawn);
  }
  set_bits(edges, edge_count, set.blocked);
  set_bits(drawn, count, set.level[0]);
  if (count * 4 >= set.words) return static_cast<int32_t>(drain_all(set, drawn) - drawn);
  for (int level = 1; level < set.levels; ++level) {
    const int shift = 6 * level;
    for (int64_t i = 0; i < count; ++i)
      set.level[level][drawn[i] >> shift >> 6] |= uint64_t{1} << (drawn[i] >> shift & 63);
  }
  int32_t* const end = drain(set, set.levels - 1, 0, drawn);
  for (int64_t i = 0; i < edge_count; ++i) set.blocked[edges[i] >> 6] = 0;
  return static_cast<int32_t>(end - drawn);
}

inline void sift(const SiftTask& t) {
  for (int64_t c = 0; c < t.columns; ++c) {
    const int32_t* edges = t.edges + t.edges_at[c];
    int32_t* drawn = t.drawn + t.drawn_at[c];
    const int64_t edge_count = t.edges_at[c + 1] - t.edges_at[c], count = t.drawn_at[c + 1] - t.drawn_at[c];
    t.sizes[c] = count <= kFewRows && edge_count <= kFewEdges ? sift_few(edges, edge_count, drawn, count)
                                                              : sift_many(t.bits, edges, edge_count, drawn, count);
  }
}

}  // namespace SK_ISA
}  // namespace sparsekern
