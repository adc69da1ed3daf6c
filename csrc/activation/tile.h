// GELU, x times the normal distribution function at x (Hendrycks & Gimpel 2016), and its derivative.
// Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include <math.h>

#include "activation/kernels.h"
#include "isa/exp.h"
#include "isa/elementwise.h"
#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// For x < 0 the distribution function is e^(-x^2 / 2) R(|x|), R(t) being erfcx(t / sqrt 2) / 2, which is a polynomial in
// 1 / (1 + t / 4) within 1.2e-8: so the left tail keeps its relative accuracy, which 1 + erf loses. Beyond |x| = 13,
// where e^(-x^2 / 2) is 2e-37, next to nothing changes.
struct NormalTail {
  Vec<float> size, exponential, ratio;  // t = min(|x|, 13), e^(-t^2 / 2), R(t)
};

SK_INLINE NormalTail normal_tail(Vec<float> x) {
  typedef Vec<float> V;
  typedef typename VectorOf<float>::index Bits;
  V t = (V)((Bits)x & 0x7fffffff);
  t = t > 13.0f ? broadcast(13.0f) : t;
  const V square = t * t;
  V again = t;
  pin(again);  // or the compiler takes both products for one
  const V lost = again * t - square;  // with a fused multiply-add, what rounding the square took off
  Exponent exponent = round_exponent(square, -0.721347511f);
  exponent.rest += lost * -0.721347511f + square * -9.62981495e-9f;
  const V u = 1.0f / (t * 0.25f + 1.0f);
  V ratio = u * 3.469189047e-02f - 2.002066295e-01f;
  ratio = ratio * u + 4.044472695e-01f;
  ratio = ratio * u - 3.460498287e-01f;
  ratio = ratio * u + 3.149615853e-01f;
  ratio = ratio * u - 2.602999470e-02f;
  ratio = ratio * u + 1.235355470e-01f;
  ratio = ratio * u + 9.439315673e-02f;
  ratio = ratio * u + 1.002813600e-01f;
  ratio = ratio * u - 2.436193408e-05f;
  return {t, power_of_two(exponent), ratio};
}

SK_INLINE Vec<float> normal_gelu(Vec<float> x) {
  const NormalTail tail = normal_tail(x);
  return (x > 0 ? x : Vec<float>{}) - tail.size * (tail.exponential * tail.ratio);
}

SK_INLINE Vec<float> normal_slope(Vec<float> x) {
  const NormalTail tail = normal_tail(x);
  const Vec<float> left = tail.exponential * (tail.ratio - tail.size * 0.398942280401432678f);  // that of -t
  return x > 0 ? 1.0f - left : left;
}

// A gate s(x), so that the activation is x s(x), and its slope s'(x).
template <class A>
struct Gate {
  Vec<A> value, slope;
};

// (1 + tanh(v)) / 2 = 1 / (1 + e^(-2 v)) at v = sqrt(2 / pi) (x + 0.044715 x^3).
SK_INLINE Gate<float> tanh_gate(Vec<float> x) {
  typedef Vec<float> V;
  const V square = x * x;
  const V twice = x * (square * 0.0713548162726f + 1.5957691216057308f);
  V power = -twice;
  power = power > 88.0f ? broadcast(88.0f) : power;
  power = power < -87.0f ? broadcast(-87.0f) : power;
  const V e = exp_in_range(power);
  V value = 1.0f / (e + 1.0f);
  value = twice < -88.0f ? V{} : value;
  const V slope = e * value * value * (square * 0.2140644488178f + 1.5957691216057308f);
  return {value, twice < -88.0f || twice > 88.0f ? V{} : slope};
}

// In double, which is there to check by: the C library's functions, a lane at a time.
SK_INLINE Gate<double> normal_gate(Vec<double> x) {
  Gate<double> gate{};
  for (int i = 0; i < kLanes<double>; ++i) {
    gate.value[i] = 0.5 * erfc(-x[i] * 0.70710678118654752440);
    gate.slope[i] = 0.39894228040143267794 * exp(-0.5 * x[i] * x[i]);
  }
  return gate;
}
SK_INLINE Gate<double> tanh_gate(Vec<double> x) {
  Gate<double> gate{};
  for (int i = 0; i < kLanes<double>; ++i) {
    const double v = 0.79788456080286535588 * (x[i] + 0.044715 * x[i] * x[i] * x[i]);
    const double e = exp(-2 * v), slope = 2 * 0.79788456080286535588 * (1 + 3 * 0.044715 * x[i] * x[i]);
    gate.value[i] = 1 / (1 + e);
    const double both = gate.value[i] * (1 - gate.value[i]);
    gate.slope[i] = both == 0 ? 0 : both * slope;
  }
  return gate;
}
SK_INLINE Vec<double> normal_gelu(Vec<double> x) { return x * normal_gate(x).value; }
SK_INLINE Vec<double> normal_slope(Vec<double> x) {
  const Gate<double> gate = normal_gate(x);
  return gate.value + x * gate.slope;
}

template <class A, bool Tanh>
SK_INLINE Vec<A> gelu_of(Vec<A> x) {
  if constexpr (Tanh) return x * tanh_gate(x).value;
  return normal_gelu(x);
}

template <class A, bool Tanh>
SK_INLINE Vec<A> gelu_slope(Vec<A> x) {
  if constexpr (!Tanh) return normal_slope(x);
  const Gate<A> gate = tanh_gate(x);
  return gate.value + x * gate.slope;
}

template <class T, bool Tanh, bool Backward, bool Stream>
void gelu_with(const GeluTask& task) {
  using A = typename ComputedIn<T>::type;
  const T* x = static_cast<const T*>(task.x);
  const T* grad = static_cast<const T*>(task.grad);
  T* y = static_cast<T*>(task.y);
  const auto result = [&](int64_t i, int64_t count) {
    const Vec<A> x_i = load_widened<A>(x + i, count);
    if constexpr (Backward) return load_widened<A>(grad + i, count) * gelu_slope<A, Tanh>(x_i);
    return gelu_of<A, Tanh>(x_i);
  };
  int64_t i = task.begin;
  for (; i + kLanes<A> <= task.end; i += kLanes<A>) put<A, Stream>(y + i, result(i, kLanes<A>));
  if (i < task.end) store_narrowed<A>(y + i, result(i, task.end - i), task.end - i);
  if (Stream) stream_fence();
}

template <class T, bool Tanh, bool Backward>
void gelu_stored(const GeluTask& task) {
  if constexpr (kStreams<T>) {
    if (task.stream) return gelu_with<T, Tanh, Backward, true>(task);
  }
  gelu_with<T, Tanh, Backward, false>(task);
}

template <class T>
void gelu(const GeluTask& task) {
  if (task.tanh) return task.grad ? gelu_stored<T, true, true>(task) : gelu_stored<T, true, false>(task);
  task.grad ? gelu_stored<T, false, true>(task) : gelu_stored<T, false, false>(task);
}

template <class T>
constexpr ActivationKernels activation_kernels() {
  return {gelu<T>};
}

}  // namespace SK_ISA
}  // namespace sparsekern
