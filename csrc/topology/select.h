// The k largest or smallest absolute values, ties by the lower position.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "isa/isa.h"
#include "parallel.h"
#include "topology/keys.h"
#include "topology/magnitude.h"
#include "topology/marks.h"

namespace sparsekern {

constexpr int64_t kSelectGrain = 1 << 15;  // values that are worth a thread

inline const SelectKernels<float, uint32_t>& select_kernels(float) { return active_isa().topology.select_f32; }
inline const SelectKernels<double, uint64_t>& select_kernels(double) { return active_isa().topology.select_f64; }

// Two keys that the k-th smallest of the values' keys probably lies between: a sample's.
template <class T, class Key>
KeyRange<Key> probable_range(const T* values, int64_t size, int64_t k, Key flip) {
  constexpr int64_t kSample = 4096;
  const int64_t count = std::min(size, kSample);
  std::vector<Key> sample(count);
  for (int64_t i = 0; i < count; ++i) sample[i] = magnitude_key(values[size * i / count]) ^ flip;
  const double middle = static_cast<double>(count) * static_cast<double>(k - 1) / static_cast<double>(size);
  const double off = size > count ? 2.5 * std::sqrt(middle * (1 - middle / static_cast<double>(count))) + 4 : 1;
  const auto low = static_cast<int64_t>(middle - off), high = static_cast<int64_t>(middle + off);
  const auto ranked = [&](int64_t rank, int64_t end) {
    std::nth_element(sample.begin(), sample.begin() + rank, sample.begin() + end);
    return sample[rank];
  };
  const Key last = high >= count ? ~Key{0} : ranked(high, count);
  return {flip, low < 0 ? Key{0} : ranked(low, std::min(high + 1, count)), last};
}

// Marks the k of them; 0 <= k <= size. Time O(size): a pass over the values leaves those in a narrow range around the k-th
// to be partitioned.
template <class T>
void select_by_magnitude(const T* values, int64_t size, int64_t k, bool largest, uint64_t* marks) {
  using Key = decltype(magnitude_key(T{}));
  const int64_t words = words_of(size);
  if (k == 0) {
    std::fill(marks, marks + words, uint64_t{0});
    return;
  }
  const auto& kernels = select_kernels(T{});
  const Key flip = largest ? ~Key{0} : Key{0};  // the wanted ones have the smallest keys
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), size / kSelectGrain));
  struct Part {
    int64_t below;  // of its keys, those below the range
    Key* begin;     // its keys in the range
    Key* end;
    int64_t ties;   // keys equal to the k-th that it may take
  };
  std::vector<Part> parts(tasks);
  const auto each = [&](const auto& body) {
    const auto begin = [&](int64_t t) { return std::min(size, words * t / tasks * kMarksPerWord); };
    parallel_tasks(tasks, [&](int64_t t) { body(parts[t], begin(t), begin(t + 1)); });
  };

  Key* in_range = Scratch::of_this_thread().get<Key>(kSortSlot, size);
  KeyRange<Key> range = probable_range(values, size, k, flip);
  int64_t below, here;
  while (true) {
    each([&](Part& part, int64_t begin, int64_t end) {
      part.begin = in_range + begin;
      part.end = kernels.keys_between(values + begin, end - begin, range, &part.below, part.begin);
    });
    below = here = 0;
    for (const Part& part : parts) {
      below += part.below;
      here += part.end - part.begin;
    }
    if (below < k && k <= below + here) break;
    if (below >= k) range.low = 0;
    else range.high = ~Key{0};
  }

  std::vector<Key> sorted;
  sorted.reserve(here);
  for (const Part& part : parts) sorted.insert(sorted.end(), part.begin, part.end);
  std::nth_element(sorted.begin(), sorted.begin() + (k - below - 1), sorted.end());
  const Key last = sorted[k - below - 1];
  int64_t ties = k - below;
  for (const Key key : sorted) ties -= key < last;
  for (Part& part : parts) {
    part.ties = std::min<int64_t>(std::count(part.begin, part.end, last), ties);
    ties -= part.ties;
  }
  each([&](const Part& part, int64_t begin, int64_t end) {
    kernels.mark_up_to(values, begin, end, flip, last, part.ties, marks);
  });
}

// Whether no value is infinite or a NaN.
template <class T>
bool all_finite(const T* values, int64_t size) {
  using Bits = decltype(magnitude_key(T{}));
  constexpr Bits kExponent = sizeof(T) == 8 ? static_cast<Bits>(0x7ff0000000000000u) : Bits{0x7f800000u};
  Bits bad = 0;
  for (int64_t i = 0; i < size; ++i) {
    Bits bits;
    std::memcpy(&bits, values + i, sizeof bits);
    bad |= (bits & kExponent) == kExponent;
  }
  return bad == 0;
}

}  // namespace sparsekern
