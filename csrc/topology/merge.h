// Columns without their pruned edges and with grown ones. Compiled once per instruction set; nothing here may come from
// std::.
#pragma once

#include "isa/simd.h"
#include "topology/kernels.h"

namespace sparsekern {
namespace SK_ISA {

constexpr int64_t kMergeStep = MergeMemory<int32_t>::kPadding;

// How many of the kMergeStep ascending rows are below `bound`.
SK_INLINE int64_t count_below(const int32_t* rows, int32_t bound) {
#if defined(__AVX512F__)
  static_assert(kMergeStep == 16, "rows of a vector");
  return __builtin_popcount(_mm512_cmplt_epi32_mask(_mm512_loadu_si512(rows), _mm512_set1_epi32(bound)));
#else
  int32_t below = 0;
  for (int64_t i = 0; i < kMergeStep; ++i) below += rows[i] < bound;
  return below;
#endif
}

// The memory's kept edges [i, i + count) to the result from `out` on, count <= kMergeStep. A whole step is written where it
// fits: what lies behind is overwritten next.
template <class P>
SK_INLINE void put(const MergeTask<P>& t, int64_t i, int64_t count, int64_t out) {
  const int32_t* rows = t.memory.rows + i;
  const P* slots = t.memory.slots + i;
  int32_t* to_rows = t.new_row + out;
  P* to_slots = t.source + out;
  if (out + kMergeStep <= t.out_end) {
    __builtin_memcpy(to_rows, rows, kMergeStep * sizeof *rows);
    __builtin_memcpy(to_slots, slots, kMergeStep * sizeof *slots);
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    to_rows[j] = rows[j];
    to_slots[j] = slots[j];
  }
}

// The edges [begin, end) to the memory's kept ones. Whole steps are written: what lies behind is overwritten next.
template <class P>
SK_INLINE int64_t keep(const MergeTask<P>& t, int64_t begin, int64_t end, int64_t kept) {
  int32_t* rows = t.memory.rows + kept;
  P* slots = t.memory.slots + kept;
  const int64_t size = end - begin;
  for (int64_t done = 0; done < size; done += kMergeStep) {
    const int64_t from = begin + done;
    if (from + kMergeStep <= t.nnz) {
      __builtin_memcpy(rows + done, t.row + from, kMergeStep * sizeof *rows);
      for (int64_t i = 0; i < kMergeStep; ++i) slots[done + i] = static_cast<P>(from + i);
    } else {
      for (int64_t i = 0; from + i < end && i < kMergeStep; ++i) {
        rows[done + i] = t.row[from + i];
        slots[done + i] = static_cast<P>(from + i);
      }
    }
  }
  return kept + size;
}

template <class P>
void merge_columns(const MergeTask<P>& t) {
  const int32_t* rows = t.memory.rows;
  int64_t p = t.pruned_begin, g = t.grown_begin, out = t.out_begin;
  for (int64_t c = t.first; c < t.last; ++c) {
    t.new_ccol[c] = static_cast<P>(out);
    int64_t kept = 0, k = t.ccol[c];
    const int64_t end = t.ccol[c + 1], grown_end = t.grown_ccol[c + 1];
    for (; p < t.count && t.pruned[p] < end; ++p) {
      kept = keep(t, k, t.pruned[p], kept);
      k = t.pruned[p] + 1;
    }
    kept = keep(t, k, end, kept);
    for (int64_t i = 0; i < kMergeStep; ++i) t.memory.rows[kept + i] = 0x7fffffff;  // above every row
    int64_t i = 0;
    for (; g < t.count && t.places[g] < grown_end; ++g) {
      const int32_t grown = t.grown_row[t.places[g]];
      while (true) {
        const int64_t before = count_below(rows + i, grown);
        put(t, i, before, out);
        out += before;
        i += before;
        if (before < kMergeStep) break;
      }
      t.new_row[out] = grown;
      t.source[out++] = P{-1};
    }
    for (; i < kept; i += kMergeStep) {
      const int64_t here = kept - i < kMergeStep ? kept - i : kMergeStep;
      put(t, i, here, out);
      out += here;
    }
  }
}

}  // namespace SK_ISA
}  // namespace sparsekern
