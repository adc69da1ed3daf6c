// Products of activations (tokens, features) with a sparse weight (rows, columns); rows are output features.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparsekern {

struct Activations {
  DType dtype;
  void* data;      // null where not wanted
  int64_t stride;  // elements from token to token; features are adjacent
};

struct Values {
  DType dtype;
  void* data;  // null where not wanted
};

// Pointers and the permutation are int32, or int64 when `wide_pointers`; all contents were validated.
struct Topology {
  int64_t rows, columns, nnz;
  bool wide_pointers;
  const void* pointers;       // crow (forward) or ccol (backward)
  const int32_t* indices;     // col (forward) or row (backward)
  const void* permutation;    // forward only
};

// y = x W^T + bias.
void linear_forward(const Topology& topology, int64_t tokens, const Activations& x, const Values& w,
                    const Values& bias, const Activations& y);

// dx = grad W and dw[k] = sum over tokens of grad[row_k] x[col_k], each where wanted.
void linear_backward(const Topology& topology, int64_t tokens, const Activations& grad, const Activations& x,
                     const Values& w, const Activations& dx, const Values& dw);

}  // namespace sparsekern
