// Products of small dense matrices in scratch memory, and their packing.
// Included by the files that are compiled once per instruction set: nothing here may come from std::.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// Rows and vectors of sums that stay in registers, with one vector of each operand.
#if SK_VECTOR_BYTES == 64
constexpr int kProductRows = 5, kProductVectors = 5;
#else
constexpr int kProductRows = 4, kProductVectors = 3;
#endif

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <int N>
struct Count {
  static constexpr int value = N;
};

// A left factor: element (r, k) is data[r * row + k * column], so that it may be read as its transpose.
template <class A>
struct Left {
  const A* data;
  int64_t row, column;
};

template <class A, int Vectors>
void product_columns(const Left<A>& left, const A* right, int64_t right_row, int64_t depth, A* out, int64_t out_row,
                     int64_t rows, bool add) {
  constexpr int R = kProductRows;
  for (int64_t r0 = 0; r0 < rows; r0 += R) {
    const A* l = left.data + r0 * left.row;
    const A* b = right;
    A* o = out + r0 * out_row;
    Vec<A> sum[R][Vectors] = {};
    if (add) {
      SK_UNROLL
      for (int r = 0; r < R; ++r) {
        SK_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[r][v] = load(o + r * out_row + v * kLanes<A>);
      }
    }
    for (int64_t k = 0; k < depth; ++k, l += left.column, b += right_row) {
      Vec<A> b_k[Vectors];
      SK_UNROLL
      for (int v = 0; v < Vectors; ++v) b_k[v] = load(b + v * kLanes<A>);
      SK_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec<A> factor = broadcast(l[r * left.row]);
        SK_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * b_k[v];
      }
    }
    SK_UNROLL
    for (int r = 0; r < R; ++r) {
      SK_UNROLL
      for (int v = 0; v < Vectors; ++v) store(o + r * out_row + v * kLanes<A>, sum[r][v]);
    }
  }
}

// out = left right, or is added to: rows a multiple of kProductRows, columns of the vector; all rows on vectors' bounds.
template <class A>
void product(const Left<A>& left, const A* right, int64_t right_row, int64_t depth, A* out, int64_t out_row,
             int64_t rows, int64_t columns, bool add) {
  constexpr int64_t W = kLanes<A>;
  for (int64_t c = 0; c < columns;) {
    const int64_t vectors = (columns - c) / W;
    const auto run = [&](auto count) {
      product_columns<A, decltype(count)::value>(left, right + c, right_row, depth, out + c, out_row, rows, add);
      c += decltype(count)::value * W;
    };
    if (kProductVectors == 5 && vectors >= 5) {
      run(Count<5>{});
    } else if (kProductVectors == 5 && vectors == 4) {
      run(Count<4>{});
    } else if (vectors >= 3) {
      run(Count<3>{});
    } else if (vectors == 2) {
      run(Count<2>{});
    } else {
      run(Count<1>{});
    }
  }
}

// out[token][i] = scale x[token][i], zero beyond the last token and element; `rows` and `width` of out are whole vectors'.
template <class A, class T>
SK_INLINE void pack(const T* x, int64_t stride, int64_t tokens, int64_t size, A scale, A* out, int64_t rows,
                    int64_t width) {
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < width; i += kLanes<A>) {
      const int64_t left = t < tokens ? size - i : 0;
      __builtin_prefetch(x + t * stride + size + i);  // of the next head, which lies right behind
      store(out + t * width + i, load_widened<A>(x + t * stride + i, left) * scale);
    }
}

// x[token][i] = scale in[token][i].
template <class A, class T>
SK_INLINE void unpack(const A* in, int64_t width, A scale, T* x, int64_t stride, int64_t tokens, int64_t size) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < size; i += kLanes<A>)
      store_narrowed<A>(x + t * stride + i, load(in + t * width + i) * scale, size - i);
}

// out (columns, rows) = the transpose of in (rows, columns); both sizes are whole vectors.
template <class A>
SK_INLINE void transpose_matrix(const A* in, int64_t rows, int64_t columns, A* out) {
  constexpr int W = kLanes<A>;
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W) {
      Vec<A> square[W];
      SK_UNROLL
      for (int i = 0; i < W; ++i) square[i] = load(in + (r + i) * columns + c);
      transpose<A>(square);
      SK_UNROLL
      for (int i = 0; i < W; ++i) store(out + (c + i) * rows + r, square[i]);
    }
}

}  // namespace SK_ISA
}  // namespace sparsekern
