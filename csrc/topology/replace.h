// Replacing edges: the stored arrays without the pruned edges and with the grown ones, in one merge.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "isa/isa.h"
#include "parallel.h"
#include "topology/keys.h"

namespace sparsekern {

constexpr int64_t kReplaceGrain = 1 << 15;  // edges that are worth a thread

// Columns [column(task), column(task + 1)) hold about as many edges for each task.
template <class P>
int64_t first_column(const P* ccol, int64_t n_cols, int64_t task, int64_t tasks) {
  if (task == 0) return 0;
  if (task == tasks) return n_cols;
  return std::lower_bound(ccol, ccol + n_cols, static_cast<P>(int64_t{ccol[n_cols]} * task / tasks)) - ccol;
}

// Edges to put in: those at the `count` ascending places of a CSC pair.
template <class P>
struct Grown {
  const P* ccol;
  const int32_t* row;
  const int64_t* places;
  int64_t count;
};

// The number of the first grown edge that is in the matrix already, or -1.
template <class P>
int64_t first_present(const P* ccol, const int32_t* row, int64_t n_cols, const Grown<P>& grown) {
  int64_t c = 0;
  for (int64_t g = 0; g < grown.count; ++g) {
    while (c < n_cols && grown.ccol[c + 1] <= grown.places[g]) ++c;
    if (std::binary_search(row + ccol[c], row + ccol[c + 1], grown.row[grown.places[g]])) return g;
  }
  return -1;
}

inline void merge_columns(const MergeTask<int32_t>& task) { active_isa().topology.merge_i32(task); }
inline void merge_columns(const MergeTask<int64_t>& task) { active_isa().topology.merge_i64(task); }

// pruned: as many slots as edges grow, strictly ascending, in [0, nnz). No grown edge is in the matrix yet.
// source[k]: the old slot of the edge that is now in slot k, -1 where it is new.
template <class P>
void replace_edges(const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, const int64_t* pruned,
                      const Grown<P>& grown, P* new_ccol, int32_t* new_row, P* source) {
  const int64_t nnz = ccol[n_cols];
  const int64_t count = grown.count;
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), nnz / kReplaceGrain));
  struct Start {
    int64_t column, pruned, grown, out;
  };
  const auto start = [&](int64_t task) {
    const int64_t c = first_column(ccol, n_cols, task, tasks);
    const int64_t p = std::lower_bound(pruned, pruned + count, int64_t{ccol[c]}) - pruned;
    const int64_t g = std::lower_bound(grown.places, grown.places + count, int64_t{grown.ccol[c]}) - grown.places;
    return Start{c, p, g, ccol[c] - p + g};
  };
  parallel_tasks(tasks, [&](int64_t task) {
    const Start begin = start(task), end = start(task + 1);
    const size_t memory = n_rows + 2 * MergeMemory<P>::kPadding;
    std::vector<int32_t> rows(memory);
    std::vector<P> slots(memory);
    merge_columns(MergeTask<P>{ccol, row, nnz, begin.column, end.column, pruned, grown.ccol, grown.row, grown.places,
                               count, begin.pruned, begin.grown, new_ccol, new_row, source, begin.out, end.out,
                               {rows.data(), slots.data()}});
  });
  new_ccol[n_cols] = static_cast<P>(nnz);
}

// Moves `size` values of `Word` in place: slot k gets the value that slot source[k] had, zero where that is -1.
template <class P, class Word>
void move_values(const P* source, int64_t size, Word* values) {
  constexpr int64_t kGrain = 1 << 16;
  Word* before = Scratch::of_this_thread().get<Word>(kSortSlot, size + 1);
  before[0] = 0;  // what a new edge's source names
  parallel_ranges(size, kGrain, [&](int64_t begin, int64_t end) {
    std::memcpy(before + 1 + begin, values + begin, (end - begin) * sizeof(Word));
  });
  parallel_ranges(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) values[k] = before[source[k] + 1];
  });
}

}  // namespace sparsekern
