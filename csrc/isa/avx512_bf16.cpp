// What AVX512_BF16 adds to AVX-512: gradients of the values from pairs of bfloat16.
#define SK_ISA avx512_bf16
#include "isa/isa.h"

#include "conv2d/tile.h"
#include "linear/tile.h"

namespace sparsekern {

void linear_backward_avx512_bf16(const LinearBackwardTask<float>& task) { avx512_bf16::linear_backward<float>(task); }
extern const Conv2dKernels<Bf16Bits> conv2d_avx512_bf16 = avx512_bf16::conv2d_kernels<Bf16Bits>();

}  // namespace sparsekern
