// Drawing an index by weight.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "topology/random.h"

namespace sparsekern {

// Draws i with probability weights[i] / sum in constant time (Walker 1977, built as in Vose 1991).
class AliasTable {
 public:
  // Weights are finite and not negative, their sum positive.
  AliasTable(const double* weights, int64_t size) : cells_(size) {
    const double scale = static_cast<double>(size) / std::accumulate(weights, weights + size, 0.0);
    std::vector<double> height(size);
    // Indices whose height is below 1 grow from the front, the others from the back.
    std::vector<int32_t> order(size);
    int64_t small = 0;
    int64_t large = size;
    for (int64_t i = 0; i < size; ++i) {
      height[i] = weights[i] * scale;
      cells_[i] = {kWhole, static_cast<int32_t>(i)};
      const bool is_small = height[i] < 1.0;
      order[is_small ? small : large - 1] = static_cast<int32_t>(i);
      small += is_small;
      large -= !is_small;
    }
    while (small > 0 && large < size) {
      const int32_t low = order[--small];
      const int32_t high = order[large];
      cells_[low] = {static_cast<uint32_t>(height[low] * kWhole), high};
      height[high] -= 1.0 - height[low];
      if (height[high] < 1.0) {
        ++large;
        order[small++] = high;
      }
    }
  }

  int64_t draw(Random& random) const {
    const unsigned __int128 product = static_cast<unsigned __int128>(random.next()) * cells_.size();
    const int64_t i = static_cast<int64_t>(product >> 64);
    const uint32_t fraction = static_cast<uint32_t>(static_cast<uint64_t>(product) >> 32);
    const Cell cell = cells_[i];
    // Either of two, without a branch that nothing could predict and without memory.
    const int64_t own = -static_cast<int64_t>(fraction < cell.threshold);
    return cell.alias ^ ((cell.alias ^ i) & own);
  }

 private:
  static constexpr uint32_t kWhole = 0xffffffffu;
  struct Cell {
    uint32_t threshold;  // of 2^32: below it the cell's own index, above it the alias
    int32_t alias;
  };
  std::vector<Cell> cells_;
};

}  // namespace sparsekern
