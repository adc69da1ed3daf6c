// Copies of channels_last tensors for the products, which read planes.
#include "conv2d/conv2d.h"
#include "conv2d/mover.h"
#include "isa/isa.h"
#include "parallel.h"

namespace sparsekern {

void conv2d_make_planar(DType dtype, int64_t batch, int64_t channels, int64_t pixels, const void* from, void* to) {
  const IsaKernels& isa = active_isa();
  const int d = static_cast<int>(dtype);
  const auto copy = dtype == DType::f64 ? isa.conv2d_f64.make_planar[d] : isa.conv2d_f32.make_planar[d];
  const int64_t bytes = channels * pixels * static_cast<int64_t>(size_of(dtype));
  const bool stream = batch * channels * pixels > kStreamElements;
  parallel_ranges(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      copy({static_cast<const char*>(from) + n * bytes, static_cast<char*>(to) + n * bytes, channels, pixels, stream});
  });
}

}  // namespace sparsekern
