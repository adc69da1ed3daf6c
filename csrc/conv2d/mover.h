// Copies between tensors and planes.
#pragma once

#include <algorithm>
#include <cstring>

#include "conv2d/conv2d.h"
#include "conv2d/kernels.h"
#include "conv2d/layout.h"

namespace sparsekern {

// A result larger than this is written past the caches: it would not stay in them until it is read.
constexpr int64_t kStreamElements = 1 << 19;

// One tensor seen from the tiles: copies channels between it and planes.
template <class A>
struct Mover {
  const Conv2dKernels<A>& kernels;
  TensorRef tensor;
  int64_t channels, pixels;
  TileKind kind;
  int64_t unit;
  bool stream;  // unpack past the caches

  char* at(int64_t element) const { return static_cast<char*>(tensor.data) + element * size_of(tensor.dtype); }
  int64_t image_stride() const { return channels * pixels; }

  template <class T>
  T* image(int64_t n) const {
    return reinterpret_cast<T*>(at(n * image_stride()));
  }

  LaneCopy<A> lane_copy(const Layout& layout, const Tile& tile, Span range, A* planes) const {
    return {at(tile.images.begin * image_stride()), image_stride(), pixels, range.begin, range.end,
            static_cast<int>(tile.images.length()), layout.pixels.begin, layout.pixels.length(), layout.place.data(),
            planes, layout.plane_size * unit, stream};
  }

  void clear_gaps(const Layout& layout, Span range, A* planes) const {
    for (int64_t c = range.begin; c < range.end; ++c)
      for (const Span& gap : layout.gaps)
        std::fill_n(planes + (c * layout.plane_size + gap.begin) * unit, gap.length() * unit, A(0));
  }

  void pack(const Layout& layout, const Tile& tile, Span range, A* planes) const {
    const int d = static_cast<int>(tensor.dtype);
    if (kind == TileKind::lane) return kernels.pack_lanes[d](lane_copy(layout, tile, range, planes));
    if (kind == TileKind::row && !layout.runs.empty()) {
      const Run &first = layout.runs[0], &second = layout.runs[layout.runs.size() > 1];
      return kernels.pack_rows[d]({at(tile.images.begin * image_stride() + first.pixel), pixels,
                                   second.pixel - first.pixel, range.begin, range.end,
                                   static_cast<int64_t>(layout.runs.size()), first.length, planes + first.at,
                                   layout.plane_size, second.at - first.at});
    }
    for (int64_t c = range.begin; c < range.end; ++c)
      for (const Run& run : layout.runs)
        kernels.widen[d](at((tile.images.begin + run.image) * image_stride() + c * pixels + run.pixel), run.step,
                         run.length, planes + c * layout.plane_size + run.at);
  }

  // Channels `range` of an image, `rows` of `length` pixels, from and to planes laid out as the tensor is.
  void widen_rows(int64_t n, Span range, Span rows, int64_t length, A* planes) const {
    kernels.pack_rows[static_cast<int>(tensor.dtype)](dense_copy(n, range, rows, length, planes));
  }
  void narrow_rows(int64_t n, Span range, Span rows, int64_t length, A* planes) const {
    kernels.unpack_rows[static_cast<int>(tensor.dtype)](dense_copy(n, range, rows, length, planes));
  }
  RowCopy<A> dense_copy(int64_t n, Span range, Span rows, int64_t length, A* planes) const {
    const int64_t first = rows.begin * length;
    return {at(n * image_stride() + first), pixels, 0, range.begin, range.end, 1, rows.length() * length,
            planes + first, pixels, 0};
  }

  // Adds `part` of each of the images' pixels to their channels' vectors of sums.
  void sum(Span images, Span range, Span part, SumOf<A>* sums) const {
    kernels.sum_channels[static_cast<int>(tensor.dtype)]({at(images.begin * image_stride() + part.begin), image_stride(),
                                                          pixels, range.begin, range.end, images.length(),
                                                          part.length(), sums});
  }

  // Pixels that the planes do not hold become zero.
  void unpack(const Layout& layout, const Tile& tile, Span range, A* planes) const {
    const int d = static_cast<int>(tensor.dtype);
    if (kind == TileKind::lane) return kernels.unpack_lanes[d](lane_copy(layout, tile, range, planes));
    int64_t held = 0;
    for (const Run& run : layout.runs) held += run.length;
    const bool complete = held == tile.images.length() * layout.pixels.length();
    for (int64_t c = range.begin; c < range.end; ++c) {
      for (int64_t n = tile.images.begin; !complete && n < tile.images.end; ++n)
        std::memset(at(n * image_stride() + c * pixels + layout.pixels.begin), 0,
                    layout.pixels.length() * size_of(tensor.dtype));
      for (const Run& run : layout.runs)
        kernels.narrow[d](planes + c * layout.plane_size + run.at, run.length, run.step,
                          at((tile.images.begin + run.image) * image_stride() + c * pixels + run.pixel));
    }
  }
};

}  // namespace sparsekern
