// Searches in ascending arrays.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sparsekern {

// As std::lower_bound, of which the processor predicts no step: here none is a branch.
template <class T>
const T* first_not_below(const T* begin, int64_t size, T value) {
  while (size > 1) {
    const int64_t half = size / 2;
    begin += begin[half - 1] < value ? half : 0;
    size -= half;
  }
  return begin + (size == 1 && *begin < value);
}

// The same where it is probably near the front.
template <class T>
const T* next_not_below(const T* begin, const T* end, T value) {
  int64_t step = 16;
  for (; end - begin > step && begin[step - 1] < value; step *= 2) begin += step;
  return first_not_below(begin, std::min<int64_t>(step, end - begin), value);
}

}  // namespace sparsekern
