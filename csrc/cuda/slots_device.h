// slots.h's format, for kernels.
#pragma once

#include "cuda/device.h"
#include "cuda/slots.h"

namespace sparsekern::cuda {

// Where slot `slot` of a group (0 to 15) lies in its 16 words.
SK_HOST_DEVICE int memory_of(int slot) { return (slot % 8 / 2) * 4 + slot / 8 * 2 + slot % 2; }

// The major at a place of a block, and the block of a major.
SK_HOST_DEVICE int32_t major_of(int32_t block, int place) {
  return block / 2 * kStrip + place / 2 * 4 + block % 2 * 2 + place % 2;
}
SK_HOST_DEVICE int32_t block_of(int32_t major) { return major / kStrip * 2 + major % 4 / 2; }

// The first place of [begin, end) whose number is at least `least`; they ascend.
SK_DEVICE int64_t lower_bound(const int32_t* numbers, int64_t begin, int64_t end, int64_t least) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (numbers[middle] < least) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

}  // namespace sparsekern::cuda
