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

// The bits of half-precision elements.
template <>
struct VectorOf<uint16_t> {
  typedef uint16_t type __attribute__((vector_size(SK_VECTOR_BYTES), may_alias));
  typedef uint16_t unaligned __attribute__((vector_size(SK_VECTOR_BYTES), may_alias, aligned(2)));
  typedef int16_t index __attribute__((vector_size(SK_VECTOR_BYTES)));
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
// Asks for memory that will be read soon; any address will do.
SK_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

// The halves of v to memory (any alignment), each on its own: where stores cross cache lines, fewer of them do.
template <class A>
SK_INLINE void store_lower_half(A* p, Vec<A> v) {
  __builtin_memcpy(p, &v, sizeof v / 2);
}
template <class A>
SK_INLINE void store_upper_half(A* p, Vec<A> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_extracti64x4_epi64(0xff, (__m512i)v, 1));
#else
  __builtin_memcpy(p, reinterpret_cast<const char*>(&v) + sizeof v / 2, sizeof v / 2);
#endif
}
template <class A>
SK_INLINE void store_halves(A* lower, A* upper, Vec<A> v) {
  store_lower_half<A>(lower, v);
  store_upper_half<A>(upper, v);
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

// Makes the compiler forget how p came about. Loops over rows otherwise keep a pointer to each row, more than there are
// registers, instead of working out the next few from one.
template <class T>
SK_INLINE void forget_origin(T*& p) {
  asm("" : "+r"(p));
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

// The square transposition goes in two parts that processors have cheap shuffles for: within the vectors' 16-byte
// groups, then of whole groups. kGroup is a group's lanes, kGroups a vector's groups.
template <class A>
constexpr int kGroup = 16 / static_cast<int>(sizeof(A));
template <class A>
constexpr int kGroups = kLanes<A> / kGroup<A>;

// Interleaves, within each group, blocks of `block` lanes from the group's lower (or upper) half of a and b.
constexpr int interleave_source(int lane, int block, int group, int lanes, bool upper) {
  const int in_group = lane % group;
  const int from = (in_group / (2 * block)) * block + in_group % block + (upper ? group / 2 : 0);
  return lane - in_group + from + ((in_group / block) % 2 ? lanes : 0);
}
// The even (or odd) groups of a, then those of b.
constexpr int gather_groups_source(int lane, int group, bool odd) {
  return (lane / group * 2 + (odd ? 1 : 0)) * group + lane % group;
}

template <class A, int Block, bool Upper, int... I>
SK_INLINE Vec<A> interleave(Vec<A> a, Vec<A> b, Ints<I...>) {
  return shuffle<A, interleave_source(I, Block, kGroup<A>, kLanes<A>, Upper)...>(a, b);
}
template <class A, int Block, bool Upper>
SK_INLINE Vec<A> interleave(Vec<A> a, Vec<A> b) {
  return interleave<A, Block, Upper>(a, b, typename IntsTo<kLanes<A>>::type{});
}
template <class A, bool Odd, int... I>
SK_INLINE Vec<A> gather_groups(Vec<A> a, Vec<A> b, Ints<I...>) {
  return shuffle<A, gather_groups_source(I, kGroup<A>, Odd)...>(a, b);
}
template <class A, bool Odd>
SK_INLINE Vec<A> gather_groups(Vec<A> a, Vec<A> b) {
  return gather_groups<A, Odd>(a, b, typename IntsTo<kLanes<A>>::type{});
}

// Transposes a square of kLanes<A> vectors in registers.
template <class A>
SK_INLINE void transpose(Vec<A>* r) {
  constexpr int L = kGroup<A>, G = kGroups<A>;
  // Squares of L x L within the groups: afterwards group g of r[L * q + p] is column L * g + p of rows L * q on.
  SK_UNROLL
  for (int q = 0; q < G; ++q) {
    Vec<A>* s = r + L * q;
    if constexpr (L == 2) {
      const Vec<A> low = interleave<A, 1, false>(s[0], s[1]);
      s[1] = interleave<A, 1, true>(s[0], s[1]);
      s[0] = low;
    } else {
      const Vec<A> low01 = interleave<A, 1, false>(s[0], s[1]), high01 = interleave<A, 1, true>(s[0], s[1]);
      const Vec<A> low23 = interleave<A, 1, false>(s[2], s[3]), high23 = interleave<A, 1, true>(s[2], s[3]);
      s[0] = interleave<A, 2, false>(low01, low23);
      s[1] = interleave<A, 2, true>(low01, low23);
      s[2] = interleave<A, 2, false>(high01, high23);
      s[3] = interleave<A, 2, true>(high01, high23);
    }
  }
  // The G x G squares of groups.
  SK_UNROLL
  for (int p = 0; p < L; ++p) {
    if constexpr (G == 2) {
      const Vec<A> even = gather_groups<A, false>(r[p], r[L + p]);
      r[L + p] = gather_groups<A, true>(r[p], r[L + p]);
      r[p] = even;
    } else if constexpr (G == 4) {
      const Vec<A> a0 = gather_groups<A, false>(r[p], r[L + p]), a1 = gather_groups<A, true>(r[p], r[L + p]);
      const Vec<A> b0 = gather_groups<A, false>(r[2 * L + p], r[3 * L + p]);
      const Vec<A> b1 = gather_groups<A, true>(r[2 * L + p], r[3 * L + p]);
      r[p] = gather_groups<A, false>(a0, b0);
      r[L + p] = gather_groups<A, false>(a1, b1);
      r[2 * L + p] = gather_groups<A, true>(a0, b0);
      r[3 * L + p] = gather_groups<A, true>(a1, b1);
    }
  }
}

// Lane i of the result is the sum of the lanes of r[i]: the transposition's tree, with additions on the way.
template <class A>
SK_INLINE Vec<A> sum_each(Vec<A>* r) {
  constexpr int L = kGroup<A>, G = kGroups<A>;
  Vec<A> rows[G];
  SK_UNROLL
  for (int q = 0; q < G; ++q) {
    Vec<A>* s = r + L * q;
    const Vec<A> first = interleave<A, 1, false>(s[0], s[1]) + interleave<A, 1, true>(s[0], s[1]);
    if constexpr (L == 2) {
      rows[q] = first;
    } else {
      const Vec<A> second = interleave<A, 1, false>(s[2], s[3]) + interleave<A, 1, true>(s[2], s[3]);
      rows[q] = interleave<A, 2, false>(first, second) + interleave<A, 2, true>(first, second);
    }
  }
  if constexpr (G == 1) return rows[0];
  if constexpr (G == 2) return gather_groups<A, false>(rows[0], rows[1]) + gather_groups<A, true>(rows[0], rows[1]);
  if constexpr (G == 4) {
    const Vec<A> a = gather_groups<A, false>(rows[0], rows[1]) + gather_groups<A, true>(rows[0], rows[1]);
    const Vec<A> b = gather_groups<A, false>(rows[2], rows[3]) + gather_groups<A, true>(rows[2], rows[3]);
    return gather_groups<A, false>(a, b) + gather_groups<A, true>(a, b);
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
SK_INLINE Vec<uint16_t> load_first(const uint16_t* p, int64_t count) {
  return (Vec<uint16_t>)_mm512_maskz_loadu_epi16((1u << count) - 1, p);
}
SK_INLINE void store_first(float* p, Vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v);
}
SK_INLINE void store_first(double* p, Vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, (1u << count) - 1, (__m512d)v);
}
SK_INLINE void store_first(uint16_t* p, Vec<uint16_t> v, int64_t count) {
  _mm512_mask_storeu_epi16(p, (1u << count) - 1, (__m512i)v);
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
#endif
#if !defined(__AVX512F__)
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

// Whole vectors of half-precision elements, widened to float and rounded from it (to nearest, ties to even; a NaN keeps
// its sign and becomes quiet), as element.h does it for one.
typedef uint32_t WordVec __attribute__((vector_size(SK_VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(SK_VECTOR_BYTES / 2)));

SK_INLINE Vec<float> widen_all(const bf16* p) {
  HalfVec bits;
  memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, WordVec) << 16);
}
// Rounded to bfloat16, in the upper half of each word; the lower half is undefined.
SK_INLINE WordVec bf16_in_upper_half(Vec<float> v) {
  const WordVec bits = reinterpret_cast<WordVec>(v);
  const WordVec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const WordVec is_nan = reinterpret_cast<WordVec>((bits & 0x7fffffff) > 0x7f800000);
  return (is_nan & (bits | 0x400000)) | (~is_nan & rounded);
}
SK_INLINE void narrow_all(Vec<float> v, bf16* p) {
  const WordVec words = bf16_in_upper_half(v) >> 16;
#if defined(__AVX512F__)
  const __m256i narrow = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)words);
#else
  const HalfVec narrow = __builtin_convertvector(words, HalfVec);
#endif
  memcpy(p, &narrow, sizeof narrow);
}

#if defined(__AVX512F__)
SK_INLINE Vec<float> widen_all(const f16* p) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SK_INLINE void narrow_all(Vec<float> v, f16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
SK_INLINE Vec<float> widen_all(const f16* p) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
SK_INLINE void narrow_all(Vec<float> v, f16* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
SK_INLINE Vec<float> widen_all(const f16* p) {
  Vec<float> v{};
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
  return v;
}
SK_INLINE void narrow_all(Vec<float> v, f16* p) {
  for (int i = 0; i < kLanes<float>; ++i) narrow(v[i], p + i);
}
#endif

// kLanes<A> elements of type T from memory (any alignment), widened.
template <class A, class T>
SK_INLINE Vec<A> load_widened(const T* p) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return load_unaligned<A>(reinterpret_cast<const A*>(p));
  } else {
    return widen_all(p);
  }
}
template <class A, class T>
SK_INLINE Vec<A> load_widened(const T* p, int64_t count) {
  if (count >= kLanes<A>) return load_widened<A>(p);
  if (count <= 0) return Vec<A>{};
  if constexpr (sizeof(T) == sizeof(A)) return load_first(reinterpret_cast<const A*>(p), count);
  T elements[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) elements[i] = p[i];
  return load_widened<A>(elements);
}

// The first `count` lanes of v to memory (any alignment), rounded to T.
template <class A, class T>
SK_INLINE void store_narrowed(T* p, Vec<A> v) {
  if constexpr (sizeof(T) == sizeof(A)) {
    store_unaligned<A>(reinterpret_cast<A*>(p), v);
  } else {
    narrow_all(v, p);
  }
}
template <class A, class T>
SK_INLINE void store_narrowed(T* p, Vec<A> v, int64_t count) {
  if (count >= kLanes<A>) return store_narrowed<A>(p, v);
  if (count <= 0) return;
  if constexpr (sizeof(T) == sizeof(A)) return store_first(reinterpret_cast<A*>(p), v, count);
  T elements[kLanes<A>];
  store_narrowed<A>(elements, v);
  for (int64_t i = 0; i < count; ++i) p[i] = elements[i];
}

// A square of kLanes<A> vectors from and to rows `stride` elements apart. Loaded vectors are pinned: a transposition
// uses each twice, and GCC would read it twice. Memory `ahead` elements further on is asked for, into the second cache.
template <class A, class T>
SK_INLINE void load_square(const T* rows, int64_t stride, int64_t ahead, Vec<A>* r) {
  forget_origin(rows);
  SK_UNROLL
  for (int i = 0; i < kLanes<A>; ++i, rows += stride) {
    if (ahead) __builtin_prefetch(rows + ahead, 0, 2);
    r[i] = load_widened<A>(rows);
    pin(r[i]);
  }
}
// The vectors' bits, whatever elements of T they hold.
template <class A, bool PastCaches, class T>
SK_INLINE void store_square(const Vec<A>* r, T* rows, int64_t stride) {
  forget_origin(rows);
  SK_UNROLL
  for (int i = 0; i < kLanes<A>; ++i, rows += stride) {
    if constexpr (PastCaches) stream<A>(reinterpret_cast<A*>(rows), r[i]);
    else memcpy(rows, &r[i], sizeof r[i]);
  }
}

}  // namespace SK_ISA
}  // namespace sparsekern
