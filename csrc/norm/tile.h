// Batch norm on a block of channels. Compiled once per instruction set; nothing here may come from std::.
#pragma once

#include "isa/elementwise.h"
#include "isa/simd.h"
#include "norm/kernels.h"

namespace sparsekern {
namespace SK_ISA {

// Calls body(channel, offset of its elements) for each plane of the block, in memory's order.
template <class Body>
SK_INLINE void for_planes(const NormBlock& block, const Body& body) {
  const NormShape& shape = block.shape;
  for (int64_t image = 0; image < shape.images; ++image)
    for (int64_t channel = block.begin; channel < block.end; ++channel)
      body(channel, (image * shape.channels + channel) * shape.size);
}

// Asks for the elements of the next image: planes lie far apart, and the hardware does not read ahead across pages.
template <class T>
SK_INLINE void prefetch_next(const NormShape& shape, const T* p) {
  __builtin_prefetch(p + shape.channels * shape.size);
}

// Two running sums of a channel in two parts each, which hide the additions' latency.
struct NormLanes {
  Vec<double> first[2], second[2];
};

// Sums over one plane: add(lanes, half, at) for whole half vectors, add_rest for what is left of them.
template <class Add, class AddRest>
SK_INLINE void sum_plane(NormLanes& lanes, int64_t size, const Add& add, const AddRest& add_rest) {
  NormLanes sum = lanes;
  int64_t i = 0;
  for (; i + 2 * kHalfLanes <= size; i += 2 * kHalfLanes) {
    add(sum, 0, i);
    add(sum, 1, i + kHalfLanes);
  }
  if (i + kHalfLanes <= size) {
    add(sum, 0, i);
    i += kHalfLanes;
  }
  if (i < size) add_rest(sum, i);
  lanes = sum;
}

// Of the differences from the channel's first element: no sum of squares is then more than the number of elements times
// the variance, and nothing is lost where the mean is far from zero.
template <class T>
void norm_moments(const NormBlock& block, const void* data, double* mean, double* variance) {
  using A = typename ComputedIn<T>::type;
  const T* x = static_cast<const T*>(data);
  const NormShape& shape = block.shape;
  NormLanes lanes[kNormBlock] = {};
  for_planes(block, [&](int64_t channel, int64_t at) {
    const T origin = x[channel * shape.size];
    const Vec<double> from = broadcast(static_cast<double>(widen(origin)));
    const auto add = [&](NormLanes& sum, int part, Half<A> elements) {
      const Vec<double> d = to_double<A>(elements) - from;
      sum.first[part] += d;
      sum.second[part] += d * d;
    };
    sum_plane(
        lanes[channel - block.begin], shape.size,
        [&](NormLanes& sum, int part, int64_t i) {
          prefetch_next(shape, x + at + i);
          add(sum, part, load_half(x + at + i));
        },
        [&](NormLanes& sum, int64_t i) { add(sum, 1, load_half(x + at + i, shape.size - i, origin)); });
  });
  const double count = static_cast<double>(shape.images * shape.size);
  for (int64_t channel = block.begin; channel < block.end; ++channel) {
    const NormLanes& sum = lanes[channel - block.begin];
    const double difference = sum_lanes(sum.first[0] + sum.first[1]) / count;
    const double square = sum_lanes(sum.second[0] + sum.second[1]) / count - difference * difference;
    mean[channel] = static_cast<double>(widen(x[channel * shape.size])) + difference;
    variance[channel] = square < 0 ? 0 : square;  // a NaN stays
  }
}

template <class V, class A>
SK_INLINE V mapped(V x, A scale, A shift) {
  return x * scale + shift;
}

template <class T, bool Stream, bool Residual, bool Relu>
void norm_forward_with(const NormForward& task) {
  using A = typename ComputedIn<T>::type;
  const T* x = static_cast<const T*>(task.x);
  const T* residual = static_cast<const T*>(task.residual);
  T* y = static_cast<T*>(task.y);
  const int64_t size = task.block.shape.size;
  for_planes(task.block, [&](int64_t channel, int64_t at) {
    const A scale = static_cast<A>(task.maps[channel].scale), shift = static_cast<A>(task.maps[channel].shift);
    const auto result = [&](Vec<A> x_i, Vec<A> residual_i) {
      Vec<A> y_i = mapped(x_i, scale, shift);
      if constexpr (Residual) y_i += residual_i;
      if constexpr (Relu) y_i = y_i < 0 ? Vec<A>{} : y_i;
      return y_i;
    };
    int64_t i = at;
    const int64_t end = at + size;
    for (; i + kLanes<A> <= end; i += kLanes<A>) {
      Vec<A> residual_i{};
      if constexpr (Residual) residual_i = load_widened<A>(residual + i);
      put<A, Stream>(y + i, result(load_widened<A>(x + i), residual_i));
    }
    if (i < end) {
      Vec<A> residual_i{};
      if constexpr (Residual) residual_i = load_widened<A>(residual + i, end - i);
      store_narrowed<A>(y + i, result(load_widened<A>(x + i, end - i), residual_i), end - i);
    }
  });
  if (Stream) stream_fence();
}

template <class T, bool Stream>
void norm_forward_stored(const NormForward& task) {
  if (task.residual) {
    if (task.relu) return norm_forward_with<T, Stream, true, true>(task);
    return norm_forward_with<T, Stream, true, false>(task);
  }
  if (task.relu) return norm_forward_with<T, Stream, false, true>(task);
  norm_forward_with<T, Stream, false, false>(task);
}

template <class T>
void norm_forward(const NormForward& task) {
  if constexpr (kStreams<T>) {
    if (task.stream) return norm_forward_stored<T, true>(task);
  }
  norm_forward_stored<T, false>(task);
}

// Where gradient passes: everywhere, where forward's result computed again is above zero, or where the stored one is.
enum class Mask { none, computed, stored };

inline Mask mask_of(const NormSums& task) {
  if (!task.relu) return Mask::none;
  return task.y ? Mask::stored : Mask::computed;
}

// What passes of the gradient g, in vectors of any width; a NaN result lets it pass, as torch's does.
template <Mask mask, class V, class A>
SK_INLINE V passed(V g, V x, V y, A scale, A shift) {
  if constexpr (mask == Mask::none) return g;
  if constexpr (mask == Mask::computed) y = mapped(x, scale, shift);
  return y <= 0 ? V{} : g;
}

template <class T, Mask mask>
void norm_sums_with(const NormSums& task) {
  using A = typename ComputedIn<T>::type;
  const T* grad = static_cast<const T*>(task.grad);
  const T* x = static_cast<const T*>(task.x);
  const T* y = static_cast<const T*>(task.y);
  const int64_t size = task.block.shape.size;
  NormLanes lanes[kNormBlock] = {};
  for_planes(task.block, [&](int64_t channel, int64_t at) {
    const NormMap& map = task.maps[channel];
    const A scale = static_cast<A>(map.scale), shift = static_cast<A>(map.shift);
    const Vec<double> mean = broadcast(map.mean);
    const auto add = [&](NormLanes& sum, int part, Half<A> g, Half<A> x_i, Half<A> y_i) {
      const Vec<double> gradient = to_double<A>(passed<mask>(g, x_i, y_i, scale, shift));
      sum.first[part] += gradient;
      sum.second[part] += gradient * (to_double<A>(x_i) - mean);
    };
    sum_plane(
        lanes[channel - task.block.begin], size,
        [&](NormLanes& sum, int part, int64_t i) {
          Half<A> y_i{};
          if constexpr (mask == Mask::stored) {
            prefetch_next(task.block.shape, y + at + i);
            y_i = load_half(y + at + i);
          }
          prefetch_next(task.block.shape, grad + at + i);
          prefetch_next(task.block.shape, x + at + i);
          add(sum, part, load_half(grad + at + i), load_half(x + at + i), y_i);
        },
        [&](NormLanes& sum, int64_t i) {
          Half<A> y_i{};
          if constexpr (mask == Mask::stored) y_i = load_half(y + at + i, size - i, T{});
          add(sum, 1, load_half(grad + at + i, size - i, T{}), load_half(x + at + i, size - i, T{}), y_i);
        });
  });
  for (int64_t channel = task.block.begin; channel < task.block.end; ++channel) {
    const NormLanes& sum = lanes[channel - task.block.begin];
    task.sums[channel] = sum_lanes(sum.first[0] + sum.first[1]);
    task.dots[channel] = sum_lanes(sum.second[0] + sum.second[1]);
  }
}

template <class T>
void norm_sums(const NormSums& task) {
  switch (mask_of(task)) {
    case Mask::none: return norm_sums_with<T, Mask::none>(task);
    case Mask::computed: return norm_sums_with<T, Mask::computed>(task);
    case Mask::stored: return norm_sums_with<T, Mask::stored>(task);
  }
}

template <class T, bool Stream, Mask mask>
void norm_backward_with(const NormBackward& task) {
  using A = typename ComputedIn<T>::type;
  const NormSums& of = task.of;
  const T* grad = static_cast<const T*>(of.grad);
  const T* x = static_cast<const T*>(of.x);
  const T* y = static_cast<const T*>(of.y);
  T* dx = static_cast<T*>(task.dx);
  T* dresidual = static_cast<T*>(task.dresidual);
  const int64_t size = of.block.shape.size;
  for_planes(of.block, [&](int64_t channel, int64_t at) {
    const NormMap& map = of.maps[channel];
    const NormInputMap& input = task.maps[channel];
    const A scale = static_cast<A>(map.scale), shift = static_cast<A>(map.shift), mean = static_cast<A>(map.mean);
    const A of_g = static_cast<A>(input.input), slope = static_cast<A>(input.slope);
    const A constant = static_cast<A>(input.constant);
    const auto gradient = [&](Vec<A> g, Vec<A> x_i) {
      if (!task.batch_statistics) return g * of_g;
      return g * of_g + ((x_i - mean) * slope + constant);
    };
    int64_t i = at;
    const int64_t end = at + size;
    for (; i + kLanes<A> <= end; i += kLanes<A>) {
      const Vec<A> x_i = load_widened<A>(x + i);
      Vec<A> y_i{};
      if constexpr (mask == Mask::stored) y_i = load_widened<A>(y + i);
      const Vec<A> g = passed<mask>(load_widened<A>(grad + i), x_i, y_i, scale, shift);
      if (dx) put<A, Stream>(dx + i, gradient(g, x_i));
      if (dresidual) put<A, Stream>(dresidual + i, g);
    }
    if (i < end) {
      const int64_t rest = end - i;
      const Vec<A> x_i = load_widened<A>(x + i, rest);
      Vec<A> y_i{};
      if constexpr (mask == Mask::stored) y_i = load_widened<A>(y + i, rest);
      const Vec<A> g = passed<mask>(load_widened<A>(grad + i, rest), x_i, y_i, scale, shift);
      if (dx) store_narrowed<A>(dx + i, gradient(g, x_i), rest);
      if (dresidual) store_narrowed<A>(dresidual + i, g, rest);
    }
  });
  if (Stream) stream_fence();
}

template <class T, bool Stream>
void norm_backward_stored(const NormBackward& task) {
  switch (mask_of(task.of)) {
    case Mask::none: return norm_backward_with<T, Stream, Mask::none>(task);
    case Mask::computed: return norm_backward_with<T, Stream, Mask::computed>(task);
    case Mask::stored: return norm_backward_with<T, Stream, Mask::stored>(task);
  }
}

template <class T>
void norm_backward(const NormBackward& task) {
  if constexpr (kStreams<T>) {
    if (task.stream) return norm_backward_stored<T, true>(task);
  }
  norm_backward_stored<T, false>(task);
}

template <class T>
constexpr NormKernels norm_kernels() {
  return {norm_moments<T>, norm_forward<T>, norm_sums<T>, norm_backward<T>};
}

}  // namespace SK_ISA
}  // namespace sparsekern
