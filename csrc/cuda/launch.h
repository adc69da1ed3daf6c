// Starts kernels, on a GPU's stream or in the emulation, and the errors of doing so.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/device.h"
#include "cuda/queue.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace sparsekern::cuda {

struct Grid {
  unsigned x, y = 1, z = 1;
};

#ifdef __CUDACC__

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw std::runtime_error(std::string("CUDA, ") + what + ": " + cudaGetErrorString(error));
}

// Shared memory that one block of this device may have, in bytes.
inline size_t shared_bytes_of(const Queue& queue) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue.device), "device properties");
  return static_cast<size_t>(bytes);
}

inline int processors_of(const Queue& queue) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, queue.device), "device properties");
  return count;
}

template <class... Parameters, class... Arguments>
void launch(const Queue& queue, const char* name, void (*kernel)(Parameters...), Grid grid, unsigned threads,
            size_t shared_bytes, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check(cudaSetDevice(queue.device), name);
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(
      static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), name);
}

#else

// An H100's, an H200's; tests may set less, to see what large matrices meet.
inline size_t emulated_shared_bytes = 227 * 1024;
inline int emulated_processors = 2;

inline size_t shared_bytes_of(const Queue&) { return emulated_shared_bytes; }
inline int processors_of(const Queue&) { return emulated_processors; }

template <class... Parameters, class... Arguments>
void launch(const Queue& queue, const char* name, void (*kernel)(Parameters...), Grid grid, unsigned threads,
            size_t shared_bytes, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (threads > 1024 || threads % kWarp || shared_bytes > shared_bytes_of(queue) || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error(std::string(name) + ": no GPU starts " + std::to_string(threads) + " threads with " +
                             std::to_string(shared_bytes) + " bytes of shared memory, " + std::to_string(grid.y) +
                             " x " + std::to_string(grid.z) + " blocks in y and z");
  }
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  emulation::run({grid.x, grid.y, grid.z}, {threads, 1, 1}, shared_bytes, [&] { std::apply(kernel, values); });
}

#endif

}  // namespace sparsekern::cuda
