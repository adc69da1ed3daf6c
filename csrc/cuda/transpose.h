// Activations by feature, so that an edge reads adjacent tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/queue.h"
#include "cuda/slots.h"

namespace sparsekern::cuda {

// to[c, r] = from[r, c] for r below `rows`, 0 for r in [rows, padded_rows). from: rows lie `stride` elements apart; to:
// (columns, padded_rows), contiguous. An element has 2 or 4 bytes.
void transpose(const Queue& queue, const void* from, int64_t rows, int64_t columns, int64_t stride, void* to,
               int64_t padded_rows, size_t element_bytes);

inline constexpr int kInterleaved = 32;

// The same of bfloat16 or float16, 16 bytes at a time; padded_rows is a multiple of 32, `to` aligned to 16 bytes.
//
// interleaved: of each 32 rows, row 8 i + 2 t + h is at place 8 t + 2 i + h (i and t below 4, h below 2): 16 bytes are
// then what lane t needs for mma as the second factor where the first is read by ldmatrix, of rows in their order.
// sums: nullptr, or (padded_rows / 32, columns) for the sums of each 32 rows of a column.
void transpose_halves(const Queue& queue, Dtype dtype, const void* from, int64_t rows, int64_t columns, int64_t stride,
                      void* to, int64_t padded_rows, bool interleaved, float* sums);

}  // namespace sparsekern::cuda
