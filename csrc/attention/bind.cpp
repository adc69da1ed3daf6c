#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "attention/attention.h"

namespace sparsekern {

// Sequences, tokens, heads, size of a head; tensors are addresses.
void bind_attention(pybind11::module_& m) {
  using Shape = std::array<int64_t, 4>;
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  const auto shape_from = [](const Shape& v) { return AttentionShape{v[0], v[1], v[2], v[3]}; };
  m.def(
      "attention_forward",
      [=](const Shape& shape, int dtype, uintptr_t qkv, uintptr_t out, uintptr_t log_sums) {
        attention_forward(shape_from(shape), static_cast<DType>(dtype), reinterpret_cast<const void*>(qkv),
                          reinterpret_cast<void*>(out), reinterpret_cast<void*>(log_sums));
      },
      unlocked);
  m.def(
      "attention_backward",
      [=](const Shape& shape, int dtype, uintptr_t grad, uintptr_t qkv, uintptr_t log_sums, uintptr_t qkv_grad) {
        attention_backward(shape_from(shape), static_cast<DType>(dtype), reinterpret_cast<const void*>(grad),
                           reinterpret_cast<const void*>(qkv), reinterpret_cast<const void*>(log_sums),
                           reinterpret_cast<void*>(qkv_grad));
      },
      unlocked);
}

}  // namespace sparsekern
