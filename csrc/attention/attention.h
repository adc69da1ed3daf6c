// Softmax attention of every token to every other of its sequence, over queries, keys and values that lie side by side.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparsekern {

// (sequences, tokens, 3, heads, size) without gaps: queries, keys, values. Outputs are (sequences, tokens, heads, size),
// log_sums (sequences, heads, tokens) of float32, or float64 for float64 elements.
struct AttentionShape {
  int64_t sequences, tokens, heads, size;
};

void attention_forward(const AttentionShape& shape, DType dtype, const void* qkv, void* out, void* log_sums);

// Of all three, like qkv, from the output's gradient.
void attention_backward(const AttentionShape& shape, DType dtype, const void* grad, const void* qkv,
                        const void* log_sums, void* qkv_grad);

}  // namespace sparsekern
