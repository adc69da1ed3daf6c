// Kernels that move rows between tensors and shifted tiles. Included once per instruction set: nothing here may come
// from std::.
#pragma once

#include "conv2d/kernels.h"
#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

template <class A, int... I>
SK_INLINE Vec<A> even_lanes(Vec<A> a, Vec<A> b, Ints<I...>) {
  return shuffle<A, 2 * I...>(a, b);
}
// The even lanes of a, then those of b.
template <class A>
SK_INLINE Vec<A> even_lanes(Vec<A> a, Vec<A> b) {
  return even_lanes<A>(a, b, typename IntsTo<kLanes<A>>::type{});
}

template <class A, bool Upper, int... I>
SK_INLINE Vec<A> zip(Vec<A> a, Vec<A> b, Ints<I...>) {
  return shuffle<A, (I / 2 + (Upper ? kLanes<A> / 2 : 0) + I % 2 * kLanes<A>)...>(a, b);
}
// Lanes of a and b by turns, from their lower or upper halves.
template <class A, bool Upper>
SK_INLINE Vec<A> zip(Vec<A> a, Vec<A> b) {
  return zip<A, Upper>(a, b, typename IntsTo<kLanes<A>>::type{});
}

template <class A, int Block, bool Upper, int... I>
SK_INLINE Vec<A> zip_blocks(Vec<A> a, Vec<A> b, Ints<I...>) {
  return shuffle<A, interleave_source(I, Block, 2 * Block, kLanes<A>, Upper)...>(a, b);
}
// The even (or odd) blocks of a and b by turns.
template <class A, int Block, bool Upper>
SK_INLINE Vec<A> zip_blocks(Vec<A> a, Vec<A> b) {
  return zip_blocks<A, Block, Upper>(a, b, typename IntsTo<kLanes<A>>::type{});
}

// Transposes a square of pieces of vectors: piece i of r[j] becomes piece j of r[i].
template <class A, int Pieces>
SK_INLINE void transpose_pieces(Vec<A>* r) {
  constexpr int L = kLanes<A>;
  if constexpr (Pieces == 2) {
    const Vec<A> first = zip_blocks<A, L / 2, false>(r[0], r[1]);
    r[1] = zip_blocks<A, L / 2, true>(r[0], r[1]);
    r[0] = first;
  } else {
    const Vec<A> even01 = zip_blocks<A, L / 4, false>(r[0], r[1]), odd01 = zip_blocks<A, L / 4, true>(r[0], r[1]);
    const Vec<A> even23 = zip_blocks<A, L / 4, false>(r[2], r[3]), odd23 = zip_blocks<A, L / 4, true>(r[2], r[3]);
    r[0] = zip_blocks<A, L / 2, false>(even01, even23);
    r[1] = zip_blocks<A, L / 2, false>(odd01, odd23);
    r[2] = zip_blocks<A, L / 2, true>(even01, even23);
    r[3] = zip_blocks<A, L / 2, true>(odd01, odd23);
  }
}

// Lanes [begin, end) from memory, the others zero, not touching what lies before or after them. p is lane 0's place.
#if defined(__AVX512F__)
SK_INLINE uint32_t lane_mask(int begin, int end) {
  return static_cast<uint32_t>((uint64_t{1} << end) - (uint64_t{1} << begin));
}
SK_INLINE Vec<uint16_t> load_lanes(const uint16_t* p, int begin, int end) {
  return (Vec<uint16_t>)_mm512_maskz_loadu_epi16(lane_mask(begin, end), p);
}
SK_INLINE Vec<float> load_lanes(const float* p, int begin, int end) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(lane_mask(begin, end)), p);
}
SK_INLINE Vec<double> load_lanes(const double* p, int begin, int end) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(lane_mask(begin, end)), p);
}
template <class T>
SK_INLINE Vec<float> load_lanes(const T* p, int begin, int end) {
  T elements[kLanes<float>];
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(lane_mask(begin, end)), p);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(elements), bits);
  return load_widened<float>(elements);
}
#else
SK_INLINE Vec<uint16_t> load_lanes(const uint16_t* p, int begin, int end) {
  if (begin == 0 && end == kLanes<uint16_t>) return load_unaligned(p);
  Vec<uint16_t> v{};
  for (int j = begin; j < end; ++j) v[j] = p[j];
  return v;
}
template <class T>
SK_INLINE auto load_lanes(const T* p, int begin, int end) {
  using A = decltype(widen(*p));
  if (begin == 0 && end == kLanes<A>) return load_widened<A>(p);
  T elements[kLanes<A>] = {};
  for (int j = begin; j < end; ++j) elements[j] = p[j];
  return load_widened<A>(elements);
}
#endif

// One of a copy's vectors in all rows of a channel. Its first lane holds pixel `first`.
template <class A, class T, int Pieces, int Step>
SK_INLINE void shift_rows(const ShiftCopy<A>& copy, const T* from, int64_t first, A* to) {
  constexpr int L = kLanes<A>;
  // Of `lanes` lanes that hold the pixels from `pixel` on, the first and the end of those within the row.
  const auto begin_of = [&](int64_t pixel, int64_t lanes) {
    return static_cast<int>(pixel >= 0 ? 0 : -pixel < lanes ? -pixel : lanes);
  };
  const auto end_of = [&](int64_t pixel, int64_t lanes) {
    const int64_t end = copy.size - pixel, begin = begin_of(pixel, lanes);
    return static_cast<int>(end < begin ? begin : end < lanes ? end : lanes);
  };
  const int64_t rows = copy.rows, row_stride = copy.row_stride, pitch = copy.pitch, next = copy.plane_size;
  const int64_t image_stride = copy.image_stride;
  const int images = copy.images;
  constexpr int kPixels = Step == 1 ? L / Pieces : L;
  const int begin = begin_of(first, kPixels), end = end_of(first, kPixels);
  const int64_t second = Pieces == 1 ? first + L : image_stride + first;
  const int64_t second_pixel = Pieces == 1 ? first + L : first;
  const int second_begin = begin_of(second_pixel, kPixels);
  const int second_end = Pieces == 1 || images == 2 ? end_of(second_pixel, kPixels) : second_begin;
  from += first;
  for (int64_t row = 0; row < rows; ++row, from += row_stride, to += pitch) {
    __builtin_prefetch(to + next, 1);  // stores wait for their lines one after another
    if constexpr (Step == 2) {
      const Vec<A> other = load_lanes(from + (second - first), second_begin, second_end);
      store(to, even_lanes<A>(load_lanes(from, begin, end), other));
    } else if constexpr (Pieces == 1) {
      store(to, load_lanes(from, begin, end));
    } else {
      typename VectorOf<A>::index bits{};
      SK_UNROLL
      for (int p = 0; p < Pieces; ++p) {
        const int lane = p * kPixels;
        if (p < images)
          bits |= (typename VectorOf<A>::index)load_lanes(from + p * image_stride - lane, lane + begin, lane + end);
      }
      store(to, (Vec<A>)bits);
    }
  }
}

// Bytes ahead of a channel's rows that are asked for: several images and rows at a stride are not foreseen.
constexpr int kShiftReadAhead = 4096;

#if defined(__AVX512F__)
// Which lanes a copy's vector takes from one of whole rows that lie side by side; the others are zero.
template <class A>
struct LaneShift {
  typename VectorOf<A>::index from{};
  uint32_t present = 0;

  LaneShift() = default;
  // Of rows of `size` pixels, with pixel `first` in the first lane.
  LaneShift(int64_t first, int size) {
    for (int j = 0; j < kLanes<A>; ++j) {
      const int64_t pixel = j % size + first;
      if (pixel < 0 || pixel >= size) continue;
      from[j] = static_cast<decltype(from[j] + 0)>(j - j % size + pixel);
      present |= 1u << j;
    }
  }
  SK_INLINE Vec<A> operator()(Vec<A> v) const {
    const __m512i lanes = (__m512i)from;
    if constexpr (sizeof(A) == 2) return (Vec<A>)_mm512_maskz_permutexvar_epi16(present, lanes, (__m512i)v);
    else if constexpr (sizeof(A) == 4) return (Vec<A>)_mm512_maskz_permutexvar_ps(present, lanes, (__m512)v);
    else return (Vec<A>)_mm512_maskz_permutexvar_pd(present, lanes, (__m512d)v);
  }
};

// The same where rows without gaps fill vectors: each vector is loaded once, for all copies.
template <class A, class T, int Pieces>
SK_INLINE bool pack_whole_rows(const ShiftCopy<A>& copy) {
  constexpr int L = kLanes<A>, kMostCopies = 8;
  const int64_t copies = copy.copies, rows = copy.rows;
  if (copy.size * Pieces != L || copy.row_stride != copy.size || copy.pitch != L || rows % Pieces != 0 ||
      copies > kMostCopies)
    return false;
  LaneShift<A> shifts[kMostCopies];
  for (int64_t k = 0; k < copies; ++k) shifts[k] = LaneShift<A>(copy.firsts[k], L / Pieces);
  const int64_t copy_size = copy.copy_size, next = copy.plane_size, image_stride = copy.image_stride;
  const int images = copy.images;
  for (int64_t c = copy.begin; c < copy.end; ++c) {
    const T* from = static_cast<const T*>(copy.tensor) + c * copy.channel_stride;
    A* to = copy.planes + c * copy.plane_size;
    for (int64_t row = 0; row < rows; row += Pieces, from += L, to += Pieces * L) {
      Vec<A> r[Pieces];
      SK_UNROLL
      for (int p = 0; p < Pieces; ++p) {
        prefetch(from + p * image_stride + kShiftReadAhead / static_cast<int>(sizeof(T)));
        r[p] = p < images ? load_widened<A>(from + p * image_stride) : Vec<A>{};
      }
      if constexpr (Pieces > 1) transpose_pieces<A, Pieces>(r);
      A* place = to;
      for (int64_t k = 0; k < copies; ++k, place += copy_size) {
        SK_UNROLL
        for (int p = 0; p < Pieces; ++p) {
          __builtin_prefetch(place + next + p * L, 1);  // stores wait for their lines one after another
          store(place + p * L, shifts[k](r[p]));
        }
      }
    }
  }
  return true;
}
#endif

template <class A, class T, int Pieces, int Step>
SK_INLINE void pack_pieces(const ShiftCopy<A>& copy) {
#if defined(__AVX512F__)
  if constexpr (Step == 1) {
    if (pack_whole_rows<A, T, Pieces>(copy)) return;
  }
#endif
  for (int64_t c = copy.begin; c < copy.end; ++c) {
    const T* from = static_cast<const T*>(copy.tensor) + c * copy.channel_stride;
    A* to = copy.planes + c * copy.plane_size;
    for (int p = 0; p < copy.images; ++p) {
      const T* ahead = from + p * copy.image_stride + kShiftReadAhead / static_cast<int>(sizeof(T));
      for (int64_t row = 0; row < copy.rows; ++row, ahead += copy.row_stride)
        for (int64_t q = 0; q < copy.size; q += 64 / static_cast<int>(sizeof(T))) prefetch(ahead + q);
    }
    for (int64_t k = 0; k < copy.copies; ++k)
      for (int64_t q = 0; q < copy.pitch; q += kLanes<A>)
        shift_rows<A, T, Pieces, Step>(copy, from, copy.firsts[k] + q * Step, to + k * copy.copy_size + q);
  }
}

template <class A, class T>
void pack_shifted(const ShiftCopy<A>& copy) {
  if (copy.step == 2) {
    if (copy.pieces == 1) pack_pieces<A, T, 1, 2>(copy);
    else pack_pieces<A, T, 2, 2>(copy);
  } else if (copy.pieces == 1) {
    pack_pieces<A, T, 1, 1>(copy);
  } else if (copy.pieces == 2) {
    pack_pieces<A, T, 2, 1>(copy);
  } else if constexpr (kLanes<A> >= 4) {
    pack_pieces<A, T, 4, 1>(copy);
  }
}

// A vector of results to its place, past the caches where that is asked for and possible.
template <class A, class T>
SK_INLINE void put(T* to, Vec<A> v, bool past_caches) {
  if constexpr (kCanStream && sizeof(T) == sizeof(A)) {
    if (past_caches && reinterpret_cast<uintptr_t>(to) % SK_VECTOR_BYTES == 0) return stream<A>(to, v);
  }
  store_narrowed<A>(to, v);
}

// Rows of images that lie side by side.
template <class A, class T, int Pieces>
SK_INLINE void unpack_pieces(const ShiftedResult<A>& result, const A* from, T* to) {
  constexpr int kWidth = kLanes<A> / Pieces;
  int64_t row = 0;
  if (result.row_stride == kWidth) {
    // As many rows of each image as fill a vector.
    for (; row + Pieces <= result.rows; row += Pieces) {
      Vec<A> r[Pieces];
      SK_UNROLL
      for (int j = 0; j < Pieces; ++j) r[j] = load(from + (row + j) * kLanes<A>);
      transpose_pieces<A, Pieces>(r);
      SK_UNROLL
      for (int p = 0; p < Pieces; ++p)
        if (p < result.images) put<A>(to + p * result.image_stride + row * kWidth, r[p], result.stream);
    }
  }
  for (; row < result.rows; ++row) {
    T pixels[kLanes<A>];
    store_narrowed<A>(pixels, load(from + row * kLanes<A>));
    for (int p = 0; p < result.images; ++p)
      __builtin_memcpy(to + p * result.image_stride + row * result.row_stride, pixels + p * kWidth,
                       kWidth * sizeof(T));
  }
}

// Rows whose even pixels are one plane's and whose odd pixels another's, of one image or of two side by side.
template <class A, class T>
SK_INLINE void unpack_zipped(const ShiftedResult<A>& result, const A* from, T* to) {
  constexpr int L = kLanes<A>;
  for (int64_t row = 0; row < result.rows; ++row, from += result.pitch, to += result.row_stride) {
    for (int64_t q = 0; q < result.pitch; q += L) {
      const Vec<A> even = load(from + q + result.even), odd = load(from + q + result.odd);
      put<A>(to + 2 * q, zip<A, false>(even, odd), result.stream);
      if (result.pieces == 1) put<A>(to + 2 * q + L, zip<A, true>(even, odd), result.stream);
      else if (result.images == 2) put<A>(to + result.image_stride, zip<A, true>(even, odd), result.stream);
    }
  }
}

template <class A, class T>
void unpack_shifted(const ShiftedResult<A>& result) {
  for (int64_t c = result.begin; c < result.end; ++c) {
    const A* from = result.planes + c * result.plane_size;
    T* to = static_cast<T*>(result.tensor) + c * result.channel_stride;
    if (result.step == 2) {
      unpack_zipped<A, T>(result, from, to);
    } else if (result.pieces == 2) {
      unpack_pieces<A, T, 2>(result, from, to);
    } else if constexpr (kLanes<A> >= 4) {
      unpack_pieces<A, T, 4>(result, from, to);
    }
  }
  stream_fence();
}

}  // namespace SK_ISA
}  // namespace sparsekern
