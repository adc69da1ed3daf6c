#include "cuda/queue.h"

#include "cuda/launch.h"

namespace sparsekern::cuda {

#ifdef __CUDACC__

namespace {

int attribute(const Queue& queue, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, queue.device), "device properties");
  return value;
}

}  // namespace

size_t shared_bytes_of(const Queue& queue) {
  return static_cast<size_t>(attribute(queue, cudaDevAttrMaxSharedMemoryPerBlockOptin));
}
int processors_of(const Queue& queue) { return attribute(queue, cudaDevAttrMultiProcessorCount); }

#else

size_t shared_bytes_of(const Queue&) { return emulated_shared_bytes; }
int processors_of(const Queue&) { return emulated_processors; }

#endif

}  // namespace sparsekern::cuda
