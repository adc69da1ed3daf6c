// Tiles from tokens and back: memory holds a token's features side by side, a tile a feature's tokens. Compiled once
// per instruction set; nothing here may come from std::.
#pragma once

#include "isa/pairs.h"
#include "isa/simd.h"
#include "linear/kernels.h"

namespace sparsekern {
namespace SK_ISA {

// How far ahead of a load its token's features are asked for: memory at large strides is not foreseen.
constexpr int kBytesAhead = 512;

// Parts of squares are transposed out of line: GCC would repeat the shuffles in each branch of the caller that stores
// some of the result. Absent rows and lanes are zero.
template <class A, class T>
[[gnu::noinline]] void transpose_part(const T* from, int64_t stride, int64_t rows, int64_t lanes, A* square) {
  constexpr int W = kLanes<A>;
  Vec<A> r[W];
  for (int i = 0; i < W; ++i) r[i] = i < rows ? load_widened<A>(from + i * stride, lanes) : Vec<A>{};
  transpose<A>(r);
  store_square<A, false>(r, square, W);
}
// Of pairs of tokens a vector's lanes apart.
[[gnu::noinline]] inline void transpose_paired_part(const bf16* from, int64_t stride, int64_t rows, int64_t lanes,
                                                    float* square) {
  constexpr int W = kLanes<float>;
  const auto words = [&](int64_t row) { return row < rows ? load_words(from + row * stride, lanes) : WordVec{}; };
  Vec<float> r[W];
  for (int i = 0; i < W; ++i) r[i] = pair(words(i), words(i + W));
  transpose<float>(r);
  store_square<float, false>(r, square, W);
}

// Rows of T as the tile's squares hold them: one token to a row, or two.
template <class A, bool Paired, class T>
SK_INLINE void load_token_square(const T* x, int64_t stride, Vec<A>* r) {
  constexpr int64_t kAhead = kBytesAhead / static_cast<int64_t>(sizeof(T));
  if constexpr (Paired) {
    constexpr int W = kLanes<A>;
    const T* upper = x + W * stride;
    forget_origin(x);
    forget_origin(upper);
    SK_UNROLL
    for (int i = 0; i < W; ++i, x += stride, upper += stride) {
      __builtin_prefetch(x + kAhead, 0, 2);
      __builtin_prefetch(upper + kAhead, 0, 2);
      r[i] = pair(load_words(x), load_words(upper));
      pin(r[i]);
    }
  } else {
    load_square<A>(x, stride, kAhead, r);
  }
}

// The tokens' sum of each feature.
template <class A, bool Paired>
SK_INLINE Vec<A> sum_of_rows(const Vec<A>* r) {
  Vec<A> sum{};
  SK_UNROLL
  for (int i = 0; i < kLanes<A>; ++i) {
    if constexpr (Paired) sum += widen_lower(r[i]) + widen_upper(r[i]);
    else sum += r[i];
  }
  return sum;
}

template <class A, bool Sums, bool Paired, class T>
SK_INLINE void load_tile_of(const T* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, int vectors,
                            A* tile, A* sums) {
  constexpr int W = kLanes<A>;
  constexpr int kTokens = Paired ? 2 * W : W;  // of a square
  const int64_t width = int64_t{vectors} * W * W / kTokens;
  for (int64_t token = 0; token < int64_t{vectors} * W; token += kTokens) {
    const T* from = x + token * stride;
    const int64_t here = tokens - token;
    A* out = tile + token / kTokens * W;
    int64_t f = begin;
    if (here >= kTokens) {
      for (; f + W <= end; f += W, out += W * width) {
        Vec<A> r[W];
        load_token_square<A, Paired>(from + f, stride, r);
        if constexpr (Sums) store_unaligned<A>(sums + f, load_unaligned<A>(sums + f) + sum_of_rows<A, Paired>(r));
        transpose<A>(r);
        store_square<A, false>(r, out, width);
      }
    }
    for (; f < end; f += W, out += W * width) {
      const int64_t features = end - f < W ? end - f : W;
      alignas(64) A square[W * W];
      if constexpr (Paired) transpose_paired_part(from + f, stride, here, features, square);
      else transpose_part<A>(from + f, stride, here, features, square);
      for (int64_t i = 0; i < features; ++i) {
        const Vec<A> row = load<A>(square + i * W);
        store_unaligned<A>(out + i * width, row);
        if constexpr (Sums) {
          Vec<A> sum = row;
          if constexpr (Paired) sum = widen_lower(row) + widen_upper(row);
          for (int lane = 0; lane < W; ++lane) sums[f + i] += sum[lane];
        }
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
    const A* in = tile + v * W;
    int64_t f = begin;
    if (here >= W) {
      if constexpr (sizeof(T) < sizeof(A)) {
        // Two features to a word: whole vectors of results, and one transposition for two squares.
        for (; f + 2 * W <= end; f += 2 * W, in += 2 * W * width) {
          Vec<A> r[W];
          SK_UNROLL
          for (int i = 0; i < W; ++i) {
            r[i] = narrow_pair(load<A>(in + 2 * i * width), load<A>(in + (2 * i + 1) * width), y);
          }
          transpose<A>(r);
          store_square<A, Stream>(r, y_v + f, stride);
        }
      } else {
        for (; f + W <= end; f += W, in += W * width) {
          Vec<A> r[W];
          load_square<A>(in, width, 0, r);
          transpose<A>(r);
          store_square<A, Stream>(r, y_v + f, stride);
        }
      }
    }
    for (; f < end; f += W, in += W * width) {
      const int64_t features = end - f < W ? end - f : W;
      alignas(64) A square[W * W];
      transpose_part<A>(in, width, features, W, square);
      for (int64_t i = 0; i < W && i < here; ++i)
        store_narrowed<A>(y_v + i * stride + f, load<A>(square + i * W), features);
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

template <class A, bool Paired, class T>
SK_INLINE void load_tile_with(const T* data, const Tokens& x, int64_t begin, int64_t end, int vectors, A* tile,
                              A* sums) {
  if (sums) load_tile_of<A, true, Paired>(data, x.stride, x.count, begin, end, vectors, tile, sums);
  else load_tile_of<A, false, Paired>(data, x.stride, x.count, begin, end, vectors, tile, sums);
}

template <class A>
void load_tile(const Tokens& x, int64_t begin, int64_t end, int vectors, bool paired, A* tile, A* sums) {
  if constexpr (sizeof(A) == sizeof(float)) {
    if (paired) return load_tile_with<A, true>(static_cast<const bf16*>(x.data), x, begin, end, vectors, tile, sums);
  }
  with_element<A>(x.dtype, [&](auto* type) {
    load_tile_with<A, false>(static_cast<decltype(type)>(x.data), x, begin, end, vectors, tile, sums);
  });
}

template <class A>
void store_tile(const A* tile, int vectors, const Tokens& y, int64_t begin, int64_t end) {
  with_element<A>(y.dtype, [&](auto* type) {
    auto* data = static_cast<decltype(type)>(y.data);
    if (kCanStream && y.stream) store_tile_of<A, true>(tile, vectors, data, y.stride, y.count, begin, end);
    else store_tile_of<A, false>(tile, vectors, data, y.stride, y.count, begin, end);
  });
}

}  // namespace SK_ISA
}  // namespace sparsekern
