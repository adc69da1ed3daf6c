// The topology kernels that each instruction set provides.
#pragma once

#include <cstdint>

namespace sparsekern {

// Columns that share a sequence of random numbers, and whose rows are sifted together.
constexpr int64_t kDrawBlock = 64;

// A set of rows as bits, and above them trees of bits: a word of 64 bits has a bit above it that says whether it has any.
// Taking a few rows back then takes time by what they are; where they are many, the words are read one after the other.
// All bits are 0 before and after a kernel runs.
struct RowBits {
  static constexpr int kMaxLevels = 6;

  int levels;
  int64_t words;                  // on the lowest level
  uint64_t* level[kMaxLevels];
  uint64_t* blocked;              // (words,)
};

// Up to kDrawBlock columns: rows that were drawn for each, in any order and with repeats.
struct SiftTask {
  const int32_t* edges;      // (nnz,)
  const int64_t* edges_at;   // (columns + 1,): column i has the edges [edges_at[i], edges_at[i + 1]), ascending
  int32_t* drawn;
  const int64_t* drawn_at;   // (columns + 1,), as edges_at
  int64_t columns;
  int32_t* sizes;            // (columns,): how many rows remain of each column's
  RowBits bits;
};

// A column's kept edges, for as long as it is worked on.
template <class P>
struct MergeMemory {
  static constexpr int64_t kPadding = 16;

  int32_t* rows;  // (rows + 2 * kPadding,), as the next
  P* slots;
};

// Columns [first, last) of a CSC pair that lose the edges at the slots `pruned` and get those at the ascending `places` of
// another. `count` edges go and come in all; the first of each in these columns is known, and where they are written.
template <class P>
struct MergeTask {
  const P* ccol;
  const int32_t* row;
  int64_t nnz, first, last;
  const int64_t* pruned;
  const P* grown_ccol;
  const int32_t* grown_row;
  const int64_t* places;
  int64_t count, pruned_begin, grown_begin;
  P* new_ccol;
  int32_t* new_row;
  P* source;  // each edge's old slot, -1 where it is new
  int64_t out_begin, out_end;
  MergeMemory<P> memory;
};

// Keys of magnitudes (magnitude.h), flipped where the largest come first: those from `low` to `high`.
template <class Key>
struct KeyRange {
  Key flip, low, high;
};

template <class T, class Key>
struct SelectKernels {
  // Writes the keys of the range in their order and returns their end; how many keys lie below the range goes to `below`.
  Key* (*keys_between)(const T* values, int64_t size, const KeyRange<Key>& range, int64_t* below, Key* out);
  // Writes the positions in [begin, end) of the keys below `last`, and of the first `ties` equal to it.
  void (*positions_up_to)(const T* values, int64_t begin, int64_t end, Key flip, Key last, int64_t ties, int64_t* out);
};

struct TopologyKernels {
  SelectKernels<float, uint32_t> select_f32;
  SelectKernels<double, uint64_t> select_f64;
  void (*merge_i32)(const MergeTask<int32_t>& task);
  void (*merge_i64)(const MergeTask<int64_t>& task);
  // Sorts the drawn rows of each column and leaves out repeats and those of its edges, in place.
  void (*sift)(const SiftTask& task);
};

}  // namespace sparsekern
