// How a product is cut: into tiles of tokens, and the tile's features into panels that a cache holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "linear/kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {

// Tokens [begin, begin + count), `vectors` vectors wide.
struct TokenTile {
  int64_t begin, count;
  int vectors;
};

struct Tiling {
  int vectors;    // of a full tile
  int64_t panel;  // gathered features in a panel; all of them where there is one panel
};

// What decides a tiling: `gathered` features are read at random, `edges` times for each of `outputs`.
struct ProductSize {
  int64_t tokens, gathered, outputs, edges;
  int lanes, max_vectors;
  int element_bytes;
};

Tiling forward_tiling(const ProductSize& size);
Tiling backward_tiling(const ProductSize& size);

// Full tiles, and a last one only as wide as it must be.
std::vector<TokenTile> cut_tokens(int64_t tokens, int vectors, int lanes);

// The panels' edge ranges and visiting orders, in the given scratch slots.
std::vector<Panel> cut_panels(const int64_t* pointers, const int32_t* indices, int64_t outputs, int64_t gathered,
                              int64_t panel, Scratch& scratch, size_t pointer_slot, size_t order_slot);

// Edges copied in the order in which a product visits them: panel after panel, block after block, each block's
// outputs in visiting order. A product that goes over its edges many times then reads them as one stream.
class VisitOrder {
 public:
  VisitOrder(const std::vector<Panel>& panels, int64_t outputs, Scratch& scratch, size_t slot);

  // The same panels, with ranges into packed arrays.
  const std::vector<Panel>& packed() const { return packed_; }

  template <class T>
  void pack(const T* stored, T* packed) const {
    for_each_run([&](int64_t from, int64_t to, int64_t count) { std::copy_n(stored + from, count, packed + to); });
  }
  template <class T>
  void unpack(const T* packed, T* stored) const {
    for_each_run([&](int64_t to, int64_t from, int64_t count) { std::copy_n(packed + from, count, stored + to); });
  }

 private:
  // Calls run(stored place, packed place, edges) for each output of each panel.
  template <class Run>
  void for_each_run(const Run& run) const {
    parallel_ranges(outputs_, 512, [&](int64_t first, int64_t last) {
      for (size_t p = 0; p < stored_.size(); ++p)
        for (int64_t i = first; i < last; ++i)
          run(stored_[p].begin[i], packed_[p].begin[i], stored_[p].end[i] - stored_[p].begin[i]);
    });
  }

  std::vector<Panel> stored_, packed_;
  int64_t outputs_;
};

// Where part `part` of `parts` begins when blocks of outputs are dealt out by their share of the edges.
int64_t balanced_begin(const int64_t* pointers, int64_t outputs, int64_t part, int64_t parts);

}  // namespace sparsekern
