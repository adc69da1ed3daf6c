#pragma once

#include "linear/kernels.h"
#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

template <class A>
constexpr LinearKernels<A> linear_kernels() {
  return {};
}

}  // namespace SK_ISA
}  // namespace sparsekern
