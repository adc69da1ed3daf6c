#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "conv2d/conv2d.h"

namespace sparsekern {
namespace {

// Batch, channels, height, width, out_channels; kernel, stride, padding and dilation of y and of x; groups.
Conv2dShape shape_from(const std::array<int64_t, 14>& v) {
  return {v[0], v[1], v[4], v[13], Axis(v[2], v[5], v[7], v[9], v[11]), Axis(v[3], v[6], v[8], v[10], v[12])};
}

TensorRef tensor(std::pair<uintptr_t, int> ref) {
  return {reinterpret_cast<void*>(ref.first), static_cast<DType>(ref.second)};
}
IndexRef index(std::pair<uintptr_t, bool> ref) { return {reinterpret_cast<const void*>(ref.first), ref.second}; }

}  // namespace

// Tensors are (address, DType), pointers (address, is int64), and an absent tensor's address is 0.
void bind_conv2d(pybind11::module_& m) {
  using Tensor = std::pair<uintptr_t, int>;
  using Index = std::pair<uintptr_t, bool>;
  using Shape = std::array<int64_t, 14>;
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def(
      "conv2d_forward",
      [](const Shape& shape, int64_t edges, Tensor x, Tensor values, Tensor bias, Index crow, uintptr_t col,
         Index permutation, Tensor y) {
        conv2d_forward(shape_from(shape), edges, tensor(x), tensor(values), tensor(bias), index(crow),
                       reinterpret_cast<const int32_t*>(col), index(permutation), tensor(y));
      },
      unlocked);
  m.def(
      "conv2d_backward",
      [](const Shape& shape, int64_t edges, Tensor grad, Tensor x, Tensor values, Index ccol, uintptr_t row,
         Tensor x_grad, Tensor values_grad, Tensor bias_grad) {
        conv2d_backward(shape_from(shape), edges, tensor(grad), tensor(x), tensor(values), index(ccol),
                        reinterpret_cast<const int32_t*>(row), tensor(x_grad), tensor(values_grad),
                        tensor(bias_grad));
      },
      unlocked);
  m.def(
      "conv2d_make_planar",
      [](int dtype, int64_t batch, int64_t channels, int64_t pixels, uintptr_t from, uintptr_t to) {
        conv2d_make_planar(static_cast<DType>(dtype), batch, channels, pixels, reinterpret_cast<const void*>(from),
                           reinterpret_cast<void*>(to));
      },
      unlocked);
  using Limits = std::array<int64_t, 7>;
  m.def("conv2d_exchange_limits", [](const Limits& v) {
    const Conv2dLimits old = exchange_conv2d_limits({v[0], v[1], v[2], v[3], v[4], v[5], v[6]});
    return Limits{old.tile_elements, old.thread_work, old.cache_bytes, old.panel_bytes, old.panel_edges,
                  old.lane_panel_edges, old.shifted_edges};
  });
}

}  // namespace sparsekern
