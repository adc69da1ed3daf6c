// Edges as sorted keys: key = column * rows + row, so that ascending keys are the stored (column-major) order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "scratch.h"
#include "search.h"

namespace sparsekern {

// Blocks of the calling thread's scratch that topology uses.
enum ScratchSlot : size_t { kSortSlot, kFreshSlot, kLeftOutSlot, kDrawnSlot, kRedrawnSlot, kKeysSlot, kSignsSlot, kTapSumsSlot };

// Sorts keys that are all below `bound`: least significant digit first, one pass for each digit that `bound` needs,
// so the time grows linearly with the count.
inline void sort_keys(uint64_t* keys, int64_t count, uint64_t bound) {
  constexpr int kMaxDigit = 11;  // 2048 counters and write streams stay in the first-level cache
  constexpr int kMaxPasses = 6;
  constexpr int64_t kSmall = 256;
  if (std::is_sorted(keys, keys + count)) return;
  if (count <= kSmall) {
    std::sort(keys, keys + count);
    return;
  }
  int bits = 1;
  while (bits < 64 && (bound - 1) >> bits) ++bits;
  const int passes = (bits + kMaxDigit - 1) / kMaxDigit;
  const int digit = (bits + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << digit) - 1;
  int64_t next[kMaxPasses][1 << kMaxDigit] = {};
  for (int64_t i = 0; i < count; ++i)
    for (int pass = 0; pass < passes; ++pass) ++next[pass][keys[i] >> pass * digit & mask];
  uint64_t* from = keys;
  uint64_t* to = Scratch::of_this_thread().get<uint64_t>(kSortSlot, count);
  for (int pass = 0; pass < passes; ++pass) {
    int64_t total = 0;
    for (uint64_t d = 0; d <= mask; ++d) total += std::exchange(next[pass][d], total);
    for (int64_t i = 0; i < count; ++i) to[next[pass][from[i] >> pass * digit & mask]++] = from[i];
    std::swap(from, to);
  }
  if (from != keys) std::copy(from, from + count, keys);
}

// Adds keys to `found`, both sorted and distinct, in place; returns the new size. `fresh` is left undefined.
inline int64_t add_keys(uint64_t* found, int64_t size, uint64_t* fresh, int64_t count) {
  const uint64_t* seen = found;
  const auto is_found = [&](uint64_t key) {
    seen = std::lower_bound(seen, static_cast<const uint64_t*>(found + size), key);
    return seen != found + size && *seen == key;
  };
  count = std::remove_if(fresh, fresh + count, std::ref(is_found)) - fresh;
  int64_t out = size + count;
  const int64_t new_size = out;
  while (count > 0) {
    if (size > 0 && found[size - 1] > fresh[count - 1])
      found[--out] = found[--size];
    else
      found[--out] = fresh[--count];
  }
  return new_size;
}

// Keys of edges in any order; the position of the first row or column out of range, or -1.
template <class I>
int64_t pack_keys(const I* rows, const I* cols, int64_t count, int64_t n_rows, int64_t n_cols, uint64_t* keys) {
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= n_rows || cols[i] < 0 || cols[i] >= n_cols) return i;
    keys[i] = static_cast<uint64_t>(cols[i]) * n_rows + rows[i];
  }
  return -1;
}

// Sorted keys below n_rows * n_cols to CSC; the position of the first key that repeats the one before, or -1.
template <class P>
int64_t unpack_keys(const uint64_t* keys, int64_t count, int64_t n_rows, int64_t n_cols, P* ccol, int32_t* row) {
  int64_t col = -1;  // the column whose keys are being read; ccol[0..col] is written
  uint64_t col_end = 0;
  uint64_t col_start = 0;
  int64_t repeated = -1;
  for (int64_t i = 0; i < count; ++i) {
    while (keys[i] >= col_end) {
      ccol[++col] = static_cast<P>(i);
      col_start = col_end;
      col_end += n_rows;
    }
    if (repeated < 0 && i > 0 && keys[i] == keys[i - 1]) repeated = i;
    row[i] = static_cast<int32_t>(keys[i] - col_start);
  }
  while (col < n_cols) ccol[++col] = static_cast<P>(count);
  return repeated;
}

}  // namespace sparsekern
