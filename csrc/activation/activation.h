// Elementwise functions of adjacent elements.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparsekern {

// y = gelu(x), or grad gelu'(x) where grad is given; `tanh` approximates.
void gelu(DType dtype, int64_t size, const void* grad, const void* x, bool tanh, void* y);

}  // namespace sparsekern
