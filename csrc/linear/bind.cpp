#include <pybind11/pybind11.h>

#include <array>

#include "linear/linear.h"
#include "seen.h"

namespace py = pybind11;

namespace sparsekern {
namespace {

// Python hands over addresses; 0 stands for a tensor that is not there or not wanted.
void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }
const int32_t* indices(uintptr_t p) { return static_cast<const int32_t*>(address(p)); }

// A validated topology's addresses and sizes, and the plan that belongs to it or None.
struct BoundTopology {
  Topology topology;
  py::object plan;
};

BoundTopology bound_topology(py::object plan, int64_t rows, int64_t columns, int64_t nnz, bool wide, uintptr_t ccol,
                            uintptr_t row, uintptr_t crow, uintptr_t col, uintptr_t perm) {
  LinearPlan* kept = plan.is_none() ? nullptr : plan.cast<LinearPlan*>();
  return {{rows, columns, nnz, {address(ccol), indices(row), wide}, {address(crow), indices(col), wide}, address(perm), kept},
          plan};
}

void forward(const BoundTopology& bound, int64_t tokens, int x_dtype, uintptr_t x, int64_t x_stride, int w_dtype,
             uintptr_t w, int64_t w_version, int bias_dtype, uintptr_t bias, uintptr_t y) {
  const auto dtype = static_cast<DType>(x_dtype);
  linear_forward(bound.topology, tokens, {dtype, address(x), x_stride},
                 {static_cast<DType>(w_dtype), address(w), w_version}, {static_cast<DType>(bias_dtype), address(bias)},
                 {dtype, address(y), bound.topology.rows});
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

// What a direct product asks of torch, once a process.
struct Torch {
  py::object tensor, parameter;
  std::array<py::object, 4> dtypes;  // by DType
  PyObject *dtype, *is_cpu, *shape, *is_contiguous, *is_neg, *is_inference, *version, *new_empty;

  static const Torch& get() {
    static const Torch* const torch = new Torch;  // never freed: Python may be gone by then
    return *torch;
  }

  int code(py::handle tensor) const {
    const py::object found = attribute(tensor, dtype);
    for (size_t i = 0; i < dtypes.size(); ++i)
      if (found.is(dtypes[i])) return static_cast<int>(i);
    return -1;
  }

 private:
  Torch() {
    const py::module_ torch = py::module_::import("torch");
    tensor = torch.attr("Tensor");
    parameter = torch.attr("nn").attr("Parameter");
    dtypes = {torch.attr("float32"), torch.attr("float64"), torch.attr("bfloat16"), torch.attr("float16")};
    const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
    dtype = intern("dtype");
    is_cpu = intern("is_cpu");
    shape = intern("shape");
    is_contiguous = intern("is_contiguous");
    is_neg = intern("is_neg");
    is_inference = intern("is_inference");
    version = intern("_version");
    new_empty = intern("new_empty");
  }
};

// A tensor of so many dimensions whose memory a kernel can read as it is; dtype is -1 where it is none.
struct Plain {
  int dtype = -1;
  void* data = nullptr;
  std::array<int64_t, 2> shape{};

  Plain(const Torch& torch, py::handle tensor, py::ssize_t dims) {
    const py::handle type = py::type::handle_of(tensor);
    if (!type.is(torch.tensor) && !type.is(torch.parameter)) return;
    if (attribute(tensor, torch.is_cpu).ptr() != Py_True) return;
    const py::object sizes = attribute(tensor, torch.shape);
    if (PyTuple_GET_SIZE(sizes.ptr()) != dims) return;
    for (py::ssize_t i = 0; i < dims; ++i) shape[i] = integer(PyTuple_GET_ITEM(sizes.ptr(), i));
    if (call_method(tensor, torch.is_contiguous).ptr() != Py_True || call_method(tensor, torch.is_neg).ptr() != Py_False)
      return;
    data = address_of(tensor);
    if (data) dtype = torch.code(tensor);
  }
};

// Whether values of this dtype go with activations of that one.
bool agree(int values, int x) { return values == x || (x >= 2 && values == 0); }

py::object direct(const Seen& seen, const BoundTopology& bound, py::handle x, py::handle w, py::handle bias,
                  const py::args& tensors) {
  const Torch& torch = Torch::get();
  const Topology& t = bound.topology;
  try {
    const Plain input(torch, x, 2), values(torch, w, 1);
    if (input.dtype < 0 || input.shape[1] != t.columns) return py::none();
    if (values.dtype < 0 || values.shape[0] != t.nnz || !agree(values.dtype, input.dtype)) return py::none();
    Values offset{};
    if (!bias.is_none()) {
      const Plain one(torch, bias, 1);
      if (one.dtype < 0 || one.shape[0] != t.rows || !agree(one.dtype, input.dtype)) return py::none();
      offset = {static_cast<DType>(one.dtype), one.data};
    }
    if (!seen.holds(tensors)) return py::none();
    const bool counted = call_method(w, torch.is_inference).ptr() == Py_False;
    const int64_t version = counted ? integer(attribute(w, torch.version)) : 0;
    const py::int_ tokens(input.shape[0]), rows(t.rows);
    PyObject* arguments[] = {x.ptr(), tokens.ptr(), rows.ptr()};
    const py::object y = py::reinterpret_steal<py::object>(
        PyObject_VectorcallMethod(torch.new_empty, arguments, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    if (!y) throw py::error_already_set();
    const auto dtype = static_cast<DType>(input.dtype);
    void* result = address_of(y);
    {
      const py::gil_scoped_release release;
      linear_forward(t, input.shape[0], {dtype, input.data, t.columns},
                     {static_cast<DType>(values.dtype), values.data, version}, offset, {dtype, result, t.rows});
    }
    return y;
  } catch (const py::error_already_set&) {
    return py::none();  // of what torch cannot answer here the operator will say why
  }
}

}  // namespace

void bind_linear(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Seen>(m, "Seen")
      .def(py::init<const py::args&>())
      .def("holds", [](const Seen& seen, const py::args& tensors) { return seen.holds(tensors); });
  py::class_<LinearPlan>(m, "LinearPlan").def(py::init<>());
  py::class_<BoundTopology>(m, "LinearTopology").def(py::init(&bound_topology));
  m.def("linear_forward", &forward, release());
  m.def("linear_backward", &backward, release());
  m.def("linear_direct", &direct,
        "The product where all arguments are plain CPU tensors that fit; None where the operator must look at them.");
}

}  // namespace sparsekern
