#include "linear/token_slices.h"

#include <algorithm>
#include <numeric>

#include "linear/tiling.h"

namespace sparsekern {

TokenSlices::TokenSlices(const StoredEdges& edges, int64_t parts)
    : rows_(edges.outputs), order_(edges.outputs), rank_(edges.outputs) {
  std::iota(order_.begin(), order_.end(), 0);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = balanced_begin(edges.pointers, rows_, part, parts);
    const int64_t end = balanced_begin(edges.pointers, rows_, part + 1, parts);
    static_assert(kLinearBlock % kSliceRows == 0, "parts begin with slices");
    begins_.push_back(begin / kSliceRows);
    std::stable_sort(order_.begin() + begin, order_.begin() + end,
                     [&](int32_t a, int32_t b) { return count(edges, a) > count(edges, b); });
  }
  begins_.push_back((rows_ + kSliceRows - 1) / kSliceRows);
  places_.push_back(0);
  rests_.push_back(0);
  for (int64_t first = 0; first < rows_; first += kSliceRows) {
    const int64_t end = std::min(rows_, first + kSliceRows);
    const int64_t common = end - first == kSliceRows ? count(edges, order_[end - 1]) : 0;
    common_.push_back(static_cast<int32_t>(common));
    int64_t active = end - first, edges_here = common * active;
    for (int64_t k = common; k < count(edges, order_[first]); ++k) {
      while (count(edges, order_[first + active - 1]) <= k) --active;
      active_.push_back(static_cast<uint8_t>(active));
      edges_here += active;
    }
    places_.push_back(places_.back() + edges_here);
    rests_.push_back(static_cast<int64_t>(active_.size()));
    for (int64_t i = first; i < end; ++i) rank_[order_[i]] = static_cast<int32_t>(i);
  }
  if (edges.gathered <= int64_t{1} << 16) read_indices(edges, narrow_);
  else read_indices(edges, wide_);
}

template <class I>
void TokenSlices::read_indices(const StoredEdges& edges, PagedVector<I>& out) {
  out.resize(size());
  std::fill_n(out.data() + edges.count(), kSliceRows, I{0});
  parallel_ranges(rows_, 512, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) place(edges, row, edges.indices + edges.pointers[row], out.data());
  });
}

}  // namespace sparsekern
