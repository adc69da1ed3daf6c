#include <pybind11/pybind11.h>

#include "linear/linear.h"

namespace sparsekern {
namespace {

// Python hands over addresses; 0 stands for a tensor that is not there or not wanted.
void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }
const int32_t* indices(uintptr_t p) { return static_cast<const int32_t*>(address(p)); }

void forward(LinearPlan* plan, int64_t rows, int64_t columns, int64_t nnz, bool wide, uintptr_t ccol, uintptr_t row,
             uintptr_t crow, uintptr_t col, uintptr_t perm, int64_t tokens, int x_dtype, uintptr_t x, int64_t x_stride,
             int w_dtype, uintptr_t w, int64_t w_version, int bias_dtype, uintptr_t bias, uintptr_t y) {
  const Topology topology{rows, columns, nnz, {address(ccol), indices(row), wide}, {address(crow), indices(col), wide},
                          address(perm), plan};
  const auto dtype = static_cast<DType>(x_dtype);
  linear_forward(topology, tokens, {dtype, address(x), x_stride}, {static_cast<DType>(w_dtype), address(w), w_version},
                 {static_cast<DType>(bias_dtype), address(bias)}, {dtype, address(y), rows});
}

void backward(LinearPlan* plan, int64_t rows, int64_t columns, int64_t nnz, bool wide, uintptr_t ccol, uintptr_t row,
              int64_t tokens, int x_dtype, uintptr_t grad, int64_t grad_stride, uintptr_t x, int64_t x_stride,
              int w_dtype, uintptr_t w, uintptr_t dx, int dw_dtype, uintptr_t dw, int dbias_dtype, uintptr_t dbias) {
  const Topology topology{rows, columns, nnz, {address(ccol), indices(row), wide}, {}, nullptr, plan};
  const auto dtype = static_cast<DType>(x_dtype);
  linear_backward(topology, tokens, {dtype, address(grad), grad_stride}, {dtype, address(x), x_stride},
                  {static_cast<DType>(w_dtype), address(w)}, {dtype, address(dx), columns},
                  {static_cast<DType>(dw_dtype), address(dw)}, {static_cast<DType>(dbias_dtype), address(dbias)});
}

}  // namespace

void bind_linear(pybind11::module_& m) {
  using release = pybind11::call_guard<pybind11::gil_scoped_release>;
  pybind11::class_<LinearPlan>(m, "LinearPlan").def(pybind11::init<>());
  m.def("linear_forward", &forward, release());
  m.def("linear_backward", &backward, release());
}

}  // namespace sparsekern
