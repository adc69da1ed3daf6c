// Marked values: a bit for each (kernels.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa/isa.h"
#include "parallel.h"

namespace sparsekern {

constexpr int64_t kMarkGrain = 1 << 15;  // values that are worth a thread

inline int64_t words_of(int64_t size) { return (size + kMarksPerWord - 1) / kMarksPerWord; }

// Marks the values at `count` positions, of `size`.
inline void mark_positions(const int64_t* positions, int64_t count, int64_t size, uint64_t* marks) {
  std::fill(marks, marks + words_of(size), uint64_t{0});
  for (int64_t i = 0; i < count; ++i)
    marks[positions[i] / kMarksPerWord] |= uint64_t{1} << positions[i] % kMarksPerWord;
}

// The positions of the marked ones, ascending.
inline void marked_positions(const uint64_t* marks, int64_t size, int64_t* positions) {
  for (int64_t w = 0; w < words_of(size); ++w)
    for (uint64_t bits = marks[w]; bits; bits &= bits - 1) *positions++ = w * kMarksPerWord + __builtin_ctzll(bits);
}

// Calls body(begin, end, how many before `begin` are marked, how many before `end`) on ranges that cover [0, size).
template <class Body>
void marked_ranges(const uint64_t* marks, int64_t size, const Body& body) {
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), size / kMarkGrain));
  const auto begin = [&](int64_t t) { return std::min(size, words_of(size) * t / tasks * kMarksPerWord); };
  std::vector<int64_t> before(tasks + 1, 0);
  parallel_tasks(tasks, [&](int64_t t) {
    before[t + 1] = active_isa().topology.count_marks(marks, begin(t), begin(t + 1));
  });
  for (int64_t t = 0; t < tasks; ++t) before[t + 1] += before[t];
  parallel_tasks(tasks, [&](int64_t t) { body(begin(t), begin(t + 1), before[t], before[t + 1]); });
}

}  // namespace sparsekern
