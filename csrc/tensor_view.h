// What a tensor is and where its data lies, read without the interpreter: DLPack's C exchange interface, version 1
// (https://dmlc.github.io/dlpack), which torch has had since 2.10.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace sparsekern {

// DLTensor. Shape and strides are the tensor's own and live as long as it does.
struct TensorView {
  void* data;
  int32_t device_type, device_id;
  int32_t dims;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  const int64_t* shape;
  const int64_t* strides;  // in elements
  uint64_t byte_offset;

  int64_t elements() const {
    int64_t count = 1;
    for (int32_t i = 0; i < dims; ++i) count *= shape[i];
    return count;
  }
};

// Views of torch's tensors; `get` is null where this torch has another version of the interface.
struct TensorViews {
  int (*get)(void* tensor, TensorView* view) = nullptr;  // 0, or else a Python error is set

  static const TensorViews& of_torch() {
    static const TensorViews views;
    return views;
  }

 private:
  struct Exchange {
    uint32_t major, minor;
    Exchange* previous;
    void *allocate, *managed_from_object, *object_from_managed;
    int (*view_of_object)(void*, TensorView*);
    void* current_stream;
  };

  TensorViews() {
    const pybind11::object tensor = pybind11::module_::import("torch").attr("Tensor");
    const pybind11::object capsule = pybind11::getattr(tensor, "__dlpack_c_exchange_api__", pybind11::none());
    const char* name = "dlpack_exchange_api";
    if (!PyCapsule_IsValid(capsule.ptr(), name)) return;
    const auto* exchange = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), name));
    if (exchange->major == 1) get = exchange->view_of_object;
  }
};

}  // namespace sparsekern
