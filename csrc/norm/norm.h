// Batch normalization of (images, channels, size) tensors without gaps, with a residual and a ReLU behind it.
// Affine parameters, statistics and their gradients are float32, or float64 for float64 elements.
#pragma once

#include "dtype.h"
#include "norm/kernels.h"

namespace sparsekern {

struct NormArguments {
  NormShape shape;
  DType dtype;         // of elements
  const void* x;
  const void* weight;  // (channels,), null for ones
  const void* bias;    // (channels,), null for zeros
  void* mean;          // (channels,)
  void* variance;      // (channels,) of all elements, not of a sample
  double eps;
  bool relu;
};

// y = relu(affine(normalized x) + residual). Statistics are the batch's, and are written, or are read as given.
void norm_forward(const NormArguments& arguments, bool batch_statistics, const void* residual, void* y);

struct NormGradients {
  void* dx;         // null where not wanted
  void* dresidual;  // null where not wanted
  void* dweight;    // (channels,)
  void* dbias;      // (channels,)
};

// y, forward's result, is read where a ReLU followed a residual; null otherwise.
void norm_backward(const NormArguments& arguments, bool batch_statistics, const void* grad, const void* y,
                   const NormGradients& gradients);

}  // namespace sparsekern
