// Candidates: edges that are not in the matrix yet, drawn one by one by weight, without repeats.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "isa/isa.h"
#include "parallel.h"
#include "topology/alias.h"
#include "topology/draws.h"
#include "topology/kernels.h"
#include "topology/keys.h"
#include "topology/random.h"
#include "topology/replace.h"
#include "topology/sample.h"

namespace sparsekern {

// A matrix whose rows are split evenly into groups, each with column weights of its own. An edge's weight is
// row_weights[r] * col_weights[group of r][c].
class EdgeWeights {
 public:
  EdgeWeights(const double* row_weights, const double* col_weights, int64_t n_rows, int64_t n_cols, int64_t groups)
      : group_rows_(n_rows / groups), n_cols_(n_cols), groups_(groups), row_weights_(row_weights),
        col_weights_(col_weights), cumulative_(n_cols * groups) {
    for (int64_t g = 0; g < groups; ++g) {
      const double* of_group = row_weights + g * group_rows_;
      rows_.emplace_back(of_group, group_rows_);
      group_weights_.push_back(std::accumulate(of_group, of_group + group_rows_, 0.0));
    }
    double total = 0;
    for (int64_t c = 0; c < n_cols; ++c)
      for (int64_t g = 0; g < groups; ++g)
        cumulative_[c * groups + g] = total += col_weights[g * n_cols + c] * group_weights_[g];
    for (double& weight : cumulative_) weight /= total;
    for (int64_t part = 0; part <= kParts; ++part)
      starts_[part] = not_below(0, static_cast<int64_t>(cumulative_.size()) - 1, static_cast<double>(part) / kParts);
  }

  int64_t groups() const { return groups_; }
  // Draws from which at most about so many distinct edges are expected that are not in the matrix.
  template <class P>
  double draws_for(double wanted, const P* ccol, const int32_t* row) const {
    if (groups_ > 1) return wanted;
    return sparsekern::draws_for(wanted, ccol, row, row_weights_, group_rows_, col_weights_, n_cols_);
  }
  // The share of column c, group g in all weight.
  double share(int64_t c, int64_t g) const {
    const int64_t i = c * groups_ + g;
    return i == 0 ? cumulative_[0] : cumulative_[i] - cumulative_[i - 1];
  }
  int32_t* draw_rows(int64_t g, int64_t count, Random& random, int32_t* out) const {
    Random local = random;  // in registers
    const int32_t first = static_cast<int32_t>(g * group_rows_);
    for (int32_t* end = out + count; out != end; ++out) *out = first + static_cast<int32_t>(rows_[g].draw(local));
    random = local;
    return out;
  }
  uint64_t draw_key(Random& random) const {
    const double unit = random.unit();
    const int64_t part = std::min(kParts - 1, static_cast<int64_t>(unit * kParts));
    const int64_t i = not_below(starts_[part], starts_[part + 1], unit);
    if (groups_ == 1) return static_cast<uint64_t>(i) * group_rows_ + rows_[0].draw(random);
    return static_cast<uint64_t>(i / groups_) * (group_rows_ * groups_) + i % groups_ * group_rows_ +
           rows_[i % groups_].draw(random);
  }

 private:
  static constexpr int64_t kParts = 1024;  // of [0, 1], in which searches begin

  // The first of [begin, end), or end, whose cumulative weight is not below `value`.
  int64_t not_below(int64_t begin, int64_t end, double value) const {
    return first_not_below(cumulative_.data() + begin, end - begin, value) - cumulative_.data();
  }

  int64_t group_rows_, n_cols_, groups_;
  const double* row_weights_;
  const double* col_weights_;
  std::vector<AliasTable> rows_;
  std::vector<double> group_weights_;
  std::vector<double> cumulative_;  // over [column][group]
  std::array<int64_t, kParts + 1> starts_;  // the first not below each part's beginning
};

// The same where all edges weigh alike.
class EqualWeights {
 public:
  EqualWeights(int64_t n_rows, int64_t n_cols) : n_rows_(n_rows), n_cols_(n_cols) {}

  int64_t groups() const { return 1; }
  template <class P>
  double draws_for(double wanted, const P* ccol, const int32_t*) const {
    const double all = static_cast<double>(n_rows_) * static_cast<double>(n_cols_);
    return -all * std::log1p(-wanted / (all - static_cast<double>(ccol[n_cols_])));
  }
  double share(int64_t, int64_t) const { return 1.0 / static_cast<double>(n_cols_); }
  int32_t* draw_rows(int64_t, int64_t count, Random& random, int32_t* out) const {
    Random local = random;
    for (int32_t* end = out + count; out != end; ++out) *out = static_cast<int32_t>(local.below(n_rows_));
    random = local;
    return out;
  }
  uint64_t draw_key(Random& random) const { return random.below(static_cast<uint64_t>(n_rows_) * n_cols_); }

 private:
  int64_t n_rows_, n_cols_;
};

// Memory of a set of rows.
class RowSet {
 public:
  explicit RowSet(int64_t rows) {
    int64_t words = (rows + 63) / 64;
    bytes_.resize(words * 64);
    blocked_.resize(words);
    for (;; words = (words + 63) / 64) {
      levels_.emplace_back(words, 0);
      if (words <= 1) break;
    }
  }

  RowBits bits() const {
    RowBits bits{static_cast<int>(levels_.size()), static_cast<int64_t>(blocked_.size()), {}, blocked_.data(), bytes_.data()};
    for (size_t level = 0; level < levels_.size(); ++level) bits.level[level] = levels_[level].data();
    return bits;
  }

 private:
  mutable std::vector<uint64_t> blocked_;
  mutable std::vector<uint8_t> bytes_;
  mutable std::vector<std::vector<uint64_t>> levels_;
};

// Draws edges one by one, in proportion to their weights, and keeps those that are neither in the matrix nor drawn
// before, until there are `count`. Draws come in rounds: of a Poisson number of draws each column gets a Poisson number,
// on its own, so that columns can be drawn side by side; the mean is chosen such that a round gives less than is asked
// for. What is missing in the end is drawn edge by edge. The distribution is that of drawing one after the other.
template <class P, class Weights>
class CandidateDraw {
 public:
  CandidateDraw(const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, const Weights& weights, uint64_t seed)
      : ccol_(ccol), row_(row), n_rows_(n_rows), n_cols_(n_cols), weights_(weights), seed_(seed),
        starts_(n_cols + 1, 0), sizes_(n_cols, 0) {}

  // Draws at most `budget` times. Returns how many edges there are.
  int64_t collect(int64_t count, double budget) {
    constexpr double kMargin = 6;      // standard deviations
    constexpr double kAllowance = 0.015;  // of the draws expected in vain, for what draws_for does not see
    constexpr double kSafety = 0.98;   // of the share of new ones among the draws, which falls as they go on
    const int64_t least = std::max<int64_t>(128, count / 24);  // that a round over all columns is worth
    double is_new = 1;  // the share of new ones among the last round's draws
    while (count - found_ > least && rounds_ < kMaxRounds) {
      const double missing = static_cast<double>(count - found_);
      double wanted = missing - kMargin * std::sqrt(missing);
      if (found_ == 0) {
        const double draws = weights_.draws_for(wanted, ccol_, row_);
        wanted = draws - kAllowance * (draws - wanted);
      } else {
        wanted *= kSafety / is_new;
      }
      const double mean = std::min({wanted, budget, 2.0 * static_cast<double>(count)});
      if (!(mean > static_cast<double>(least))) break;
      const int64_t before = found_;
      if (!run_round(mean, count)) break;
      budget -= mean;
      is_new = std::max(static_cast<double>(found_ - before), 1.0) / mean;
    }
    collect_rest(count, budget);
    return found_ + rest_count_;
  }

  // Writes what was collected, as CSC.
  void write(P* ccol, int32_t* row) const {
    const auto first_of = [&](int64_t c) {
      return std::lower_bound(rest_, rest_ + rest_count_, static_cast<uint64_t>(c) * n_rows_);
    };
    ccol[0] = 0;
    const uint64_t* next = rest_;
    for (int64_t c = 0; c < n_cols_; ++c) {
      const uint64_t* begin = next;
      const uint64_t end = static_cast<uint64_t>(c + 1) * n_rows_;
      while (next != rest_ + rest_count_ && *next < end) ++next;
      ccol[c + 1] = ccol[c] + static_cast<P>(sizes_[c] + (next - begin));
    }
    const int64_t tasks = tasks_for(ccol[n_cols_]);
    parallel_tasks(tasks, [&](int64_t task) {
      const int64_t first = first_column(ccol, n_cols_, task, tasks), last = first_column(ccol, n_cols_, task + 1, tasks);
      const uint64_t* key = first_of(first);
      int32_t* out = row + ccol[first];
      for (int64_t c = first; c < last; ++c) {
        const int32_t* from = rows_ + starts_[c];
        const int32_t* const end = from + sizes_[c];
        const uint64_t column = static_cast<uint64_t>(c) * n_rows_;
        for (; key != rest_ + rest_count_ && *key - column < static_cast<uint64_t>(n_rows_); ++key) {
          const auto extra = static_cast<int32_t>(*key - column);
          const int32_t* behind = next_not_below(from, end, extra);
          out = std::copy(from, behind, out);
          *out++ = extra;
          from = behind;
        }
        out = std::copy(from, end, out);
      }
    });
  }

 private:
  enum Purpose : uint64_t { kCounting, kRows, kRest, kPurposes };

  // Looks first where the row would be if rows were evenly spread, then ever farther: a search by halves would wait for
  // memory at most of its steps.
  int64_t likely_place(int64_t size, int32_t row) const {
    return static_cast<int64_t>(static_cast<double>(row) * static_cast<double>(size) / n_rows_);
  }
  bool has(const int32_t* rows, int64_t size, int32_t row) const {
    int64_t low = 0, high = size, step = 16;
    const int64_t guess = likely_place(size, row);
    if (guess < size && rows[guess] < row) {
      low = guess + 1;
      for (; low + step < size && rows[low + step] < row; step *= 2) low += step + 1;
      high = std::min(size, low + step + 1);
    } else {
      high = std::min(size, guess + 1);
      for (; high > step && rows[high - step] >= row; step *= 2) high -= step - 1;
      low = std::max<int64_t>(0, high - step);
    }
    const int32_t* found = first_not_below(rows + low, high - low, row);
    return found != rows + size && *found == row;
  }
  static int64_t tasks_for(int64_t edges) { return std::max<int64_t>(1, std::min(num_threads(), edges >> 15)); }
  uint64_t part(int64_t block, Purpose purpose) const { return (block * kMaxRounds + rounds_) * kPurposes + purpose; }

  // Each column's Poisson number of draws, in all `mean` on average. False, and nothing drawn, where they gave too many.
  bool run_round(double mean, int64_t count) {
    const int64_t groups = weights_.groups();
    const int64_t blocks = (n_cols_ + kDrawBlock - 1) / kDrawBlock;
    std::vector<int32_t> draws(n_cols_ * groups);
    std::vector<int64_t> new_starts(n_cols_ + 1);
    parallel_ranges(blocks, 64, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        Random random(seed_, part(b, kCounting));
        for (int64_t c = b * kDrawBlock; c < std::min(n_cols_, (b + 1) * kDrawBlock); ++c) {
          int64_t size = sizes_[c];
          for (int64_t g = 0; g < groups; ++g)
            size += draws[c * groups + g] = static_cast<int32_t>(random.poisson(mean * weights_.share(c, g)));
          new_starts[c + 1] = size;
        }
      }
    });
    for (int64_t c = 0; c < n_cols_; ++c) new_starts[c + 1] += new_starts[c];

    int32_t* new_rows = Scratch::of_this_thread().get<int32_t>(rounds_ % 2 ? kRedrawnSlot : kDrawnSlot, new_starts[n_cols_]);
    std::vector<int32_t> new_sizes(n_cols_);
    std::atomic<int64_t> found{0};
    const int64_t tasks = std::min(tasks_for(new_starts[n_cols_]), blocks);
    parallel_tasks(tasks, [&](int64_t task) {
      const auto first_block = [&](int64_t t) {
        return t == tasks ? blocks : first_column(new_starts.data(), n_cols_, t, tasks) / kDrawBlock;
      };
      const RowSet set(n_rows_);
      int64_t mine = 0;
      const int64_t last = first_block(task + 1);
      for (int64_t b = first_block(task); b < last; ++b) {
        Random random(seed_, part(b, kRows));
        const int64_t first = b * kDrawBlock, columns = std::min(kDrawBlock, n_cols_ - first);
        if (rounds_ == 0 && groups == 1) {  // all one after another
          const int64_t* at = new_starts.data() + first;
          weights_.draw_rows(0, at[columns] - at[0], random, new_rows + at[0]);
        } else {
          for (int64_t c = first; c < first + columns; ++c) {
            int32_t* end = std::copy_n(rows_ + starts_[c], sizes_[c], new_rows + new_starts[c]);
            for (int64_t g = 0; g < groups; ++g) end = weights_.draw_rows(g, draws[c * groups + g], random, end);
          }
        }
        int64_t edges_at[kDrawBlock + 1];
        std::copy_n(ccol_ + first, columns + 1, edges_at);
        active_isa().topology.sift({row_, edges_at, new_rows, new_starts.data() + first, columns,
                                    new_sizes.data() + first, set.bits()});
        mine = std::accumulate(new_sizes.data() + first, new_sizes.data() + first + columns, mine);
      }
      found += mine;
    });
    ++rounds_;
    if (found > count) return false;
    found_ = found;
    rows_ = new_rows;
    starts_.swap(new_starts);
    sizes_.swap(new_sizes);
    return true;
  }

  void collect_rest(int64_t count, double budget) {
    const int64_t missing = count - found_;
    if (missing == 0) return;
    Random random(seed_, part(0, kRest));
    uint64_t* rest = Scratch::of_this_thread().get<uint64_t>(kLeftOutSlot, missing);
    const auto draw = [&](uint64_t* keys, int64_t size) {
      for (int64_t i = 0; i < size; ++i) keys[i] = weights_.draw_key(random);
    };
    const auto ask_for = [&](uint64_t key) {
      const int64_t c = key / n_rows_;
      const int32_t r = static_cast<int32_t>(key % n_rows_);
      __builtin_prefetch(row_ + ccol_[c] + likely_place(ccol_[c + 1] - ccol_[c], r));
      __builtin_prefetch(rows_ + starts_[c] + likely_place(sizes_[c], r));
    };
    const auto keep_new = [&](uint64_t* keys, int64_t size) {
      constexpr int64_t kAhead = 8;
      std::vector<uint8_t> is_new(size);
      parallel_ranges(size, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (i + kAhead < end) ask_for(keys[i + kAhead]);
          const int64_t c = keys[i] / n_rows_;
          const int32_t r = static_cast<int32_t>(keys[i] % n_rows_);
          is_new[i] = !has(row_ + ccol_[c], ccol_[c + 1] - ccol_[c], r) & !has(rows_ + starts_[c], sizes_[c], r);
        }
      });
      int64_t kept = 0;
      for (int64_t i = 0; i < size; ++i) {
        keys[kept] = keys[i];
        kept += is_new[i];
      }
      return kept;
    };
    rest_ = rest;
    rest_count_ = collect_keys(rest, missing, static_cast<uint64_t>(n_rows_) * n_cols_,
                               static_cast<int64_t>(std::min(budget, 9e18)), draw, keep_new);
  }

  static constexpr uint64_t kMaxRounds = 16;
  const P* ccol_;
  const int32_t* row_;
  int64_t n_rows_, n_cols_;
  const Weights& weights_;
  uint64_t seed_;
  uint64_t rounds_ = 0;
  // Drawn so far: column c has sizes_[c] rows from rows_[starts_[c]] on.
  int32_t* rows_ = nullptr;
  std::vector<int64_t> starts_;
  std::vector<int32_t> sizes_;
  int64_t found_ = 0;
  const uint64_t* rest_ = nullptr;
  int64_t rest_count_ = 0;
};

// Up to `count` distinct edges that are not in the matrix as CSC, every set of them alike likely; all where there are no
// more. Returns how many.
template <class P>
int64_t draw_uniform(uint64_t seed, const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, int64_t count,
                     P* new_ccol, int32_t* new_row) {
  const uint64_t inactive = static_cast<uint64_t>(n_rows) * n_cols - ccol[n_cols];
  count = static_cast<int64_t>(std::min<uint64_t>(count, inactive));
  if (static_cast<uint64_t>(count) > inactive / 2) {  // most draws would be repeats
    Random random(seed);
    uint64_t* keys = Scratch::of_this_thread().get<uint64_t>(kKeysSlot, count);
    inactive_edges(random, ccol, row, n_rows, n_cols, count, keys);
    unpack_keys(keys, count, n_rows, n_cols, new_ccol, new_row);
    return count;
  }
  const EqualWeights weights(n_rows, n_cols);
  CandidateDraw<P, EqualWeights> drawn(ccol, row, n_rows, n_cols, weights, seed);
  drawn.collect(count, 1e18);
  drawn.write(new_ccol, new_row);
  return count;
}

// Adds `epsilon` times their mean to weights, so that none is 0; all are alike where all are 0. False, and nothing done,
// where one is not finite.
inline bool lift(double* weights, int64_t size, double epsilon) {
  const double mean = std::accumulate(weights, weights + size, 0.0) / static_cast<double>(std::max<int64_t>(1, size));
  if (!std::isfinite(mean)) return false;
  const double least = mean > 0 ? epsilon * mean : 1.0;
  for (int64_t i = 0; i < size; ++i) weights[i] += least;
  return true;
}

// The same by weight: see EdgeWeights. Gives up when a budget of draws is spent. -1 where a weight is not finite, else
// the weights are lifted by `epsilon`.
template <class P>
int64_t draw_weighted(uint64_t seed, const P* ccol, const int32_t* row, int64_t n_rows, int64_t n_cols, int64_t groups,
                      double* row_weights, double* col_weights, double epsilon, int64_t count, P* new_ccol,
                      int32_t* new_row) {
  constexpr int64_t kDrawsPerEdge = 16;
  constexpr int64_t kSmallLayer = 4096;  // so that a small layer does not give up after a few unlucky draws
  if (!lift(row_weights, n_rows, epsilon) || !lift(col_weights, n_cols * groups, epsilon)) return -1;
  const EdgeWeights weights(row_weights, col_weights, n_rows, n_cols, groups);
  CandidateDraw<P, EdgeWeights> drawn(ccol, row, n_rows, n_cols, weights, seed);
  const int64_t found = drawn.collect(count, static_cast<double>(kDrawsPerEdge * count + kSmallLayer));
  drawn.write(new_ccol, new_row);
  return found;
}

}  // namespace sparsekern
