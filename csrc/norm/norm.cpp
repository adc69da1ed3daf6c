#include "norm/norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cache.h"
#include "isa/isa.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// A run of memory that neighbouring channels of one image should have, so that the hardware reads ahead in it.
constexpr int64_t kRunBytes = 4096;
// Elements that are worth another thread.
constexpr int64_t kTaskElements = 1 << 14;

// Whether a result is written past the caches, which takes planes of whole cache lines.
bool streams(const NormShape& shape, DType dtype, const void* result) {
  const int64_t plane = shape.size * static_cast<int64_t>(size_of(dtype));
  return plane % 64 == 0 && past_caches(result, shape.images * shape.channels * plane);
}

// Blocks of neighbouring channels, each of which is read for its sums and again, out of the level 2 cache, for its
// result. A channel's sums are formed in one order however the blocks are cut.
int64_t block_channels(const NormShape& shape, DType dtype, int64_t tensors) {
  const int64_t plane = std::max<int64_t>(1, shape.size * static_cast<int64_t>(size_of(dtype)));
  const int64_t for_run = (kRunBytes + plane - 1) / plane;
  const int64_t for_cache = caches().second / 2 / std::max<int64_t>(1, plane * shape.images * tensors);
  const int64_t for_threads = (shape.channels + num_threads() - 1) / num_threads();
  return std::max<int64_t>(1, std::min({for_run, for_cache, for_threads, kNormBlock}));
}

template <class Body>
void parallel_blocks(const NormArguments& arguments, int64_t tensors, const Body& body) {
  const NormShape& shape = arguments.shape;
  const int64_t step = block_channels(shape, arguments.dtype, tensors);
  const int64_t blocks = (shape.channels + step - 1) / step;
  const int64_t elements = shape.images * shape.size * step;
  const auto work = [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      body(NormBlock{shape, block * step, std::min(shape.channels, (block + 1) * step)});
  };
  parallel_ranges(blocks, kTaskElements / std::max<int64_t>(1, elements), work);
}

// The parameters and statistics of one call, P being their type.
template <class P>
struct Channels {
  explicit Channels(const NormArguments& a)
      : weight(static_cast<const P*>(a.weight)),
        bias(static_cast<const P*>(a.bias)),
        mean(static_cast<P*>(a.mean)),
        variance(static_cast<P*>(a.variance)),
        eps(a.eps) {}

  double inverse_deviation(int64_t c) const { return 1 / std::sqrt(static_cast<double>(variance[c]) + eps); }
  double weight_of(int64_t c) const { return weight ? static_cast<double>(weight[c]) : 1; }

  // From the rounded statistics, which are what backward is given.
  NormMap map(int64_t c) const {
    const double scale = weight_of(c) * inverse_deviation(c), center = static_cast<double>(mean[c]);
    const double shift = (bias ? static_cast<double>(bias[c]) : 0) - center * scale;
    return {center, static_cast<double>(static_cast<P>(scale)), static_cast<double>(static_cast<P>(shift))};
  }

  const P* weight;
  const P* bias;
  P* mean;
  P* variance;
  double eps;
};

template <class P>
void forward(const NormArguments& a, bool batch_statistics, const void* residual, void* y) {
  const NormKernels& kernels = active_isa().norm[static_cast<int>(a.dtype)];
  const Channels<P> channels(a);
  std::vector<NormMap> maps(a.shape.channels);
  std::vector<double> means(a.shape.channels), variances(a.shape.channels);
  const bool stream = streams(a.shape, a.dtype, y);
  parallel_blocks(a, 1, [&](const NormBlock& block) {
    if (batch_statistics) {
      kernels.moments(block, a.x, means.data(), variances.data());
      for (int64_t c = block.begin; c < block.end; ++c) {
        channels.mean[c] = static_cast<P>(means[c]);
        channels.variance[c] = static_cast<P>(variances[c]);
      }
    }
    for (int64_t c = block.begin; c < block.end; ++c) maps[c] = channels.map(c);
    kernels.forward({block, maps.data(), a.x, residual, y, a.relu, stream});
  });
}

template <class P>
void backward(const NormArguments& a, bool batch_statistics, const void* grad, const void* y,
              const NormGradients& gradients) {
  const NormKernels& kernels = active_isa().norm[static_cast<int>(a.dtype)];
  const Channels<P> channels(a);
  std::vector<NormMap> maps(a.shape.channels);
  std::vector<NormInputMap> input_maps(a.shape.channels);
  std::vector<double> sums(a.shape.channels), dots(a.shape.channels);
  const double count = static_cast<double>(a.shape.images * a.shape.size);
  const auto streamed = [&](const void* result) { return !result || streams(a.shape, a.dtype, result); };
  const bool stream = streamed(gradients.dx) && streamed(gradients.dresidual);
  parallel_blocks(a, y ? 3 : 2, [&](const NormBlock& block) {
    for (int64_t c = block.begin; c < block.end; ++c) maps[c] = channels.map(c);
    const NormSums of{block, maps.data(), grad, a.x, y, a.relu, sums.data(), dots.data()};
    kernels.sums(of);
    for (int64_t c = block.begin; c < block.end; ++c) {
      const double inverse = channels.inverse_deviation(c), of_g = channels.weight_of(c) * inverse;
      static_cast<P*>(gradients.dbias)[c] = static_cast<P>(sums[c]);
      static_cast<P*>(gradients.dweight)[c] = static_cast<P>(dots[c] * inverse);
      input_maps[c] = {of_g, 0, 0};
      if (batch_statistics) {
        input_maps[c].slope = -of_g * inverse * inverse * dots[c] / count;
        input_maps[c].constant = -of_g * sums[c] / count;
      }
    }
    if (gradients.dx || gradients.dresidual)
      kernels.backward({of, input_maps.data(), batch_statistics, gradients.dx, gradients.dresidual, stream});
  });
}

}  // namespace

void norm_forward(const NormArguments& arguments, bool batch_statistics, const void* residual, void* y) {
  if (arguments.dtype == DType::f64) return forward<double>(arguments, batch_statistics, residual, y);
  forward<float>(arguments, batch_statistics, residual, y);
}

void norm_backward(const NormArguments& arguments, bool batch_statistics, const void* grad, const void* y,
                   const NormGradients& gradients) {
  if (arguments.dtype == DType::f64) return backward<double>(arguments, batch_statistics, grad, y, gradients);
  backward<float>(arguments, batch_statistics, grad, y, gradients);
}

}  // namespace sparsekern
