// The element types of activations and values, as the Python side numbers them.
#pragma once

#include <cstddef>

namespace sparsekern {

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

inline size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::f64: return 8;
    default: return 2;
  }
}

}  // namespace sparsekern
