// Tensors as they were when something was found out about them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "tensor_view.h"

namespace sparsekern {

// An attribute, looked up without the interpreter; throws what Python raises.
inline pybind11::object attribute(pybind11::handle object, PyObject* name) {
  PyObject* found = PyObject_GetAttr(object.ptr(), name);
  if (!found) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(found);
}
inline pybind11::object call_method(pybind11::handle object, PyObject* name) {
  PyObject* arguments[] = {object.ptr()};
  PyObject* found = PyObject_VectorcallMethod(name, arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  if (!found) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(found);
}
inline int64_t integer(pybind11::handle number) {
  const int64_t value = PyLong_AsLongLong(number.ptr());
  if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  return value;
}
inline void* address_of(pybind11::handle tensor) {
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  void* address = PyLong_AsVoidPtr(call_method(tensor, data_ptr).ptr());
  if (!address && PyErr_Occurred()) throw pybind11::error_already_set();
  return address;
}

// Which tensors, torch's count of writes to each, where their data lies and how much it is.
class [[gnu::visibility("hidden")]] Seen {
 public:
  explicit Seen(const pybind11::args& tensors) {
    for (const pybind11::handle tensor : tensors)
      tensors_.push_back({pybind11::weakref(tensor), version(tensor), Place(tensor)});
  }

  // Whether these are the same tensors, and none has been written to, given other data or resized.
  bool holds(PyObject* const* tensors, size_t count) const {
    if (count != tensors_.size()) return false;
    for (size_t i = 0; i < count; ++i) {
      const One& one = tensors_[i];
      if (PyWeakref_GetObject(one.reference.ptr()) != tensors[i] || version(tensors[i]) != one.version ||
          !(Place(tensors[i]) == one.place))
        return false;
    }
    return true;
  }

 private:
  struct Place {
    void* address;
    int64_t elements;

    explicit Place(pybind11::handle tensor) {
      static PyObject* const numel = PyUnicode_InternFromString("numel");
      TensorView view;
      if (const auto get = TensorViews::of_torch().get) {
        if (get(tensor.ptr(), &view) != 0) throw pybind11::error_already_set();
        address = view.data;
        elements = view.elements();
      } else {
        address = address_of(tensor);
        elements = integer(call_method(tensor, numel));
      }
    }
    bool operator==(const Place& other) const { return address == other.address && elements == other.elements; }
  };
  struct One {
    pybind11::weakref reference;
    int64_t version;
    Place place;
  };

  static int64_t version(pybind11::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("_version");
    return integer(attribute(tensor, name));
  }

  std::vector<One> tensors_;
};

}  // namespace sparsekern
