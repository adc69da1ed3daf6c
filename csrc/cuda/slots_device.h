// slots.h's format, for kernels.
#pragma once

#include "cuda/device.h"
#include "cuda/slots.h"

namespace sparsekern::cuda {

// Where slot `slot` of a group (0 to 15) lies in its 16 words.
SK_HOST_DEVICE int memory_of(int slot) { return (slot % 8 / 2) * 4 + slot / 8 * 2 + slot % 2; }

// The major at a place of a block.
SK_HOST_DEVICE int32_t major_of(int32_t block, int place) {
  return block / 2 * kStrip + place / 2 * 4 + block % 2 * 2 + place % 2;
}

}  // namespace sparsekern::cuda
