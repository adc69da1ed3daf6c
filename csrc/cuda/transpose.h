// Activations by feature, so that an edge reads adjacent tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/queue.h"

namespace sparsekern::cuda {

// to[c, r] = from[r, c] for r below `rows`, 0 for r in [rows, padded_rows). from: rows lie `stride` elements apart; to:
// (columns, padded_rows), contiguous. An element has 2 or 4 bytes.
void transpose(const Queue& queue, const void* from, int64_t rows, int64_t columns, int64_t stride, void* to,
               int64_t padded_rows, size_t element_bytes);

}  // namespace sparsekern::cuda
