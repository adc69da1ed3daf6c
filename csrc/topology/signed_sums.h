// Sums of a convolution's input, or of its output's gradient, under random signs of the output's positions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dtype.h"
#include "isa/isa.h"
#include "parallel.h"
#include "scratch.h"
#include "topology/keys.h"
#include "topology/sums.h"

namespace sparsekern {

// Lines [first, last) of planes that hold, for each kernel position, the sign of the output that sees an element there, or 0.
template <class A>
void spread_signs(const int8_t* signs, const Window& y, const Window& x, int64_t first, int64_t last, int64_t stride,
                  A* planes) {
  std::memset(planes, 0, y.taps * x.taps * stride * sizeof(A));
  for (int64_t r = 0; r < y.taps; ++r) {
    for (int64_t i = y.begin(r); i < y.end(r); ++i) {
      const int64_t line = i * y.stride + y.origin(r);
      if (line < first || line >= last) continue;
      const int8_t* from = signs + i * x.out_size;
      for (int64_t s = 0; s < x.taps; ++s) {
        A* to = planes + (r * x.taps + s) * stride + (line - first) * x.size + x.origin(s);
        if (x.stride == 1)
          for (int64_t j = x.begin(s); j < x.end(s); ++j) to[j] = static_cast<A>(from[j]);
        else
          for (int64_t j = x.begin(s); j < x.end(s); ++j) to[j * x.stride] = static_cast<A>(from[j]);
      }
    }
  }
}

// sums[c][r][s]: what kernel position (r, s) sees of channel c, each output's times its sign, added up over all images.
// Images are added up in the same order for any number of threads.
template <class A>
void signed_sums(DType dtype, const void* data, int64_t images, int64_t channels, const Window& y, const Window& x,
                 const int8_t* signs, double* sums) {
  constexpr int64_t kPart = 16384;  // bytes of the signs' planes that are in use at a time
  constexpr int64_t kWidest = kTapSumBytes / sizeof(A);
  const int64_t taps = y.taps * x.taps, plane = y.size * x.size;
  const int64_t line_bytes = taps * x.size * static_cast<int64_t>(sizeof(A));
  const int64_t lines = std::clamp<int64_t>(kPart / std::max<int64_t>(1, line_bytes), 1, std::max<int64_t>(1, y.size));
  const int64_t stride = (lines * x.size + kWidest - 1) / kWidest * kWidest;
  const int64_t bytes = static_cast<int64_t>(size_of(dtype));
  const auto add = active_isa().topology.tap_sums[static_cast<int>(dtype)];
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, images * taps * plane));
  parallel_ranges(channels, grain, [&](int64_t first, int64_t last) {
    Scratch& scratch = Scratch::of_this_thread();
    A* planes = scratch.get<A>(kSignsSlot, taps * stride);
    A* lanes = scratch.get<A>(kTapSumsSlot, (last - first) * taps * kWidest);
    std::memset(lanes, 0, (last - first) * taps * kTapSumBytes);
    for (int64_t n = 0; n < images; ++n) {
      const char* image = static_cast<const char*>(data) + (n * channels + first) * plane * bytes;
      for (int64_t line = 0; line < y.size; line += lines) {
        const int64_t end = std::min(y.size, line + lines);
        spread_signs(signs + n * y.out_size * x.out_size, y, x, line, end, stride, planes);
        add({image + line * x.size * bytes, plane, last - first, (end - line) * x.size, planes, stride, taps, lanes});
      }
    }
    for (int64_t i = 0; i < (last - first) * taps; ++i) {
      double sum = 0;
      for (int64_t lane = 0; lane < kWidest; ++lane) sum += lanes[i * kWidest + lane];
      sums[first * taps + i] = sum;
    }
  });
}

}  // namespace sparsekern
