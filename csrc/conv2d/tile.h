// The conv2d kernels. Included once per instruction set: nothing here may come from std::.
#pragma once

#include "conv2d/chunks.h"
#include "conv2d/kernels.h"
#include "conv2d/shift_tile.h"
#include "isa/pairs.h"
#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

#if SK_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
// Vectors of sums that an operand's vector makes.
template <class P>
constexpr int kParts = static_cast<int>(sizeof(SumOf<P>) / sizeof(P));
// An operand's vectors in a block. Forward holds sums only; backward holds inputs and sums, and needs the other half for
// operands.
template <class P>
constexpr int kForwardVectors = kRegisters / 2 / kParts<P>;
template <class P>
constexpr int kBackwardVectors = kRegisters / 4 / kParts<P>;

// Part `i` of an operand as it is multiplied.
template <class P>
SK_INLINE Vec<SumOf<P>> part(Vec<P> v, int i) {
  if constexpr (kParts<P> == 1) return v;
  else return i == 0 ? widen_lower(reinterpret_cast<Vec<float>>(v)) : widen_upper(reinterpret_cast<Vec<float>>(v));
}
// The reverse, rounded.
template <class P>
SK_INLINE Vec<P> join(const Vec<SumOf<P>>* parts) {
  if constexpr (kParts<P> == 1) return parts[0];
  else return reinterpret_cast<Vec<P>>(narrow_pair(parts[0], parts[1], static_cast<const bf16*>(nullptr)));
}

// A block's vectors from and to memory: 2^RowsLog2 rows `pitch` apart, a row's last vector `last` after its first.
template <class P, int RowsLog2, int Width>
SK_INLINE void load_rows(const P* from, int64_t pitch, int64_t last, Vec<P>* to) {
  SK_UNROLL
  for (int r = 0; r < 1 << RowsLog2; ++r, from += pitch) {
    SK_UNROLL
    for (int j = 0; j < Width; ++j) to[r * Width + j] = load_unaligned(from + (j < Width - 1 ? j * kLanes<P> : last));
  }
}
template <class P, int RowsLog2, int Width, bool PastCaches>
SK_INLINE void store_rows(const Vec<SumOf<P>>* from, P* to, int64_t pitch, int64_t last) {
  SK_UNROLL
  for (int r = 0; r < 1 << RowsLog2; ++r, to += pitch) {
    SK_UNROLL
    for (int j = 0; j < Width; ++j) {
      P* place = to + (j < Width - 1 ? j * kLanes<P> : last);
      const Vec<P> v = join<P>(from + (r * Width + j) * kParts<P>);
      if constexpr (PastCaches) stream<P>(place, v);
      else store_unaligned<P>(place, v);
    }
  }
}

// Whether a block's results are whole vectors' lines, so that they can be written past the caches.
template <class P>
SK_INLINE bool whole_lines(const P* results, int64_t plane_size, const Block& block) {
  const int64_t elements = (plane_size | block.out | block.out_pitch | block.last) * static_cast<int64_t>(sizeof(P));
  return kCanStream && (reinterpret_cast<uintptr_t>(results) | elements) % SK_VECTOR_BYTES == 0;
}

// The sums over its edges of 2^RowsLog2 x Width output vectors, for one output channel after another.
template <class P, int RowsLog2, int Width>
void forward_block(const ForwardArgs<P>& args, const ChannelPanel<SumOf<P>>& panel, const Block& block) {
  using A = SumOf<P>;
  constexpr int kRows = 1 << RowsLog2;
  constexpr int kSums = kRows * Width * kParts<P>;
  const P* input = args.input + block.at;
  const Sink<P>& sink = args.sink;
  const int64_t pitch = block.pitch, last = block.last;
  P* out = static_cast<P*>(sink.data) + block.out;
  const bool past_caches = sink.stream && whole_lines(static_cast<P*>(sink.data), sink.channel_stride, block);
  alignas(SK_VECTOR_BYTES) A results[kSums * kLanes<A>];
  for (int64_t channel = args.begin; channel < args.end; ++channel) {
    Vec<A> sum[kSums];
    A* waiting = panel.sums + channel * panel.sums_size;
    if (panel.first) {
      SK_UNROLL
      for (int j = 0; j < kSums; ++j) sum[j] = broadcast(args.bias[channel]);
    } else {
      SK_UNROLL
      for (int j = 0; j < kSums; ++j) sum[j] = load(waiting + j * kLanes<A>);
    }
    const Edge<A>* end = panel.rows.edges + panel.rows.starts[channel + 1];
    for (const Edge<A>* edge = panel.rows.edges + panel.rows.starts[channel]; edge < end; ++edge) {
      const P* x = input + edge->offset;
      const Vec<A> w = broadcast(edge->weight);
      SK_UNROLL
      for (int r = 0; r < kRows; ++r, x += pitch) {
        SK_UNROLL
        for (int j = 0; j < Width; ++j) {
          Vec<P> v = load_unaligned(x + (j < Width - 1 ? j * kLanes<P> : last));
          if constexpr (kParts<P> > 1) pin(v);
          SK_UNROLL
          for (int i = 0; i < kParts<P>; ++i) sum[(r * Width + j) * kParts<P> + i] += w * part<P>(v, i);
        }
      }
    }
    if (!panel.last) {
      SK_UNROLL
      for (int j = 0; j < kSums; ++j) store(waiting + j * kLanes<A>, sum[j]);
    } else if (sink.put) {
      SK_UNROLL
      for (int j = 0; j < kSums; ++j) store(results + j * kLanes<A>, sum[j]);
      sink.put(sink, results, block, channel);
    } else if (past_caches) {
      store_rows<P, RowsLog2, Width, true>(sum, out + channel * sink.channel_stride, block.out_pitch, last);
    } else {
      store_rows<P, RowsLog2, Width, false>(sum, out + channel * sink.channel_stride, block.out_pitch, last);
    }
  }
  stream_fence();
}

// For one input plane after another: its 2^RowsLog2 x Width input vectors and the sums of their gradients stay
// in registers while each edge's output gradients are loaded once, for both products.
template <class P, int RowsLog2, int Width, bool InputGrad, bool WeightGrad>
void backward_block(const BackwardArgs<P>& args, const ChannelPanel<SumOf<P>>& panel, const Block& block) {
  using A = SumOf<P>;
  constexpr int kRows = 1 << RowsLog2;
  constexpr int kVectors = kRows * Width;
  constexpr int kSums = kVectors * kParts<P>;
  // Pairs of the input stay pairs where they can be multiplied as they are.
  constexpr bool kPairs = kParts<P> > 1 && kPairProducts;
  const P* grad = args.grad + block.at;
  const int64_t pitch = block.pitch, last = block.last;
  // Each edge's vector of partial dot products waits here until there are enough to sum them all at once.
  alignas(SK_VECTOR_BYTES) A dots[kLanes<A> * kLanes<A>];
  int waiting = 0;
  A* weight_grad = args.weight_grad + panel.rows.starts[args.begin];
  const bool past_caches = args.stream && whole_lines(args.input_grad, args.plane_size, block);
  const auto sum_dots = [&] {
    Vec<A> dot[kLanes<A>];
    SK_UNROLL
    for (int j = 0; j < kLanes<A>; ++j) {
      dot[j] = load(dots + j * kLanes<A>);
      pin(dot[j]);
    }
    return sum_each<A>(dot);
  };
  Vec<P> keep = broadcast(P(1));
  for (int j = 0; j < block.skip; ++j) keep[j] = P(0);

  for (int64_t i = args.begin; i < args.end; ++i) {
    const int64_t at = i * args.plane_size + block.out;
    if (WeightGrad) {
      // The next plane's inputs: beyond this plane's edges, further than the processor looks ahead.
      const P* next = args.input + at + args.plane_size;
      SK_UNROLL
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < Width; ++j) prefetch(next + r * block.out_pitch + j * kLanes<P>);
    }
    Vec<A> x[kPairs ? kVectors : kSums], sum[kSums];
    if (WeightGrad) {
      Vec<P> inputs[kVectors];
      load_rows<P, RowsLog2, Width>(args.input + at, block.out_pitch, last, inputs);
      SK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        Vec<P>& tail = inputs[r * Width + Width - 1];
        tail = keep != P(0) ? tail : Vec<P>{};
      }
      if constexpr (kPairs) {
        SK_UNROLL
        for (int j = 0; j < kVectors; ++j) x[j] = reinterpret_cast<Vec<A>>(inputs[j]);
      } else {
        SK_UNROLL
        for (int j = 0; j < kSums; ++j) x[j] = part<P>(inputs[j / kParts<P>], j % kParts<P>);
      }
    }
    A* waiting_sums = panel.sums + i * panel.sums_size;
    SK_UNROLL
    for (int j = 0; j < kSums; ++j)
      sum[j] = InputGrad && !panel.first ? load(waiting_sums + j * kLanes<A>) : Vec<A>{};

    const Edge<A>* end = panel.rows.edges + panel.rows.starts[i + 1];
    for (const Edge<A>* edge = panel.rows.edges + panel.rows.starts[i]; edge < end; ++edge) {
      const P* y = grad + edge->offset;
      const Vec<A> w = broadcast(edge->weight);
      Vec<A> dot[2] = {};
      SK_UNROLL
      for (int r = 0; r < kRows; ++r, y += pitch) {
        SK_UNROLL
        for (int j = 0; j < Width; ++j) {
          Vec<P> v = load_unaligned(y + (j < Width - 1 ? j * kLanes<P> : last));
          if (kParts<P> > 1 || (InputGrad && WeightGrad)) pin(v);
          SK_UNROLL
          for (int k = 0; k < kParts<P>; ++k) {
            const int at_sum = (r * Width + j) * kParts<P> + k;
            const Vec<A> g = part<P>(v, k);
            if (InputGrad) sum[at_sum] += w * g;
            if constexpr (WeightGrad && !kPairs) dot[(j * kParts<P> + k) % 2] += x[at_sum] * g;
          }
          if constexpr (WeightGrad && kPairs)
            dot[j % 2] = add_pair_products(dot[j % 2], x[r * Width + j], reinterpret_cast<Vec<A>>(v));
        }
      }
      if (WeightGrad) {
        store(dots + waiting * kLanes<A>, dot[0] + dot[1]);
        if (++waiting == kLanes<A>) {
          store_unaligned(weight_grad, load_unaligned(weight_grad) + sum_dots());
          weight_grad += kLanes<A>;
          waiting = 0;
        }
      }
    }
    if (InputGrad && !panel.last) {
      SK_UNROLL
      for (int j = 0; j < kSums; ++j) store(waiting_sums + j * kLanes<A>, sum[j]);
    } else if (InputGrad && past_caches) {
      store_rows<P, RowsLog2, Width, true>(sum, args.input_grad + at, block.out_pitch, last);
    } else if (InputGrad) {
      store_rows<P, RowsLog2, Width, false>(sum, args.input_grad + at, block.out_pitch, last);
    }
  }
  if (WeightGrad && waiting > 0) {
    for (int j = waiting; j < kLanes<A>; ++j) store(dots + j * kLanes<A>, Vec<A>{});
    const Vec<A> sums = sum_dots();
    for (int j = 0; j < waiting; ++j) weight_grad[j] += sums[j];
  }
  stream_fence();
}

// Stores a transposed square: lane j of r[n] to out[n * stride + j].
template <class A, class T>
SK_INLINE void store_square(T* out, int64_t stride, const Vec<A>* r, bool past_caches) {
  if constexpr (kCanStream && sizeof(T) == sizeof(A)) {
    const bool whole_lines = reinterpret_cast<uintptr_t>(out) % 64 == 0 && stride * sizeof(T) % 64 == 0;
    if (past_caches && whole_lines) {
      SK_UNROLL
      for (int n = 0; n < kLanes<A>; ++n) stream<A>(out + n * stride, r[n]);
      return;
    }
  }
  SK_UNROLL
  for (int n = 0; n < kLanes<A>; ++n) store_narrowed<A>(out + n * stride, r[n]);
}

// Results whose lanes are images: a block's vectors are neighbouring pixels.
template <class A, class T>
void put_lanes(const Sink<A>& sink, const A* vectors, const Block& block, int64_t channel) {
  const int pixels = block.width << block.rows_log2;
  for (int first = 0; first < pixels; first += kLanes<A>) {
    const int count = pixels - first < kLanes<A> ? pixels - first : kLanes<A>;
    T* out = static_cast<T*>(sink.data) + channel * sink.channel_stride + block.out + first;
    Vec<A> r[kLanes<A>];
    if (count == kLanes<A>) {
      SK_UNROLL
      for (int j = 0; j < kLanes<A>; ++j) {
        r[j] = load(vectors + (first + j) * kLanes<A>);
        pin(r[j]);
      }
    } else {
      SK_UNROLL
      for (int j = 0; j < kLanes<A>; ++j) r[j] = j < count ? load(vectors + (first + j) * kLanes<A>) : Vec<A>{};
    }
    transpose<A>(r);
    if (count == kLanes<A> && sink.images == kLanes<A>) {
      store_square<A>(out, sink.image_stride, r, sink.stream);
    } else {
      SK_UNROLL
      for (int n = 0; n < kLanes<A>; ++n)
        if (n < sink.images) store_narrowed<A>(out + n * sink.image_stride, r[n], count);
    }
  }
}

template <class A, class T>
void pack_lanes(const LaneCopy<A>& copy) {
  for (int64_t c = copy.begin; c < copy.end; ++c) {
    const T* from = static_cast<const T*>(copy.tensor) + c * copy.channel_stride + copy.first;
    A* to = copy.planes + c * copy.plane_size;
    for_chunks<A>(copy.pixels, [&](int64_t q, int count) {
      Vec<A> r[kLanes<A>];
      if (copy.images == kLanes<A> && count == kLanes<A>) {
        SK_UNROLL
        for (int n = 0; n < kLanes<A>; ++n) {
          r[n] = load_widened<A>(from + n * copy.image_stride + q);
          pin(r[n]);
        }
      } else {
        SK_UNROLL
        for (int n = 0; n < kLanes<A>; ++n)
          r[n] = n < copy.images ? load_widened<A>(from + n * copy.image_stride + q, count) : Vec<A>{};
      }
      transpose<A>(r);
      const int32_t* places = copy.place + q;
      if (count == kLanes<A> && places[0] >= 0 && places[kLanes<A> - 1] - places[0] == kLanes<A> - 1) {
        A* first = to + int64_t{places[0]} * kLanes<A>;
        SK_UNROLL
        for (int j = 0; j < kLanes<A>; ++j) store(first + j * kLanes<A>, r[j]);
      } else {
        SK_UNROLL
        for (int j = 0; j < kLanes<A>; ++j)
          if (j < count && places[j] >= 0) store(to + int64_t{places[j]} * kLanes<A>, r[j]);
      }
    });
  }
}

template <class A, class T>
void unpack_lanes(const LaneCopy<A>& copy) {
  for (int64_t c = copy.begin; c < copy.end; ++c) {
    const A* from = copy.planes + c * copy.plane_size;
    T* to = static_cast<T*>(copy.tensor) + c * copy.channel_stride + copy.first;
    for_chunks<A>(copy.pixels, [&](int64_t q, int count) {
      Vec<A> r[kLanes<A>];
      SK_UNROLL
      for (int j = 0; j < kLanes<A>; ++j) {
        const int64_t place = j < count ? copy.place[q + j] : -1;
        r[j] = place >= 0 ? load(from + place * kLanes<A>) : Vec<A>{};
        pin(r[j]);
      }
      transpose<A>(r);
      if (copy.images == kLanes<A> && count == kLanes<A>) {
        store_square<A>(to + q, copy.image_stride, r, copy.stream);
      } else {
        SK_UNROLL
        for (int n = 0; n < kLanes<A>; ++n)
          if (n < copy.images) store_narrowed<A>(to + n * copy.image_stride + q, r[n], count);
      }
    });
  }
  stream_fence();
}

template <class A, class T>
void make_planar(const PlanarCopy& copy) {
  constexpr int L = kLanes<A>;
  const int64_t channels = copy.channels, pixels = copy.pixels;
  for (int64_t q = 0; q < pixels; q += L) {
    for (int64_t c = 0; c < channels; c += L) {
      const T* from = static_cast<const T*>(copy.from) + q * channels + c;
      T* to = static_cast<T*>(copy.to) + c * pixels + q;
      const int64_t rows = pixels - q < L ? pixels - q : L, lanes = channels - c < L ? channels - c : L;
      Vec<A> r[L];
      if (rows == L && lanes == L) {
        load_square<A>(from, channels, 0, r);
        transpose<A>(r);
        store_square<A>(to, pixels, r, copy.stream);
      } else {
        for (int i = 0; i < L; ++i) r[i] = i < rows ? load_widened<A>(from + i * channels, lanes) : Vec<A>{};
        transpose<A>(r);
        for (int j = 0; j < lanes; ++j) store_narrowed<A>(to + j * pixels, r[j], rows);
      }
    }
  }
  stream_fence();
}

// Bytes ahead of what is read that copies of rows ask for: images and channels follow one another.
constexpr int kReadAhead = 2048;

template <class A, class T>
void pack_rows(const RowCopy<A>& copy) {
  for (int64_t c = copy.begin; c < copy.end; ++c) {
    const T* from = static_cast<const T*>(copy.tensor) + c * copy.channel_stride;
    A* to = copy.planes + c * copy.plane_size;
    for (int64_t row = 0; row < copy.rows; ++row, from += copy.row_stride, to += copy.pitch)
      for_chunks<A>(copy.length, [&](int64_t q, int count) {
        prefetch(from + q + kReadAhead / static_cast<int>(sizeof(T)));
        const Vec<A> v = load_widened<A>(from + q, count);
        if (count == kLanes<A>) store_halves<A>(to + q, to + q + kLanes<A> / 2, v);
        else store_narrowed<A>(to + q, v, count);
      });
  }
}

template <class A, class T>
void unpack_rows(const RowCopy<A>& copy) {
  for (int64_t c = copy.begin; c < copy.end; ++c) {
    const A* from = copy.planes + c * copy.plane_size;
    T* to = static_cast<T*>(copy.tensor) + c * copy.channel_stride;
    for (int64_t row = 0; row < copy.rows; ++row, from += copy.pitch, to += copy.row_stride)
      for_chunks<A>(copy.length, [&](int64_t q, int count) {
        store_narrowed<A>(to + q, load_widened<A>(from + q, count), count);
      });
  }
}

template <class A, class T>
void sum_channels(const ChannelSum<A>& sum) {
  for (int64_t n = 0; n < sum.images; ++n) {
    for (int64_t c = sum.begin; c < sum.end; ++c) {
      const T* from = static_cast<const T*>(sum.tensor) + n * sum.image_stride + c * sum.channel_stride;
      A* to = sum.sums + c * kLanes<A>;
      Vec<A> even = load(to), odd{};
      int64_t q = 0;
      for (; q + 2 * kLanes<A> <= sum.pixels; q += 2 * kLanes<A>) {
        prefetch(from + q + kReadAhead / static_cast<int>(sizeof(T)));
        even += load_widened<A>(from + q);
        odd += load_widened<A>(from + q + kLanes<A>);
      }
      for (; q < sum.pixels; q += kLanes<A>) odd += load_widened<A>(from + q, sum.pixels - q);
      store(to, even + odd);
    }
  }
}

// Whether vectors of A can be loaded from elements of T; float64 sums of float32 values go by elements.
template <class A, class T>
constexpr bool kConvertsVectors = sizeof(A) == sizeof(float) || sizeof(T) == sizeof(A);

template <class A, class T>
void widen_elements(const void* tensor, int64_t step, int64_t count, A* to) {
  const T* from = static_cast<const T*>(tensor);
  if constexpr (kConvertsVectors<A, T>) {
    if (step == 1) {
      for_chunks<A>(count, [&](int64_t i, int n) { store_narrowed<A>(to + i, load_widened<A>(from + i, n), n); });
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i * step]);
}

template <class A, class T>
void narrow_elements(const A* from, int64_t count, int64_t step, void* tensor) {
  T* to = static_cast<T*>(tensor);
  if constexpr (kConvertsVectors<A, T>) {
    if (step == 1) {
      for_chunks<A>(count, [&](int64_t i, int n) { store_narrowed<A>(to + i, load_widened<A>(from + i, n), n); });
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) narrow(from[i], to + i * step);
}

template <class P, int RowsLog2, int Width>
constexpr void add_blocks(Conv2dKernels<P>& table) {
  constexpr int kVectors = Width << RowsLog2;
  if constexpr (kVectors <= kForwardVectors<P>) table.forward[RowsLog2][Width] = forward_block<P, RowsLog2, Width>;
  if constexpr (kVectors <= kBackwardVectors<P>) {
    table.backward[RowsLog2][Width] = backward_block<P, RowsLog2, Width, true, true>;
    table.input_grad[RowsLog2][Width] = backward_block<P, RowsLog2, Width, true, false>;
    table.weight_grad[RowsLog2][Width] = backward_block<P, RowsLog2, Width, false, true>;
  }
  if constexpr (Width > 1) add_blocks<P, RowsLog2, Width - 1>(table);
  else if constexpr (RowsLog2 > 0) add_blocks<P, RowsLog2 - 1, Conv2dKernels<P>::kMaxWidth>(table);
}

template <class A, class T>
constexpr void add_conversions(Conv2dKernels<A>& table, DType dtype) {
  const int d = static_cast<int>(dtype);
  table.widen[d] = widen_elements<A, T>;
  table.narrow[d] = narrow_elements<A, T>;
}

template <class P, class T>
constexpr void add_rows(Conv2dKernels<P>& table, DType dtype) {
  const int d = static_cast<int>(dtype);
  table.pack_rows[d] = pack_rows<P, T>;
  table.unpack_rows[d] = unpack_rows<P, T>;
  table.pack_shifted[d] = pack_shifted<P, T>;
  table.unpack_shifted[d] = unpack_shifted<P, T>;
  if constexpr (kParts<P> > 1) table.sum_channels[d] = sum_channels<SumOf<P>, bf16>;
  else table.sum_channels[d] = sum_channels<P, T>;
}

template <class A, class T>
constexpr void add_dtype(Conv2dKernels<A>& table, DType dtype) {
  const int d = static_cast<int>(dtype);
  table.put_lanes[d] = put_lanes<A, T>;
  table.pack_lanes[d] = pack_lanes<A, T>;
  table.unpack_lanes[d] = unpack_lanes<A, T>;
  table.make_planar[d] = make_planar<A, T>;
  add_rows<A, T>(table, dtype);
  add_conversions<A, T>(table, dtype);
}

template <class P>
constexpr Conv2dKernels<P> conv2d_kernels() {
  Conv2dKernels<P> table{};
  table.lanes = kLanes<P>;
  table.sum_lanes = kLanes<SumOf<P>>;
  table.forward_vectors = kForwardVectors<P>;
  table.backward_vectors = kBackwardVectors<P>;
  add_blocks<P, Conv2dKernels<P>::kShapes - 1, Conv2dKernels<P>::kMaxWidth>(table);
  if constexpr (sizeof(P) == sizeof(double)) {
    add_dtype<P, double>(table, DType::f64);
    add_conversions<P, float>(table, DType::f32);
  } else if constexpr (sizeof(P) == sizeof(float)) {
    add_dtype<P, float>(table, DType::f32);
    add_dtype<P, bf16>(table, DType::bf16);
    add_dtype<P, f16>(table, DType::f16);
  } else {
    add_rows<P, Bf16Bits>(table, DType::bf16);
  }
  return table;
}

}  // namespace SK_ISA
}  // namespace sparsekern
