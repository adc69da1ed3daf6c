#include "activation/activation.h"

#include "isa/isa.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Results of this many bytes and more are written past the caches: what reads them next finds little of them there.
constexpr int64_t kStreamBytes = int64_t{4} << 20;
// Elements that are worth another thread.
constexpr int64_t kGrain = 1 << 13;
// Threads begin on cache lines, whatever the elements' size.
constexpr int64_t kLine = 64;

}  // namespace

void gelu(DType dtype, int64_t size, const void* grad, const void* x, bool tanh, void* y) {
  const ActivationKernels& kernels = active_isa().activation[static_cast<int>(dtype)];
  const bool aligned = reinterpret_cast<uintptr_t>(y) % kLine == 0;
  const bool stream = aligned && size * static_cast<int64_t>(size_of(dtype)) >= kStreamBytes;
  parallel_ranges((size + kLine - 1) / kLine, kGrain / kLine, [&](int64_t begin, int64_t end) {
    kernels.gelu({grad, x, y, begin * kLine, std::min(size, end * kLine), tanh, stream});
  });
}

}  // namespace sparsekern
