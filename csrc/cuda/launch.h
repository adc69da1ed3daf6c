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

// Makes a device the thread's current one, and the one before so again at the end: torch goes by it.
class OnDevice {
 public:
  OnDevice(int device, const char* what) {
    check(cudaGetDevice(&before_), what);
    if (device != before_) check(cudaSetDevice(device), what);
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class... Parameters, class... Arguments>
void launch(const Queue& queue, const char* name, void (*kernel)(Parameters...), Grid grid, unsigned threads,
            size_t shared_bytes, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const OnDevice on_device(queue.device, name);
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          name);
  }
  kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(
      static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), name);
}

#else

template <class... Parameters, class... Arguments>
void launch(const Queue& queue, const char* name, void (*kernel)(Parameters...), Grid grid, unsigned threads,
            size_t shared_bytes, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (threads > 1024 || threads % kWarp || shared_bytes > shared_bytes_of(queue) || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error(std::string(name) + ": no GPU starts " + std::to_string(threads) + " threads with " +
                             std::to_string(shared_bytes) + " bytes of shared memory, " + std::to_string(grid.y) +
                             " x " + std::to_string(grid.z) + " blocks in y and z");
  }
  emulation::note_kernel(reinterpret_cast<const void*>(kernel));
  const std::tuple<Parameters...> values(static_cast<Parameters>(arguments)...);
  emulation::run({grid.x, grid.y, grid.z}, {threads, 1, 1}, shared_bytes, [&] { std::apply(kernel, values); });
}

#endif

}  // namespace sparsekern::cuda
