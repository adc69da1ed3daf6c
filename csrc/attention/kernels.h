// The attention kernels that each instruction set provides, one table for each element type. Each works on one head of
// one sequence; A, the type that sums are kept in, is double for float64 elements and float for others.
#pragma once

#include <stdint.h>

namespace sparsekern {

// Of one head: `tokens` rows of `size` elements each. Rows of queries, keys, values and their gradients are `stride`
// elements apart, those of the output and its gradient `out_stride`.
struct AttentionHead {
  int64_t tokens, size, stride, out_stride;
  int64_t block;  // queries worked on at once, a multiple of the kernels' rows
  double scale;   // of the products of queries and keys
};

struct AttentionForward {
  AttentionHead head;
  const void *query, *key, *value;
  void* out;
  void* log_sum;  // A (tokens,): the logarithm of the sum of exponentials that a query's weights were divided by
  void* scratch;  // scratch(head, false) elements of A, on a cache line
};

struct AttentionBackward {
  AttentionHead head;
  const void *query, *key, *value;
  const void* grad;
  const void* log_sum;
  void *query_grad, *key_grad, *value_grad;
  void* scratch;  // scratch(head, true) elements of A, on a cache line
};

struct AttentionKernels {
  int rows;         // of which blocks are a multiple
  int accumulator;  // bytes of A
  int64_t (*scratch)(const AttentionHead& head, bool backward);
  void (*forward)(const AttentionForward& task);
  void (*backward)(const AttentionBackward& task);
};

}  // namespace sparsekern
