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

// For 16-bit elements, in tiles of 64 x 64: ldmatrix transposes.
constexpr int kSide = 64, kUnit = 8, kUnits = kSide / kUnit;

// Units of one column lie in different banks for the 8 rows of a matrix, be these adjacent or pairs at distance 8.
SK_DEVICE int place_of(int row, int unit) {
  const int spread = row % 2 + (row / 2 % 4 ^ row / 8 % 4) * 2;
  return (row * kUnits + (unit ^ spread)) * 16;
}

template <class T>
SK_DEVICE Words4 read_unit(const T* from, int64_t known, bool aligned) {
  if (aligned && known >= kUnit) return load_constant(reinterpret_cast<const Words4*>(from));
  uint32_t words[kUnit / 2] = {};
  SK_UNROLL for (int i = 0; i < kUnit; ++i) {
    if (i < known) words[i / 2] |= static_cast<uint32_t>(load_constant(from + i).bits) << i % 2 * 16;
  }
  return {words[0], words[1], words[2], words[3]};
}

template <class T>
SK_DEVICE float sum_of_pair(uint32_t pair) {
  return widen(T{static_cast<uint16_t>(pair)}) + widen(T{static_cast<uint16_t>(pair >> 16)});
}

template <class T, bool kInterleave>
SK_KERNEL(kThreads, 4)
transpose_halves_kernel(const T* from, int64_t rows, int64_t columns, int64_t stride, T* to, int64_t padded_rows,
                        int64_t tiles_down, float* sums, bool aligned) {
  char* const tile = shared_memory();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) % tiles_down * kSide;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) / tiles_down * kSide;
  SK_UNROLL for (int i = 0; i < kSide * kUnits / kThreads; ++i) {
    const int row = (threadIdx.x + i * kThreads) / kUnits, unit = threadIdx.x % kUnits;
    const int64_t column = first_column + unit * kUnit;
    const bool inside = first_row + row < rows && column < columns;
    Words4* const at = reinterpret_cast<Words4*>(tile + place_of(row, unit));
    *at = inside ? read_unit(from + (first_row + row) * stride + column, columns - column, aligned)
                 : Words4{0, 0, 0, 0};
  }
  sync_block();
  // A warp has 8 columns.
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = first_column + warp * kUnit + lane / 4;
  const int matrix = lane / 8, in_matrix = lane % 8;
  const int row = kInterleave ? 8 * matrix + in_matrix : in_matrix / 2 * 8 + 2 * matrix + in_matrix % 2;
  SK_UNROLL for (int half = 0; half < kSide; half += kInterleaved) {
    uint32_t words[4];
    load_matrices_transposed(words, shared_address(tile + place_of(half + row, warp)));
    const bool inside = column < columns && first_row + half < padded_rows;
    if (sums != nullptr) {
      float sum = (sum_of_pair<T>(words[0]) + sum_of_pair<T>(words[1])) +
                  (sum_of_pair<T>(words[2]) + sum_of_pair<T>(words[3]));
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (inside && lane % 4 == 0) sums[(first_row + half) / kInterleaved * columns + column] = sum;
    }
    if (inside) {
      T* const at = to + column * padded_rows + first_row + half + lane % 4 * kUnit;
      *reinterpret_cast<Words4*>(at) = {words[0], words[1], words[2], words[3]};
    }
  }
}

template <class T, bool kInterleave>
void transpose_halves_of(const Queue& queue, const void* from, int64_t rows, int64_t columns, int64_t stride, void* to,
                         int64_t padded_rows, float* sums) {
  const int64_t tiles_down = (padded_rows + kSide - 1) / kSide, tiles_across = (columns + kSide - 1) / kSide;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0 && stride % kUnit == 0;
  launch(queue, "transpose_halves", transpose_halves_kernel<T, kInterleave>,
         {static_cast<unsigned>(tiles_down * tiles_across)}, kThreads, kSide * kSide * sizeof(T),
         static_cast<const T*>(from), rows, columns, stride, static_cast<T*>(to), padded_rows, tiles_down, sums,
         aligned);
}

}  // namespace

void transpose_halves(const Queue& queue, Dtype dtype, const void* from, int64_t rows, int64_t columns, int64_t stride,
                      void* to, int64_t padded_rows, bool interleaved, float* sums) {
  const auto work = dtype == Dtype::bfloat16
                        ? (interleaved ? transpose_halves_of<bf16, true> : transpose_halves_of<bf16, false>)
                        : (interleaved ? transpose_halves_of<f16, true> : transpose_halves_of<f16, false>);
  work(queue, from, rows, columns, stride, to, padded_rows, sums);
}

void transpose(const Queue& queue, const void* from, int64_t rows, int64_t columns, int64_t stride, void* to,
               int64_t padded_rows, size_t element_bytes) {
  if (element_bytes == 2) {
    transpose_of<bf16>(queue, from, rows, columns, stride, to, padded_rows);
  } else {
    transpose_of<float>(queue, from, rows, columns, stride, to, padded_rows);
  }
}

}  // namespace sparsekern::cuda
