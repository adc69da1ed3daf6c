#include <pybind11/pybind11.h>

#include <array>
#include <new>

#include "linear/linear.h"
#include "plain.h"
#include "seen.h"
#include "tensor_view.h"

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
  PyObject *tensor, *parameter, *is_grad_enabled;
  PyObject *requires_grad, *is_neg, *is_inference, *version, *new_empty;

  static const Torch& get() {
    static const Torch torch;
    return torch;
  }

 private:
  Torch() {
    // Never given back: Python may be gone by then.
    const py::object torch = py::module_::import("torch");
    tensor = py::getattr(torch, "Tensor").release().ptr();
    parameter = py::getattr(torch.attr("nn"), "Parameter").release().ptr();
    is_grad_enabled = py::getattr(torch, "is_grad_enabled").release().ptr();
    const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
    requires_grad = intern("requires_grad");
    is_neg = intern("is_neg");
    is_inference = intern("is_inference");
    version = intern("_version");
    new_empty = intern("new_empty");
  }
};

// A tensor on the CPU without gaps, whose memory a kernel can read as it is; dtype is -1 where it is none.
struct Plain {
  int dtype = -1;
  TensorView view{};

  Plain(const Torch& torch, py::handle tensor) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    if (type != torch.tensor && type != torch.parameter) return;
    if (TensorViews::of_torch().get(tensor.ptr(), &view) != 0) throw py::error_already_set();
    constexpr int32_t kCpu = 1;
    if (view.device_type != kCpu || !view.data || view.byte_offset != 0 || !is_contiguous()) return;
    if (call_method(tensor, torch.is_neg).ptr() == Py_False) dtype = code();
  }

  bool is_vector(int64_t size) const { return dtype >= 0 && view.dims == 1 && view.shape[0] == size; }

 private:
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int32_t i = view.dims; i-- > 0;) {
      if (view.shape[i] != 1 && view.strides[i] != expected) return false;
      expected *= view.shape[i];
    }
    return true;
  }
  int code() const {
    constexpr uint8_t kFloat = 2, kBfloat = 4;
    if (view.type_lanes != 1) return -1;
    if (view.type_code == kBfloat) return view.type_bits == 16 ? static_cast<int>(DType::bf16) : -1;
    if (view.type_code != kFloat) return -1;
    return static_cast<int>(view.type_bits == 32 ? DType::f32 : view.type_bits == 64 ? DType::f64 : DType::f16);
  }
};

// Whether values of this dtype go with activations of that one.
bool agree(int values, int x) { return values == x || (x >= 2 && values == 0); }

bool wants_grad(const Torch& torch, py::handle tensor) {
  return !tensor.is_none() && attribute(tensor, torch.requires_grad).ptr() != Py_False;
}

// x's shape but for the last size, which is `features`.
py::object new_output(const Torch& torch, py::handle x, const TensorView& view, int64_t features) {
  constexpr int32_t kMost = 8;
  if (view.dims > kMost) return py::none();
  std::array<py::object, kMost> sizes;
  std::array<PyObject*, 1 + kMost> arguments{x.ptr()};
  for (int32_t i = 0; i < view.dims; ++i) {
    sizes[i] = py::int_(i + 1 < view.dims ? view.shape[i] : features);
    arguments[i + 1] = sizes[i].ptr();
  }
  const auto y = py::reinterpret_steal<py::object>(PyObject_VectorcallMethod(
      torch.new_empty, arguments.data(), static_cast<size_t>(1 + view.dims) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
  if (!y) throw py::error_already_set();
  return y;
}

py::object direct_product(py::handle known, py::handle x, py::handle w, py::handle bias, PyObject* const* tensors,
                          size_t count) {
  if (!TensorViews::of_torch().get || !is_plain()) return py::none();
  const Torch& torch = Torch::get();
  const auto grad = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(torch.is_grad_enabled));
  if (!grad) throw py::error_already_set();
  if (grad.ptr() != Py_False && (wants_grad(torch, w) || wants_grad(torch, x) || wants_grad(torch, bias)))
    return py::none();
  const auto key = py::reinterpret_steal<py::object>(PyLong_FromVoidPtr(tensors[count - 1]));
  // Held: while the interpreter is free another thread may make the table forget it.
  const auto entry = py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(known.ptr(), key.ptr()));
  if (!entry) return py::none();
  const auto& seen = py::cast<const Seen&>(PyTuple_GET_ITEM(entry.ptr(), 0));
  const auto& bound = py::cast<const BoundTopology&>(PyTuple_GET_ITEM(entry.ptr(), 1));
  const Topology& t = bound.topology;
  const Plain input(torch, x), values(torch, w);
  if (input.dtype < 0 || input.view.dims < 1 || input.view.shape[input.view.dims - 1] != t.columns) return py::none();
  if (!values.is_vector(t.nnz) || !agree(values.dtype, input.dtype)) return py::none();
  Values offset{};
  if (!bias.is_none()) {
    const Plain one(torch, bias);
    if (!one.is_vector(t.rows) || !agree(one.dtype, input.dtype)) return py::none();
    offset = {static_cast<DType>(one.dtype), one.view.data};
  }
  if (!seen.holds(tensors, count)) return py::none();
  const bool counted = call_method(w, torch.is_inference).ptr() == Py_False;
  const int64_t version = counted ? integer(attribute(w, torch.version)) : 0;
  const py::object y = new_output(torch, x, input.view, t.rows);
  if (y.is_none()) return y;
  const auto dtype = static_cast<DType>(input.dtype);
  const int64_t tokens = t.columns > 0 ? input.view.elements() / t.columns : 0;
  TensorView result;
  if (TensorViews::of_torch().get(y.ptr(), &result) != 0) throw py::error_already_set();
  {
    const py::gil_scoped_release release;
    linear_forward(t, tokens, {dtype, input.view.data, t.columns},
                   {static_cast<DType>(values.dtype), values.view.data, version}, offset, {dtype, result.data, t.rows});
  }
  return y;
}

// direct(known topologies, x, w, bias, *topology), without pybind's way of taking arguments apart.
PyObject* direct(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  constexpr Py_ssize_t kOperands = 4;
  try {
    if (count <= kOperands) Py_RETURN_NONE;
    return direct_product(arguments[0], arguments[1], arguments[2], arguments[3], arguments + kOperands,
                          static_cast<size_t>(count - kOperands))
        .release()
        .ptr();
  } catch (const py::error_already_set&) {
    Py_RETURN_NONE;  // of what torch cannot answer here the operator will say why
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

}  // namespace

void bind_linear(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::class_<Seen>(m, "Seen")
      .def(py::init<const py::args&>())
      .def("holds", [](const Seen& seen, const py::args& tensors) {
        return seen.holds(PySequence_Fast_ITEMS(tensors.ptr()), tensors.size());
      });
  py::class_<LinearPlan>(m, "LinearPlan").def(py::init<>());
  py::class_<BoundTopology>(m, "LinearTopology").def(py::init(&bound_topology));
  m.def("linear_forward", &forward, release());
  m.def("linear_backward", &backward, release());
  static PyMethodDef direct_method = {
      "linear_direct", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&direct)), METH_FASTCALL,
      "The product where all arguments are plain CPU tensors that fit; None where the operator must look at them."};
  m.add_object("linear_direct", py::reinterpret_steal<py::object>(PyCFunction_New(&direct_method, nullptr)));
}

}  // namespace sparsekern
