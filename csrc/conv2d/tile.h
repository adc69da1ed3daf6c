#pragma once

#include "conv2d/kernels.h"
#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

template <class A>
constexpr Conv2dKernels<A> conv2d_kernels() {
  return {};
}

}  // namespace SK_ISA
}  // namespace sparsekern
