// Linear kernels on one tile of tokens. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/pairs.h"
#include "isa/simd.h"
#include "linear/digest.h"
#include "linear/few.h"
#include "linear/kernels.h"
#include "linear/transpose.h"

namespace sparsekern {
namespace SK_ISA {

// Backward holds x and dx of a column at once: 8 + 8 of AVX-512's 32 registers, 4 + 4 of the others' 16.
#if SK_VECTOR_BYTES == 64
constexpr int kMaxVectors = 8;
#else
constexpr int kMaxVectors = 4;
#endif

// Rows of the forward that are summed side by side: enough chains of multiply-adds that none waits for its latency. A
// row's sums are one chain each, in the order of its edges, so that no way of cutting the product changes their bits.
template <int V>
constexpr int kRowsAtOnce = V >= 4 ? 2 : 4;

// A tile's vectors of one feature, V of tokens: in V vectors, or where it is paired in half as many.
template <class A, int V, bool Paired>
constexpr int64_t kTileWidth = (Paired ? V / 2 : V) * kLanes<A>;

// Calls use(v, vector) for each vector of tokens of a feature that the tile holds at `from`.
template <class A, int V, bool Paired, class Use>
SK_INLINE void each_vector(const A* from, const Use& use) {
  constexpr int W = kLanes<A>;
  if constexpr (Paired) {
    SK_UNROLL
    for (int v = 0; v < V; v += 2) {
      const Vec<A> pairs = load<A>(from + v / 2 * W);
      use(v, widen_lower(pairs));
      use(v + 1, widen_upper(pairs));
    }
  } else {
    SK_UNROLL
    for (int v = 0; v < V; ++v) use(v, load<A>(from + v * W));
  }
}

// sums[j] += values[k] * x[col[k]] over the edges k in [begin[j], end[j]).
template <class A, int V, int Rows, bool Paired>
SK_INLINE void multiply_add_rows(Vec<A> (*sums)[V], const int64_t* begin, const int64_t* end, const int32_t* col,
                                 const A* values, const A* x_tile) {
  int64_t together = end[0] - begin[0];
  SK_UNROLL
  for (int j = 1; j < Rows; ++j) together = end[j] - begin[j] < together ? end[j] - begin[j] : together;
  const auto add = [&](int j, int64_t k) {
    const Vec<A> w = broadcast<A>(values[k]);
    each_vector<A, V, Paired>(x_tile + col[k] * kTileWidth<A, V, Paired>,
                              [&](int v, Vec<A> x) { sums[j][v] += w * x; });
  };
  for (int64_t i = 0; i < together; ++i) {
    SK_UNROLL
    for (int j = 0; j < Rows; ++j) add(j, begin[j] + i);
  }
  SK_UNROLL
  for (int j = 0; j < Rows; ++j) {
    for (int64_t k = begin[j] + together; k < end[j]; ++k) add(j, k);
  }
}

// Where the sums of a block live between panels, or for the time of the block.
template <class A, int V>
SK_INLINE A* block_sums(A* sums, A* local, int64_t begin) {
  return sums ? sums + begin * (V * kLanes<A>) : local;
}

// The outputs visited i-th and next, `Rows` of them, of the block that begins at `block`.
template <class A, int V, int Rows, bool First, bool Paired>
SK_INLINE void sum_visited(const Panel& panel, const int32_t* col, const A* values, const A* bias, const A* x_tile,
                            int64_t block, int64_t i, A* block_sums) {
  constexpr int W = kLanes<A>;
  Vec<A> sums[Rows][V];
  A* out[Rows];
  SK_UNROLL
  for (int j = 0; j < Rows; ++j) {
    const int64_t row = panel.visited(block, i + j);
    out[j] = block_sums + (row - block) * (V * W);
    SK_UNROLL
    for (int v = 0; v < V; ++v) sums[j][v] = First ? broadcast<A>(bias[row]) : load<A>(out[j] + v * W);
  }
  multiply_add_rows<A, V, Rows, Paired>(sums, panel.begin + i, panel.end + i, col, values, x_tile);
  SK_UNROLL
  for (int j = 0; j < Rows; ++j) {
    SK_UNROLL
    for (int v = 0; v < V; ++v) store<A>(out[j] + v * W, sums[j][v]);
  }
}

template <class A, int V, bool First, bool Paired>
void forward_panel(const LinearForwardTask<A>& t) {
  constexpr int64_t kWidth = V * kLanes<A>;
  constexpr int kRows = kRowsAtOnce<V>;
  alignas(64) A local_sums[kLinearBlock * kWidth];
  // Copies: what vectors are written to might be the task, for all the compiler knows.
  const Panel panel = t.panel;
  const int32_t* col = t.col;
  const A* values = t.values;
  const A* bias = t.bias;
  const A* x_tile = t.x_tile;
  for (int64_t begin = t.row_begin; begin < t.row_end; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < t.row_end ? begin + kLinearBlock : t.row_end;
    A* block = block_sums<A, V>(t.sums, local_sums, begin);
    int64_t i = begin;
    for (; i + kRows <= end; i += kRows)
      sum_visited<A, V, kRows, First, Paired>(panel, col, values, bias, x_tile, begin, i, block);
    for (; i < end; ++i) sum_visited<A, V, 1, First, Paired>(panel, col, values, bias, x_tile, begin, i, block);
    if (panel.last) store_tile<A>(block, V, t.y, begin, end);
  }
  stream_fence();  // once, not after each block: it waits for all stores
}

// Adds to dw[k] the lanes' sum of each of `count` vectors of `spread`, at most a square of them.
template <class A>
SK_INLINE void add_lane_sums(const A* spread, A* dw, int64_t count) {
  constexpr int W = kLanes<A>;
  Vec<A> r[W];
  load_square<A>(spread, W, 0, r);
  const Vec<A> sums = sum_each<A>(r);
  store_narrowed<A>(dw, load_widened<A>(dw, count) + sums, count);
}

// What one edge adds: w * gradient to dx, and to `dot`, in two chains and still spread over the lanes, the products of x and
// the gradient. x holds pairs where they can be multiplied as they are.
template <class A, int V, bool WantX, bool WantW, bool Paired>
SK_INLINE void multiply_edge(const A* grad, [[maybe_unused]] A value, [[maybe_unused]] const Vec<A>* x,
                             [[maybe_unused]] Vec<A>* dx, [[maybe_unused]] Vec<A>* dot) {
  [[maybe_unused]] Vec<A> w{};
  if constexpr (WantX) w = broadcast<A>(value);
  if constexpr (Paired && kPairProducts) {
    SK_UNROLL
    for (int v = 0; v < V / 2; ++v) {
      Vec<A> pairs = load<A>(grad + v * kLanes<A>);
      if constexpr (WantX && WantW) pin(pairs);
      if constexpr (WantX) {
        dx[2 * v] += w * widen_lower(pairs);
        dx[2 * v + 1] += w * widen_upper(pairs);
      }
      if constexpr (WantW) dot[v % 2] = add_pair_products(dot[v % 2], x[v], pairs);
    }
  } else {
    each_vector<A, V, Paired>(grad, [&](int v, Vec<A> g) {
      if constexpr (WantX && WantW) pin(g);
      if constexpr (WantX) dx[v] += w * g;
      if constexpr (WantW) dot[v % 2] = v < 2 ? x[v] * g : dot[v % 2] + x[v] * g;
    });
  }
}

template <class A, int V, bool WantX, bool WantW, bool Paired>
void backward_tile(const LinearBackwardTask<A>& t) {
  constexpr int W = kLanes<A>;
  constexpr int64_t kWidth = V * W;
  constexpr int64_t kTile = kTileWidth<A, V, Paired>;
  alignas(64) A x_block[WantW ? kLinearBlock * kTile : 1];
  alignas(64) A local_sums[WantX ? kLinearBlock * kWidth : 1];
  // Products of the last edges, one vector an edge, still spread over the lanes: reduced a square at a time.
  alignas(64) A spread[W * W] = {};
  int waiting = 0;
  int64_t k = 0;
  // Copies: what vectors are written to might be the task, for all the compiler knows.
  const Panel panel = t.panel;
  const int32_t* row = t.row;
  const A* values = t.values;
  const A* grad_tile = t.grad_tile;
  A* dw = t.dw;
  for (int64_t begin = t.column_begin; begin < t.column_end; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < t.column_end ? begin + kLinearBlock : t.column_end;
    A* block = WantX ? block_sums<A, V>(t.sums, local_sums, begin) : nullptr;
    if constexpr (WantW) load_tile<A>(t.x, begin, end, V, Paired, x_block, nullptr);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = panel.visited(begin, i);
      const int64_t place = (c - begin) * kWidth;
      const int64_t last = panel.end[i];
      if constexpr (WantW) {
        if (!panel.adjacent && waiting > 0) {
          add_lane_sums<A>(spread, dw + k - waiting, waiting);
          waiting = 0;
        }
      }
      k = panel.begin[i];
      Vec<A> x[V], dx[V];
      if constexpr (WantW)
        each_vector<A, Paired && kPairProducts ? V / 2 : V, Paired && !kPairProducts>(
            x_block + (c - begin) * kTile, [&](int v, Vec<A> tokens) { x[v] = tokens; });
      SK_UNROLL
      for (int v = 0; v < V; ++v) {
        dx[v] = Vec<A>{};
        if constexpr (WantX) {
          if (!panel.first) dx[v] = load<A>(block + place + v * W);
        }
      }
      for (; k < last; ++k) {
        Vec<A> dot[2] = {};
        multiply_edge<A, V, WantX, WantW, Paired>(grad_tile + row[k] * kTile, WantX ? values[k] : A{}, x, dx, dot);
        if constexpr (WantW) {
          store<A>(spread + waiting * W, V > 1 ? dot[0] + dot[1] : dot[0]);
          if (++waiting == W) {
            add_lane_sums<A>(spread, dw + k - (W - 1), W);
            waiting = 0;
          }
        }
      }
      if constexpr (WantX) {
        SK_UNROLL
        for (int v = 0; v < V; ++v) store<A>(block + place + v * W, dx[v]);
      }
    }
    if constexpr (WantX) {
      if (panel.last) store_tile<A>(block, V, t.dx, begin, end);
    }
  }
  if constexpr (WantX) stream_fence();
  if constexpr (WantW) {
    if (waiting > 0) add_lane_sums<A>(spread, dw + k - waiting, waiting);
  }
}

template <class A, int V>
void forward_tile(const LinearForwardTask<A>& task) {
  if constexpr (sizeof(A) == sizeof(float) && V > 1) {
    if (task.paired && task.panel.first) return forward_panel<A, V, true, true>(task);
    if (task.paired) return forward_panel<A, V, false, true>(task);
  }
  if (task.panel.first) return forward_panel<A, V, true, false>(task);
  forward_panel<A, V, false, false>(task);
}

template <class A>
void linear_forward(const LinearForwardTask<A>& task) {
  switch (task.vectors) {
    case 1: return forward_tile<A, 1>(task);
    case 2: return forward_tile<A, 2>(task);
    case 4: return forward_tile<A, 4>(task);
    default: return forward_tile<A, kMaxVectors>(task);
  }
}

template <class A, int V, bool Paired>
void backward_with(const LinearBackwardTask<A>& task) {
  if (task.dx.data && task.dw) return backward_tile<A, V, true, true, Paired>(task);
  if (task.dx.data) return backward_tile<A, V, true, false, Paired>(task);
  backward_tile<A, V, false, true, Paired>(task);
}

template <class A, int V>
void backward_of(const LinearBackwardTask<A>& task) {
  if constexpr (sizeof(A) == sizeof(float) && V > 1) {
    if (task.paired) return backward_with<A, V, true>(task);
  }
  backward_with<A, V, false>(task);
}

template <class A>
void linear_backward(const LinearBackwardTask<A>& task) {
  switch (task.vectors) {
    case 1: return backward_of<A, 1>(task);
    case 2: return backward_of<A, 2>(task);
    case 4: return backward_of<A, 4>(task);
    default: return backward_of<A, kMaxVectors>(task);
  }
}

template <class A>
void widen_values(DType dtype, const void* values, int64_t count, A* out) {
  with_element<A>(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(values));
    for (int64_t i = 0; i < count; ++i) out[i] = widen(from[i]);
  });
}

// Runs begin far apart, each with cache misses unless it is asked for early.
constexpr int kPrefetchRuns = 4;

// The first lines of a run of up to a few dozen elements.
template <class T>
SK_INLINE void prefetch_run(const T* p, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  __builtin_prefetch(p);
  if (count > kLine) __builtin_prefetch(p + kLine);
  if (count > 2 * kLine) __builtin_prefetch(p + 2 * kLine);
}

template <class A>
void read_runs(DType dtype, const void* values, const int32_t* permutation32, const int64_t* permutation64,
               const Runs& runs, A* out, const int32_t* indices, int32_t* indices_out) {
  with_element<A>(dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(const_cast<void*>(values));
    for (int64_t i = runs.first; i < runs.last; ++i) {
      if (i + kPrefetchRuns < runs.last) {
        const int64_t ahead = runs.visited(i + kPrefetchRuns);
        const int64_t place = runs.stored[ahead], count = runs.end[ahead] - place;
        if (permutation32) prefetch_run(permutation32 + place, count);
        else if (permutation64) prefetch_run(permutation64 + place, count);
        else prefetch_run(from + place, count);
        if (indices) prefetch_run(indices + place, count);
      }
      const int64_t output = runs.visited(i), begin = runs.stored[output], count = runs.end[output] - begin;
      if (permutation32) {
        for (int64_t j = 0; j < count; ++j) out[j] = widen(from[permutation32[begin + j]]);
      } else if (permutation64) {
        for (int64_t j = 0; j < count; ++j) out[j] = widen(from[permutation64[begin + j]]);
      } else {
        for (int64_t j = 0; j < count; ++j) out[j] = widen(from[begin + j]);
      }
      out += count;
      if (!indices) continue;
      for (int64_t j = 0; j < count; ++j) indices_out[j] = indices[begin + j];
      indices_out += count;
    }
  });
}

template <class A>
void write_runs(const A* from, const Runs& runs, DType dtype, void* values) {
  with_element<A>(dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(values);
    for (int64_t i = runs.first; i < runs.last; ++i) {
      if (i + kPrefetchRuns < runs.last) {
        const int64_t ahead = runs.visited(i + kPrefetchRuns);
        prefetch_run(to + runs.stored[ahead], runs.end[ahead] - runs.stored[ahead]);
      }
      const int64_t output = runs.visited(i), end = runs.end[output];
      for (int64_t k = runs.stored[output]; k < end; ++k) narrow(*from++, to + k);
    }
  });
}

template <class A>
void sum_parts(const A* parts, int64_t stride, int64_t count, int64_t begin, int64_t end, DType dtype, void* out) {
  with_element<A>(dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(out);
    for (int64_t i = begin; i < end; ++i) {
      A sum = parts[i];
      for (int64_t p = 1; p < count; ++p) sum += parts[p * stride + i];
      narrow(sum, to + i);
    }
  });
}

template <class A>
constexpr LinearKernels<A> linear_kernels() {
  LinearKernels<A> table{};
  table.lanes = kLanes<A>;
  table.max_vectors = kMaxVectors;
  table.load_tile = load_tile<A>;
  table.store_tile = store_tile<A>;
  table.forward = linear_forward<A>;
  table.backward = linear_backward<A>;
  table.forward_few = forward_few<A>;
  table.forward_token = forward_token<A>;
  table.scatter = scatter_tile<A, kLanes<A>>;
  table.scatter_token = scatter_token<A>;
  if constexpr (kNarrowLanes<A> > 0) {
    table.narrow_lanes = kNarrowLanes<A>;
    table.forward_narrow = forward_rows<A, kNarrowLanes<A>, 1>;
    table.scatter_narrow = scatter_tile<A, kNarrowLanes<A>>;
    table.load_narrow = load_narrow<A>;
    table.store_narrow = store_narrow<A>;
  }
  table.digest = digest_bytes;
  table.read_runs = read_runs<A>;
  table.write_runs = write_runs<A>;
  table.widen = widen_values<A>;
  table.sum_parts = sum_parts<A>;
  return table;
}

}  // namespace SK_ISA
}  // namespace sparsekern
