// Whether an operator called now is nothing but its kernel.
#pragma once

#include <pybind11/pybind11.h>

namespace sparsekern {

// Nobody traces, transforms, casts or records calls. False as well where this torch does not answer the questions, which
// have no public names. Does not see torch.compile's tracer.
bool is_plain();

}  // namespace sparsekern
