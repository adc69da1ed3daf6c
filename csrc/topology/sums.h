// Sums over the batch, feature by feature.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "parallel.h"

namespace sparsekern {

// sums[f] = sum over items i of |x[i * stride + f]|. Items are added up in the same order for any number of threads.
template <class T>
void sum_magnitudes(const T* x, int64_t items, int64_t features, int64_t stride, double* sums) {
  constexpr int64_t kBlock = 2048;  // features whose sums stay in the first-level cache
  constexpr int64_t kRun = 128;     // items whose sum T holds without losing digits that matter
  const int64_t grain = std::max<int64_t>(64, (1 << 16) / std::max<int64_t>(1, items));
  parallel_ranges(features, grain, [&](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t size = std::min(kBlock, last - begin);
      std::fill(sums + begin, sums + begin + size, 0.0);
      for (int64_t run = 0; run < items; run += kRun) {
        alignas(64) T part[kBlock] = {};
        const int64_t end = std::min(items, run + kRun);
        int64_t i = run;
        for (; i + 4 <= end; i += 4) {
          const T* from = x + i * stride + begin;
          for (int64_t f = 0; f < size; ++f)
            part[f] += (std::fabs(from[f]) + std::fabs(from[stride + f])) +
                       (std::fabs(from[2 * stride + f]) + std::fabs(from[3 * stride + f]));
        }
        for (; i < end; ++i)
          for (int64_t f = 0; f < size; ++f) part[f] += std::fabs(x[i * stride + begin + f]);
        for (int64_t f = 0; f < size; ++f) sums[begin + f] += part[f];
      }
    }
  });
}

// A convolution's kernel on one plane, along one axis: its positions, stride and dilation, zero padding, and the sizes of
// the input and the output.
struct Window {
  int64_t taps, stride, padding, dilation, size, out_size;

  // The outputs [begin, end) for which position t falls on the input, and the input position of output 0.
  int64_t origin(int64_t t) const { return t * dilation - padding; }
  int64_t begin(int64_t t) const { return std::max<int64_t>(0, (stride - 1 - origin(t)) / stride); }
  int64_t end(int64_t t) const { return std::min(out_size, (size - origin(t) + stride - 1) / stride); }
};

// sums[c][r][s]: what kernel position (r, s) sees of plane c, added up over all outputs.
inline void sum_windows(const double* planes, int64_t channels, const Window& y, const Window& x, double* sums) {
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, y.taps * x.taps * y.out_size * x.out_size));
  parallel_ranges(channels, grain, [&](int64_t first, int64_t last) {
    double* out = sums + first * y.taps * x.taps;
    for (int64_t c = first; c < last; ++c) {
      const double* plane = planes + c * y.size * x.size;
      for (int64_t r = 0; r < y.taps; ++r) {
        for (int64_t s = 0; s < x.taps; ++s) {
          double sum = 0;
          for (int64_t i = y.begin(r); i < y.end(r); ++i) {
            const double* line = plane + (i * y.stride + y.origin(r)) * x.size + x.origin(s);
            for (int64_t j = x.begin(s); j < x.end(s); ++j) sum += line[j * x.stride];
          }
          *out++ = sum;
        }
      }
    }
  });
}

}  // namespace sparsekern
