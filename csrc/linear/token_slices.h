// The edges of a product of one token, by row, several rows side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "linear/edge_order.h"

namespace sparsekern {

// Within each thread's part of the rows, from the row with the most edges to the one with the fewest, kSliceRows at a
// time, side by side: first each row's first edge, then, of those that have one, each row's second, and so on. A vector
// of values so goes with one of sums, and a row's sum is made in the order of its edges. Threads write to lines of their
// own: sorted over all rows, they would take them from each other.
class TokenSlices {
 public:
  TokenSlices(const StoredEdges& edges, int64_t parts);
  TokenSlices(const TokenSlices&) = delete;

  TokenSliceOrder order() const {
    return {order_.data(), places_.data(), common_.data(), rests_.data(), active_.data(), rows_,
            narrow_.empty() ? nullptr : narrow_.data(), wide_.empty() ? nullptr : wide_.data()};
  }

  // Elements of what lies in slices: whole vectors are read, and the last one ends after the last edge.
  int64_t size() const { return places_.back() + kSliceRows; }

  int64_t parts() const { return static_cast<int64_t>(begins_.size()) - 1; }
  // The first slice of a part; of part `parts()`, the end.
  int64_t begin_of(int64_t part) const { return begins_[part]; }

  // Fills `out` (size(),) with the slices' values. read(runs, to) reads the runs of some rows, in the order of the rows:
  // edges of near rows lie near each other where they are stored.
  template <class A, class Read>
  void read(const StoredEdges& edges, A* out, const Read& read) const {
    std::fill_n(out + places_.back(), kSliceRows, A{0});
    const int64_t blocks = (rows_ + kLinearBlock - 1) / kLinearBlock;
    parallel_ranges(blocks, 8, [&](int64_t first, int64_t last) {
      PagedVector<A> runs;
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kLinearBlock, end = std::min(rows_, begin + kLinearBlock);
        runs.resize(edges.pointers[end] - edges.pointers[begin]);
        read(Runs{edges.pointers, edges.pointers + 1, nullptr, begin, end}, runs.data());
        const A* from = runs.data();
        for (int64_t row = begin; row < end; ++row) from = place(edges, row, from, out);
      }
    });
  }

 private:
  int64_t count(const StoredEdges& edges, int64_t row) const { return edges.pointers[row + 1] - edges.pointers[row]; }

  // Puts a row's run into its slice; returns the run's end.
  template <class From, class To>
  const From* place(const StoredEdges& edges, int64_t row, const From* from, To* to) const {
    const int64_t rank = rank_[row], slice = rank / kSliceRows, common = common_[slice];
    const int64_t rest = count(edges, row) - common;
    to += places_[slice] + rank % kSliceRows;
    for (int64_t k = 0; k < common; ++k, to += kSliceRows) *to = static_cast<To>(*from++);
    const uint8_t* active = active_.data() + rests_[slice];
    for (int64_t k = 0; k < rest; ++k) {
      *to = static_cast<To>(*from++);
      to += active[k];
    }
    return from;
  }
  template <class I>
  void read_indices(const StoredEdges& edges, PagedVector<I>& out);

  int64_t rows_;
  std::vector<int64_t> begins_;   // (parts + 1,): where each part's slices begin
  std::vector<int32_t> order_;    // (rows,): the rows as they are visited
  std::vector<int32_t> rank_;     // (rows,): where each row is in that order
  std::vector<int64_t> places_;   // (slices + 1,): where each slice's edges begin
  std::vector<int32_t> common_;   // (slices,): steps that all rows take; 0 in an incomplete slice
  std::vector<int64_t> rests_;    // (slices + 1,): where each slice's further steps begin
  std::vector<uint8_t> active_;   // by further step: the rows that take it
  PagedVector<uint16_t> narrow_;  // (size(),) columns, where 16 bits hold them: less memory to be read
  PagedVector<int32_t> wide_;     // (size(),) columns, else
};

}  // namespace sparsekern
