// Copies between tensors and shifted tiles.
#pragma once

#include <algorithm>
#include <vector>

#include "conv2d/kernels.h"
#include "conv2d/mover.h"
#include "conv2d/shifts.h"

namespace sparsekern {

template <class A>
struct ShiftMover {
  const Conv2dShape& shape;
  const Planes& planes;

  // Rows of a tensor, `step` apart from `first` on, and the row of the planes where they go.
  struct Rows {
    int64_t first, step, count, at;
  };

  // Forward: the input, a copy for each of a kernel row's taps.
  void pack_shifted_input(const Mover<A>& x, const Tile& tile, Span channels, bool clear, A* to) const {
    for (int64_t cls = 0; cls < shape.y.classes(); ++cls) {
      const Span steps = intersect({tile.rows.begin, tile.rows.end + shape.y.reach}, shape.y.inside(cls));
      const Rows rows{shape.y.position(cls, steps.begin), shape.y.stride, steps.length(),
                      steps.begin - tile.rows.begin};
      A* copies = to + cls * planes.shifts.copies() * x.channels * planes.input_size;
      if (clear) clear_around(rows, planes.shifts.copies(), x.channels, channels, copies, planes.input_size);
      pack(x, tile, rows, channels, shape.x.size, planes.shifts.step, planes.shifts.firsts, copies, planes.input_size);
    }
  }

  // Backward: the output gradient, whose planes begin with the rows that edges reach back to.
  void pack_shifted_grad(const Mover<A>& dy, const Tile& tile, Span channels, bool clear, A* to) const {
    const int64_t begin = tile.rows.begin - shape.y.reach;
    const Span steps = intersect({0, shape.y.out}, {begin, tile.rows.end});
    const Rows rows{steps.begin, 1, steps.length(), steps.begin - begin};
    if (clear) clear_around(rows, planes.shifts.copies(), dy.channels, channels, to, planes.grad_size);
    pack(dy, tile, rows, channels, shape.x.out, 1, planes.shifts.firsts, to, planes.grad_size);
  }

  // Backward: the input, a plane for each class.
  void pack_input(const Mover<A>& x, const Tile& tile, Span channels, A* to) const {
    for (int64_t cls = 0; cls < shape.y.classes(); ++cls)
      pack(x, tile, class_rows(tile, cls), channels, shape.x.size, shape.x.stride, class_firsts(shape),
           to + cls * shape.x.classes() * x.channels * planes.input_size, planes.input_size);
  }
  void unpack_input_grad(const Mover<A>& dx, const Tile& tile, Span channels, const A* from) const {
    const bool zipped = shape.x.stride == 2;
    const int64_t class_size = dx.channels * planes.input_size;
    // The class whose first pixel is a row's first.
    const int64_t even = zipped && class_firsts(shape)[1] == 0 ? 1 : 0;
    for (int64_t cls = 0; cls < shape.y.classes(); ++cls)
      unpack(dx, tile, class_rows(tile, cls), channels, shape.x.size, shape.x.stride,
             from + cls * shape.x.classes() * class_size, planes.input_size, even * class_size,
             (1 - even) * class_size);
  }

  // Forward: the output.
  void unpack_output(const Mover<A>& y, const Tile& tile, Span channels, const A* from) const {
    unpack(y, tile, {tile.rows.begin, 1, tile.rows.length(), 0}, channels, shape.x.out, 1, from, planes.out_size, 0, 0);
  }

 private:
  // The first pixel of each class of a row.
  static std::vector<int64_t> class_firsts(const Conv2dShape& shape) {
    std::vector<int64_t> firsts;
    for (int64_t cls = 0; cls < shape.x.classes(); ++cls)
      firsts.push_back(shape.x.position(cls, shape.x.inside(cls).begin));
    return firsts;
  }
  Rows class_rows(const Tile& tile, int64_t cls) const {
    const Span steps = intersect(tile.rows, shape.y.inside(cls));
    return {shape.y.position(cls, steps.begin), shape.y.stride, steps.length(), steps.begin - tile.rows.begin};
  }

  void clear_around(const Rows& rows, int64_t copies, int64_t all_channels, Span channels, A* to,
                    int64_t plane_size) const {
    for (int64_t k = 0; k < copies; ++k) {
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        A* plane = to + (k * all_channels + c) * plane_size;
        std::fill(plane, plane + rows.at * planes.pitch, A(0));
        std::fill(plane + (rows.at + rows.count) * planes.pitch, plane + plane_size, A(0));
      }
    }
  }

  void pack(const Mover<A>& from, const Tile& tile, const Rows& rows, Span channels, int64_t size, int64_t step,
            const std::vector<int64_t>& firsts, A* to, int64_t plane_size) const {
    const int64_t pixel = tile.images.begin * from.image_stride() + rows.first * size;
    from.kernels.pack_shifted[static_cast<int>(from.tensor.dtype)](
        {from.at(pixel), from.image_stride(), from.pixels, rows.step * size, channels.begin, channels.end,
         static_cast<int>(planes.shifts.images), static_cast<int>(tile.images.length()), rows.count, size, step,
         firsts.data(), static_cast<int64_t>(firsts.size()), to + rows.at * planes.pitch, plane_size,
         from.channels * plane_size, planes.pitch});
  }

  void unpack(const Mover<A>& to, const Tile& tile, const Rows& rows, Span channels, int64_t size, int64_t step,
              const A* from, int64_t plane_size, int64_t even, int64_t odd) const {
    const int64_t pixel = tile.images.begin * to.image_stride() + rows.first * size;
    to.kernels.unpack_shifted[static_cast<int>(to.tensor.dtype)](
        {to.at(pixel), to.image_stride(), to.pixels, rows.step * size, channels.begin, channels.end,
         static_cast<int>(planes.shifts.images), static_cast<int>(tile.images.length()), rows.count, step,
         from + rows.at * planes.pitch, plane_size, planes.pitch, even, odd, to.stream});
  }
};

}  // namespace sparsekern
