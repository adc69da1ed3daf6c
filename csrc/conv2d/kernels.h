// The conv2d kernels that each instruction set provides.
#pragma once

namespace sparsekern {

template <class A>
struct Conv2dKernels {};

}  // namespace sparsekern
