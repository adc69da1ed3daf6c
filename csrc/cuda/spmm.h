// A sparse matrix times activations, on tensor cores: the forward product and, by columns, the input's gradient.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/queue.h"
#include "cuda/slots.h"

namespace sparsekern::cuda {

// What a thread block works on at once: so many tokens, and so many blocks of 8 majors in each of its 16 warps.
struct SpmmTile {
  int tokens, blocks;
};
inline constexpr SpmmTile kSpmmTiles[] = {{64, 4}, {32, 8}, {32, 2}, {16, 2}};
inline constexpr int kSpmmWarps = 16;
// Of a set, or more: what one thread block has of blocks at most.
inline constexpr int kSpmmSetBlocks = 128;

// y[t, m] = bias[m] + the sum of value x[minor, t] over the slots of major m.
struct SpmmArguments {
  Dtype dtype;  // of x and y, bfloat16 or float16
  int64_t tokens, majors;
  Cut cut;  // of one chunk at least; a set has a multiple of kSpmmSetBlocks blocks, or all
  const uint16_t* order;  // minor_order.h's
  const int32_t* pointers;
  const uint32_t* slots;  // with one more group after the last
  const void* x;          // (minors, stride), aligned to 16 bytes
  int64_t stride;         // a multiple of 8, at least `tokens`
  const float* bias;      // (majors) or nullptr
  void* y;                // (tokens, majors), contiguous, aligned to 16 bytes
};

// `tile`: one of kSpmmTiles; two chunks of tile.tokens tokens have to fit into shared memory.
void spmm(const Queue& queue, const SpmmTile& tile, const SpmmArguments& arguments);

}  // namespace sparsekern::cuda
