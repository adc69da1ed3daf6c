// Absolute values as integers of the same order. Included by files of every instruction set: nothing here is ever emitted
// as a function of its own.
#pragma once

#include <stdint.h>

namespace sparsekern {

// A NaN counts as the smallest.
static inline __attribute__((always_inline)) uint32_t magnitude_key(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits &= 0x7fffffffu;
  return bits > 0x7f800000u ? 0 : bits + 1;
}
static inline __attribute__((always_inline)) uint64_t magnitude_key(double value) {
  uint64_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits &= 0x7fffffffffffffffu;
  return bits > 0x7ff0000000000000u ? 0 : bits + 1;
}

}  // namespace sparsekern
