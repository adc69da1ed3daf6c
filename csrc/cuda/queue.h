// Where kernels run.
#pragma once

namespace sparsekern::cuda {

// A device's number and one of its streams.
struct Queue {
  int device;
  void* stream;
};

}  // namespace sparsekern::cuda
