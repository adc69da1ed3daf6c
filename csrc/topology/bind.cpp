#include <pybind11/pybind11.h>

namespace sparsekern {

void bind_topology(pybind11::module_&) {}

}  // namespace sparsekern
