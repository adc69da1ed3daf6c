// From the stored CSC arrays to CSR and the permutation between them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "parallel.h"
#include "topology/keys.h"

namespace sparsekern {

// A stable counting sort by row, so columns come out ascending within each row. First the edges are dealt to blocks of
// rows, each task dealing a contiguous part of the columns; then each block is sorted by itself, in cache. The result
// does not depend on the number of threads.
template <class P>
void transpose(const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, int64_t nnz, P* crow, int32_t* col,
               P* permutation) {
  struct Edge {
    int32_t row, col;
    P slot;
  };
  constexpr int kSmallBlock = 12;        // rows of a block, as a power of two: its counters fit the first-level cache
  constexpr int64_t kMostBlocks = 1024;  // write streams of the dealing
  constexpr int64_t kGrain = 1 << 18;    // edges that are worth a thread
  int shift = kSmallBlock;
  while (n_rows >> shift >= kMostBlocks) ++shift;
  const int64_t blocks = (n_rows >> shift) + 1;
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), nnz / kGrain));
  const auto first_col = [&](int64_t task) -> int64_t {
    if (task == 0) return 0;
    if (task == tasks) return n_cols;
    return std::lower_bound(ccol, ccol + n_cols, static_cast<P>(nnz * task / tasks)) - ccol;
  };

  std::unique_ptr<int64_t[]> next(new int64_t[tasks * blocks]());
  parallel_tasks(tasks, [&](int64_t task) {
    int64_t* count = next.get() + task * blocks;
    const int64_t end = ccol[first_col(task + 1)];
    for (int64_t k = ccol[first_col(task)]; k < end; ++k) ++count[row[k] >> shift];
  });
  std::unique_ptr<int64_t[]> block_start(new int64_t[blocks + 1]);
  int64_t total = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    block_start[block] = total;
    for (int64_t task = 0; task < tasks; ++task) {
      int64_t& count = next[task * blocks + block];
      const int64_t start = total;
      total += count;
      count = start;
    }
  }
  block_start[blocks] = total;

  Edge* edges = Scratch::of_this_thread().get<Edge>(kSortSlot, nnz);
  parallel_tasks(tasks, [&](int64_t task) {
    int64_t* place = next.get() + task * blocks;
    const int64_t end = first_col(task + 1);
    for (int64_t c = first_col(task); c < end; ++c) {
      for (int64_t k = ccol[c]; k < ccol[c + 1]; ++k)
        edges[place[row[k] >> shift]++] = {row[k], static_cast<int32_t>(c), static_cast<P>(k)};
    }
  });

  const auto sort_block = [&](int64_t block) {
    const Edge* begin = edges + block_start[block];
    const Edge* end = edges + block_start[block + 1];
    const int64_t first_row = block << shift;
    const int64_t rows = std::min(n_rows - first_row, int64_t{1} << shift);
    P* place = crow + first_row;
    std::fill(place, place + rows, P{0});
    for (const Edge* edge = begin; edge != end; ++edge) ++place[edge->row - first_row];
    P start = static_cast<P>(block_start[block]);
    for (int64_t r = 0; r < rows; ++r) {
      const P count = place[r];
      place[r] = start;
      start += count;
    }
    for (const Edge* edge = begin; edge != end; ++edge) {
      const P j = place[edge->row - first_row]++;
      col[j] = edge->col;
      permutation[j] = edge->slot;
    }
    // Each place has moved to its row's end, which is the next row's start.
    for (int64_t r = rows - 1; r > 0; --r) place[r] = place[r - 1];
    if (rows > 0) place[0] = static_cast<P>(block_start[block]);
  };
  parallel_ranges(blocks, std::max<int64_t>(1, blocks / tasks), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) sort_block(block);
  });
  crow[n_rows] = static_cast<P>(nnz);
}

}  // namespace sparsekern
