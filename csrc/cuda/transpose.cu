#include "cuda/transpose.h"

#include "cuda/launch.h"

namespace sparsekern::cuda {

namespace {

constexpr int kTile = 32, kThreads = 256;
constexpr int kPitch = kTile + 1;  // a column of the tile then lies in as many banks as it has elements

template <class T>
SK_KERNEL(kThreads, 2)
transpose_kernel(const T* from, int64_t rows, int64_t columns, int64_t stride, T* to, int64_t padded_rows,
                 int64_t tiles_down) {
  T* const tile = reinterpret_cast<T*>(shared_memory());
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) % tiles_down * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) / tiles_down * kTile;
  const int across = threadIdx.x % kTile;
  for (int down = threadIdx.x / kTile; down < kTile; down += kThreads / kTile) {
    const int64_t row = first_row + down, column = first_column + across;
    const bool inside = row < rows && column < columns;
    tile[down * kPitch + across] = inside ? load_constant(from + row * stride + column) : T{};
  }
  sync_block();
  for (int down = threadIdx.x / kTile; down < kTile; down += kThreads / kTile) {
    const int64_t column = first_column + down, row = first_row + across;
    if (column < columns && row < padded_rows) to[column * padded_rows + row] = tile[across * kPitch + down];
  }
}

template <class T>
void transpose_of(const Queue& queue, const void* from, int64_t rows, int64_t columns, int64_t stride, void* to,
                  int64_t padded_rows) {
  const int64_t tiles_down = (padded_rows + kTile - 1) / kTile, tiles_across = (columns + kTile - 1) / kTile;
  launch(queue, "transpose", transpose_kernel<T>, {static_cast<unsigned>(tiles_down * tiles_across)}, kThreads,
         sizeof(T) * kTile * kPitch, static_cast<const T*>(from), rows, columns, stride, static_cast<T*>(to),
         padded_rows, tiles_down);
}

}  // namespace

void transpose(const Queue& queue, const void* from, int64_t rows, int64_t columns, int64_t stride, void* to,
               int64_t padded_rows, size_t element_bytes) {
  if (element_bytes == 2) {
    transpose_of<bf16>(queue, from, rows, columns, stride, to, padded_rows);
  } else {
    transpose_of<float>(queue, from, rows, columns, stride, to, padded_rows);
  }
}

}  // namespace sparsekern::cuda
