// gather.h's and inner.h's products for 16-bit activations, on tensor cores, by slots (slots.h) whose minors are cells
// of a tile: what an edge reads, wherever the block's tokens are, is 16 bytes that lie a constant distance from theirs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/queue.h"
#include "cuda/slots.h"
#include "cuda/tiles.h"

namespace sparsekern::cuda {

// Warps of a block at most, two blocks to a processor; a warp has one strip of rows and as many cells of 8 tokens.
inline constexpr int kGatherHalfWarps = 12, kWarpCells = 8;
// One block to a processor, whose warps have as many groups of slots each.
inline constexpr int kInnerHalfWarps = 12, kWarpGroups = 14;

// How blocks share the work, and where the results go, in elements.
struct GatherHalf {
  Tiles tiles;
  int rows, row_groups;  // rows of one group read the channels of that group alone
  int group_channels;
  int block_rows;            // of a block: strips
  int chunk_planes, chunks;  // planes in shared memory at once; the block's planes are as many chunks, or fewer
  int token_warps;           // warps of a block side by side in tokens; the others side by side in rows
  int warps;
  Strides from;
  int64_t to_row, to_y, to_x, to_image;

  SK_HOST_DEVICE int row_blocks() const { return (rows + block_rows - 1) / block_rows; }
  SK_HOST_DEVICE int64_t blocks() const { return tiles.count() * tiles.out_classes() * row_blocks(); }
  SK_HOST_DEVICE size_t landing_bytes() const { return size_t{16} * token_warps * kWarpCells; }
  // Of a matrix with a major for each output class and each row, rows being filled up to whole blocks.
  SK_HOST_DEVICE int slot_blocks() const { return tiles.out_classes() * row_blocks() * block_rows / kBlock; }
  size_t shared_bytes() const {
    return landing_bytes() + table_bytes(tiles) + size_t{16} * tiles.plane_pitch * chunk_planes;
  }
};

// to[row, token] = bias[row] + the sum of value * from[channel, token + shift] over the row's slots. pointers: of a
// layout of slots in `chunks` chunks, all of `dtype`, as from and to are. bias: nullptr for none.
void gather_half(const Queue& queue, const GatherHalf& task, Dtype dtype, const void* from, const int32_t* pointers,
                 const uint32_t* slots, const float* bias, void* to);

// As Inner; a unit is a group of slots.
struct InnerHalf {
  Tiles x, grad;
  int rows, row_groups, group_channels;
  int block_rows;
  int chunk_planes, chunks;
  int warps, unit_warps;
  int items, slices;
  int64_t groups;  // that there is memory of
  Strides from, grad_from;

  SK_HOST_DEVICE int row_blocks() const { return (rows + block_rows - 1) / block_rows; }
  SK_HOST_DEVICE int slot_blocks() const { return row_blocks() * block_rows / kBlock; }
  SK_HOST_DEVICE int steps() const { return (grad.token_cells() + 3) / 4; }
  SK_HOST_DEVICE size_t sum_bytes() const { return sizeof(float) * warps * kWarpGroups * kGroup; }
  SK_HOST_DEVICE size_t tile_bytes() const {
    return size_t{16} * (chunk_planes * x.plane_pitch + block_rows * grad.plane_pitch);
  }
  SK_HOST_DEVICE size_t start_bytes() const { return (size_t{32} * steps() + 127) / 128 * 128; }
  size_t shared_bytes() const {
    const size_t tiles = 2 * tile_bytes();
    return (tiles > sum_bytes() ? tiles : sum_bytes()) + table_bytes(x) + table_bytes(grad) + start_bytes() + 128;
  }
};

// partial[slice, i] = the sum over the slice's tokens of grad[row, token] * x[channel, token + shift] of slot i. items:
// as inner.h's, of groups; `places` and `lists` are the layout's.
void inner_half(const Queue& queue, const InnerHalf& task, Dtype dtype, const void* x, const void* grad,
                const void* items, const uint16_t* places, const int32_t* lists, float* partial);

}  // namespace sparsekern::cuda
