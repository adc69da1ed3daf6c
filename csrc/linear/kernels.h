// The linear kernels that each instruction set provides.
#pragma once

namespace sparsekern {

template <class A>
struct LinearKernels {};

}  // namespace sparsekern
