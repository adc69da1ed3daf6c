// tiles.h's tiles, for kernels.
#pragma once

#include "cuda/device.h"
#include "cuda/tiles.h"

namespace sparsekern::cuda {

// A cell of a plane. x: where it comes from, in elements from its channel's start. y: its place in the plane, from bit 16
// on the first of its elements that exist, and from bit 24 on their end.
using TableEntry = Words2;

// Which tile: its first place on each axis, the output class and the first image.
struct Place {
  int y, x, y_class, x_class, image;
};

SK_DEVICE Place place_of(const Tiles& tiles, int64_t number, int out_class, int cell_elements) {
  Place place;
  place.x = static_cast<int>(number % tiles.x.tiles) * tiles.x.tile;
  number /= tiles.x.tiles;
  place.y = static_cast<int>(number % tiles.y.tiles) * tiles.y.tile;
  place.image = static_cast<int>(number / tiles.y.tiles) * (tiles.by_pixel ? 1 : tiles.inner_cells * cell_elements);
  place.y_class = out_class / tiles.x.out_classes;
  place.x_class = out_class % tiles.x.out_classes;
  return place;
}

SK_DEVICE int source_position(const TileAxis& axis, int at, int cls, int out_class) {
  return at * axis.step + axis.start + cls * axis.class_step % axis.class_modulus -
         out_class * axis.back_step / axis.back_divisor;
}
SK_DEVICE int output_position(const TileAxis& axis, int at, int out_class) {
  return at * axis.out_step + axis.out_start + out_class * axis.out_class_step % axis.out_class_modulus;
}

// The steps l of [0, count) at which 0 <= at + l * step < size: [first, end).
SK_DEVICE void existing(int at, int step, int size, int count, int& first, int& end) {
  first = at < 0 ? (-at + step - 1) / step : 0;
  end = at < size ? (size - at + step - 1) / step : 0;
  if (end > count) end = count;
  if (first > end) first = end;
}

// A cell of the block's tokens: where it is in a plane without shift, in cells, the output of its first element, and
// which of its elements exist.
struct TokenCell {
  int cell;
  int y, x, image;
  int first, end;
};

SK_DEVICE TokenCell token_cell(const Tiles& tiles, const Place& place, int number, int cell_elements) {
  TokenCell token;
  const int inner = number % tiles.inner_cells;
  const int across = number / tiles.inner_cells % tiles.x.tile, down = number / tiles.inner_cells / tiles.x.tile;
  token.cell = down * tiles.y_pitch + across * tiles.x_pitch + inner * tiles.inner_pitch;
  token.y = output_position(tiles.y, place.y + down, place.y_class);
  if (tiles.by_pixel) {
    const int first = ((place.x + across) * tiles.inner_cells + inner) * cell_elements;
    token.image = place.image;
    token.x = output_position(tiles.x, first, place.x_class);
    existing(token.x, tiles.x.out_step, tiles.x.out_size, cell_elements, token.first, token.end);
  } else {
    token.image = place.image + inner * cell_elements;
    token.x = output_position(tiles.x, place.x + across, place.x_class);
    existing(token.image, 1, tiles.images, cell_elements, token.first, token.end);
    if (token.x < 0 || token.x >= tiles.x.out_size) token.end = token.first;
  }
  if (number >= tiles.token_cells()) token.cell = token.end = token.first = 0;
  if (token.y < 0 || token.y >= tiles.y.out_size) token.end = token.first;
  return token;
}

// Fills the table of all cells of all classes: `classes * plane_cells` entries. The block has to meet before it is
// read.
SK_DEVICE void fill_table(const Tiles& tiles, const Strides& strides, const Place& place, int cell_elements,
                          TableEntry* table) {
  const int cells = tiles.classes() * tiles.plane_cells();
  for (int number = threadIdx.x; number < cells; number += blockDim.x) {
    int rest = number;
    const int inner = rest % tiles.inner_cells;
    rest /= tiles.inner_cells;
    const int across = rest % tiles.x.extent;
    rest /= tiles.x.extent;
    const int down = rest % tiles.y.extent;
    rest /= tiles.y.extent;
    const int y = source_position(tiles.y, place.y + down, rest / tiles.x.classes, place.y_class);
    const int x_class = rest % tiles.x.classes;
    int x, image, first, end;
    if (tiles.by_pixel) {
      const int at = ((place.x + across) * tiles.inner_cells + inner) * cell_elements;
      image = place.image;
      x = source_position(tiles.x, at, x_class, place.x_class);
      existing(x, tiles.x.step, tiles.x.size, cell_elements, first, end);
      // What no output multiplies is not to be read either: a weight's gradient would take it in.
      int out_first, out_end;
      existing(output_position(tiles.x, at, place.x_class), tiles.x.out_step, tiles.x.out_size, cell_elements,
               out_first, out_end);
      if (first < out_first) first = out_first;
      if (end > out_end) end = out_end;
    } else {
      image = place.image + inner * cell_elements;
      x = source_position(tiles.x, place.x + across, x_class, place.x_class);
      first = 0;
      end = x >= 0 && x < tiles.x.size && image < strides.images ? cell_elements : 0;
    }
    if (y < 0 || y >= tiles.y.size || first >= end) first = end = 0;
    const int64_t offset = y * strides.y + x * strides.x + image * strides.image;
    table[number].x = static_cast<uint32_t>(static_cast<int32_t>(end == 0 ? 0 : offset));
    const int cell = down * tiles.y_pitch + across * tiles.x_pitch + inner * tiles.inner_pitch;
    table[number].y = static_cast<uint32_t>(cell | first << 16 | end << 24);
  }
}

// Copies `planes` planes, from the one numbered `first_plane` (channel * classes + class) on, counted from
// `first_channel`. Waiting for the copies and meeting is the caller's.
template <bool kByPixel, class T>
SK_DEVICE void copy_planes(const Tiles& tiles, const T* source, const Strides& strides, const TableEntry* table,
                           int first_channel, int first_plane, int planes, char* tile) {
  constexpr int kElements = 16 / sizeof(T);
  const int classes = tiles.classes(), cells = tiles.plane_cells();
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  // Where a plane has fewer cells than the block threads, these take several planes at once; threads that are left over
  // for part of one more would only copy it twice.
  const int at_once = cells < threads ? threads / cells : 1;
  const int begin = cells < threads ? thread / cells : 0, first_cell = cells < threads ? thread % cells : thread;
  SK_NO_UNROLL
  for (int plane = begin < at_once ? begin : planes; plane < planes; plane += at_once) {
    int channel = first_plane + plane, cls = 0;
    if (classes > 1) {
      cls = channel % classes;
      channel /= classes;
    }
    const T* const from = source + (first_channel + channel) * strides.channel;
    SK_NO_UNROLL
    for (int cell = first_cell; cell < cells; cell += threads) {
      const TableEntry entry = table[cls * cells + cell];
      const int first = entry.y >> 16 & 0xff, end = entry.y >> 24;
      Words4* const to = reinterpret_cast<Words4*>(tile) + plane * tiles.plane_pitch + (entry.y & 0xffff);
      const int32_t offset = static_cast<int32_t>(entry.x);
      if (!kByPixel) {
        copy_async_16(to, from + offset, end != 0);
      } else {
        Words4 words{0, 0, 0, 0};
        uint32_t* const word = &words.x;
        const int step = tiles.x.step * static_cast<int>(strides.x);
        SK_UNROLL
        for (int i = 0; i < kElements; ++i) {
          if (i < first || i >= end) continue;
          const T element = load_constant(from + (offset + i * step));
          if (sizeof(T) == 4) {
            memcpy(word + i, &element, sizeof element);
          } else {
            uint16_t bits;
            memcpy(&bits, &element, sizeof bits);
            word[i / 2] |= static_cast<uint32_t>(bits) << i % 2 * 16;
          }
        }
        *to = words;
      }
    }
  }
  copy_async_commit();
}

}  // namespace sparsekern::cuda
