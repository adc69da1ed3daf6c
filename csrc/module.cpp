#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "isa/isa.h"
#include "plain.h"

namespace sparsekern {
void bind_activation(pybind11::module_& m);
void bind_attention(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_conv2d(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_topology(pybind11::module_& m);
}  // namespace sparsekern

PYBIND11_MODULE(_C, m) {
  using namespace sparsekern;
  m.def("isa", [] { return std::string(active_isa().name); }, "Name of the instruction set in use.");
  m.def("use_isa", [](const std::string& name) { return use_isa(name.c_str()); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* const* name = available_isas(); *name; ++name) names.emplace_back(*name);
    return names;
  });
  m.def("is_plain", &is_plain, "Whether nobody traces, transforms, casts or records calls of operators.");
#if SPARSEKERN_SANITIZE
  // Two deliberate errors, by which a test knows that this build reports them.
  m.def("read_past_the_end", [](size_t size) {
    const std::vector<char> block(size);
    return static_cast<int>(*static_cast<const volatile char*>(block.data() + size));
  });
  m.def("overflow", [](int value) { return value + 1; });
#endif
  bind_activation(m);
  bind_attention(m);
  bind_linear(m);
  bind_conv2d(m);
  bind_norm(m);
  bind_topology(m);
}
