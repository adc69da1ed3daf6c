// The instruction sets that this build holds kernels for, and which of them runs.
#pragma once

#include "activation/kernels.h"
#include "attention/kernels.h"
#include "conv2d/kernels.h"
#include "linear/kernels.h"
#include "norm/kernels.h"
#include "topology/kernels.h"

namespace sparsekern {

struct IsaKernels {
  const char* name;
  LinearKernels<float> linear_f32;
  LinearKernels<double> linear_f64;
  Conv2dKernels<float> conv2d_f32;
  Conv2dKernels<double> conv2d_f64;
  Conv2dKernels<Bf16Bits> conv2d_bf16;
  NormKernels norm[4];              // by DType, as are the next
  ActivationKernels activation[4];
  AttentionKernels attention[4];
  TopologyKernels topology;
};

// One of each, defined by the file of that name. On processors other than x86 only the portable one exists.
extern const IsaKernels kernels_portable;
#if SPARSEKERN_X86
extern const IsaKernels kernels_avx2;
extern const IsaKernels kernels_avx512;
// Where AVX512_BF16 is there too; all other kernels are then avx512's.
void linear_backward_avx512_bf16(const LinearBackwardTask<float>& task);
extern const Conv2dKernels<Bf16Bits> conv2d_avx512_bf16;
#endif

// The kernels in use: the widest that this processor runs, or the one chosen with use_isa.
const IsaKernels& active_isa();

// Chooses by name; false if this build or this processor does not have it.
bool use_isa(const char* name);

// The names that can be chosen here, widest first, ended by a null pointer.
const char* const* available_isas();

}  // namespace sparsekern
