// Replacing edges: the stored arrays without the pruned edges and with the grown ones, in one merge.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "parallel.h"

namespace sparsekern {

// pruned: `count` slots, strictly ascending, in [0, nnz). grown: as many keys (see keys.h), strictly ascending, of
// edges that are in the matrix neither before nor after the pruning. source[k]: the old slot of the edge that is now
// in slot k, -1 where it is new. Returns the position in `grown` of an edge that is in the matrix already (the new
// arrays are then unusable), or -1.
template <class P>
int64_t replace_edges(const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, int64_t nnz,
                      const int64_t* pruned, const uint64_t* grown, int64_t count, P* new_ccol, int32_t* new_row,
                      int64_t* source) {
  constexpr int64_t kGrain = 1 << 16;  // columns that are worth a thread
  std::atomic<int64_t> present{count};
  parallel_ranges(n_cols, kGrain, [&](int64_t first_col, int64_t last_col) {
    int64_t p = std::lower_bound(pruned, pruned + count, static_cast<int64_t>(ccol[first_col])) - pruned;
    int64_t g = std::lower_bound(grown, grown + count, static_cast<uint64_t>(first_col) * n_rows) - grown;
    int64_t out = ccol[first_col] - p + g;
    for (int64_t c = first_col; c < last_col; ++c) {
      new_ccol[c] = static_cast<P>(out);
      const uint64_t col_start = static_cast<uint64_t>(c) * n_rows;
      const uint64_t col_end = col_start + n_rows;
      int64_t k = ccol[c];
      const int64_t end = ccol[c + 1];
      while (true) {
        const bool grows = g < count && grown[g] < col_end;
        const int64_t grown_row = grows ? static_cast<int64_t>(grown[g] - col_start) : n_rows;
        if (k < end && row[k] <= grown_row) {
          if (row[k] == grown_row) {
            int64_t known = present.load();
            while (g < known && !present.compare_exchange_weak(known, g)) {
            }
            return;
          }
          if (p < count && pruned[p] == k) {
            ++p;
          } else {
            new_row[out] = row[k];
            source[out++] = k;
          }
          ++k;
        } else if (grows) {
          new_row[out] = static_cast<int32_t>(grown_row);
          source[out++] = -1;
          ++g;
        } else {
          break;
        }
      }
    }
  });
  new_ccol[n_cols] = static_cast<P>(nnz);
  return present.load() < count ? present.load() : -1;
}

}  // namespace sparsekern
