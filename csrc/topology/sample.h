// Uniform random edges of a given number.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "topology/keys.h"
#include "topology/random.h"

namespace sparsekern {

// Collects `count` distinct keys, sorted, in `found`: draws exactly the missing number (while the budget lasts), sorts,
// leaves out what is unwanted or there already, and again. Returns how many were found. draw(keys, n) writes n keys;
// filter(keys, n) moves the wanted ones of n ascending keys to the front and returns how many they are.
template <class Draw, class Filter>
int64_t collect_keys(uint64_t* found, int64_t count, uint64_t bound, int64_t budget, const Draw& draw,
                     const Filter& filter) {
  int64_t size = 0;
  while (size < count && budget > 0) {
    const int64_t drawn = std::min(count - size, budget);
    uint64_t* fresh = size == 0 ? found : Scratch::of_this_thread().get<uint64_t>(kFreshSlot, drawn);
    budget -= drawn;
    draw(fresh, drawn);
    sort_keys(fresh, drawn, bound);
    const int64_t wanted = filter(fresh, std::unique(fresh, fresh + drawn) - fresh);
    size = fresh == found ? wanted : add_keys(found, size, fresh, wanted);
  }
  return size;
}

// `count` distinct numbers below `bound`, ascending, every such set equally likely: a set of distinct values collected
// one by one is uniform, and no round can give too many.
inline void distinct_below(Random& random, uint64_t bound, int64_t count, uint64_t* keys) {
  const auto collect = [&](uint64_t* found, int64_t wanted) {
    const auto draw = [&](uint64_t* drawn, int64_t size) {
      for (int64_t i = 0; i < size; ++i) drawn[i] = random.below(bound);
    };
    const auto keep_all = [](uint64_t*, int64_t size) { return size; };
    collect_keys(found, wanted, bound, std::numeric_limits<int64_t>::max(), draw, keep_all);
  };
  if (static_cast<uint64_t>(count) <= bound / 2) return collect(keys, count);
  // What is left out is the smaller part: draw that.
  const int64_t left = static_cast<int64_t>(bound - count);
  uint64_t* left_out = Scratch::of_this_thread().get<uint64_t>(kLeftOutSlot, left);
  collect(left_out, left);
  const uint64_t* next_out = left_out;
  for (uint64_t key = 0; key < bound; ++key) {
    if (next_out != left_out + left && *next_out == key)
      ++next_out;
    else
      *keys++ = key;
  }
}

// `count` distinct edges that are not in the matrix (at most as many as there are), every set of them equally likely:
// ranks among the inactive edges are drawn, then walked past the active ones. Returns how many.
template <class P>
int64_t inactive_edges(Random& random, const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols,
                       int64_t count, uint64_t* keys) {
  const int64_t nnz = ccol[n_cols];
  const uint64_t inactive = static_cast<uint64_t>(n_rows) * n_cols - nnz;
  count = static_cast<int64_t>(std::min<uint64_t>(count, inactive));
  distinct_below(random, inactive, count, keys);
  int64_t k = 0;
  int64_t c = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (; k < nnz; ++k) {
      while (ccol[c + 1] <= k) ++c;
      if (static_cast<uint64_t>(c) * n_rows + row[k] > keys[i] + k) break;
    }
    keys[i] += k;
  }
  return count;
}

}  // namespace sparsekern
