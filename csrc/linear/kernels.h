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

// A run of the product over the edges whose gathered feature lies in one panel of the tile. Edges lie in the order
// in which they are visited. Where there is more than one panel, sums wait in `sums` between them.
struct Panel {
  const int64_t* places;  // (outputs + 1,): the i-th output to visit has the edges [places[i], places[i + 1])
  const uint8_t* order;   // (outputs,): which output of its block the i-th is
  bool first, last;       // first: sums start anew; last: sums go to the outputs
};

template <class A>
struct LinearForwardTask {
  Panel panel;         // outputs are rows
  const int32_t* col;  // (nnz,) in visiting order
  const A* values;     // (nnz,) in visiting order
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
  const int32_t* row;  // (nnz,) in visiting order
  const A* values;     // (nnz,) in visiting order; null when dx is not wanted
  const A* grad_tile;  // [rows][width]
  A* sums;             // [columns][width], or null with a single panel or when dx is not wanted
  Tokens x;            // data null when dw is not wanted
  Tokens dx;           // data null when not wanted
  A* dw;               // (nnz,) in visiting order, added to; null when not wanted
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
