// The format in which a sparse matrix meets tensor cores: a slot for each nonzero.
//
// The matrix has majors (the product's features: rows of W for the forward product, columns for the input's gradient)
// and minors, which are gathered. Minors come in chunks of at most kMostMinors, as many as shared memory holds; majors
// in strips of 16, each of two interleaved blocks of 8 (major_of), so that a lane that holds two majors of each block
// writes four adjacent results.
//
// Each (chunk, block) has a list of groups of 16 slots. A slot is 32 bits:
//   value (bf16 or f16) << 16 | place in the block (0 to 7) << 13 | the minor's place in its chunk (13 bits).
// Minors lie in their chunk as they come, or in an order of minor_order.h's. Of 8 adjacent slots (0 to 7, 8 to 15) slot
// c has, as far as can be, a minor whose place is c modulo 8: ldmatrix then reads their rows without bank conflicts.
// Where a list has no edge for a slot, it has the value 0 and the minor of another of its group: nothing is read that
// no edge joins.
//
// In memory the 16 slots of a group lie as the fragments of mma want them (memory_of): four adjacent words are slots
// 2t, 2t + 1, 2t + 8, 2t + 9, those of lane t's values.
//
// A layout is what follows from the indices alone:
//   pointers  (chunks * (blocks + 1) + 1) int32: list (c, b) is the groups from pointers[c * (blocks + 1) + b] up to
//             the next pointer. The list (c, blocks) has no edges: it fills the chunk up to a multiple of groups.
//   places    (groups * 16) uint16: the low half of each slot.
//   edges     (groups * 16) int32: the edge whose value the slot holds, -1: none.
//   lists     (groups) int32: the list that a group belongs to; -1: a group of no list.
// Values are packed in at each product.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/host_device.h"
#include "cuda/queue.h"

namespace sparsekern::cuda {

inline constexpr int kGroup = 16, kBlock = 8, kStrip = 16;
inline constexpr int kClasses = 8;  // of places whose rows in shared memory are in the same banks
inline constexpr int kPlaceShift = 13;
inline constexpr uint32_t kMinorMask = 0x1fff, kPlaceMask = 0xe000;
inline constexpr int kMostMinors = 8192;

// What a value is stored as: the codes of csrc/isa/ and of Python's DTYPE_CODES.
enum class Dtype : int { float32 = 0, bfloat16 = 2, float16 = 3 };

// A compressed matrix as it is kept: `majors` runs of ascending minors. `wide`: pointers and permutation are int64,
// else int32. The edge at place j is permutation[j], or j where there is none.
struct Compressed {
  const void* pointers;
  const int32_t* minors;
  const void* permutation;
  bool wide;
  int64_t majors;
};

// How a layout is cut.
struct Cut {
  int64_t minors;
  int32_t chunk;   // minors of a chunk, at most kMostMinors
  int32_t chunks;  // ceil(minors / chunk)
  int32_t blocks;  // 2 ceil(majors / 16)
  int32_t set_blocks;  // of a set: their slots name minors by places in one order; even

  SK_HOST_DEVICE int32_t sets() const { return (blocks + set_blocks - 1) / set_blocks; }
};

// counts[c * (blocks + 1) + b] = the groups of list (c, b); 0 for b == blocks.
void count_groups(const Queue& queue, const Compressed& matrix, const Cut& cut, int32_t* counts);

// Writes places, edges and lists of all groups that the pointers name. in_chunk: minor_order.h's places; nullptr:
// minors lie as they come.
void fill_layout(const Queue& queue, const Compressed& matrix, const Cut& cut, const uint16_t* in_chunk,
                 const int32_t* pointers, uint16_t* places, int32_t* edges, int32_t* lists);

// slots[i] = the value of slot i's edge, rounded to `dtype`, << 16 | places[i], for i below 16 * *groups, which is on
// the device; `most_groups` is the room there is.
void pack_slots(const Queue& queue, const int32_t* groups, int64_t most_groups, const uint16_t* places,
                const int32_t* edges, const void* values, Dtype values_dtype, Dtype dtype, uint32_t* slots);

}  // namespace sparsekern::cuda
