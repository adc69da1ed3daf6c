// How many edges must be drawn, one by one and by weight, to find a given number of new ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sparsekern {

// Weights grouped by size: four groups for each power of two below the largest, all that are smaller in the last.
class WeightGroups {
 public:
  WeightGroups(const double* weights, int64_t size) : group_of_(size), groups_(kGroups) {
    double total = 0;
    for (int64_t i = 0; i < size; ++i) {
      total += weights[i];
      largest_ = std::max(largest_, weights[i]);
    }
    for (int64_t i = 0; i < size; ++i) {
      group_of_[i] = static_cast<uint8_t>(std::min(kGroups - 1, size_of(largest_) - size_of(weights[i])));
      Group& group = groups_[group_of_[i]];
      group.count += 1;
      group.share += weights[i] / total;
    }
    for (Group& group : groups_) group.share /= std::max(group.count, 1.0);
  }

  struct Group {
    double count = 0;
    double share = 0;  // of one of its members in all weight, on average
  };
  static constexpr int64_t kGroups = 128;

  int64_t of(int64_t i) const { return group_of_[i]; }
  const Group& operator[](int64_t g) const { return groups_[g]; }

 private:
  static int64_t size_of(double weight) {
    uint64_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return static_cast<int64_t>(bits >> 50);  // the exponent and two bits more
  }

  double largest_ = 0;
  std::vector<uint8_t> group_of_;
  std::vector<Group> groups_;
};

// A number of draws, of an edge in column c and row r by col_weights[c] * row_weights[r], of which about `wanted`
// distinct edges are expected that are not in the matrix; hardly ever more than that many are.
template <class P>
double draws_for(double wanted, const P* ccol, const int32_t* row, const double* row_weights, int64_t n_rows,
                 const double* col_weights, int64_t n_cols) {
  constexpr int64_t kSample = 1 << 16;  // edges that are looked at
  constexpr int64_t kGroups = WeightGroups::kGroups;
  const WeightGroups rows(row_weights, n_rows), cols(col_weights, n_cols);
  // Some edges, evenly spread, stand for all.
  const int64_t nnz = ccol[n_cols], step = nnz / kSample + 1;
  std::vector<double> taken(kGroups * kGroups, 0.0);
  for (int64_t c = 0, k = 0; k < nnz; ++c) {
    double* of_column = taken.data() + cols.of(c) * kGroups;
    for (; k < ccol[c + 1]; k += step) of_column[rows.of(row[k])] += static_cast<double>(step);
  }
  struct Cell {
    double count, share;  // inactive edges, and the share of each in all weight
  };
  std::vector<Cell> cells;
  for (int64_t c = 0; c < kGroups; ++c)
    for (int64_t r = 0; r < kGroups; ++r)
      if (const double all = cols[c].count * rows[r].count; all > 0)
        cells.push_back({all - taken[c * kGroups + r], cols[c].share * rows[r].share});
  // Newton's method from below: the expected number grows ever more slowly, so no step goes too far.
  double draws = wanted;
  for (int step = 0; step < 8; ++step) {
    double found = 0, slope = 0;
    for (const Cell& cell : cells) {
      const double missed = std::exp(-draws * cell.share);
      found += cell.count * (1 - missed);
      slope += cell.count * cell.share * missed;
    }
    const double more = (wanted - found) / slope;
    if (!(more > 1e-4 * wanted)) break;
    draws += more;
    if (!(draws < 1e18)) break;
  }
  return draws;
}

}  // namespace sparsekern
