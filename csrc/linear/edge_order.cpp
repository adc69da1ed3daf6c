#include "linear/edge_order.h"

#include <algorithm>
#include <array>

namespace sparsekern {

void sort_blocks(const int64_t* begin, const int64_t* end, int64_t outputs, uint8_t* order) {
  constexpr int64_t kCounted = 256;  // numbers of edges that are sorted by counting
  const int64_t blocks = (outputs + kLinearBlock - 1) / kLinearBlock;
  parallel_ranges(blocks, 64, [&](int64_t first, int64_t last) {
    std::array<int64_t, kLinearBlock> edges;
    std::array<uint8_t, kCounted + 1> next;
    for (int64_t b = first; b < last; ++b) {
      const int64_t start = b * kLinearBlock, size = std::min(kLinearBlock, outputs - start);
      for (int64_t i = 0; i < size; ++i) edges[i] = end[start + i] - begin[start + i];
      const auto [least, most] = std::minmax_element(edges.begin(), edges.begin() + size);
      uint8_t* in_block = order + start;
      if (const int64_t fewest = *least, range = *most - fewest; range < kCounted) {
        std::fill_n(next.begin(), range + 2, uint8_t{0});
        for (int64_t i = 0; i < size; ++i) ++next[edges[i] - fewest + 1];
        for (int64_t n = 1; n <= range; ++n) next[n] = static_cast<uint8_t>(next[n] + next[n - 1]);
        for (int64_t i = 0; i < size; ++i) in_block[next[edges[i] - fewest]++] = static_cast<uint8_t>(i);
        continue;
      }
      for (int64_t i = 0; i < size; ++i) in_block[i] = static_cast<uint8_t>(i);
      std::stable_sort(in_block, in_block + size, [&](uint8_t i, uint8_t j) { return edges[i] < edges[j]; });
    }
  });
}

EdgeOrder::EdgeOrder(const StoredEdges& edges, Visit visit)
    : visit_(visit), is_narrow_(visit.narrow && edges.gathered <= int64_t{1} << 16), outputs_(edges.outputs) {
  const int64_t panels = std::max<int64_t>(1, (edges.gathered + visit.panel - 1) / visit.panel);
  if (panels > 1 || visit.packed) find_cuts(edges, panels);
  if (visit.packed) {
    pack(edges, panels);
  } else if (panels == 1) {
    panels_.push_back({edges.pointers, edges.pointers + 1, nullptr, true, true, true});
  } else {
    for (int64_t p = 0; p < panels; ++p)
      panels_.push_back({cut(p), cut(p + 1), nullptr, p == 0, p == panels - 1, false});
  }
}

void EdgeOrder::find_cuts(const StoredEdges& edges, int64_t panels) {
  cuts_.resize((panels + 1) * outputs_);
  parallel_ranges(outputs_, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* edge = edges.indices + edges.pointers[i];
      const int32_t* end = edges.indices + edges.pointers[i + 1];
      for (int64_t p = 0; p < panels; ++p) {
        edge = std::lower_bound(edge, end, p * visit_.panel);
        cuts_[p * outputs_ + i] = edge - edges.indices;
      }
      cuts_[panels * outputs_ + i] = edges.pointers[i + 1];
    }
  });
}

void EdgeOrder::pack(const StoredEdges& edges, int64_t panels) {
  order_.resize(panels * outputs_);
  places_.resize(panels * (outputs_ + 1));
  int64_t place = 0;
  for (int64_t p = 0; p < panels; ++p) {
    uint8_t* order = order_.data() + p * outputs_;
    int64_t* places = places_.data() + p * (outputs_ + 1);
    sort_blocks(cut(p), cut(p + 1), outputs_, order);
    panels_.push_back({places, places + 1, order, p == 0, p == panels - 1, true});
    const Runs all = runs(p, 0, outputs_);
    for (int64_t i = 0; i < outputs_; ++i) {
      const int64_t output = all.visited(i);
      places[i] = place;
      place += all.end[output] - all.stored[output];
    }
    places[outputs_] = place;
  }
  if (is_narrow_) pack_indices(edges, narrow_indices_);
  else pack_indices(edges, indices_);
}

template <class I>
void EdgeOrder::pack_indices(const StoredEdges& edges, PagedVector<I>& out) {
  out.resize(edges.count());
  for_each_run([&](const Runs& runs, int64_t place) {
    for (int64_t i = runs.first; i < runs.last; ++i) {
      const int64_t output = runs.visited(i), count = runs.end[output] - runs.stored[output];
      std::copy_n(edges.indices + runs.stored[output], count, out.data() + place);
      place += count;
    }
  });
}

}  // namespace sparsekern
