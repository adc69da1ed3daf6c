// Sparse conv2d on the CPU: its products, on contiguous NCHW tensors given by address.
#pragma once

#include <cstdint>

#include "conv2d/geometry.h"
#include "dtype.h"

namespace sparsekern {

struct TensorRef {
  void* data;
  DType dtype;
};

// Pointers of a compressed matrix or a permutation: int32 or int64.
struct IndexRef {
  const void* data;
  bool is_64;
};

// y = conv2d(x, W) + bias. Edges in the order of rows (crow, col), edge j's value is values[permutation[j]].
void conv2d_forward(const Conv2dShape& shape, TensorRef x, TensorRef values, TensorRef bias, IndexRef crow,
                    const int32_t* col, IndexRef permutation, TensorRef y);

// The gradients of x and of the values, edges in the order of columns (ccol, row). Either result may be
// absent (null data), and then also the operand that only it needs: values or x.
void conv2d_backward(const Conv2dShape& shape, TensorRef grad, TensorRef x, TensorRef values, IndexRef ccol,
                     const int32_t* row, TensorRef x_grad, TensorRef values_grad);

}  // namespace sparsekern
