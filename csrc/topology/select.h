// The k largest or smallest absolute values, ties by the lower position.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "topology/keys.h"

namespace sparsekern {

constexpr int64_t kSelectGrain = 1 << 15;  // values that are worth a thread

// Orders by absolute value as an integer does; a NaN counts as the smallest.
inline uint32_t magnitude_key(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= 0x7fffffffu;
  return bits > 0x7f800000u ? 0 : bits + 1;
}
inline uint64_t magnitude_key(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= 0x7fffffffffffffffu;
  return bits > 0x7ff0000000000000u ? 0 : bits + 1;
}

// Writes the k positions, ascending; 0 <= k <= size. Time O(size): values are counted by the first digit of their keys,
// which leaves those of one digit to be partitioned.
template <class T>
void select_by_magnitude(const T* values, int64_t size, int64_t k, bool largest, int64_t* positions) {
  using Key = decltype(magnitude_key(T{}));
  constexpr int kDigit = 12;  // its counters take half of the first-level cache
  constexpr int kShift = 8 * sizeof(Key) - kDigit;
  if (k == 0) return;
  const Key flip = largest ? ~Key{0} : Key{0};  // the wanted ones have the smallest keys
  const auto key_at = [&](int64_t i) -> Key { return magnitude_key(values[i]) ^ flip; };
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), size / kSelectGrain));
  struct Part {
    std::vector<int64_t> counts;  // by digit
    int64_t begin, end;           // of its keys with the digit of the k-th, in `middle`
    int64_t first, last;          // of its positions
    int64_t ties;                 // keys equal to the k-th that it may take
  };
  std::vector<Part> parts(tasks);
  const auto each = [&](const auto& body) {
    parallel_tasks(tasks, [&](int64_t t) { body(parts[t], size * t / tasks, size * (t + 1) / tasks); });
  };

  each([&](Part& part, int64_t begin, int64_t end) {
    part.counts.assign(size_t{1} << kDigit, 0);
    for (int64_t i = begin; i < end; ++i) ++part.counts[key_at(i) >> kShift];
  });
  Key digit = 0;
  int64_t below = 0;  // keys with a smaller digit
  int64_t here = 0;   // keys with this digit
  for (;; ++digit, below += here) {
    here = 0;
    for (Part& part : parts) {
      part.begin = here;
      here += part.counts[digit];
      part.end = here;
    }
    if (below + here >= k) break;
  }

  Key* middle = Scratch::of_this_thread().get<Key>(kSortSlot, 2 * here);
  each([&](Part& part, int64_t begin, int64_t end) {
    Key* out = middle + part.begin;
    Key* const out_end = middle + part.end;
    for (int64_t i = begin; out != out_end && i < end; ++i) {
      const Key key = key_at(i);
      *out = key;
      out += key >> kShift == digit;
    }
  });
  Key* sorted = std::copy(middle, middle + here, middle + here) - here;
  std::nth_element(sorted, sorted + (k - below - 1), sorted + here);
  const Key last = sorted[k - below - 1];
  int64_t place = 0;
  for (Part& part : parts) {
    part.first = place;
    for (Key d = 0; d < digit; ++d) place += part.counts[d];
    place += std::count_if(middle + part.begin, middle + part.end, [&](Key key) { return key < last; });
  }
  const int64_t ties = k - place;
  int64_t taken = 0;  // of the ties, by the parts so far
  for (Part& part : parts) {
    const int64_t equal = std::count(middle + part.begin, middle + part.end, last);
    part.first += taken;
    part.ties = std::min(equal, ties - taken);
    taken += part.ties;
  }
  for (int64_t t = 0; t < tasks; ++t) parts[t].last = t + 1 < tasks ? parts[t + 1].first : k;

  each([&](const Part& part, int64_t begin, int64_t) {
    int64_t left = part.ties;
    int64_t found = part.first;
    for (int64_t i = begin; found < part.last; ++i) {
      const Key key = key_at(i);
      const bool tied = key == last && left > 0;
      positions[found] = i;
      found += (key < last) | tied;
      left -= tied;
    }
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
