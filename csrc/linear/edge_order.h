// The order in which a product visits its edges.
#pragma once

#include <cstdint>
#include <vector>

#include "linear/kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {

// Either the stored order: one panel, output after output. Or a packed one, for a product that goes over its edges
// many times: panel after panel of the gathered features, block after block of the outputs, and within a block from
// the output with the fewest edges to the one with the most; copies of the edges in that order are read as one stream.
class EdgeOrder {
 public:
  struct Slots {
    size_t places, order, cuts;
  };

  static EdgeOrder stored(const int64_t* pointers, int64_t outputs, Scratch& scratch, Slots slots);
  static EdgeOrder packed(const int64_t* pointers, const int32_t* indices, int64_t outputs, int64_t gathered,
                          int64_t panel, Scratch& scratch, Slots slots);

  const std::vector<Panel>& panels() const { return panels_; }
  bool is_packed() const { return cuts_ != nullptr; }

  // Of a packed order, calls run(stored place, packed place, edges) for each output of each panel, on all threads.
  template <class Run>
  void for_each_run(const Run& run) const {
    const int64_t blocks = (outputs_ + kLinearBlock - 1) / kLinearBlock;
    parallel_ranges(blocks, 8, [&](int64_t first, int64_t last) {
      const int64_t end = std::min(outputs_, last * kLinearBlock);
      for (size_t p = 0; p < panels_.size(); ++p) {
        const Panel& panel = panels_[p];
        for (int64_t i = first * kLinearBlock; i < end; ++i) {
          const int64_t output = i / kLinearBlock * kLinearBlock + panel.order[i];
          run(cuts_[static_cast<int64_t>(p) * outputs_ + output], panel.places[i], panel.places[i + 1] - panel.places[i]);
        }
      }
    });
  }

 private:
  std::vector<Panel> panels_;
  int64_t outputs_ = 0;
  const int64_t* cuts_ = nullptr;  // [panels + 1][outputs]: where each output's edges of each panel are stored
};

}  // namespace sparsekern
