// Where kernels run.
#pragma once

#include <cstddef>

namespace sparsekern::cuda {

// A device's number and one of its streams.
struct Queue {
  int device;
  void* stream;
};

// Of the device: shared memory that one block may have, in bytes, and the number of its multiprocessors.
size_t shared_bytes_of(const Queue& queue);
int processors_of(const Queue& queue);

#if SPARSEKERN_CUDA_EMULATED
// An H200's shared memory; tests may set less, to see what large matrices meet.
inline size_t emulated_shared_bytes = 227 * 1024;
inline int emulated_processors = 2;
#endif

}  // namespace sparsekern::cuda
