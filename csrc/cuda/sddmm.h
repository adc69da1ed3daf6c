// Inner products of activations at the nonzeros of a pattern, on tensor cores: the values' gradient.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/queue.h"
#include "cuda/slots.h"

namespace sparsekern::cuda {

inline constexpr int kSddmmTokens = 32;                     // worked on at once
inline constexpr int kSddmmWarps = 16, kSddmmGroups = 32;  // a warp has so many groups
inline constexpr int kSddmmBlock = kSddmmWarps * kSddmmGroups;  // groups of a thread block, of one chunk

// out[e] = the sum over tokens t of gathered[minor, t] stationary[major, t], for each edge e of a layout of one chunk,
// or whose chunks are filled up to multiples of kSddmmBlock groups.
struct SddmmArguments {
  Dtype dtype;       // of the activations, bfloat16 or float16
  Dtype out_dtype;   // float32 or dtype
  int64_t tokens, majors;
  Cut cut;                // of one set
  const uint16_t* order;  // minor_order.h's
  const int32_t* groups;  // how many there are; on the device
  int64_t most_groups;    // there is room for
  const uint16_t* places;
  const int32_t* edges;
  const int32_t* lists;
  const void* gathered;    // (minors, gathered_stride): tokens in their order
  int64_t gathered_stride;  // a multiple of 8
  const void* stationary;  // (majors, stationary_stride): tokens interleaved (transpose.h)
  int64_t stationary_stride;  // a multiple of kSddmmTokens
  float* partial;  // (splits, most_groups * 16), scratch
  void* out;       // (edges)
};

// Into how many parts, 1 to `most`, the tokens are split, so that all processors have work: each part has a sum of its
// own, which are then added in their order.
int64_t sddmm_splits(const Queue& queue, int64_t most_groups, int64_t tokens, int64_t most);

// Two chunks of kSddmmTokens tokens have to fit into shared memory.
void sddmm(const Queue& queue, int64_t splits, const SddmmArguments& arguments);

}  // namespace sparsekern::cuda
