// Vectors of float or double, as wide as the instruction set of the including file, on the compiler's own
// vector extension: one source for AVX-512, AVX2 and anything else. Nothing here may come from std::.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "isa/element.h"

#if defined(__AVX512F__)
#define SK_VECTOR_BYTES 64
#define SK_VECTOR_REGISTER "v"
#elif defined(__AVX2__)
#define SK_VECTOR_BYTES 32
#define SK_VECTOR_REGISTER "x"
#elif defined(__x86_64__)
#define SK_VECTOR_BYTES 16
#define SK_VECTOR_REGISTER "x"
#elif defined(__aarch64__)
#define SK_VECTOR_BYTES 16
#define SK_VECTOR_REGISTER "w"
#else
#define SK_VECTOR_BYTES 16
#define SK_VECTOR_REGISTER "m"
#endif

#define SK_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define SK_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SK_UNROLL _Pragma("GCC unroll 64")
#endif

namespace sparsekern {
namespace SK_ISA {

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(SK_VECTOR_BYTES), may_alias));
  typedef float unaligned __attribute__((vector_size(SK_VECTOR_BYTES), may_alias, aligned(4)));
  typedef int32_t index __attribute__((vector_size(SK_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(SK_VECTOR_BYTES), may_alias));
  typedef double unaligned __attribute__((vector_size(SK_VECTOR_BYTES), may_alias, aligned(8)));
  typedef int64_t index __attribute__((vector_size(SK_VECTOR_BYTES)));
};

template <class A>
using Vec = typename VectorOf<A>::type;

// Lanes of a vector of A.
template <class A>
constexpr int kLanes = SK_VECTOR_BYTES / static_cast<int>(sizeof(A));

template <class A>
SK_INLINE Vec<A> load(const A* p) {
  return *reinterpret_cast<const Vec<A>*>(p);
}
template <class A>
SK_INLINE Vec<A> load_unaligned(const A* p) {
  return *reinterpret_cast<const typename VectorOf<A>::unaligned*>(p);
}
template <class A>
SK_INLINE void store(A* p, Vec<A> v) {
  *reinterpret_cast<Vec<A>*>(p) = v;
}
template <class A>
SK_INLINE void store_unaligned(A* p, Vec<A> v) {
  *reinterpret_cast<typename VectorOf<A>::unaligned*>(p) = v;
}
// Whether a store past the caches exists for these vectors: one that writes whole cache lines.
constexpr bool kCanStream = SK_VECTOR_BYTES == 64;

// Writes memory (aligned to the vector) that will not be read soon without first reading it into the caches.
// Such stores are not ordered: end them with stream_fence before other threads may look.
template <class A>
SK_INLINE void stream(A* p, Vec<A> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#else
  store<A>(p, v);
#endif
}
SK_INLINE void stream_fence() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}
template <class A>
SK_INLINE Vec<A> broadcast(A x) {
  return x - Vec<A>{};  // minus, not plus: exact for -0, so it compiles to the broadcast alone
}

// Keeps v in a register: without it GCC folds one load into both of the multiply-adds that use it and loads twice.
template <class V>
SK_INLINE void pin(V& v) {
  asm("" : "+" SK_VECTOR_REGISTER(v));
}

// shuffle<A, i...>(a, b): lane j of the result is lane i_j of a and b laid side by side.
template <class A, int... I>
SK_INLINE Vec<A> shuffle(Vec<A> a, Vec<A> b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename VectorOf<A>::index{I...});
#endif
}

template <int... I>
struct Ints {};
template <int N, int... I>
struct IntsTo : IntsTo<N - 1, N - 1, I...> {};
template <int... I>
struct IntsTo<0, I...> {
  using type = Ints<I...>;
};

// Where lane `lane` of a butterfly step comes from: the step swaps the odd blocks (of `block` lanes) of a with
// the even blocks of b; `high` picks the second of its two results.
constexpr int butterfly_source(int lane, int block, int lanes, bool high) {
  const bool odd = (lane / block) % 2 == 1;
  return high ? (odd ? lane + lanes : lane + block) : (odd ? lane + lanes - block : lane);
}
template <class A, int Block, bool High, int... I>
SK_INLINE Vec<A> butterfly(Vec<A> a, Vec<A> b, Ints<I...>) {
  return shuffle<A, butterfly_source(I, Block, kLanes<A>, High)...>(a, b);
}
template <class A, int Block, bool High>
SK_INLINE Vec<A> butterfly(Vec<A> a, Vec<A> b) {
  return butterfly<A, Block, High>(a, b, typename IntsTo<kLanes<A>>::type{});
}

// Transposes a square of kLanes<A> vectors in registers: log2(lanes) butterfly steps of ever larger blocks.
template <class A, int Block = 1>
SK_INLINE void transpose(Vec<A>* r) {
  if constexpr (Block < kLanes<A>) {
    SK_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) {
      if (i & Block) continue;
      const Vec<A> low = butterfly<A, Block, false>(r[i], r[i + Block]);
      const Vec<A> high = butterfly<A, Block, true>(r[i], r[i + Block]);
      r[i] = low;
      r[i + Block] = high;
    }
    transpose<A, Block * 2>(r);
  }
}

// Lane i of the result is the sum of the lanes of r[i]: the transposition's tree, with additions on the way.
template <class A, int Block = 1>
SK_INLINE Vec<A> sum_each(Vec<A>* r) {
  if constexpr (Block < kLanes<A>) {
    SK_UNROLL
    for (int i = 0; i < kLanes<A>; i += 2 * Block) {
      r[i] = butterfly<A, Block, false>(r[i], r[i + Block]) + butterfly<A, Block, true>(r[i], r[i + Block]);
    }
    return sum_each<A, Block * 2>(r);
  } else {
    return r[0];
  }
}

// Lanes [0, count) from and to memory, not touching what lies after them. 0 < count < kLanes<A>.
#if defined(__AVX512F__)
SK_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm512_maskz_loadu_ps((1u << count) - 1, p);
}
SK_INLINE Vec<double> load_first(const double* p, int64_t count) {
  return (Vec<double>)_mm512_maskz_loadu_pd((1u << count) - 1, p);
}
SK_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v);
}
SK_INLINE void store_first(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, (1u << count) - 1, (__m512d)v);
}
#elif defined(__AVX2__)
SK_INLINE __m256i first_of_8(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SK_INLINE __m256i first_of_4(int64_t count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
SK_INLINE Vec<float> load_first(const float* p, int64_t count) {
  return (Vec<float>)_mm256_maskload_ps(p, first_of_8(count));
}
SK_INLINE Vec<double> load_first(const double* p, int64_t count) {
  return (Vec<double>)_mm256_maskload_pd(p, first_of_4(count));
}
SK_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm256_maskstore_ps(p, first_of_8(count), (__m256)v);
}
SK_INLINE void store_first(double* p, Vec<double> v, int64_t count) {
  _mm256_maskstore_pd(p, first_of_4(count), (__m256d)v);
}
#else
template <class A>
SK_INLINE Vec<A> load_first(const A* p, int64_t count) {
  Vec<A> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
template <class A>
SK_INLINE void store_first(A* p, Vec<A> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}
#endif

// kLanes<A> elements of type T from memory (any alignment), widened.
template <class A, class T>
SK_INLINE Vec<A> load_widened(const T* p) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return load_unaligned<A>(reinterpret_cast<const A*>(p));
  } else {
    alignas(SK_VECTOR_BYTES) A lanes[kLanes<A>];
    SK_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) lanes[i] = widen(p[i]);
    return load<A>(lanes);
  }
}
template <class A, class T>
SK_INLINE Vec<A> load_widened(const T* p, int64_t count) {
  if (count >= kLanes<A>) return load_widened<A>(p);
  if (count <= 0) return Vec<A>{};
  if constexpr (sizeof(T) == sizeof(A)) return load_first(reinterpret_cast<const A*>(p), count);
  alignas(SK_VECTOR_BYTES) A lanes[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = widen(p[i]);
  return load<A>(lanes);
}

// The first `count` lanes of v to memory (any alignment), rounded to T.
template <class A, class T>
SK_INLINE void store_narrowed(T* p, Vec<A> v) {
  if constexpr (sizeof(T) == sizeof(A)) {
    store_unaligned<A>(reinterpret_cast<A*>(p), v);
  } else {
    alignas(SK_VECTOR_BYTES) A lanes[kLanes<A>];
    store<A>(lanes, v);
    SK_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) narrow(lanes[i], p + i);
  }
}
template <class A, class T>
SK_INLINE void store_narrowed(T* p, Vec<A> v, int64_t count) {
  if (count >= kLanes<A>) return store_narrowed<A>(p, v);
  if (count <= 0) return;
  if constexpr (sizeof(T) == sizeof(A)) return store_first(reinterpret_cast<A*>(p), v, count);
  alignas(SK_VECTOR_BYTES) A lanes[kLanes<A>];
  store<A>(lanes, v);
  for (int64_t i = 0; i < count; ++i) narrow(lanes[i], p + i);
}

}  // namespace SK_ISA
}  // namespace sparsekern
