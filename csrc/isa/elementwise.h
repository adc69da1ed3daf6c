// What elementwise kernels and sums share: the type to compute in, results past the caches, and half vectors, of as
// many elements as a vector has doubles, to be summed in double.
// Included by the files that are compiled once per instruction set: nothing here may come from std::.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// The type that elements of type T are computed in.
template <class T>
struct ComputedIn {
  using type = float;
};
template <>
struct ComputedIn<double> {
  using type = double;
};

// Past the caches go only whole vectors of elements that are stored as they are computed.
template <class T>
constexpr bool kStreams = kCanStream && sizeof(T) == sizeof(typename ComputedIn<T>::type);

// A whole vector to memory, rounded to T; with Stream past the caches, aligned to the vector.
template <class A, bool Stream, class T>
SK_INLINE void put(T* p, Vec<A> v) {
  if constexpr (Stream) {
    stream<A>(reinterpret_cast<A*>(p), v);
  } else {
    store_narrowed<A>(p, v);
  }
}

// kLanes<double> elements of type A.
template <class A>
struct HalfOf {
  typedef A type __attribute__((vector_size(SK_VECTOR_BYTES / 8 * sizeof(A)), may_alias));
  typedef A unaligned __attribute__((vector_size(SK_VECTOR_BYTES / 8 * sizeof(A)), may_alias, aligned(sizeof(A))));
};
template <class A>
using Half = typename HalfOf<A>::type;

constexpr int kHalfLanes = kLanes<double>;

// kHalfLanes elements from memory (any alignment), widened.
template <class T>
SK_INLINE Half<typename ComputedIn<T>::type> load_half(const T* p) {
  if constexpr (sizeof(T) >= 4) {
    return *reinterpret_cast<const typename HalfOf<T>::unaligned*>(p);
  } else {
    Half<float> v{};
    SK_UNROLL
    for (int i = 0; i < kHalfLanes; ++i) v[i] = widen(p[i]);
    return v;
  }
}
#if defined(__AVX512F__)
SK_INLINE Half<float> load_half(const f16* p) {
  return (Half<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SK_INLINE Half<float> load_half(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Half<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
}
#elif defined(__AVX2__)
SK_INLINE Half<float> load_half(const f16* p) {
  return (Half<float>)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
SK_INLINE Half<float> load_half(const bf16* p) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Half<float>)_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16);
}
#endif

// The first `count` elements, the rest of the lanes `other`. count < kHalfLanes.
template <class T>
SK_INLINE Half<typename ComputedIn<T>::type> load_half(const T* p, int64_t count, T other) {
  T elements[kHalfLanes];
  for (int64_t i = 0; i < kHalfLanes; ++i) elements[i] = i < count ? p[i] : other;
  return load_half(elements);
}

template <class A>
SK_INLINE Vec<double> to_double(Half<A> v) {
  return __builtin_convertvector(v, Vec<double>);
}

SK_INLINE double sum_lanes(Vec<double> v) {
  double sum = v[0];
  for (int i = 1; i < kHalfLanes; ++i) sum += v[i];
  return sum;
}

}  // namespace SK_ISA
}  // namespace sparsekern
