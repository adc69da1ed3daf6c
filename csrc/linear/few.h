// Linear kernels for few tokens. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/simd.h"
#include "linear/kernels.h"

namespace sparsekern {
namespace SK_ISA {

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
