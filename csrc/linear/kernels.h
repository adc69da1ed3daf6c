// The linear kernels that each instruction set provides. They work on tiles of tokens: a tile holds activations
// feature-major, tile[feature][token], `vectors` vectors of tokens wide, so that an edge is one multiply-add of whole
// vectors. A is the type sums are kept in, float or double.
//
// A tile of bfloat16 activations two vectors wide or more may be paired: a 32-bit word holds token t in its lower half and
// token t + lanes in its upper one. The tile then takes half the room in the caches; vectors are widened where they are
// used.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparsekern {

// Rows (of a product's output side) and columns that are worked on between two transpositions. Within a
// block they are visited in `order`, by number of edges: loops of equal length in a row are predicted well.
constexpr int64_t kLinearBlock = 64;

// Tokens of a (tokens, features) activation matrix with unit feature stride.
struct Tokens {
  DType dtype;
  void* data;      // first token of the tile; null where the matrix is not wanted
  int64_t stride;  // elements from token to token
  int64_t count;   // tokens in the tile, at most vectors * lanes
  bool stream;     // written past the caches; rows then begin on cache lines
};

// A run of the product over the edges whose gathered feature lies in one panel of the tile. Where there is more than
// one panel, sums wait in `sums` between them.
struct Panel {
  const int64_t* begin;  // the i-th output to visit has the edges [begin[i], end[i]) in this panel
  const int64_t* end;
  const uint8_t* order;  // that output is block + order[i]; null where it is i
  bool first, last;      // first: sums start anew; last: sums go to the outputs
  bool adjacent;         // end[i] is begin[i + 1]

  // The output visited i-th, in the block that begins at `block`.
  [[gnu::always_inline]] int64_t visited(int64_t block, int64_t i) const { return order ? block + order[i] : i; }
};

template <class A>
struct LinearForwardTask {
  Panel panel;         // outputs are rows
  const int32_t* col;  // (nnz,)
  const A* values;     // (nnz,)
  const A* bias;       // (rows,): what sums start from
  const A* x_tile;     // [columns][width]
  A* sums;             // [rows][width], or null with a single panel
  Tokens y;
  int vectors;
  bool paired;                 // the tile holds pairs
  int64_t row_begin, row_end;  // whole blocks, but for the last
  const uint16_t* narrow_col = nullptr;  // for `forward_few` and `forward_narrow`, instead of col
};

template <class A>
struct LinearBackwardTask {
  Panel panel;         // outputs are columns
  const int32_t* row;  // (nnz,)
  const A* values;     // (nnz,); null when dx is not wanted
  const A* grad_tile;  // [rows][width]
  A* sums;             // [columns][width], or null with a single panel or when dx is not wanted
  Tokens x;            // data null when dw is not wanted
  Tokens dx;           // data null when not wanted
  A* dw;               // (nnz,), added to; null when not wanted
  int vectors;
  bool paired;                       // the tile holds pairs
  int64_t column_begin, column_end;  // whole blocks, but for the last
};

// The product of at most one vector of tokens, by column: each edge adds to its output's sums, which lie in the nearest
// cache. The values are read as they are stored, which a visit by row cannot.
template <class A>
struct LinearScatterTask {
  Panel panel;         // outputs are columns, the panel's features are rows
  const int32_t* row;  // (nnz,)
  const A* values;     // (nnz,)
  const A* x;          // [columns][a vector or half of one], or (columns,) for a single token
  A* y;                // [rows][as wide], or (rows,): added to
  int64_t columns;
};

// Rows of a product of one token that are worked on side by side (token_slices.h).
constexpr int64_t kSliceRows = 8;

struct TokenSliceOrder {
  const int32_t* order;       // (rows,): the rows as they are visited
  const int64_t* places;      // by slice: where its edges begin; and where the last one's end
  const int32_t* common;      // by slice: steps that all of its rows take
  const int64_t* rests;       // by slice: where its further steps begin in `active`; and where the last one's end
  const uint8_t* active;      // by further step: how many rows, the first ones, take it
  int64_t rows;
  const uint16_t* narrow;  // (nnz + kSliceRows,) columns; null where they do not fit
  const int32_t* wide;     // (nnz + kSliceRows,) columns; null where they do
};

template <class A>
struct LinearTokenTask {
  TokenSliceOrder slices;
  const A* values;  // (nnz + kSliceRows,) as the slices have them
  const A* bias;    // (rows,) or null
  const A* x;       // (columns,)
  A* y;             // (rows,)
  int64_t begin, end;  // slices
};

// The outputs of one panel of an order, for copies between the stored order and the one in which they are visited.
struct Runs {
  const int64_t* stored;  // by output: where its run begins
  const int64_t* end;     // and ends
  const uint8_t* order;   // as in Panel
  int64_t first, last;    // of the outputs as they are visited

  [[gnu::always_inline]] int64_t visited(int64_t i) const { return order ? i / kLinearBlock * kLinearBlock + order[i] : i; }
};

template <class A>
struct LinearKernels {
  int lanes;
  int max_vectors;  // widest tile, in vectors; narrower ones are powers of two
  int narrow_lanes;  // of half a vector; 0 where that is no vector
  // tile[f - begin][token] = x[token][f] for features begin <= f < end; tokens past the last are zero. Where `sums` is
  // given, sums[f] += each feature's sum over the tokens.
  void (*load_tile)(const Tokens& x, int64_t begin, int64_t end, int vectors, bool paired, A* tile, A* sums);
  // The reverse. What it writes past the caches needs a fence, which the products below end with.
  void (*store_tile)(const A* tile, int vectors, const Tokens& y, int64_t begin, int64_t end);
  void (*forward)(const LinearForwardTask<A>& task);
  void (*backward)(const LinearBackwardTask<A>& task);
  // The product of a single tile: forward with the bits of `scatter`, whatever the panels and the order. A tile of up to
  // `narrow_lanes` tokens is that wide in the kernels named narrow (they are null where it is 0).
  void (*forward_few)(const LinearForwardTask<A>& task);
  void (*forward_narrow)(const LinearForwardTask<A>& task);
  void (*forward_token)(const LinearTokenTask<A>& task);
  void (*scatter)(const LinearScatterTask<A>& task);
  void (*scatter_narrow)(const LinearScatterTask<A>& task);
  void (*scatter_token)(const LinearScatterTask<A>& task);
  void (*load_narrow)(const Tokens& x, int64_t begin, int64_t end, A* tile);
  void (*store_narrow)(const A* tile, const Tokens& y, int64_t begin, int64_t end);
  uint64_t (*digest)(const char* data, int64_t bytes);
  // The runs' values, widened, one after another; through the permutation where one is given. Their indices as well, where
  // `indices` is given.
  void (*read_runs)(DType dtype, const void* values, const int32_t* permutation32, const int64_t* permutation64,
                    const Runs& runs, A* out, const int32_t* indices, int32_t* indices_out);
  // The reverse without one: rounded to dtype.
  void (*write_runs)(const A* from, const Runs& runs, DType dtype, void* values);
  // out[i] = widened values[i].
  void (*widen)(DType dtype, const void* values, int64_t count, A* out);
  // out[i] = the sum of parts[p * stride + i] over p, rounded to dtype.
  void (*sum_parts)(const A* parts, int64_t stride, int64_t count, int64_t begin, int64_t end, DType dtype,
                    void* out);
};

}  // namespace sparsekern
