// Copies of the operand that edges shift, one for each shift along a row (see TileKind::shifted in layout.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "conv2d/geometry.h"

namespace sparsekern {

inline int64_t vectors_for(int64_t size, int64_t lanes) { return (size + lanes - 1) / lanes; }

// Whether rows of `size` elements fill vectors well enough to be taken as they are.
inline bool fills_vectors(int64_t size, int64_t lanes) {
  return size >= lanes && vectors_for(size, lanes) * lanes * 3 <= size * 4;
}

struct Shifts {
  int64_t width = 0;            // pixels in a copy's row; 0: such rows would not fill vectors
  int64_t images = 1;           // whose rows lie side by side in a vector
  int64_t step = 1;             // from a lane's pixel in the operand's row to the next lane's
  std::vector<int64_t> firsts;  // of each copy, the pixel in its first lane; zero where the row has no such pixel
  std::vector<int64_t> of_tap;  // the copy that each of a kernel row's taps meets

  int64_t copies() const { return static_cast<int64_t>(firsts.size()); }
  int64_t pitch(int64_t lanes) const { return vectors_for(width, lanes) * lanes; }

  // Copies of the input, whose rows are shifted for output rows.
  static Shifts forward(const Conv2dShape& shape, int64_t lanes) {
    Shifts shifts;
    shifts.step = shape.x.stride;
    if (shape.y.plain() && shape.x.plain()) return shifts;
    shifts.fit(shape.x.out, lanes);
    for (const Axis::Tap& tap : shape.x.taps) shifts.add(shape.x.position(tap.cls, tap.shift));
    return shifts;
  }

  // Copies of the output gradient, whose rows are shifted for the input rows of every class.
  static Shifts backward(const Conv2dShape& shape, int64_t lanes) {
    Shifts shifts;
    if ((shape.y.plain() && shape.x.plain()) || !complete(shape.y) || !complete(shape.x)) return shifts;
    const int64_t width = shape.x.size / shape.x.stride;
    for (int64_t cls = 0; cls < shape.x.classes(); ++cls)
      if (shape.x.inside(cls).length() != width) return shifts;
    // The gradients of two classes are put together by whole vectors.
    if (shape.x.stride == 1 || width % lanes == 0 || width * 2 == lanes) shifts.fit(width, lanes);
    const bool zips = shape.x.stride == 2;
    if (shape.x.stride > 2 || (shifts.images == 1 && shape.classes() > 1 && !zips)) shifts.width = 0;
    for (const Axis::Tap& tap : shape.x.taps) shifts.add(shape.x.inside(tap.cls).begin - tap.shift);
    return shifts;
  }

 private:
  // Whether some tap meets each position.
  static bool complete(const Axis& axis) {
    int64_t met = 0;
    for (int64_t cls = 0; cls < axis.classes(); ++cls) met += axis.inside(cls).length();
    return met == axis.size;
  }

  void fit(int64_t size, int64_t lanes) {
    if (size == 0 || step > 2) return;
    images = size < lanes && lanes % size == 0 ? lanes / size : 1;
    const bool divides = images == 2 || (images == 4 && step == 1);
    if (divides || (images == 1 && fills_vectors(size, lanes))) width = size;
  }

  void add(int64_t first) {
    const auto found = std::find(firsts.begin(), firsts.end(), first);
    of_tap.push_back(found - firsts.begin());
    if (found == firsts.end()) firsts.push_back(first);
  }
};

}  // namespace sparsekern
