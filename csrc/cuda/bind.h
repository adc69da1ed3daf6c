// What module.cpp puts together: a function for each file of bindings.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace sparsekern::cuda {

// Python gives addresses as integers.
template <class T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_tiles(pybind11::module_& m);
void bind_linear(pybind11::module_& m);

}  // namespace sparsekern::cuda
