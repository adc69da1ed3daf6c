// Products of activations (tokens, features) with a sparse weight (rows, columns); rows are output features.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "linear/plan.h"

namespace sparsekern {

struct Activations {
  DType dtype;
  void* data;      // null where not wanted
  int64_t stride;  // elements from token to token; features are adjacent
};

struct Values {
  DType dtype;
  void* data;           // null where not wanted
  int64_t version = 0;  // torch's count of writes to them
};

// One compressed direction of a topology. Pointers are int32, or int64 when `wide`; all contents were validated.
struct Compressed {
  const void* pointers;
  const int32_t* indices;
  bool wide;
};

struct Topology {
  int64_t rows, columns, nnz;
  Compressed by_column;     // ccol, row: as the values are stored
  Compressed by_row;        // crow, col; null where not needed
  const void* permutation;  // by row, as wide as its pointers: where each value is stored
  LinearPlan* plan;         // of this topology, or null where nothing can be kept
};

// y = x W^T + bias.
void linear_forward(const Topology& topology, int64_t tokens, const Activations& x, const Values& w,
                    const Values& bias, const Activations& y);

// dx = grad W, dw[k] = sum over tokens of grad[row_k] x[col_k] and dbias = sum over tokens of grad, each where wanted.
void linear_backward(const Topology& topology, int64_t tokens, const Activations& grad, const Activations& x,
                     const Values& w, const Activations& dx, const Values& dw, const Values& dbias);

}  // namespace sparsekern
