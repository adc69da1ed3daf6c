// Linear kernels on one tile of tokens. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/simd.h"
#include "linear/digest.h"
#include "linear/few.h"
#include "linear/kernels.h"

namespace sparsekern {
namespace SK_ISA {

// Backward holds x and dx of a column at once: 8 + 8 of AVX-512's 32 registers, 4 + 4 of the others' 16.
#if SK_VECTOR_BYTES == 64
constexpr int kMaxVectors = 8;
#else
constexpr int kMaxVectors = 4;
#endif

// How many vectors ahead of a load its token's features are asked for: memory at large strides is not foreseen.
constexpr int kPrefetchVectors = 8;

template <class A, bool Sums, class T>
SK_INLINE void load_tile_of(const T* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, int vectors,
                            A* tile, A* sums) {
  constexpr int W = kLanes<A>;
  const int64_t width = int64_t{vectors} * W;
  for (int v = 0; v < vectors; ++v) {
    const T* x_v = x + v * W * stride;
    const int64_t here = tokens - v * W;
    for (int64_t f = begin; f < end; f += W) {
      Vec<A> r[W];
      if (here >= W && end - f >= W) {
        SK_UNROLL
        for (int i = 0; i < W; ++i) {
          __builtin_prefetch(x_v + i * stride + f + kPrefetchVectors * W, 0, 2);
          r[i] = load_widened<A>(x_v + i * stride + f);
        }
      } else {
        for (int i = 0; i < W; ++i) r[i] = i < here ? load_widened<A>(x_v + i * stride + f, end - f) : Vec<A>{};
      }
      if constexpr (Sums) {
        Vec<A> sum = r[0];
        SK_UNROLL
        for (int i = 1; i < W; ++i) sum += r[i];
        store_narrowed<A>(sums + f, load_widened<A>(sums + f, end - f) + sum, end - f);
      }
      transpose<A>(r);
      A* out = tile + (f - begin) * width + v * W;
      if (end - f >= W) {
        SK_UNROLL
        for (int i = 0; i < W; ++i) store<A>(out + i * width, r[i]);
      } else {
        for (int i = 0; i < end - f; ++i) store<A>(out + i * width, r[i]);
      }
    }
  }
}

// y[token][f] = tile[f - begin][token].
template <class A, bool Stream, class T>
SK_INLINE void store_tile_of(const A* tile, int vectors, T* y, int64_t stride, int64_t tokens, int64_t begin,
                             int64_t end) {
  constexpr int W = kLanes<A>;
  const int64_t width = int64_t{vectors} * W;
  for (int v = 0; v < vectors; ++v) {
    T* y_v = y + v * W * stride;
    const int64_t here = tokens - v * W;
    if (here <= 0) return;
    for (int64_t f = begin; f < end; f += W) {
      Vec<A> r[W];
      const A* in = tile + (f - begin) * width + v * W;
      if (here >= W && end - f >= W) {
        SK_UNROLL
        for (int i = 0; i < W; ++i) r[i] = load<A>(in + i * width);
        transpose<A>(r);
        SK_UNROLL
        for (int i = 0; i < W; ++i) {
          if constexpr (Stream && sizeof(T) == sizeof(A)) {
            stream<A>(reinterpret_cast<A*>(y_v + i * stride + f), r[i]);
          } else {
            store_narrowed<A>(y_v + i * stride + f, r[i]);
          }
        }
      } else {
        for (int i = 0; i < W; ++i) r[i] = i < end - f ? load<A>(in + i * width) : Vec<A>{};
        transpose<A>(r);
        for (int i = 0; i < W && i < here; ++i) store_narrowed<A>(y_v + i * stride + f, r[i], end - f);
      }
    }
  }
}

// Calls f with a null pointer of the dtype's element type; A = double goes with float64 alone.
template <class A, class F>
SK_INLINE void with_element(DType dtype, const F& f) {
  if constexpr (sizeof(A) == 8) {
    f(static_cast<double*>(nullptr));
  } else {
    switch (dtype) {
      case DType::bf16: return f(static_cast<bf16*>(nullptr));
      case DType::f16: return f(static_cast<f16*>(nullptr));
      default: return f(static_cast<float*>(nullptr));
    }
  }
}

template <class A>
void load_tile(const Tokens& x, int64_t begin, int64_t end, int vectors, A* tile, A* sums) {
  with_element<A>(x.dtype, [&](auto* type) {
    const auto* data = static_cast<decltype(type)>(x.data);
    if (sums)
      load_tile_of<A, true>(data, x.stride, x.count, begin, end, vectors, tile, sums);
    else
      load_tile_of<A, false>(data, x.stride, x.count, begin, end, vectors, tile, sums);
  });
}

template <class A>
void store_tile(const A* tile, int vectors, const Tokens& y, int64_t begin, int64_t end) {
  with_element<A>(y.dtype, [&](auto* type) {
    auto* data = static_cast<decltype(type)>(y.data);
    if (kCanStream && y.stream) {
      store_tile_of<A, true>(tile, vectors, data, y.stride, y.count, begin, end);
    } else {
      store_tile_of<A, false>(tile, vectors, data, y.stride, y.count, begin, end);
    }
  });
}

template <class A, int V>
SK_INLINE void multiply_add_row(Vec<A>* sum, const int32_t* __restrict col, const A* __restrict values, int64_t k,
                                int64_t end, const A* x_tile) {
  constexpr int W = kLanes<A>;
  if constexpr (V <= 4) {
    // Two sets of sums: with few vectors one set would wait for the multiply-add's latency.
    Vec<A> other[V] = {};
    for (; k + 1 < end; k += 2) {
      const A* x0 = x_tile + int64_t{col[k]} * (V * W);
      const A* x1 = x_tile + int64_t{col[k + 1]} * (V * W);
      const Vec<A> w0 = broadcast<A>(values[k]), w1 = broadcast<A>(values[k + 1]);
      SK_UNROLL
      for (int v = 0; v < V; ++v) {
        sum[v] += w0 * load<A>(x0 + v * W);
        other[v] += w1 * load<A>(x1 + v * W);
      }
    }
    SK_UNROLL
    for (int v = 0; v < V; ++v) sum[v] += other[v];
  }
  for (; k < end; ++k) {
    const A* x = x_tile + int64_t{col[k]} * (V * W);
    const Vec<A> w = broadcast<A>(values[k]);
    SK_UNROLL
    for (int v = 0; v < V; ++v) sum[v] += w * load<A>(x + v * W);
  }
}

// Where the sums of a block live between panels, or for the time of the block.
template <class A, int V>
SK_INLINE A* block_sums(A* sums, A* local, int64_t begin) {
  return sums ? sums + begin * (V * kLanes<A>) : local;
}

template <class A, int V>
void forward_tile(const LinearForwardTask<A>& t) {
  constexpr int64_t kWidth = V * kLanes<A>;
  alignas(64) A local_sums[kLinearBlock * kWidth];
  for (int64_t begin = t.row_begin; begin < t.row_end; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < t.row_end ? begin + kLinearBlock : t.row_end;
    A* block = block_sums<A, V>(t.sums, local_sums, begin);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = t.panel.visited(begin, i);
      A* out = block + (r - begin) * kWidth;
      Vec<A> sum[V];
      if (t.panel.first) {
        const Vec<A> start = broadcast<A>(t.bias ? t.bias[r] : A{0});
        SK_UNROLL
        for (int v = 0; v < V; ++v) sum[v] = start;
      } else {
        // The sums of a block come from the second cache: those of a later output are asked for while this one is made.
        if (i + 2 < end) {
          const A* coming = block + (t.panel.visited(begin, i + 2) - begin) * kWidth;
          SK_UNROLL
          for (int v = 0; v < V; ++v) __builtin_prefetch(coming + v * kLanes<A>);
        }
        SK_UNROLL
        for (int v = 0; v < V; ++v) sum[v] = load<A>(out + v * kLanes<A>);
      }
      multiply_add_row<A, V>(sum, t.col, t.values, t.panel.begin[i], t.panel.end[i], t.x_tile);
      SK_UNROLL
      for (int v = 0; v < V; ++v) store<A>(out + v * kLanes<A>, sum[v]);
    }
    if (t.panel.last) store_tile<A>(block, V, t.y, begin, end);
  }
  stream_fence();  // once, not after each block: it waits for all stores
}

// Adds to dw[k] the lanes' sum of each of `count` vectors of `spread`, at most a square of them.
template <class A>
SK_INLINE void add_lane_sums(const A* spread, A* dw, int64_t count) {
  constexpr int W = kLanes<A>;
  Vec<A> r[W];
  SK_UNROLL
  for (int i = 0; i < W; ++i) r[i] = load<A>(spread + i * W);
  const Vec<A> sums = sum_each<A>(r);
  store_narrowed<A>(dw, load_widened<A>(dw, count) + sums, count);
}

template <class A, int V, bool WantX, bool WantW>
void backward_tile(const LinearBackwardTask<A>& t) {
  constexpr int W = kLanes<A>;
  constexpr int64_t kWidth = V * W;
  alignas(64) A x_block[WantW ? kLinearBlock * kWidth : 1];
  alignas(64) A local_sums[WantX ? kLinearBlock * kWidth : 1];
  // Products of the last edges, one vector an edge, still spread over the lanes: reduced a square at a time.
  alignas(64) A spread[W * W] = {};
  int waiting = 0;
  int64_t k = 0;
  const int32_t* __restrict row = t.row;
  for (int64_t begin = t.column_begin; begin < t.column_end; begin += kLinearBlock) {
    const int64_t end = begin + kLinearBlock < t.column_end ? begin + kLinearBlock : t.column_end;
    A* block = WantX ? block_sums<A, V>(t.sums, local_sums, begin) : nullptr;
    if constexpr (WantW) load_tile<A>(t.x, begin, end, V, x_block, nullptr);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = t.panel.visited(begin, i);
      const int64_t place = (c - begin) * kWidth;
      const int64_t last = t.panel.end[i];
      if constexpr (WantW) {
        if (!t.panel.adjacent && waiting > 0) {
          add_lane_sums<A>(spread, t.dw + k - waiting, waiting);
          waiting = 0;
        }
      }
      k = t.panel.begin[i];
      Vec<A> x[V], dx[V];
      SK_UNROLL
      for (int v = 0; v < V; ++v) {
        if constexpr (WantW) x[v] = load<A>(x_block + place + v * W);
        dx[v] = Vec<A>{};
        if constexpr (WantX) {
          if (!t.panel.first) dx[v] = load<A>(block + place + v * W);
        }
      }
      for (; k < last; ++k) {
        const A* grad = t.grad_tile + int64_t{row[k]} * kWidth;
        Vec<A> w{}, even{}, odd{};
        if constexpr (WantX) w = broadcast<A>(t.values[k]);
        SK_UNROLL
        for (int v = 0; v < V; ++v) {
          Vec<A> g = load<A>(grad + v * W);
          if constexpr (WantX && WantW) pin(g);
          if constexpr (WantX) dx[v] += w * g;
          if constexpr (WantW) {
            if (v == 0) {
              even = x[v] * g;
            } else if (v == 1) {
              odd = x[v] * g;
            } else if (v % 2) {
              odd += x[v] * g;
            } else {
              even += x[v] * g;
            }
          }
        }
        if constexpr (WantW) {
          store<A>(spread + waiting * W, V > 1 ? even + odd : even);
          if (++waiting == W) {
            add_lane_sums<A>(spread, t.dw + k - (W - 1), W);
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
      if (t.panel.last) store_tile<A>(block, V, t.dx, begin, end);
    }
  }
  if constexpr (WantX) stream_fence();
  if constexpr (WantW) {
    if (waiting > 0) add_lane_sums<A>(spread, t.dw + k - waiting, waiting);
  }
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

template <class A, int V>
void backward_with(const LinearBackwardTask<A>& task) {
  if (task.dx.data && task.dw) return backward_tile<A, V, true, true>(task);
  if (task.dx.data) return backward_tile<A, V, true, false>(task);
  backward_tile<A, V, false, true>(task);
}

template <class A>
void linear_backward(const LinearBackwardTask<A>& task) {
  switch (task.vectors) {
    case 1: return backward_with<A, 1>(task);
    case 2: return backward_with<A, 2>(task);
    case 4: return backward_with<A, 4>(task);
    default: return backward_with<A, kMaxVectors>(task);
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
