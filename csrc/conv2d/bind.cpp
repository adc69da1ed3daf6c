#include <pybind11/pybind11.h>

namespace sparsekern {

void bind_conv2d(pybind11::module_&) {}

}  // namespace sparsekern
