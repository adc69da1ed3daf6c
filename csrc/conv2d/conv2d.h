// Sparse conv2d on the CPU: its products, on contiguous NCHW tensors given by address.
#pragma once

#include <cstdint>

#include "cache.h"
#include "conv2d/geometry.h"
#include "dtype.h"

namespace sparsekern {

struct TensorRef {
  void* data;
  DType dtype;
};

// Pointers of a compressed matrix or a permutation: int32 or int64.
struct IndexRef {
  const void* data;
  bool is_64;
};

// What a tile and a thread are given. Tests make these small to see many tiles and threads on small tensors.
struct Conv2dLimits {
  int64_t tile_elements = int64_t{8} << 20;       // of working memory, at most where rows of pixels allow
  int64_t thread_work = int64_t{1} << 18;         // multiply-adds, at least
  int64_t cache_bytes = caches().second / 8 * 5;  // of working memory of a row tile; 0: no row tiles
  int64_t panel_bytes = caches().first / 4 * 3;   // of what a block meets of a panel
  int64_t panel_edges = 6;                        // of a row in a panel, at least
  int64_t lane_panel_edges = 8;                   // likewise, for lane tiles where row tiles could be
  int64_t shifted_edges = 8;                      // of a channel that edges shift, at least, for shifted tiles
};
// Sets the limits of the calls that follow and returns those before.
Conv2dLimits exchange_conv2d_limits(Conv2dLimits limits);

// y = conv2d(x, W) + bias. Edges in the order of rows (crow, col), edge j's value is values[permutation[j]].
void conv2d_forward(const Conv2dShape& shape, int64_t edges, TensorRef x, TensorRef values, TensorRef bias,
                    IndexRef crow, const int32_t* col, IndexRef permutation, TensorRef y);

// The gradients of x, of the values and of the bias, edges in the order of columns (ccol, row). Results may be absent
// (null data), and then also the operand that only one of the first two needs: values or x.
void conv2d_backward(const Conv2dShape& shape, int64_t edges, TensorRef grad, TensorRef x, TensorRef values,
                     IndexRef ccol, const int32_t* row, TensorRef x_grad, TensorRef values_grad, TensorRef bias_grad);

// A channels_last tensor (N, H, W, C in memory) as a contiguous one.
void conv2d_make_planar(DType dtype, int64_t batch, int64_t channels, int64_t pixels, const void* from, void* to);

}  // namespace sparsekern
