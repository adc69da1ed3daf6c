// The topology kernels that each instruction set provides.
#pragma once

#include <cstdint>

namespace sparsekern {

// Columns that share a sequence of random numbers, and whose rows are sifted together.
constexpr int64_t kDrawBlock = 64;

// A set of rows as bits, and above them trees of bits: a word of 64 bits has a bit above it that says whether it has any.
// Taking a few rows back then takes time by what they are; where they are many, the words are read one after the other.
// Sets of many rows are bytes: one is set without reading it. All bits are 0 before and after a kernel runs.
struct RowBits {
  static constexpr int kMaxLevels = 6;

  int levels;
  int64_t words;                  // on the lowest level
  uint64_t* level[kMaxLevels];
  uint64_t* blocked;              // (words,)
  uint8_t* bytes;                 // (64 * words,)
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

// Marks: a bit for each of a row of values, in words of 64, the first in the lowest bit; bits past the last are 0.
constexpr int64_t kMarksPerWord = 64;
// Memory of squeezed values ends with so many more that may be read.
constexpr int64_t kMovePadding = 16;

template <class Word>
struct MoveKernels {
  // Writes the values in [begin, end) that are marked, or not marked, one after another, and nothing past `out_end`.
  void (*squeeze)(const Word* values, const uint64_t* marks, bool marked, int64_t begin, int64_t end, Word* out,
                  const Word* out_end);
  // The reverse: values in [begin, end) are the next of `grown`, or zero where that is null, where they are marked, and the
  // next of `kept` where not. `begin` is a multiple of kMarksPerWord.
  void (*spread)(const Word* kept, const Word* grown, const uint64_t* marks, int64_t begin, int64_t end, Word* values);
};

// Columns [first, last) of a CSC pair that loses the edges marked in `pruned` and gets those marked in `chosen` of another.
// Both are known row by row, squeezed; the first of each in these columns is known.
template <class P>
struct PlaceTask {
  const P* ccol;
  const uint64_t* pruned;
  const P* grown_ccol;
  const uint64_t* chosen;
  const int32_t* kept_rows;
  const int32_t* grown_rows;
  int64_t first, last, kept_begin, grown_begin;
  P* new_ccol;
  uint64_t* grown;  // marks are added: the new edges' slots
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
  // Marks the keys in [begin, end) that are below `last`, and the first `ties` equal to it; `begin` is a multiple of
  // kMarksPerWord.
  void (*mark_up_to)(const T* values, int64_t begin, int64_t end, Key flip, Key last, int64_t ties, uint64_t* marks);
};

// Bytes of a dot product's memory: a vector of sums of any instruction set.
constexpr int64_t kTapSumBytes = 64;

// Dot products of each channel with each tap's factors, which are 0 past `size`.
struct TapSumTask {
  const void* x;        // (channels, size), channels `stride` elements apart
  int64_t stride, channels, size;
  const void* factors;  // (taps, factor_stride), on 64-byte boundaries
  int64_t factor_stride, taps;
  void* sums;           // (channels, taps, kTapSumBytes): lanes of the sums, added to
};

struct TopologyKernels {
  SelectKernels<float, uint32_t> select_f32;
  SelectKernels<double, uint64_t> select_f64;
  int64_t (*count_marks)(const uint64_t* marks, int64_t begin, int64_t end);
  MoveKernels<uint16_t> move_16;
  MoveKernels<uint32_t> move_32;
  MoveKernels<uint64_t> move_64;
  void (*place_i32)(const PlaceTask<int32_t>& task);
  void (*place_i64)(const PlaceTask<int64_t>& task);
  // Sorts the drawn rows of each column and leaves out repeats and those of its edges, in place.
  void (*sift)(const SiftTask& task);
  void (*tap_sums[4])(const TapSumTask& task);  // by DType
};

}  // namespace sparsekern
