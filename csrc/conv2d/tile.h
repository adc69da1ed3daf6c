// The conv2d kernels. Included once per instruction set: nothing here may come from std::.
#pragma once

#include "conv2d/chunks.h"
#include "conv2d/kernels.h"
#include "conv2d/shift_tile.h"
#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

#if SK_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
// Forward holds sums only; backward holds inputs and sums, and needs the other half for operands.
constexpr int kForwardVectors = kRegisters / 2;
constexpr int kBackwardVectors = kRegisters / 4;

// A block's vectors from and to memory: 2^RowsLog2 rows `pitch` apart, a row's last vector `last` after its first.
template <class A, int RowsLog2, int Width>
SK_INLINE void load_rows(const A* from, int64_t pitch, int64_t last, Vec<A>* to) {
  SK_UNROLL
  for (int r = 0; r < 1 << RowsLog2; ++r, from += pitch) {
    SK_UNROLL
    for (int j = 0; j < Width; ++j) to[r * Width + j] = load_unaligned(from + (j < Width - 1 ? j * kLanes<A> : last));
  }
}
template <class A, int RowsLog2, int Width, bool PastCaches>
SK_INLINE void store_rows(const Vec<A>* from, A* to, int64_t pitch, int64_t last) {
  SK_UNROLL
  for (int r = 0; r < 1 << RowsLog2; ++r, to += pitch) {
    SK_UNROLL
    for (int j = 0; j < Width; ++j) {
      A* place = to + (j < Width - 1 ? j * kLanes<A> : last);
      if constexpr (PastCaches) stream<A>(place, from[r * Width + j]);
      else store_unaligned<A>(place, from[r * Width + j]);
    }
  }
}

// Whether a block's results are whole vectors' lines, so that they can be written past the caches.
template <class A>
SK_INLINE bool whole_lines(const A* results, int64_t plane_size, const Block& block) {
  const int64_t elements = (plane_size | block.out | block.out_pitch | block.last) * static_cast<int64_t>(sizeof(A));
  return kCanStream && (reinterpret_cast<uintptr_t>(results) | elements) % SK_VECTOR_BYTES == 0;
}

// The sums over its edges of 2^RowsLog2 x Width output vectors, for one output channel after another.
template <class A, int RowsLog2, int Width>
void forward_block(const ForwardArgs<A>& args, const ChannelPanel<A>& panel, const Block& block) {
  constexpr int kRows = 1 << RowsLog2;
  constexpr int kVectors = kRows * Width;
  const A* input = args.input + block.at;
  const Sink<A>& sink = args.sink;
  const int64_t pitch = block.pitch, last = block.last;
  A* out = static_cast<A*>(sink.data) + block.out;
  const bool past_caches = sink.stream && whole_lines(static_cast<A*>(sink.data), sink.channel_stride, block);
  alignas(SK_VECTOR_BYTES) A results[kVectors * kLanes<A>];
  for (int64_t channel = args.begin; channel < args.end; ++channel) {
    Vec<A> sum[kVectors];
    A* waiting = panel.sums + channel * panel.sums_size;
    if (panel.first) {
      SK_UNROLL
      for (int j = 0; j < kVectors; ++j) sum[j] = broadcast(args.bias[channel]);
    } else {
      SK_UNROLL
      for (int j = 0; j < kVectors; ++j) sum[j] = load(waiting + j * kLanes<A>);
    }
    const Edge<A>* end = panel.rows.edges + panel.rows.starts[channel + 1];
    for (const Edge<A>* edge = panel.rows.edges + panel.rows.starts[channel]; edge < end; ++edge) {
      const A* x = input + edge->offset;
      const Vec<A> w = broadcast(edge->weight);
      SK_UNROLL
      for (int r = 0; r < kRows; ++r, x += pitch) {
        SK_UNROLL
        for (int j = 0; j < Width - 1; ++j) sum[r * Width + j] += w * load_unaligned(x + j * kLanes<A>);
        sum[r * Width + Width - 1] += w * load_unaligned(x + last);
      }
    }
    if (!panel.last) {
      SK_UNROLL
      for (int j = 0; j < kVectors; ++j) store(waiting + j * kLanes<A>, sum[j]);
    } else if (sink.put) {
      SK_UNROLL
      for (int j = 0; j < kVectors; ++j) store(results + j * kLanes<A>, sum[j]);
      sink.put(sink, results, block, channel);
    } else if (past_caches) {
      store_rows<A, RowsLog2, Width, true>(sum, out + channel * sink.channel_stride, block.out_pitch, last);
    } else {
      store_rows<A, RowsLog2, Width, false>(sum, out + channel * sink.channel_stride, block.out_pitch, last);
    }
  }
  stream_fence();
}

// For one input plane after another: its 2^RowsLog2 x Width input vectors and the sums of their gradients stay
// in registers while each edge's output gradients are loaded once, for both products.
template <class A, int RowsLog2, int Width, bool InputGrad, bool WeightGrad>
void backward_block(const BackwardArgs<A>& args, const ChannelPanel<A>& panel, const Block& block) {
  constexpr int kRows = 1 << RowsLog2;
  constexpr int kVectors = kRows * Width;
  const A* grad = args.grad + block.at;
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
  Vec<A> keep = broadcast(A(1));
  for (int j = 0; j < block.skip; ++j) keep[j] = A(0);

  for (int64_t i = args.begin; i < args.end; ++i) {
    const int64_t at = i * args.plane_size + block.out;
    if (WeightGrad) {
      // The next plane's inputs: beyond this plane's edges, further than the processor looks ahead.
      const A* next = args.input + at + args.plane_size;
      SK_UNROLL
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < Width; ++j) prefetch(next + r * block.out_pitch + j * kLanes<A>);
    }
    Vec<A> x[kVectors], sum[kVectors];
    if (WeightGrad) {
      load_rows<A, RowsLog2, Width>(args.input + at, block.out_pitch, last, x);
      SK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        Vec<A>& tail = x[r * Width + Width - 1];
        tail = keep != A(0) ? tail : Vec<A>{};
      }
    }
    A* waiting_sums = panel.sums + i * panel.sums_size;
    SK_UNROLL
    for (int j = 0; j < kVectors; ++j)
      sum[j] = InputGrad && !panel.first ? load(waiting_sums + j * kLanes<A>) : Vec<A>{};

    const Edge<A>* end = panel.rows.edges + panel.rows.starts[i + 1];
    for (const Edge<A>* edge = panel.rows.edges + panel.rows.starts[i]; edge < end; ++edge) {
      const A* y = grad + edge->offset;
      const Vec<A> w = broadcast(edge->weight);
      Vec<A> dot[2] = {};
      SK_UNROLL
      for (int r = 0; r < kRows; ++r, y += pitch) {
        SK_UNROLL
        for (int j = 0; j < Width; ++j) {
          Vec<A> g = load_unaligned(y + (j < Width - 1 ? j * kLanes<A> : last));
          if (InputGrad && WeightGrad) pin(g);
          if (InputGrad) sum[r * Width + j] += w * g;
          if (WeightGrad) dot[j % 2] += x[r * Width + j] * g;
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
      for (int j = 0; j < kVectors; ++j) store(waiting_sums + j * kLanes<A>, sum[j]);
    } else if (InputGrad && past_caches) {
      store_rows<A, RowsLog2, Width, true>(sum, args.input_grad + at, block.out_pitch, last);
    } else if (InputGrad) {
      store_rows<A, RowsLog2, Width, false>(sum, args.input_grad + at, block.out_pitch, last);
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

template <class A, int RowsLog2, int Width>
constexpr void add_blocks(Conv2dKernels<A>& table) {
  constexpr int kVectors = Width << RowsLog2;
  if constexpr (kVectors <= kForwardVectors) table.forward[RowsLog2][Width] = forward_block<A, RowsLog2, Width>;
  if constexpr (kVectors <= kBackwardVectors) {
    table.backward[RowsLog2][Width] = backward_block<A, RowsLog2, Width, true, true>;
    table.input_grad[RowsLog2][Width] = backward_block<A, RowsLog2, Width, true, false>;
    table.weight_grad[RowsLog2][Width] = backward_block<A, RowsLog2, Width, false, true>;
  }
  if constexpr (Width > 1) add_blocks<A, RowsLog2, Width - 1>(table);
  else if constexpr (RowsLog2 > 0) add_blocks<A, RowsLog2 - 1, Conv2dKernels<A>::kMaxWidth>(table);
}

template <class A, class T>
constexpr void add_conversions(Conv2dKernels<A>& table, DType dtype) {
  const int d = static_cast<int>(dtype);
  table.widen[d] = widen_elements<A, T>;
  table.narrow[d] = narrow_elements<A, T>;
}

template <class A, class T>
constexpr void add_dtype(Conv2dKernels<A>& table, DType dtype) {
  const int d = static_cast<int>(dtype);
  table.put_lanes[d] = put_lanes<A, T>;
  table.pack_lanes[d] = pack_lanes<A, T>;
  table.unpack_lanes[d] = unpack_lanes<A, T>;
  table.pack_rows[d] = pack_rows<A, T>;
  table.unpack_rows[d] = unpack_rows<A, T>;
  table.pack_shifted[d] = pack_shifted<A, T>;
  table.unpack_shifted[d] = unpack_shifted<A, T>;
  add_conversions<A, T>(table, dtype);
}

template <class A>
constexpr Conv2dKernels<A> conv2d_kernels() {
  Conv2dKernels<A> table{};
  table.lanes = kLanes<A>;
  table.forward_vectors = kForwardVectors;
  table.backward_vectors = kBackwardVectors;
  add_blocks<A, Conv2dKernels<A>::kShapes - 1, Conv2dKernels<A>::kMaxWidth>(table);
  if constexpr (sizeof(A) == sizeof(double)) {
    add_dtype<A, double>(table, DType::f64);
    add_conversions<A, float>(table, DType::f32);
  } else {
    add_dtype<A, float>(table, DType::f32);
    add_dtype<A, bf16>(table, DType::bf16);
    add_dtype<A, f16>(table, DType::f16);
  }
  return table;
}

}  // namespace SK_ISA
}  // namespace sparsekern
