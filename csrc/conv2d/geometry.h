// The geometry of a convolution, brought to stride 1.
//
// Input position p of an axis, padded, is p + padding = step * stride + residue. A tap at distance d = tap * dilation
// meets, for output position y, the input at y * stride + d: residue d mod stride, step y + d / stride. So the
// positions of one residue (a class) form a plane of their own on which every tap is a constant shift, and
// classes that no tap meets are left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sparsekern {

struct Span {
  int64_t begin, end;
  int64_t length() const { return end - begin; }
};
inline Span intersect(Span a, Span b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

struct Axis {
  struct Tap {
    int64_t cls, shift;
  };
  int64_t size, out;
  int64_t stride, padding;
  std::vector<Tap> taps;
  std::vector<int64_t> residues;  // of each class
  int64_t reach;                  // the largest shift

  Axis(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation)
      : size(size),
        out((size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1),
        stride(stride),
        padding(padding),
        reach(dilation * (kernel - 1) / stride) {
    for (int64_t tap = 0; tap < kernel; ++tap) {
      const int64_t residue = tap * dilation % stride;
      const auto found = std::find(residues.begin(), residues.end(), residue);
      taps.push_back({found - residues.begin(), tap * dilation / stride});
      if (found == residues.end()) residues.push_back(residue);
    }
  }

  int64_t classes() const { return static_cast<int64_t>(residues.size()); }
  bool plain() const { return taps.size() == 1 && stride == 1 && padding == 0; }  // output y meets input y alone
  int64_t extent() const { return out + reach; }  // steps that some output meets
  int64_t position(int64_t cls, int64_t step) const { return step * stride + residues[cls] - padding; }

  // The steps of a class at positions that exist and that some output meets.
  Span inside(int64_t cls) const {
    const int64_t begin = ceil_div(padding - residues[cls], stride);
    const int64_t end = ceil_div(size + padding - residues[cls], stride);
    return intersect({0, extent()}, {begin, end});
  }

  // All positions, met or not, dealt to ranges of steps: those of [begin, end), the outermost taking what lies beyond.
  Span positions(Span steps) const {
    const auto first = [&](int64_t step) {
      return step >= extent() ? size : std::clamp<int64_t>(step * stride - padding, 0, size);
    };
    return {steps.begin == 0 ? 0 : first(steps.begin), first(steps.end)};
  }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return a <= 0 ? 0 : (a + b - 1) / b; }
};

struct Conv2dShape {
  int64_t batch, channels, out_channels, groups;
  Axis y, x;

  int64_t pixels() const { return y.size * x.size; }
  int64_t out_pixels() const { return y.out * x.out; }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_out_channels() const { return out_channels / groups; }
  int64_t taps() const { return static_cast<int64_t>(y.taps.size() * x.taps.size()); }
  int64_t columns() const { return group_channels() * taps(); }
  int64_t classes() const { return y.classes() * x.classes(); }

  // The same with an image's pixels in a single row, where no edge tells rows apart.
  Conv2dShape flattened() const {
    if (!y.plain() || !x.plain()) return *this;
    return {batch, channels, out_channels, groups, Axis(1, 1, 1, 0, 1), Axis(pixels(), 1, 1, 0, 1)};
  }
};

}  // namespace sparsekern
