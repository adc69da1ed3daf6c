// Random edges: uniform ones of a given number, and candidates that are not in the matrix yet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "topology/keys.h"
#include "topology/random.h"

namespace sparsekern {

// Collects `count` distinct keys, sorted, in `found`: draws exactly the missing number (while the budget lasts), sorts,
// leaves out what is unwanted or there already, and again. Returns how many were found. draw(keys, n) writes n keys;
// filter(keys, n) moves the wanted ones of n ascending keys to the front and returns how many they are.
template <class Draw, class Filter>
int64_t collect_keys(uint64_t* found, int64_t count, uint64_t bound, int64_t budget, const Draw& draw,
                     const Filter& filter) {
  int64_t size = 0;
  while (size < count && budget > 0) {
    const int64_t drawn = std::min(count - size, budget);
    uint64_t* fresh = size == 0 ? found : Scratch::of_this_thread().get<uint64_t>(kFreshSlot, drawn);
    budget -= drawn;
    draw(fresh, drawn);
    sort_keys(fresh, drawn, bound);
    const int64_t wanted = filter(fresh, std::unique(fresh, fresh + drawn) - fresh);
    size = fresh == found ? wanted : add_keys(found, size, fresh, wanted);
  }
  return size;
}

// `count` distinct numbers below `bound`, ascending, every such set equally likely: a set of distinct values collected
// one by one is uniform, and no round can give too many.
inline void distinct_below(Random& random, uint64_t bound, int64_t count, uint64_t* keys) {
  const auto collect = [&](uint64_t* found, int64_t wanted) {
    const auto draw = [&](uint64_t* drawn, int64_t size) {
      for (int64_t i = 0; i < size; ++i) drawn[i] = random.below(bound);
    };
    const auto keep_all = [](uint64_t*, int64_t size) { return size; };
    collect_keys(found, wanted, bound, std::numeric_limits<int64_t>::max(), draw, keep_all);
  };
  if (static_cast<uint64_t>(count) <= bound / 2) return collect(keys, count);
  // What is left out is the smaller part: draw that.
  const int64_t left = static_cast<int64_t>(bound - count);
  uint64_t* left_out = Scratch::of_this_thread().get<uint64_t>(kLeftOutSlot, left);
  collect(left_out, left);
  const uint64_t* next_out = left_out;
  for (uint64_t key = 0; key < bound; ++key) {
    if (next_out != left_out + left && *next_out == key)
      ++next_out;
    else
      *keys++ = key;
  }
}

// `count` distinct edges that are not in the matrix (at most as many as there are), every set of them equally likely:
// ranks among the inactive edges are drawn, then walked past the active ones. Returns how many.
template <class P>
int64_t inactive_edges(Random& random, const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols,
                       int64_t count, uint64_t* keys) {
  const int64_t nnz = ccol[n_cols];
  const uint64_t inactive = static_cast<uint64_t>(n_rows) * n_cols - nnz;
  count = static_cast<int64_t>(std::min<uint64_t>(count, inactive));
  distinct_below(random, inactive, count, keys);
  int64_t k = 0;
  int64_t c = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (; k < nnz; ++k) {
      while (ccol[c + 1] <= k) ++c;
      if (static_cast<uint64_t>(c) * n_rows + row[k] > keys[i] + k) break;
    }
    keys[i] += k;
  }
  return count;
}

// Draws i with probability weights[i] / sum in constant time (Walker 1977, built as in Vose 1991).
class AliasTable {
 public:
  // Weights are finite and not negative, their sum positive.
  AliasTable(const double* weights, int64_t size) : cells_(size) {
    const double scale = static_cast<double>(size) / std::accumulate(weights, weights + size, 0.0);
    std::vector<double> height(size);
    std::vector<int32_t> small, large;
    for (int64_t i = 0; i < size; ++i) {
      height[i] = weights[i] * scale;
      cells_[i] = {kWhole, static_cast<int32_t>(i)};
      (height[i] < 1.0 ? small : large).push_back(static_cast<int32_t>(i));
    }
    while (!small.empty() && !large.empty()) {
      const int32_t low = small.back();
      const int32_t high = large.back();
      small.pop_back();
      cells_[low] = {static_cast<uint32_t>(height[low] * kWhole), high};
      height[high] -= 1.0 - height[low];
      if (height[high] < 1.0) {
        large.pop_back();
        small.push_back(high);
      }
    }
  }

  int64_t draw(Random& random) const {
    const unsigned __int128 product = static_cast<unsigned __int128>(random.next()) * cells_.size();
    const int64_t i = static_cast<int64_t>(product >> 64);
    const uint32_t fraction = static_cast<uint32_t>(static_cast<uint64_t>(product) >> 32);
    return fraction < cells_[i].threshold ? i : cells_[i].alias;
  }

 private:
  static constexpr uint32_t kWhole = 0xffffffffu;
  struct Cell {
    uint32_t threshold;  // of 2^32: below it the cell's own index, above it the alias
    int32_t alias;
  };
  std::vector<Cell> cells_;
};

// Up to `count` distinct edges that are not in the matrix, sorted, drawn one by one with a probability proportional to
// row_weights[r] * col_weights[g][c], where rows are split evenly into `groups` and g is the group of r. Gives up when
// a budget of draws is spent. Returns how many.
template <class P>
int64_t weighted_edges(Random& random, const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols,
                       int64_t groups, const double* row_weights, const double* col_weights, int64_t count,
                       uint64_t* keys) {
  constexpr int64_t kDrawsPerEdge = 16;
  constexpr int64_t kSmallLayer = 4096;  // so that a small layer does not give up after a few unlucky draws
  const int64_t rows_per_group = n_rows / groups;
  std::vector<AliasTable> columns;
  std::vector<double> weights(row_weights, row_weights + n_rows);
  for (int64_t g = 0; g < groups; ++g) {
    const double* of_group = col_weights + g * n_cols;
    columns.emplace_back(of_group, n_cols);
    // A row is drawn with its own weight times that of all columns that it can reach.
    const double total = std::accumulate(of_group, of_group + n_cols, 0.0);
    for (int64_t r = g * rows_per_group; r < (g + 1) * rows_per_group; ++r) weights[r] *= total;
  }
  const AliasTable rows(weights.data(), n_rows);
  const auto draw = [&](uint64_t* drawn, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      const int64_t r = rows.draw(random);
      const AliasTable& reached = groups == 1 ? columns[0] : columns[r / rows_per_group];
      drawn[i] = static_cast<uint64_t>(reached.draw(random)) * n_rows + r;
    }
  };
  const auto keep_inactive = [&](uint64_t* drawn, int64_t size) {
    int64_t kept = 0;
    int64_t c = 0;
    uint64_t col_start = 0;
    for (int64_t i = 0; i < size; ++i) {
      for (; drawn[i] - col_start >= static_cast<uint64_t>(n_rows); ++c) col_start += n_rows;
      if (!std::binary_search(row + ccol[c], row + ccol[c + 1], static_cast<int32_t>(drawn[i] - col_start)))
        drawn[kept++] = drawn[i];
    }
    return kept;
  };
  return collect_keys(keys, count, static_cast<uint64_t>(n_rows) * n_cols, kDrawsPerEdge * count + kSmallLayer, draw,
                      keep_inactive);
}

}  // namespace sparsekern
