// The k largest or smallest absolute values, ties by the lower position.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

namespace sparsekern {

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

// Writes the k positions, ascending; 0 <= k <= size. Time O(size).
template <class T>
void select_by_magnitude(const T* values, int64_t size, int64_t k, bool largest, int64_t* positions) {
  using Key = decltype(magnitude_key(T{}));
  if (k == 0) return;
  const Key flip = largest ? ~Key{0} : Key{0};  // the wanted ones have the smallest keys
  std::unique_ptr<Key[]> keys(new Key[size]);
  for (int64_t i = 0; i < size; ++i) keys[i] = magnitude_key(values[i]) ^ flip;
  std::nth_element(keys.get(), keys.get() + (k - 1), keys.get() + size);
  const Key last = keys[k - 1];
  int64_t ties = k - std::count_if(keys.get(), keys.get() + k, [&](Key key) { return key < last; });
  for (int64_t i = 0, found = 0; found < k; ++i) {
    const Key key = magnitude_key(values[i]) ^ flip;
    if (key < last || (key == last && ties-- > 0)) positions[found++] = i;
  }
}

}  // namespace sparsekern
