// How a tile of a batch lies in working memory.
//
// A plane holds the pixels of one channel (of one class of its positions, see geometry.h), rows `pitch` apart.
// In a lane tile a pixel is a vector with one image in each lane. In a flat tile a pixel is one element, the images
// follow one another, and vectors run over everything, gaps between rows and images included. A row tile is one image
// whose rows of pixels fill vectors: only the operand that edges shift is copied, to give it its borders, and
// where it needs none (1x1 kernels) not even that. The other tensors serve as planes themselves.
// A shifted tile is a row tile that holds that operand once for each shift along a row (shifts.h), so that all vectors
// are aligned. Images whose rows are short lie side by side in a vector; then, and with stride 2, the other tensors
// have planes of vectors too.
// In row and shifted tiles planes may hold bfloat16 as the tensors do (SumOf in kernels.h).
#pragma once

#include <cstdint>
#include <vector>

#include "conv2d/geometry.h"
#include "conv2d/kernels.h"
#include "conv2d/shifts.h"

namespace sparsekern {

enum class TileKind { lane, flat, row, shifted };

struct Tile {
  Span images;
  Span rows;  // forward: output rows; backward: steps of the input
};

// Tiles whose planes have the same sizes, so that one list of edges serves them all.
struct Batch {
  TileKind kind;
  int64_t images;  // the most in a tile
  int64_t rows;    // the most in a tile
  std::vector<Tile> tiles;
};

// A stretch of pixels of an image, `step` apart there, together in the plane.
struct Run {
  int64_t image;
  int64_t pixel, step;
  int64_t at;
  int64_t length;
};

// What the planes of one channel hold: its plane of each class. The planes of all channels of a class lie together.
// Positions count vectors in lane tiles, elements otherwise.
struct Layout {
  int64_t plane_size;        // positions from a channel to the next
  Span pixels{0, 0};         // the part of each image that this tile packs or unpacks
  std::vector<Run> runs;     // in the order of `at`
  std::vector<Span> gaps;    // positions that hold no pixel
  std::vector<int32_t> place;  // lane tiles: position of each pixel, -1 if none

  void add_run(const Run& run) {
    if (run.length > 0) runs.push_back(run);
  }
  void find_gaps(int64_t begin);
  void find_places();
};

// Whether the rows of pixels of a stride-1 problem fill vectors of `lanes` elements well enough for row tiles.
bool rows_fill_vectors(const Conv2dShape& shape, int64_t lanes);

// Sizes of the planes of a batch, and the layouts and blocks of its tiles.
struct Planes {
  const Conv2dShape& shape;
  TileKind kind;
  bool in_place;       // row tiles: the operand that edges shift needs no borders and is not copied either
  int64_t lanes;       // of a vector
  int64_t unit;        // elements in a position
  int64_t pitch;       // positions from a row to the next
  int64_t image_size;  // positions from an image to the next
  int64_t input_size;  // of an input plane
  int64_t margin;      // positions before a gradient plane's first pixel, zero: edges reach back into it
  int64_t grad_size;   // of a gradient plane
  int64_t out_size;    // of an output plane
  bool direct;         // the tensors that edges do not shift serve as planes
  Shifts shifts;       // of shifted tiles

  static Planes forward(const Conv2dShape& shape, const Batch& batch, int64_t lanes, bool in_place);
  static Planes backward(const Conv2dShape& shape, const Batch& batch, int64_t lanes, bool in_place);

  // Elements that some block may read after the last plane.
  int64_t slack() const { return (margin + lanes) * unit; }

  Layout input(const Tile& tile, Span rows) const;
  Layout grad(const Tile& tile) const;
  Layout output(const Tile& tile) const;

  std::vector<Block> forward_blocks(const Tile& tile, int most) const;
  std::vector<Block> backward_blocks(const Tile& tile, int64_t cls, int most) const;

  // Elements of a channel's planes of one class that edges meet from a block's pixels: the most of any block.
  int64_t window(const std::vector<Block>& blocks) const;

 private:
  int64_t plane_size(int64_t images) const;
  std::vector<Block> flat_blocks(int64_t length, int most) const;
  std::vector<Block> row_blocks(Span rows, Span columns, int64_t first_row, int64_t out_row, int most) const;
  void make_shifted(const Shifts& with, int64_t rows);
  void add_lane_blocks(std::vector<Block>& blocks, Span rows, Span columns, int64_t first_row, int most) const;
};

// Divides the images and `extent` rows into tiles, row tiles if in_rows. All planes of one image hold `row_elements` in
// a row, those of a tile should hold at most tile_elements.
std::vector<Batch> make_batches(const Conv2dShape& shape, int64_t extent, int64_t row_elements, int64_t lanes,
                                bool in_rows, int64_t tile_elements);

// Likewise into shifted tiles, of which a row of vectors holds `row_elements`; none where the whole images do not fit:
// row tiles are better than bands.
std::vector<Batch> make_shifted_batch(const Conv2dShape& shape, const Shifts& shifts, int64_t extent,
                                      int64_t row_elements, int64_t tile_elements);

}  // namespace sparsekern
