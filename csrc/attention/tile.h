// Softmax attention of one head. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include <math.h>

#include "attention/kernels.h"
#include "attention/product.h"
#include "isa/elementwise.h"
#include "isa/exp.h"

namespace sparsekern {
namespace SK_ISA {

// Sizes of the matrices in scratch: rows are padded with zeros to whole vectors and to whole groups of product's rows.
template <class A>
struct AttentionSizes {
  explicit AttentionSizes(const AttentionHead& head)
      : rows(round_up(round_up(head.tokens, kProductRows), kLanes<A>)),
        tokens(round_up(head.tokens, kLanes<A>)),
        width(round_up(head.size, kLanes<A>)),
        weights(head.block * tokens + kLanes<A> * kProductRows) {}

  int64_t rows;     // of (tokens, size) matrices
  int64_t tokens;   // columns of transposed ones, and of weights
  int64_t width;    // columns of (tokens, size) matrices
  int64_t weights;  // elements of a block of weights; what product reads past its end, as padding, is within
};

template <class A>
int64_t attention_scratch(const AttentionHead& head, bool backward) {
  const AttentionSizes<A> sizes(head);
  const int64_t matrix = sizes.rows * sizes.width;
  return backward ? 9 * matrix + 2 * sizes.weights : 5 * matrix + sizes.weights + sizes.rows;
}

template <class A>
struct AttentionScratch {
  explicit AttentionScratch(void* memory) : next(static_cast<A*>(memory)) {}
  A* take(int64_t elements) {
    A* taken = next;
    next += elements;
    return taken;
  }
  A* next;
};

// e^x for x <= 0 or a little above, exactly 0 from where it is next to nothing; a NaN stays.
SK_INLINE Vec<float> exp_of_weight(Vec<float> x) {
  const Vec<float> e = exp_in_range(x < -87.0f ? broadcast(-87.0f) : x);
  return x < -87.0f ? Vec<float>{} : e;
}
SK_INLINE Vec<double> exp_of_weight(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = exp(x[i]);
  return x;
}

// v where the lane's number plus `from` is below `count`, `other` elsewhere.
template <class A>
SK_INLINE Vec<A> where_below(int64_t from, int64_t count, Vec<A> v, A other) {
  if (from + kLanes<A> <= count) return v;
  Vec<A> lane{};
  SK_UNROLL
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = static_cast<A>(i);
  return lane < static_cast<A>(count - from) ? v : broadcast(other);
}

template <class A, int Step, int... I>
SK_INLINE Vec<A> rotated(Vec<A> v, Ints<I...>) {
  return shuffle<A, (I + Step) % kLanes<A>...>(v, v);
}

// The sum, or the highest, of all lanes, in every lane: half as many are left at each step.
template <class A, int Step = kLanes<A> / 2>
SK_INLINE Vec<A> sum_across(Vec<A> v) {
  v += rotated<A, Step>(v, typename IntsTo<kLanes<A>>::type{});
  if constexpr (Step > 1) v = sum_across<A, Step / 2>(v);
  return v;
}
template <class A, int Step = kLanes<A> / 2>
SK_INLINE Vec<A> highest_across(Vec<A> v) {
  const Vec<A> other = rotated<A, Step>(v, typename IntsTo<kLanes<A>>::type{});
  v = other > v ? other : v;
  if constexpr (Step > 1) v = highest_across<A, Step / 2>(v);
  return v;
}

inline float log_of(float x) { return logf(x); }
inline double log_of(double x) { return log(x); }

// Scores of a query become its weights but for their sum, which is returned; 0 beyond the last token.
template <class A>
SK_INLINE A softmax_row(A* scores, int64_t tokens, A* log_sum) {
  constexpr int W = kLanes<A>;
  Vec<A> high = broadcast(static_cast<A>(-INFINITY));
  for (int64_t j = 0; j < tokens; j += W) {
    const Vec<A> s = where_below<A>(j, tokens, load(scores + j), static_cast<A>(-INFINITY));
    high = s > high ? s : high;
  }
  high = highest_across<A>(high);
  Vec<A> sums{};
  for (int64_t j = 0; j < tokens; j += W) {
    const Vec<A> e = where_below<A>(j, tokens, exp_of_weight(load(scores + j) - high), 0);
    store(scores + j, e);
    sums += e;
  }
  const A sum = sum_across<A>(sums)[0];
  *log_sum = high[0] + log_of(sum);
  return sum;
}

template <class T>
void attention_forward(const AttentionForward& task) {
  using A = typename ComputedIn<T>::type;
  const AttentionHead& head = task.head;
  const AttentionSizes<A> sizes(head);
  const int64_t matrix = sizes.rows * sizes.width, width = sizes.width;
  AttentionScratch<A> scratch(task.scratch);
  A* query = scratch.take(matrix);
  A* key = scratch.take(matrix);
  A* keys_across = scratch.take(matrix);
  A* value = scratch.take(matrix);
  A* out = scratch.take(matrix);
  A* weights = scratch.take(sizes.weights);
  A* sums = scratch.take(sizes.rows);
  const auto packed = [&](const void* from, double scale, A* to) {
    pack(static_cast<const T*>(from), head.stride, head.tokens, head.size, static_cast<A>(scale), to, sizes.rows, width);
  };
  packed(task.query, head.scale, query);
  packed(task.key, 1, key);
  packed(task.value, 1, value);
  transpose_matrix(key, sizes.tokens, width, keys_across);
  for (int64_t begin = 0; begin < head.tokens; begin += head.block) {
    const int64_t left = head.tokens - begin, count = left < head.block ? left : head.block;
    const int64_t rows = round_up(count, kProductRows);
    product<A>({query + begin * width, width, 1}, keys_across, sizes.tokens, head.size, weights, sizes.tokens, rows,
               sizes.tokens, false);
    A* log_sums = static_cast<A*>(task.log_sum) + begin;
    for (int64_t i = 0; i < count; ++i)
      sums[i] = softmax_row(weights + i * sizes.tokens, head.tokens, log_sums + i);
    product<A>({weights, sizes.tokens, 1}, value, width, head.tokens, out, width, rows, width, false);
    T* to = static_cast<T*>(task.out) + begin * head.out_stride;
    for (int64_t i = 0; i < count; ++i)
      unpack(out + i * width, width, 1 / sums[i], to + i * head.out_stride, head.out_stride, 1, head.size);
  }
}

template <class T>
void attention_backward(const AttentionBackward& task) {
  using A = typename ComputedIn<T>::type;
  constexpr int W = kLanes<A>;
  const AttentionHead& head = task.head;
  const AttentionSizes<A> sizes(head);
  const int64_t matrix = sizes.rows * sizes.width, width = sizes.width;
  AttentionScratch<A> scratch(task.scratch);
  A* query = scratch.take(matrix);
  A* key = scratch.take(matrix);
  A* keys_across = scratch.take(matrix);
  A* value = scratch.take(matrix);
  A* values_across = scratch.take(matrix);
  A* grad = scratch.take(matrix);
  A* query_grad = scratch.take(matrix);
  A* key_grad = scratch.take(matrix);
  A* value_grad = scratch.take(matrix);
  A* weights = scratch.take(sizes.weights);
  A* scores_grad = scratch.take(sizes.weights);
  const auto packed = [&](const void* from, int64_t stride, double scale, A* to) {
    pack(static_cast<const T*>(from), stride, head.tokens, head.size, static_cast<A>(scale), to, sizes.rows, width);
  };
  packed(task.query, head.stride, head.scale, query);
  packed(task.key, head.stride, 1, key);
  packed(task.value, head.stride, 1, value);
  packed(task.grad, head.out_stride, 1, grad);
  transpose_matrix(key, sizes.tokens, width, keys_across);
  transpose_matrix(value, sizes.tokens, width, values_across);
  const int64_t all_rows = round_up(head.tokens, kProductRows);
  for (int64_t begin = 0; begin < head.tokens; begin += head.block) {
    const int64_t left = head.tokens - begin, count = left < head.block ? left : head.block;
    const int64_t rows = round_up(count, kProductRows);
    const Left<A> queries{query + begin * width, width, 1}, grads{grad + begin * width, width, 1};
    product<A>(queries, keys_across, sizes.tokens, head.size, weights, sizes.tokens, rows, sizes.tokens, false);
    product<A>(grads, values_across, sizes.tokens, head.size, scores_grad, sizes.tokens, rows, sizes.tokens, false);
    const A* log_sums = static_cast<const A*>(task.log_sum) + begin;
    for (int64_t i = 0; i < count; ++i) {
      A* w = weights + i * sizes.tokens;
      A* d = scores_grad + i * sizes.tokens;
      Vec<A> dots{};
      for (int64_t j = 0; j < head.tokens; j += W) {
        const Vec<A> e = where_below<A>(j, head.tokens, exp_of_weight(load(w + j) - log_sums[i]), 0);
        store(w + j, e);
        dots += e * load(d + j);
      }
      const Vec<A> dot = sum_across<A>(dots);
      for (int64_t j = 0; j < head.tokens; j += W) store(d + j, load(w + j) * (load(d + j) - dot));
    }
    const bool add = begin > 0;
    product<A>({weights, 1, sizes.tokens}, grad + begin * width, width, count, value_grad, width, all_rows, width, add);
    product<A>({scores_grad, 1, sizes.tokens}, query + begin * width, width, count, key_grad, width, all_rows, width, add);
    product<A>({scores_grad, sizes.tokens, 1}, key, width, head.tokens, query_grad, width, rows, width, false);
    unpack(query_grad, width, static_cast<A>(head.scale), static_cast<T*>(task.query_grad) + begin * head.stride,
           head.stride, count, head.size);
  }
  unpack(key_grad, width, A{1}, static_cast<T*>(task.key_grad), head.stride, head.tokens, head.size);
  unpack(value_grad, width, A{1}, static_cast<T*>(task.value_grad), head.stride, head.tokens, head.size);
}

template <class T>
constexpr AttentionKernels attention_kernels() {
  using A = typename ComputedIn<T>::type;
  return {kProductRows, static_cast<int>(sizeof(A)), attention_scratch<A>, attention_forward<T>, attention_backward<T>};
}

}  // namespace SK_ISA
}  // namespace sparsekern
