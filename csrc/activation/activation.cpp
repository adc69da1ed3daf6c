#include "activation/activation.h"

#include "cache.h"
#include "isa/isa.h"
#include "parallel.h"

namespace sparsekern {
namespace {

// Elements that are worth another thread.
constexpr int64_t kGrain = 1 << 13;
// Threads begin on cache lines, whatever the elements' size.
constexpr int64_t kLine = 64;

}  // namespace

void gelu(DType dtype, int64_t size, const void* grad, const void* x, bool tanh, void* y) {
  const ActivationKernels& kernels = active_isa().activation[static_cast<int>(dtype)];
  const bool stream = past_caches(y, size * static_cast<int64_t>(size_of(dtype)));
  parallel_ranges((size + kLine - 1) / kLine, kGrain / kLine, [&](int64_t begin, int64_t end) {
    kernels.gelu({grad, x, y, begin * kLine, std::min(size, end * kLine), tanh, stream});
  });
}

}  // namespace sparsekern
