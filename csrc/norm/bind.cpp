#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "norm/norm.h"

namespace sparsekern {
namespace {

void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }

// Images, channels, elements of a channel in one image; the addresses of x, weight, bias, mean and variance.
NormArguments arguments_from(const std::array<int64_t, 3>& shape, int dtype, const std::array<uintptr_t, 5>& tensors,
                             double eps, bool relu) {
  return {{shape[0], shape[1], shape[2]}, static_cast<DType>(dtype), address(tensors[0]), address(tensors[1]),
          address(tensors[2]),            address(tensors[3]),       address(tensors[4]), eps,
          relu};
}

}  // namespace

// Tensors are addresses; 0 stands for one that is not there or not wanted.
void bind_norm(pybind11::module_& m) {
  using Shape = std::array<int64_t, 3>;
  using Tensors = std::array<uintptr_t, 5>;
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def(
      "norm_forward",
      [](const Shape& shape, int dtype, const Tensors& tensors, double eps, bool relu, bool batch_statistics,
         uintptr_t residual, uintptr_t y) {
        norm_forward(arguments_from(shape, dtype, tensors, eps, relu), batch_statistics, address(residual), address(y));
      },
      unlocked);
  m.def(
      "norm_backward",
      [](const Shape& shape, int dtype, const Tensors& tensors, double eps, bool relu, bool batch_statistics,
         uintptr_t grad, uintptr_t y, const std::array<uintptr_t, 4>& gradients) {
        norm_backward(arguments_from(shape, dtype, tensors, eps, relu), batch_statistics, address(grad), address(y),
                      {address(gradients[0]), address(gradients[1]), address(gradients[2]), address(gradients[3])});
      },
      unlocked);
}

}  // namespace sparsekern
