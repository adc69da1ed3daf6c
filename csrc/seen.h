// Tensors as they were when something was found out about them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

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
class Seen {
 public:
  explicit Seen(const pybind11::args& tensors) {
    for (const pybind11::handle tensor : tensors)
      tensors_.push_back({pybind11::weakref(tensor), version(tensor), address_of(tensor), elements(tensor)});
  }

  // Whether these are the same tensors, and none has been written to, given other data or resized.
  template <class Tensors>
  bool holds(const Tensors& tensors) const {
    if (static_cast<size_t>(tensors.size()) != tensors_.size()) return false;
    size_t i = 0;
    for (const pybind11::handle tensor : tensors) {
      const One& one = tensors_[i++];
      if (PyWeakref_GetObject(one.reference.ptr()) != tensor.ptr() || version(tensor) != one.version ||
          address_of(tensor) != one.address || elements(tensor) != one.elements)
        return false;
    }
    return true;
  }

 private:
  struct One {
    pybind11::weakref reference;
    int64_t version;
    void* address;
    int64_t elements;
  };

  static int64_t version(pybind11::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("_version");
    return integer(attribute(tensor, name));
  }
  static int64_t elements(pybind11::handle tensor) {
    static PyObject* const name = PyUnicode_InternFromString("numel");
    return integer(call_method(tensor, name));
  }

  std::vector<One> tensors_;
};

}  // namespace sparsekern
