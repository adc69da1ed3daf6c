#include "linear/token_slices.h"

#include <algorithm>
#include <numeric>

namespace sparsekern {

TokenSlices::TokenSlices(const StoredEdges& edges) : rows_(edges.outputs), order_(edges.outputs), rank_(edges.outputs) {
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int32_t a, int32_t b) { return count(edges, a) < count(edges, b); });
  int64_t place = 0;
  for (int64_t i = 0; i < rows_; ++i) {
    if (i % kSliceRows == 0) {
      places_.push_back(place);
      common_.push_back(rows_ - i >= kSliceRows ? static_cast<int32_t>(count(edges, order_[i])) : 0);
    }
    rank_[order_[i]] = static_cast<int32_t>(i);
    place += count(edges, order_[i]);
  }
  places_.push_back(place);
  if (edges.gathered <= int64_t{1} << 16) read_indices(edges, narrow_);
  else read_indices(edges, wide_);
}

int64_t TokenSlices::begin_of(int64_t part, int64_t parts) const {
  const int64_t slices = static_cast<int64_t>(common_.size());
  // Slices without edges come first and take time as well.
  const auto cost = [&](int64_t slice) { return places_[slice] + kSliceRows * slice; };
  int64_t low = 0, high = slices;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cost(middle) * parts < cost(slices) * part) low = middle + 1;
    else high = middle;
  }
  return low;
}

template <class I>
void TokenSlices::read_indices(const StoredEdges& edges, PagedVector<I>& out) {
  out.resize(edges.count());
  parallel_ranges(rows_, 512, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) place(edges, row, edges.indices + edges.pointers[row], out.data());
  });
}

}  // namespace sparsekern
