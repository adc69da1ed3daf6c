// Replacing edges: the stored arrays without the pruned edges and with the grown ones, and values that follow their edges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa/isa.h"
#include "parallel.h"
#include "topology/keys.h"
#include "topology/marks.h"

namespace sparsekern {

constexpr int64_t kReplaceGrain = 1 << 15;  // edges that are worth a thread

// Columns [column(task), column(task + 1)) hold about as many edges for each task.
template <class P>
int64_t first_column(const P* ccol, int64_t n_cols, int64_t task, int64_t tasks) {
  if (task == 0) return 0;
  if (task == tasks) return n_cols;
  return std::lower_bound(ccol, ccol + n_cols, static_cast<P>(int64_t{ccol[n_cols]} * task / tasks)) - ccol;
}

// Columns and rows of edges.
template <class P>
struct Edges {
  const P* ccol;
  const int32_t* row;
};

// The number of the first grown edge that is in the matrix already, or -1.
template <class P>
int64_t first_present(const Edges<P>& matrix, int64_t n_cols, const Edges<P>& grown) {
  for (int64_t c = 0; c < n_cols; ++c)
    for (int64_t g = grown.ccol[c]; g < grown.ccol[c + 1]; ++g)
      if (std::binary_search(matrix.row + matrix.ccol[c], matrix.row + matrix.ccol[c + 1], grown.row[g])) return g;
  return -1;
}

inline const MoveKernels<uint16_t>& move_kernels(uint16_t) { return active_isa().topology.move_16; }
inline const MoveKernels<uint32_t>& move_kernels(uint32_t) { return active_isa().topology.move_32; }
inline const MoveKernels<uint64_t>& move_kernels(uint64_t) { return active_isa().topology.move_64; }
inline void place_grown(const PlaceTask<int32_t>& task) { active_isa().topology.place_i32(task); }
inline void place_grown(const PlaceTask<int64_t>& task) { active_isa().topology.place_i64(task); }

// Takes the edges marked in `pruned` out of the matrix and puts the `count` that are marked in `chosen` of the candidates
// in, as many, none of them in the matrix. `row` is rewritten in place, the columns in `new_ccol`; `grown` gets the marks
// of the new edges' slots.
template <class P>
void replace_edges(const P* ccol, int32_t* row, int64_t n_cols, const uint64_t* pruned, const Edges<P>& candidates,
                   const uint64_t* chosen, int64_t count, P* new_ccol, uint64_t* grown) {
  const int64_t nnz = ccol[n_cols];
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), nnz / kReplaceGrain));
  const auto& topology = active_isa().topology;
  const auto& kernels = move_kernels(uint32_t{});
  const auto words = [](const int32_t* rows) { return reinterpret_cast<const uint32_t*>(rows); };
  int32_t* kept_rows = Scratch::of_this_thread().get<int32_t>(kSortSlot, nnz - count + kMovePadding);
  int32_t* grown_rows = Scratch::of_this_thread().get<int32_t>(kFreshSlot, count + kMovePadding);
  struct Start {
    int64_t column, kept, grown;
  };
  std::vector<Start> starts(tasks + 1);
  for (int64_t t = 0; t <= tasks; ++t) starts[t].column = first_column(ccol, n_cols, t, tasks);
  parallel_tasks(tasks, [&](int64_t t) {
    const int64_t first = starts[t].column, last = starts[t + 1].column;
    starts[t + 1].kept = ccol[last] - ccol[first] - topology.count_marks(pruned, ccol[first], ccol[last]);
    starts[t + 1].grown = topology.count_marks(chosen, candidates.ccol[first], candidates.ccol[last]);
  });
  starts[0].kept = starts[0].grown = 0;
  for (int64_t t = 0; t < tasks; ++t) {
    starts[t + 1].kept += starts[t].kept;
    starts[t + 1].grown += starts[t].grown;
  }
  std::fill(grown, grown + words_of(nnz), uint64_t{0});
  parallel_tasks(tasks, [&](int64_t t) {
    const Start &begin = starts[t], &end = starts[t + 1];
    const auto squeeze = [&](const Edges<P>& from, const uint64_t* marks, bool marked, int32_t* to, int64_t first,
                             int64_t last) {
      kernels.squeeze(words(from.row), marks, marked, from.ccol[begin.column], from.ccol[end.column],
                      reinterpret_cast<uint32_t*>(to + first), words(to + last));
    };
    squeeze({ccol, row}, pruned, false, kept_rows, begin.kept, end.kept);
    squeeze(candidates, chosen, true, grown_rows, begin.grown, end.grown);
  });
  // The last comparison of rows looks at some more.
  std::fill_n(kept_rows + (nnz - count), kMovePadding, 0);
  parallel_tasks(tasks, [&](int64_t t) {
    place_grown(PlaceTask<P>{ccol, pruned, candidates.ccol, chosen, kept_rows, grown_rows, starts[t].column,
                             starts[t + 1].column, starts[t].kept, starts[t].grown, new_ccol, grown});
  });
  new_ccol[n_cols] = static_cast<P>(nnz);
  marked_ranges(grown, nnz, [&](int64_t begin, int64_t end, int64_t before, int64_t) {
    kernels.spread(words(kept_rows + begin - before), words(grown_rows + before), grown, begin, end,
                   reinterpret_cast<uint32_t*>(row));
  });
}

// Moves `size` values in place as replace_edges moved their edges; a new edge gets zero.
template <class Word>
void move_values(const uint64_t* pruned, const uint64_t* grown, int64_t size, Word* values) {
  const auto& kernels = move_kernels(Word{});
  Word* kept = Scratch::of_this_thread().get<Word>(kSortSlot, size + kMovePadding);
  marked_ranges(pruned, size, [&](int64_t begin, int64_t end, int64_t before, int64_t before_end) {
    kernels.squeeze(values, pruned, false, begin, end, kept + begin - before, kept + end - before_end);
  });
  marked_ranges(grown, size, [&](int64_t begin, int64_t end, int64_t before, int64_t) {
    kernels.spread(kept + begin - before, nullptr, grown, begin, end, values);
  });
}

}  // namespace sparsekern
