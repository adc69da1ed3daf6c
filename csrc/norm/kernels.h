// The batch norm kernels that each instruction set provides, one table for each element type. They work on a block of
// neighbouring channels of (images, channels, size) tensors without gaps. Sums are kept in double.
#pragma once

#include <stdint.h>

namespace sparsekern {

// Channels worked on at once, at most.
constexpr int64_t kNormBlock = 64;

struct NormShape {
  int64_t images, channels, size;  // size: elements of a channel in one image
};

// Channels [begin, end) of tensors of one shape; end - begin <= kNormBlock.
struct NormBlock {
  NormShape shape;
  int64_t begin, end;
};

// What one channel's elements are multiplied and added: x scale + shift, which is the normalized x with its affine map.
// Rounded to the type that elements are computed in, so that backward finds forward's signs again.
struct NormMap {
  double mean, scale, shift;
};

// y = max(x scale + shift + residual, 0), or without the max.
struct NormForward {
  NormBlock block;
  const NormMap* maps;   // of all channels
  const void* x;
  const void* residual;  // or null
  void* y;
  bool relu;
  bool stream;  // written past the caches
};

// With g the gradient where y > 0 (everywhere without ReLU), the block's sums over images and elements of g and of
// g (x - mean), to sums[channel] and dots[channel].
struct NormSums {
  NormBlock block;
  const NormMap* maps;  // of all channels
  const void* grad;
  const void* x;
  const void* y;  // forward's result; null where it is computed again from x, which takes that there was no residual
  bool relu;
  double* sums;
  double* dots;
};

// dx = g input + (x - mean) slope + constant.
struct NormInputMap {
  double input, slope, constant;
};

struct NormBackward {
  NormSums of;
  const NormInputMap* maps;  // of all channels
  bool batch_statistics;     // false: slope and constant are zero
  void* dx;                  // or null
  void* dresidual;           // g, or null
  bool stream;
};

struct NormKernels {
  // Mean and variance (of all elements, not of a sample) of the block's channels, to mean[channel], variance[channel].
  void (*moments)(const NormBlock& block, const void* x, double* mean, double* variance);
  void (*forward)(const NormForward& task);
  void (*sums)(const NormSums& task);
  void (*backward)(const NormBackward& task);
};

}  // namespace sparsekern
