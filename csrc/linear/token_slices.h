// The edges of a product of one token, by row, several rows side by side.
#pragma once

#include <cstdint>
#include <vector>

#include "linear/edge_order.h"

namespace sparsekern {

// Rows are taken kSliceRows at a time, those of a block by their number of edges. As far as the shortest of a slice goes,
// its rows' edges alternate (edge i of row j at 8 i + j), so that a vector of values goes with one of sums; what is left of
// each row follows, row after row. A row's sum is made in the order of its edges.
class TokenSlices {
 public:
  explicit TokenSlices(const StoredEdges& edges);
  TokenSlices(const TokenSlices&) = delete;

  // The slices from `first` on of the order's rows; exactly one of the index arrays is not null.
  TokenSliceOrder order(const int64_t* pointers) const {
    return {pointers,       order_.data(),
            places_.data(), common_.data(),
            rows_,          narrow_.empty() ? nullptr : narrow_.data(),
            wide_.empty() ? nullptr : wide_.data()};
  }

  // Fills `out` (edges,) with the values of the slices. read(runs, to) reads the runs of one block's rows.
  template <class A, class Read>
  void read(const StoredEdges& edges, A* out, const Read& read) const {
    const int64_t blocks = (rows_ + kLinearBlock - 1) / kLinearBlock;
    parallel_ranges(blocks, 8, [&](int64_t first, int64_t last) {
      std::vector<A> values;
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kLinearBlock, end = std::min(rows_, begin + kLinearBlock);
        values.resize(edges.pointers[end] - edges.pointers[begin]);
        read(Runs{edges.pointers, edges.pointers + 1, order_.data(), begin, end}, values.data());
        interleave(edges, b, values.data(), out);
      }
    });
  }

 private:
  // From one run after another, as the block's rows are visited, to slices.
  template <class From, class To>
  void interleave(const StoredEdges& edges, int64_t block, const From* from, To* to) const {
    const int64_t begin = block * kLinearBlock, end = std::min(rows_, begin + kLinearBlock);
    for (int64_t i = begin; i < end; i += kSliceRows) {
      const int64_t slice = i / kSliceRows, common = common_[slice];
      To* together = to + places_[slice];
      To* tail = together + common * kSliceRows;
      for (int64_t j = 0; j < std::min<int64_t>(kSliceRows, end - i); ++j) {
        const int64_t row = begin + order_[i + j], count = edges.pointers[row + 1] - edges.pointers[row];
        for (int64_t k = 0; k < common; ++k) together[k * kSliceRows + j] = static_cast<To>(*from++);
        for (int64_t k = common; k < count; ++k) *tail++ = static_cast<To>(*from++);
      }
    }
  }
  template <class I>
  void read_indices(const StoredEdges& edges, std::vector<I>& out);

  int64_t rows_;
  std::vector<uint8_t> order_;   // (rows,): the i-th row visited is block + order_[i]
  std::vector<int64_t> places_;  // by slice: where its edges begin
  std::vector<int32_t> common_;  // by slice: how many edges of each row alternate
  std::vector<uint16_t> narrow_;  // (edges,) columns, where 16 bits hold them: half the memory to be read
  std::vector<int32_t> wide_;     // (edges,) columns, else
};

}  // namespace sparsekern
