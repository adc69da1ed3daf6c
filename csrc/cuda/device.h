// What the kernels are written in. nvcc compiles them for GPUs; any C++ compiler compiles the same files over the
// emulation, for tests: the names below then mean fibres of a CPU thread (emulation/block.h).
//
// Pointers to shared memory are plain pointers on both sides. Kernels are void function templates named by SK_KERNEL,
// started by `launch` (launch.h).
#pragma once

#include <stdint.h>
#include <string.h>

#include "cuda/host_device.h"

#ifdef __CUDACC__

#define SK_DEVICE __device__ __forceinline__
#define SK_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define SK_UNROLL _Pragma("unroll")
#define SK_NO_UNROLL _Pragma("unroll 1")

#else

#include "cuda/emulation/block.h"

#define SK_DEVICE inline
#define SK_KERNEL(threads, blocks) void
#define SK_UNROLL
#define SK_NO_UNROLL

#define threadIdx (::sparsekern::emulation::thread_index())
#define blockIdx (::sparsekern::emulation::block_index())
#define blockDim (::sparsekern::emulation::block_size())
#define gridDim (::sparsekern::emulation::grid_size())

#endif

namespace sparsekern::cuda {

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// 16 bytes, read and written at once; and 8.
struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Words2 {
  uint32_t x, y;
};

}  // namespace sparsekern::cuda

#ifdef __CUDACC__
#include "cuda/device_gpu.h"
#else
#include "cuda/emulation/device.h"
#endif
