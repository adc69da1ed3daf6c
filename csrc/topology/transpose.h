// From the stored CSC arrays to CSR and the permutation between them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "topology/keys.h"
#include "topology/replace.h"

namespace sparsekern {

// An edge on its way to its row, with the row's number in its block: in eight bytes where that is enough.
class PackedEdge {
 public:
  static constexpr int kRowBits = 12, kColBits = 20, kSlotBits = 32;

  PackedEdge(int32_t row, int32_t col, int64_t slot)
      : bits_(static_cast<uint64_t>(slot) << (kRowBits + kColBits) | static_cast<uint64_t>(col) << kRowBits |
              static_cast<uint64_t>(row)) {}
  int32_t row() const { return static_cast<int32_t>(bits_ & ((1 << kRowBits) - 1)); }
  int32_t col() const { return static_cast<int32_t>(bits_ >> kRowBits & ((1 << kColBits) - 1)); }
  int64_t slot() const { return static_cast<int64_t>(bits_ >> (kRowBits + kColBits)); }

 private:
  uint64_t bits_;
};
class WideEdge {
 public:
  WideEdge(int32_t row, int32_t col, int64_t slot) : row_(row), col_(col), slot_(slot) {}
  int32_t row() const { return row_; }
  int32_t col() const { return col_; }
  int64_t slot() const { return slot_; }

 private:
  int32_t row_, col_;
  int64_t slot_;
};

// The transposition where a block of rows has several edges of each column: block after block, each column goes on where
// it stopped. A block is put together in memory that stays in cache, for its rows are as many streams of writes.
template <class P>
void transpose_by_blocks(const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, int64_t tasks,
                         int64_t block_rows, P* crow, int32_t* col, P* permutation) {
  constexpr int64_t kAhead = 8;  // columns
  std::vector<P> counts(tasks * n_rows, 0);
  parallel_tasks(tasks, [&](int64_t task) {
    P* count = counts.data() + task * n_rows;
    const int64_t end = ccol[first_column(ccol, n_cols, task + 1, tasks)];
    for (int64_t k = ccol[first_column(ccol, n_cols, task, tasks)]; k < end; ++k) ++count[row[k]];
  });
  P total = 0;
  for (int64_t r = 0; r < n_rows; ++r) {
    crow[r] = total;
    for (int64_t task = 0; task < tasks; ++task) total += counts[task * n_rows + r];
  }
  const int64_t blocks = (n_rows + block_rows - 1) / block_rows;
  parallel_ranges(blocks, std::max<int64_t>(1, blocks / tasks), [&](int64_t first, int64_t last) {
    std::vector<P> next(ccol, ccol + n_cols);
    if (first > 0)
      for (int64_t c = 0; c < n_cols; ++c)
        next[c] = static_cast<P>(
            first_not_below(row + ccol[c], ccol[c + 1] - ccol[c], static_cast<int32_t>(first * block_rows)) - row);
    std::vector<P> places(block_rows), slots;
    std::vector<int32_t> cols;
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * block_rows, end = std::min(n_rows, begin + block_rows);
      const P start = crow[begin], stop = crow[end];
      for (int64_t r = begin; r < end; ++r) places[r - begin] = crow[r] - start;
      slots.resize(std::max<size_t>(slots.size(), stop - start));
      cols.resize(slots.size());
      for (int64_t c = 0; c < n_cols; ++c) {
        if (c + kAhead < n_cols) __builtin_prefetch(row + next[c + kAhead]);
        int64_t k = next[c];
        for (const int64_t column_end = ccol[c + 1]; k < column_end && row[k] < end; ++k) {
          const P place = places[row[k] - begin]++;
          cols[place] = static_cast<int32_t>(c);
          slots[place] = static_cast<P>(k);
        }
        next[c] = static_cast<P>(k);
      }
      std::copy_n(cols.begin(), stop - start, col + start);
      std::copy_n(slots.begin(), stop - start, permutation + start);
    }
  });
}

// A stable counting sort by row, so columns come out ascending within each row. Where there are many edges or rows, edges
// are first dealt to blocks of rows, and then each block is sorted by itself, in cache. Each task deals a contiguous part
// of the columns. The result does not depend on the number of threads.
template <class P>
void transpose(const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, int64_t nnz, P* crow, int32_t* col,
               P* permutation) {
  constexpr int kSmallBlock = 7;         // rows of a block at least, as a power of two
  constexpr int64_t kDirectRows = 8192;  // whose counters fit the first-level cache
  constexpr int64_t kDirectEdges = 1 << 19;  // whose places fit the second
  constexpr int64_t kMostBlocks = 1024;  // write streams of the dealing
  constexpr int64_t kGrain = 1 << 15;    // edges that are worth a thread
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), nnz / kGrain));
  const auto first_col = [&](int64_t task) { return first_column(ccol, n_cols, task, tasks); };
  // Where each task puts its edges of each bin, by task and bin, when bins hold 2^shift rows.
  const auto count_bins = [&](int shift, int64_t bins, int64_t* next) {
    parallel_tasks(tasks, [&](int64_t task) {
      int64_t* count = next + task * bins;
      std::fill(count, count + bins, 0);
      const int64_t end = ccol[first_col(task + 1)];
      for (int64_t k = ccol[first_col(task)]; k < end; ++k) ++count[row[k] >> shift];
    });
    int64_t total = 0;
    for (int64_t bin = 0; bin < bins; ++bin)
      for (int64_t task = 0; task < tasks; ++task) total += std::exchange(next[task * bins + bin], total);
  };
  crow[n_rows] = static_cast<P>(nnz);

  if (n_rows <= kDirectRows && nnz <= kDirectEdges) {
    std::vector<int64_t> next(tasks * n_rows);
    count_bins(0, n_rows, next.data());
    std::copy_n(next.begin(), n_rows, crow);
    parallel_tasks(tasks, [&](int64_t task) {
      int64_t* place = next.data() + task * n_rows;
      const int64_t end = first_col(task + 1);
      for (int64_t c = first_col(task); c < end; ++c) {
        for (int64_t k = ccol[c]; k < ccol[c + 1]; ++k) {
          const int64_t j = place[row[k]]++;
          col[j] = static_cast<int32_t>(c);
          permutation[j] = static_cast<P>(k);
        }
      }
    });
    return;
  }

  constexpr int64_t kBlockRows = 128, kMostBlockRows = 512, kLongRun = 6;
  for (int64_t rows = kBlockRows; rows <= kMostBlockRows; rows *= 2)
    if (nnz / kLongRun * rows >= n_rows * n_cols)
      return transpose_by_blocks(ccol, row, n_rows, n_cols, tasks, rows, crow, col, permutation);

  int shift = kSmallBlock;
  while (n_rows >> shift >= kMostBlocks) ++shift;
  const int64_t blocks = (n_rows >> shift) + 1;
  std::vector<int64_t> next(tasks * blocks);
  count_bins(shift, blocks, next.data());
  std::vector<int64_t> block_start(next.begin(), next.begin() + blocks);
  block_start.push_back(nnz);

  const auto sort = [&](auto* type) {
    using Edge = std::remove_pointer_t<decltype(type)>;
    Edge* edges = Scratch::of_this_thread().get<Edge>(kSortSlot, nnz);
    parallel_tasks(tasks, [&](int64_t task) {
      int64_t* place = next.data() + task * blocks;
      const int64_t end = first_col(task + 1);
      for (int64_t c = first_col(task); c < end; ++c) {
        for (int64_t k = ccol[c]; k < ccol[c + 1]; ++k)
          edges[place[row[k] >> shift]++] = Edge(row[k] & ((1 << shift) - 1), static_cast<int32_t>(c), k);
      }
    });

    const auto sort_block = [&](int64_t block) {
      const Edge* begin = edges + block_start[block];
      const Edge* end = edges + block_start[block + 1];
      const int64_t first_row = block << shift;
      const int64_t rows = std::min(n_rows - first_row, int64_t{1} << shift);
      P* place = crow + first_row;
      std::fill(place, place + rows, P{0});
      for (const Edge* edge = begin; edge != end; ++edge) ++place[edge->row()];
      P start = static_cast<P>(block_start[block]);
      for (int64_t r = 0; r < rows; ++r) {
        const P count = place[r];
        place[r] = start;
        start += count;
      }
      for (const Edge* edge = begin; edge != end; ++edge) {
        const P j = place[edge->row()]++;
        col[j] = edge->col();
        permutation[j] = static_cast<P>(edge->slot());
      }
      // Each place has moved to its row's end, which is the next row's start.
      for (int64_t r = rows - 1; r > 0; --r) place[r] = place[r - 1];
      if (rows > 0) place[0] = static_cast<P>(block_start[block]);
    };
    parallel_ranges(blocks, std::max<int64_t>(1, blocks / tasks), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) sort_block(block);
    });
  };
  const bool packed = shift <= PackedEdge::kRowBits && n_cols <= int64_t{1} << PackedEdge::kColBits &&
                      nnz <= int64_t{1} << PackedEdge::kSlotBits;
  if (packed)
    sort(static_cast<PackedEdge*>(nullptr));
  else
    sort(static_cast<WideEdge*>(nullptr));
}

}  // namespace sparsekern
