// The elementwise kernels that each instruction set provides, one table for each element type.
#pragma once

#include <stdint.h>

namespace sparsekern {

struct GeluTask {
  const void* grad;  // null: y = gelu(x); else y = grad gelu'(x)
  const void* x;
  void* y;
  int64_t begin, end;
  bool tanh;    // the approximation by tanh instead of the normal distribution itself
  bool stream;  // y is written past the caches; it and begin are on cache lines
};

struct ActivationKernels {
  void (*gelu)(const GeluTask& task);
};

}  // namespace sparsekern
