// Inner products over all tokens at the edges of a pattern: the gradient of the values. Linear and conv2d.
#pragma once

#include "cuda/queue.h"
#include "cuda/tiles.h"

namespace sparsekern::cuda {

struct Words4;

// Edges are dealt to units: some edges of one row (fp32: kUnitEdges of them) within a block of rows and a chunk of
// planes.
inline constexpr int kUnitEdges = 8;
// Warps of a block at most, and units of a lane, in registers. Eight lanes share a unit.
inline constexpr int kInnerWarps = 12, kLaneUnits = 7;

// How blocks share the work. A block keeps the sums of its units over one slice of the tokens.
struct Inner {
  Tiles x;     // of the activations
  Tiles grad;  // of the output's gradient: the same tokens, without classes or reach, a plane a row
  int rows, row_groups, group_channels;
  int block_rows;
  int chunk_planes, chunks;
  int warps;
  int unit_warps;  // of them that have units of their own; the others have the same ones, and other tokens of each tile
  int items;   // at most: pieces of work that fill a block with units
  int slices;  // of the tokens' tiles
  int64_t units;  // that there is memory of
  Strides from, grad_from;

  // Cells of tokens, a multiple of what shared memory serves at once.
  SK_HOST_DEVICE int steps() const { return (grad.token_cells() + 7) / 8; }
  // Sums of all warps, where the tiles were: those of the same units are added up there.
  SK_HOST_DEVICE size_t sum_bytes() const { return sizeof(float) * warps * 32 * kLaneUnits; }
  SK_HOST_DEVICE size_t tile_bytes() const {
    return size_t{16} * (chunk_planes * x.plane_pitch + block_rows * grad.plane_pitch);
  }
  SK_HOST_DEVICE size_t start_bytes() const { return (size_t{64} * steps() + 127) / 128 * 128; }
  size_t shared_bytes() const {
    const size_t tiles = 2 * tile_bytes();
    return (tiles > sum_bytes() ? tiles : sum_bytes()) + table_bytes(x) + table_bytes(grad) + start_bytes();
  }
  SK_HOST_DEVICE int row_blocks() const { return (rows + block_rows - 1) / block_rows; }
};

// What one block works on: a row block and chunk, as row_block * chunks + chunk, and its units.
struct Item {
  int place, first, end, unused;
};

// partial[slice, unit * kUnitEdges + edge] = the sum over the slice's tokens of grad[row, token] * x[channel, token +
// shift]. items: `task.items` of them, those without units last. rows[unit]: in the row block. cells: for each unit
// kUnitEdges numbers of 16 bits, the edges' cells in the tile.
void inner(const Queue& queue, const Inner& task, const float* x, const float* grad, const Item* items, const int* rows,
           const Words4* cells, float* partial);

// out[sources[i]] = the sum over slices of partial[slice, i], for i below `count` with sources[i] >= 0.
void add_slices(const Queue& queue, int64_t count, int slices, const float* partial, const int* sources, float* out);

}  // namespace sparsekern::cuda
