// Linear kernels for few tokens. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/simd.h"
#include "linear/kernels.h"

namespace sparsekern {
namespace SK_ISA {

template <class A>
void store_tile(const A* tile, int vectors, const Tokens& y, int64_t begin, int64_t end);

template <class A>
void scatter_tile(const LinearScatterTask<A>& t) {
  constexpr int W = kLanes<A>;
  const int32_t* __restrict row = t.row;
  for (int64_t c = 0; c < t.columns; ++c) {
    const Vec<A> x = load<A>(t.x + c * W);
    for (int64_t k = t.panel.begin[c], end = t.panel.end[c]; k < end; ++k) {
      A* y = t.y + int64_t{row[k]} * W;
      store<A>(y, load<A>(y) + broadcast<A>(t.values[k]) * x);
    }
  }
}

// By row, several rows side by side. A row's sum is one chain of multiply-adds in the order of its edges, as
// scatter_tile makes it, bit for bit; a chain alone would wait for its own latency.
template <class A>
void forward_few(const LinearForwardTask<A>& t) {
  constexpr int W = kLanes<A>, kRows = 4;
  alignas(64) A block[kLinearBlock * W];
  const int32_t* __restrict col = t.col;
  const A* __restrict values = t.values;
  const auto add = [&](Vec<A>& sum, int64_t k) {
    sum = sum + broadcast<A>(values[k]) * load<A>(t.x_tile + int64_t{col[k]} * W);
  };
  for (int64_t begin = t.row_begin; begin < t.row_end; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < t.row_end ? begin + kLinearBlock : t.row_end;
    for (int64_t i = begin; i < end; i += kRows) {
      Vec<A> sum[kRows];
      int64_t row[kRows], k[kRows], last[kRows];
      // Past the end the last row is done again. Rows come with the fewest edges first.
      SK_UNROLL
      for (int j = 0; j < kRows; ++j) {
        const int64_t visit = i + j < end ? i + j : end - 1;
        row[j] = t.panel.visited(begin, visit);
        k[j] = t.panel.begin[visit];
        last[j] = t.panel.end[visit];
        sum[j] = broadcast<A>(t.bias[row[j]]);
      }
      for (int64_t together = last[0] - k[0]; together > 0; --together) {
        SK_UNROLL
        for (int j = 0; j < kRows; ++j) add(sum[j], k[j]++);
      }
      SK_UNROLL
      for (int j = 0; j < kRows; ++j) {
        for (; k[j] < last[j]; ++k[j]) add(sum[j], k[j]);
        store<A>(block + (row[j] - begin) * W, sum[j]);
      }
    }
    store_tile<A>(block, 1, t.y, begin, end);
  }
  stream_fence();
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

}  // namespace SK_ISA
}  // namespace sparsekern
