#include "linear/token_slices.h"

#include <algorithm>

namespace sparsekern {

TokenSlices::TokenSlices(const StoredEdges& edges)
    : rows_(edges.outputs),
      order_(edges.outputs),
      places_((edges.outputs + kSliceRows - 1) / kSliceRows),
      common_(places_.size()) {
  sort_blocks(edges.pointers, edges.pointers + 1, rows_, order_.data());
  const auto count = [&](int64_t i) {
    const int64_t row = i / kLinearBlock * kLinearBlock + order_[i];
    return edges.pointers[row + 1] - edges.pointers[row];
  };
  for (int64_t i = 0; i < rows_; i += kSliceRows) {
    const int64_t block = i / kLinearBlock * kLinearBlock;
    // A block's rows come one after another; those before slice i hold as many edges as it is away from the block's begin.
    if (i == block) places_[i / kSliceRows] = edges.pointers[block];
    const int64_t end = std::min(rows_, i + kSliceRows);
    int64_t place = places_[i / kSliceRows];
    for (int64_t j = i; j < end; ++j) place += count(j);
    if (end < rows_ && end % kLinearBlock != 0) places_[end / kSliceRows] = place;
    // The first row is the shortest. An incomplete slice has no vectors.
    common_[i / kSliceRows] = end == i + kSliceRows ? static_cast<int32_t>(count(i)) : 0;
  }
  if (edges.gathered <= int64_t{1} << 16) read_indices(edges, narrow_);
  else read_indices(edges, wide_);
}

template <class I>
void TokenSlices::read_indices(const StoredEdges& edges, std::vector<I>& out) {
  out.resize(edges.count());
  read(edges, out.data(), [&](const Runs& runs, I* to) {
    for (int64_t i = runs.first; i < runs.last; ++i) {
      const int64_t row = runs.visited(i);
      to = std::copy(edges.indices + runs.stored[row], edges.indices + runs.end[row], to);
    }
  });
}

}  // namespace sparsekern
