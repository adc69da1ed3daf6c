// Tiles of activations in shared memory: all that one block's edges read, of some channels and of some tokens.
//
// A token is a place of the output and an image. Tiles are made of cells, 16 bytes of adjacent tokens: of images of one
// place, where the batch is large enough (activations then lie as [channel][y][x][image]), or of places beside each
// other in one image, as the images lie. Along each axis a tile has places one step apart, as many as the block's
// outputs plus `reach` that the kernel reaches over. Strides and distances are brought to such places by classes: a
// plane of the tile holds the activations of one channel and one class, and an edge is a plane and a constant shift,
// hence one number of cells. Classes are the residues of a stride, or the kernel's taps themselves, each with a copy
// that needs no shift. A linear layer is the image of one pixel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/host_device.h"

namespace sparsekern::cuda {

// One axis. Output class a, which only input gradients have several of, consists of the outputs one `out_step` apart.
struct TileAxis {
  int size;                       // positions of the source
  int step, start;                // place p is position p * step + start
  int classes;                    // and class j lies
  int class_step, class_modulus;  // j * class_step % class_modulus further on
  int back_step, back_divisor;    // output class a, a * back_step / back_divisor further back
  int tile, extent, tiles;        // outputs of a tile, its places, and tiles
  int out_classes;
  int out_size, out_step, out_start;      // place p is output p * out_step + out_start
  int out_class_step, out_class_modulus;  // of class a, a * out_class_step % out_class_modulus further on
};

struct Tiles {
  TileAxis y, x;
  int images;
  // Cells of one place: of images, or if `by_pixel` of adjacent outputs in x, which are one place then.
  int inner_cells;
  int image_tiles;
  int by_pixel;
  // Cells from place to place, from cell to cell of one place, and from plane to plane.
  int y_pitch, x_pitch, inner_pitch, plane_pitch;

  SK_HOST_DEVICE int classes() const { return y.classes * x.classes; }
  SK_HOST_DEVICE int plane_cells() const { return y.extent * x.extent * inner_cells; }
  SK_HOST_DEVICE int token_cells() const { return y.tile * x.tile * inner_cells; }
  SK_HOST_DEVICE int64_t count() const { return static_cast<int64_t>(image_tiles) * y.tiles * x.tiles; }
  SK_HOST_DEVICE int out_classes() const { return y.out_classes * x.out_classes; }
};

// Where activations lie, in elements.
struct Strides {
  int64_t channel, y, x, image;
  int images;  // that there is memory of: where cells are of images, a multiple of a cell's
};

// Bytes of the table of a tile's cells, in shared memory.
SK_HOST_DEVICE size_t table_bytes(const Tiles& tiles) {
  return (size_t{8} * tiles.classes() * tiles.plane_cells() + 127) / 128 * 128;
}

}  // namespace sparsekern::cuda
