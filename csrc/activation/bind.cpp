#include <pybind11/pybind11.h>

#include "activation/activation.h"

namespace sparsekern {

// Tensors are addresses; a gradient of 0 asks for the function itself.
void bind_activation(pybind11::module_& m) {
  m.def(
      "gelu",
      [](int dtype, int64_t size, uintptr_t grad, uintptr_t x, bool tanh, uintptr_t y) {
        gelu(static_cast<DType>(dtype), size, reinterpret_cast<const void*>(grad), reinterpret_cast<const void*>(x),
             tanh, reinterpret_cast<void*>(y));
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace sparsekern
