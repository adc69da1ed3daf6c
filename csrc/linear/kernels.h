// The linear kernels that each instruction set provides. They work on tiles of tokens: a tile holds
// activations feature-major, tile[feature][token], `vectors` vectors of tokens wide, so that an edge is one
// multiply-add of whole vectors. A is the type sums are kept in, float or double.
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

// A run of the product over the edges whose gathered feature lies in one panel of the tile. The edges of
// output i of this run are [begin[i], end[i]). Where there is more than one panel, sums wait in `sums`.
struct Panel {
  const int64_t* begin;
  const int64_t* end;
  const uint8_t* order;  // place within its block of the output to visit
  bool first, last;      // first: sums start anew; last: sums go to the outputs
};

template <class A>
struct LinearForwardTask {
  Panel panel;         // outputs are rows
  const int32_t* col;  // (nnz,) in row order
  const A* values;     // (nnz,) in row order
  const A* bias;       // (rows,) or null
  const A* x_tile;     // [columns][width]
  A* sums;             // [rows][width], or null with a single panel
  Tokens y;
  int vectors;
  int64_t row_begin, row_end;  // whole blocks, but for the last
};

template <class A>
struct LinearBackwardTask {
  Panel panel;         // outputs are columns
  const int32_t* row;  // (nnz,) in stored order
  const A* values;     // (nnz,) in stored order; null when dx is not wanted
  const A* grad_tile;  // [rows][width]
  A* sums;             // [columns][width], or null with a single panel or when dx is not wanted
  Tokens x;            // data null when dw is not wanted
  Tokens dx;           // data null when not wanted
  A* dw;               // (nnz,) added to; null when not wanted
  int vectors;
  int64_t column_begin, column_end;  // whole blocks, but for the last
};

template <class A>
struct LinearKernels {
  int lanes;
  int max_vectors;  // widest tile, in vectors; narrower ones are powers of two
  // tile[f - begin][token] = x[token][f] for features begin <= f < end; tokens past the last are zero.
  void (*load_tile)(const Tokens& x, int64_t begin, int64_t end, int vectors, A* tile);
  void (*forward)(const LinearForwardTask<A>& task);
  void (*backward)(const LinearBackwardTask<A>& task);
  // out[i] = widened values[i], or values[index[i]] where index is given.
  void (*widen)(DType dtype, const void* values, const int32_t* index32, const int64_t* index64, int64_t count,
                A* out);
  // out[i] = the sum of parts[p * stride + i] over p, rounded to dtype.
  void (*sum_parts)(const A* parts, int64_t stride, int64_t count, int64_t begin, int64_t end, DType dtype,
                    void* out);
};

}  // namespace sparsekern
