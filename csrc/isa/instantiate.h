// Fills one instruction set's kernel table. Included once by each of avx512.cpp, avx2.cpp and portable.cpp,
// which setup.py compiles with that set's flags.
#pragma once

#include "isa/isa.h"

#include "activation/tile.h"
#include "attention/tile.h"
#include "conv2d/tile.h"
#include "linear/tile.h"
#include "norm/tile.h"
#include "topology/table.h"

#define SK_STRING_OF(x) #x
#define SK_STRING(x) SK_STRING_OF(x)
#define SK_CONCAT_OF(a, b) a##b
#define SK_CONCAT(a, b) SK_CONCAT_OF(a, b)

namespace sparsekern {

extern const IsaKernels SK_CONCAT(kernels_, SK_ISA) = {
    SK_STRING(SK_ISA),
    SK_ISA::linear_kernels<float>(),
    SK_ISA::linear_kernels<double>(),
    SK_ISA::conv2d_kernels<float>(),
    SK_ISA::conv2d_kernels<double>(),
    SK_ISA::conv2d_kernels<Bf16Bits>(),
    {SK_ISA::norm_kernels<float>(), SK_ISA::norm_kernels<double>(), SK_ISA::norm_kernels<SK_ISA::bf16>(),
     SK_ISA::norm_kernels<SK_ISA::f16>()},
    {SK_ISA::activation_kernels<float>(), SK_ISA::activation_kernels<double>(),
     SK_ISA::activation_kernels<SK_ISA::bf16>(), SK_ISA::activation_kernels<SK_ISA::f16>()},
    {SK_ISA::attention_kernels<float>(), SK_ISA::attention_kernels<double>(),
     SK_ISA::attention_kernels<SK_ISA::bf16>(), SK_ISA::attention_kernels<SK_ISA::f16>()},
    SK_ISA::topology_kernels(),
};

}  // namespace sparsekern
