// Sums over the edges of each row: forward by rows of W, the input gradient by its columns. Linear and conv2d.
#pragma once

#include "cuda/queue.h"
#include "cuda/tiles.h"

namespace sparsekern::cuda {

struct Words2;

// Warps of a block at most, two blocks to a processor; rows of a lane, whose sums are in registers.
inline constexpr int kGatherWarps = 12, kLaneRows = 8;

// How blocks share the work, and where the results go, in elements.
struct Gather {
  Tiles tiles;
  int rows, row_groups;            // rows of one group read the channels of that group alone
  int group_channels;
  int block_rows;                  // rows of a block
  int chunk_planes, chunks;        // planes in shared memory at once; the block's planes are as many chunks, or fewer
  int token_warps;                 // warps of a block side by side in tokens; the others side by side in rows
  int warps;
  int lanes;                       // lanes that share a row, each with a cell
  Strides from;
  int64_t to_row, to_y, to_x, to_image;

  SK_HOST_DEVICE int row_blocks() const { return (rows + block_rows - 1) / block_rows; }
  SK_HOST_DEVICE int64_t blocks() const { return tiles.count() * tiles.out_classes() * row_blocks(); }
  SK_HOST_DEVICE size_t landing_bytes() const { return size_t{16} * token_warps * lanes; }
  size_t shared_bytes() const {
    return landing_bytes() + table_bytes(tiles) + size_t{16} * tiles.plane_pitch * chunk_planes;
  }
};

// An edge of a list: where its activations are in the tile, in bytes, and its value.
struct Edge {
  uint32_t offset;
  float value;
};

// edges[i] = {16 cells[i], values[sources[i]]}, value 0 where sources[i] < 0.
void pack_edges(const Queue& queue, int64_t count, const int* cells, const int* sources, const float* values,
                Edge* edges);

// to[row, token] = bias[row] + the sum of value * from[channel, token + shift] over the row's edges. `ranges` are the
// first edge, which is even, and the end of list ((out_class * row_blocks + block) * chunks + chunk) * block_rows +
// row, with an empty one after the last. bias: nullptr for none.
void gather(const Queue& queue, const Gather& task, const float* from, const Words2* ranges, const Edge* edges,
            const float* bias, float* to);

}  // namespace sparsekern::cuda
