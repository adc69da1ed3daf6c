// Linear kernels for few tokens. Compiled once per instruction set; nothing here may come from std::.
//
// A sum begins with the bias and grows by one multiply-add an edge, in the order of the columns, whichever kernel makes
// it: the same product has the same bits by column, by row, in panels or in slices.
#pragma once

#include "isa/simd.h"
#include "linear/kernels.h"

namespace sparsekern {
namespace SK_ISA {

template <class A>
void load_tile(const Tokens& x, int64_t begin, int64_t end, int vectors, bool paired, A* tile, A* sums);
template <class A>
void store_tile(const A* tile, int vectors, const Tokens& y, int64_t begin, int64_t end);

// W adjacent elements, a whole vector or a part of one.
template <class A, int W>
struct LanesOf {
  typedef A type __attribute__((vector_size(W * sizeof(A)), may_alias));
  typedef A unaligned __attribute__((vector_size(W * sizeof(A)), may_alias, aligned(sizeof(A))));
};
template <class A, int W>
using Lanes = typename LanesOf<A, W>::type;

template <class A, int W>
SK_INLINE Lanes<A, W> load_lanes(const A* p) {
  return *reinterpret_cast<const Lanes<A, W>*>(p);
}
template <class A, int W>
SK_INLINE Lanes<A, W> load_lanes_unaligned(const A* p) {
  return *reinterpret_cast<const typename LanesOf<A, W>::unaligned*>(p);
}
template <class A, int W>
SK_INLINE void store_lanes(A* p, Lanes<A, W> v) {
  *reinterpret_cast<Lanes<A, W>*>(p) = v;
}
template <class A, int W>
SK_INLINE Lanes<A, W> broadcast_lanes(A x) {
  return x - Lanes<A, W>{};  // as in `broadcast`
}

// Tokens of a narrow tile: half of a vector, where that still is one.
template <class A>
constexpr int kNarrowLanes = SK_VECTOR_BYTES >= 32 ? kLanes<A> / 2 : 0;

template <class A>
void load_narrow(const Tokens& x, int64_t begin, int64_t end, A* tile) {
  constexpr int W = kLanes<A>, N = kNarrowLanes<A>;
  alignas(64) A block[kLinearBlock * W];
  for (int64_t f = begin; f < end; f += kLinearBlock) {
    const int64_t last = f + kLinearBlock < end ? f + kLinearBlock : end;
    load_tile<A>(x, f, last, 1, false, block, nullptr);
    for (int64_t i = f; i < last; ++i) store_lanes<A, N>(tile + (i - begin) * N, load_lanes<A, N>(block + (i - f) * W));
  }
}

template <class A>
void store_narrow(const A* tile, const Tokens& y, int64_t begin, int64_t end) {
  constexpr int W = kLanes<A>, N = kNarrowLanes<A>;
  alignas(64) A block[kLinearBlock * W] = {};
  for (int64_t f = begin; f < end; f += kLinearBlock) {
    const int64_t last = f + kLinearBlock < end ? f + kLinearBlock : end;
    for (int64_t i = f; i < last; ++i) store_lanes<A, N>(block + (i - f) * W, load_lanes<A, N>(tile + (i - begin) * N));
    store_tile<A>(block, 1, y, f, last);
  }
}

template <class A, int W>
void scatter_tile(const LinearScatterTask<A>& t) {
  const int32_t* __restrict row = t.row;
  for (int64_t c = 0; c < t.columns; ++c) {
    const Lanes<A, W> x = load_lanes<A, W>(t.x + c * W);
    for (int64_t k = t.panel.begin[c], end = t.panel.end[c]; k < end; ++k) {
      A* y = t.y + int64_t{row[k]} * W;
      store_lanes<A, W>(y, load_lanes<A, W>(y) + broadcast_lanes<A, W>(t.values[k]) * x);
    }
  }
}

// By row, several rows side by side: a chain of multiply-adds alone would wait for its own latency.
template <class A, int W, int V, class I>
SK_INLINE void forward_rows_of(const LinearForwardTask<A>& t, const I* __restrict col) {
  constexpr int kRows = V >= 4 ? 2 : 4;
  constexpr int64_t kWidth = V * W;
  alignas(64) A local_sums[kLinearBlock * kWidth];
  const A* __restrict values = t.values;
  const A* x_tile = t.x_tile;
  const auto add = [&](Lanes<A, W>* sum, int64_t k) {
    const A* x = x_tile + int64_t{col[k]} * kWidth;
    const Lanes<A, W> w = broadcast_lanes<A, W>(values[k]);
    SK_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = sum[v] + w * load_lanes<A, W>(x + v * W);
  };
  for (int64_t begin = t.row_begin; begin < t.row_end; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < t.row_end ? begin + kLinearBlock : t.row_end;
    A* block = t.sums ? t.sums + begin * kWidth : local_sums;
    for (int64_t i = begin; i < end; i += kRows) {
      Lanes<A, W> sum[kRows][V];
      int64_t row[kRows], k[kRows], last[kRows];
      int64_t together = INT64_MAX;
      // Past the end the last row is done again.
      SK_UNROLL
      for (int j = 0; j < kRows; ++j) {
        const int64_t visit = i + j < end ? i + j : end - 1;
        row[j] = t.panel.visited(begin, visit);
        k[j] = t.panel.begin[visit];
        last[j] = t.panel.end[visit];
        if (last[j] - k[j] < together) together = last[j] - k[j];
        const A* waiting = block + (row[j] - begin) * kWidth;
        SK_UNROLL
        for (int v = 0; v < V; ++v)
          sum[j][v] = t.panel.first ? broadcast_lanes<A, W>(t.bias[row[j]]) : load_lanes<A, W>(waiting + v * W);
      }
      for (; together > 0; --together) {
        SK_UNROLL
        for (int j = 0; j < kRows; ++j) add(sum[j], k[j]++);
      }
      SK_UNROLL
      for (int j = 0; j < kRows; ++j) {
        for (; k[j] < last[j]; ++k[j]) add(sum[j], k[j]);
        SK_UNROLL
        for (int v = 0; v < V; ++v) store_lanes<A, W>(block + (row[j] - begin) * kWidth + v * W, sum[j][v]);
      }
    }
    if (!t.panel.last) continue;
    if constexpr (W == kLanes<A>) store_tile<A>(block, V, t.y, begin, end);
    else store_narrow<A>(block, t.y, begin, end);
  }
  stream_fence();
}

template <class A, int W, int V>
void forward_rows(const LinearForwardTask<A>& t) {
  if (t.narrow_col) forward_rows_of<A, W, V>(t, t.narrow_col);
  else forward_rows_of<A, W, V>(t, t.col);
}

template <class A>
void forward_few(const LinearForwardTask<A>& task) {
  switch (task.vectors) {
    case 1: return forward_rows<A, kLanes<A>, 1>(task);
    case 2: return forward_rows<A, kLanes<A>, 2>(task);
    default: return forward_rows<A, kLanes<A>, 4>(task);
  }
}

template <class A>
void scatter_token(const LinearScatterTask<A>& t) {
  constexpr int kAtOnce = 4;
  const int32_t* __restrict row = t.row;
  const A* __restrict values = t.values;
  A* y = t.y;
  for (int64_t c = 0; c < t.columns; ++c) {
    const A x = t.x[c];
    int64_t k = t.panel.begin[c];
    const int64_t end = t.panel.end[c];
    // A column's rows are distinct: several sums may be read before any is written.
    for (; k + kAtOnce <= end; k += kAtOnce) {
      A sum[kAtOnce];
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) sum[j] = y[row[k + j]] + values[k + j] * x;
      SK_UNROLL
      for (int j = 0; j < kAtOnce; ++j) y[row[k + j]] = sum[j];
    }
    for (; k < end; ++k) y[row[k]] += values[k] * x;
  }
}

template <class A>
SK_INLINE Lanes<A, 4> gather_quad(const A* x, const int32_t* c) {
  return Lanes<A, 4>{x[c[0]], x[c[1]], x[c[2]], x[c[3]]};
}
template <class A>
SK_INLINE Lanes<A, 4> gather_quad(const A* x, const uint16_t* c) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  uint64_t all;  // loads bound this: one for four columns
  memcpy(&all, c, sizeof all);
  return Lanes<A, 4>{x[all & 0xffff], x[all >> 16 & 0xffff], x[all >> 32 & 0xffff], x[all >> 48]};
#else
  return Lanes<A, 4>{x[c[0]], x[c[1]], x[c[2]], x[c[3]]};
#endif
}

// How far ahead of their use the values and columns of slices are asked for, in steps of a slice.
constexpr int64_t kPrefetchSteps = 32;

// A slice of one token's product: `count` rows side by side. Elements of x are put together by loads, which are faster
// than gathers.
template <class A, class I>
SK_INLINE void forward_slice(const LinearTokenTask<A>& t, const I* columns, int64_t slice, int count) {
  constexpr int kQuad = 4, kQuads = kSliceRows / kQuad;
  typedef decltype(Lanes<A, kQuad>{} < Lanes<A, kQuad>{}) Mask;
  typedef decltype(Mask{}[0] + 0) Count;
  const TokenSliceOrder& slices = t.slices;
  const A* __restrict x = t.x;
  const int32_t* row = slices.order + slice * kSliceRows;
  const I* __restrict col = columns + slices.places[slice];
  const A* __restrict values = t.values + slices.places[slice];
  Lanes<A, kQuad> sum[kQuads] = {};
  if (t.bias) {
    SK_UNROLL
    for (int j = 0; j < kSliceRows; ++j)
      if (j < count) sum[j / kQuad][j % kQuad] = t.bias[row[j]];
  }
  const auto next = [&](int q) __attribute__((always_inline)) {
    return sum[q] + load_lanes_unaligned<A, kQuad>(values + q * kQuad) * gather_quad(x, col + q * kQuad);
  };
  const auto step = [&]() __attribute__((always_inline)) {
    SK_UNROLL
    for (int q = 0; q < kQuads; ++q) sum[q] = next(q);
    values += kSliceRows;
    col += kSliceRows;
  };
  const int64_t common = slices.common[slice];
  for (int64_t k = common / 2; k > 0; --k) {
    prefetch(values + kPrefetchSteps * kSliceRows);
    prefetch(col + kPrefetchSteps * kSliceRows);
    step();
    step();
  }
  if (common % 2) step();
  for (int64_t k = slices.rests[slice]; k < slices.rests[slice + 1]; ++k) {
    // What lies after the active rows' edges is multiplied too, and left out.
    const int active = slices.active[k];
    SK_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      const Count first = q * kQuad;
      const Mask lane = {first, first + 1, first + 2, first + 3};
      sum[q] = lane < static_cast<Count>(active) ? next(q) : sum[q];
    }
    values += active;
    col += active;
  }
  SK_UNROLL
  for (int j = 0; j < kSliceRows; ++j)
    if (j < count) t.y[row[j]] = sum[j / kQuad][j % kQuad];
}

template <class A, class I>
SK_INLINE void forward_slices(const LinearTokenTask<A>& t, const I* columns) {
  const int64_t whole = t.slices.rows / kSliceRows, end = t.end < whole ? t.end : whole;
  for (int64_t slice = t.begin; slice < end; ++slice) forward_slice(t, columns, slice, static_cast<int>(kSliceRows));
  for (int64_t slice = t.begin > end ? t.begin : end; slice < t.end; ++slice)
    forward_slice(t, columns, slice, static_cast<int>(t.slices.rows - slice * kSliceRows));
}

template <class A>
void forward_token(const LinearTokenTask<A>& task) {
  if (task.slices.narrow) forward_slices(task, task.slices.narrow);
  else forward_slices(task, task.slices.wide);
}

}  // namespace SK_ISA
}  // namespace sparsekern
