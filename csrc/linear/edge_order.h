// The order in which a product visits its edges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "linear/kernels.h"
#include "pages.h"
#include "parallel.h"

namespace sparsekern {

// Edges of a product as they are stored: `outputs` runs of `indices` below `gathered`.
struct StoredEdges {
  const int64_t* pointers;
  const int32_t* indices;
  int64_t outputs, gathered;

  int64_t count() const { return pointers[outputs]; }
};

// How edges are visited, panel after panel of the gathered features, `panel` of them in each.
//   in_place  output after output, and where there are several panels each output's run is cut;
//   packed    within a block of the outputs from the one with the fewest edges to the one with the most, and the edges
//             copied into that order, so that a product that goes over them many times reads one stream.
//   narrow    packed, and the indices in 16 bits where that holds them: for products that read more than they compute.
struct Visit {
  int64_t panel;
  bool packed, narrow = false;

  bool operator==(const Visit& other) const {
    return panel == other.panel && packed == other.packed && narrow == other.narrow;
  }
};

// order[i], for each block of the outputs: their numbers within it, from the one with the fewest edges on.
void sort_blocks(const int64_t* begin, const int64_t* end, int64_t outputs, uint8_t* order);

class EdgeOrder {
 public:
  EdgeOrder(const StoredEdges& edges, Visit visit);
  EdgeOrder(const EdgeOrder&) = delete;

  const Visit& visit() const { return visit_; }
  const std::vector<Panel>& panels() const { return panels_; }
  // In visiting order; null where that is the stored one, or where they are narrow, or the others are.
  const int32_t* packed_indices() const { return visit_.packed && !is_narrow_ ? indices_.data() : nullptr; }
  const uint16_t* narrow_indices() const { return is_narrow_ ? narrow_indices_.data() : nullptr; }

  // The stored runs of panel p's outputs [begin, end) as visited.
  Runs runs(size_t p, int64_t begin, int64_t end) const {
    return {cut(p), cut(p + 1), panels_[p].order, begin, end};
  }

  // Of a packed order, calls copy(runs, place of their first edge) for the runs of all panels, on all threads.
  template <class Copy>
  void for_each_run(const Copy& copy) const {
    parallel_ranges((outputs_ + kLinearBlock - 1) / kLinearBlock, 8, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kLinearBlock, end = std::min(outputs_, last * kLinearBlock);
      for (size_t p = 0; p < panels_.size(); ++p) {
        const Runs mine = runs(p, begin, end);
        copy(mine, panels_[p].begin[begin]);
      }
    });
  }

 private:
  const int64_t* cut(size_t p) const { return cuts_.data() + static_cast<int64_t>(p) * outputs_; }
  void find_cuts(const StoredEdges& edges, int64_t panels);
  void pack(const StoredEdges& edges, int64_t panels);
  template <class I>
  void pack_indices(const StoredEdges& edges, PagedVector<I>& out);

  Visit visit_;
  bool is_narrow_;
  int64_t outputs_;
  std::vector<Panel> panels_;
  std::vector<int64_t> cuts_;    // [panels + 1][outputs]: where each output's edges of each panel are stored
  std::vector<int64_t> places_;  // [panels][outputs + 1]: where the visited outputs' edges begin in visiting order
  std::vector<uint8_t> order_;   // [panels][outputs]
  PagedVector<int32_t> indices_;
  PagedVector<uint16_t> narrow_indices_;
};

}  // namespace sparsekern
