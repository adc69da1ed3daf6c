// What the products of conv2d share: the call's memory and threads, and how work is dealt to them.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "conv2d/conv2d.h"
#include "conv2d/kernels.h"
#include "conv2d/layout.h"
#include "conv2d/panels.h"
#include "isa/isa.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {

extern Conv2dLimits conv2d_limits;

template <class P>
inline const Conv2dKernels<P>& kernels_of(const IsaKernels& isa) {
  if constexpr (std::is_same_v<P, float>) return isa.conv2d_f32;
  else if constexpr (std::is_same_v<P, double>) return isa.conv2d_f64;
  else return isa.conv2d_bf16;
}

template <class P>
constexpr DType dtype_of() {
  return std::is_same_v<P, float> ? DType::f32 : std::is_same_v<P, double> ? DType::f64 : DType::bf16;
}

// Slots of the calling thread's scratch.
enum Slot : size_t {
  kPointers, kWeights, kEdges, kStarts, kCuts, kPlaces, kColumns, kBias, kInputPlanes, kGradPlanes, kOutPlanes,
  kPartials, kSums, kBiasSums,
};

// What a row costs besides its edges, in edges.
constexpr int64_t kRowCost = 4;
// What moving an element of an activation costs, in multiply-adds.
constexpr int64_t kElementCost = 4;

// Bytes of the output gradient that the bias's gradient reads before they are copied: few enough to be still near.
constexpr int64_t kBiasBytes = 16 << 10;

// Every call's view of its tensors, memory and threads.
template <class P>
struct Call {
  using A = SumOf<P>;
  const Conv2dShape shape;
  const int64_t edge_count;
  const Conv2dKernels<P>& kernels = kernels_of<P>(active_isa());
  Scratch& scratch = Scratch::of_this_thread();
  const Conv2dLimits limit = conv2d_limits;
  const bool in_rows = limit.cache_bytes > 0 && rows_fill_vectors(shape, kernels.lanes);
  int64_t threads;

  Call(const Conv2dShape& shape, int64_t edges) : shape(shape.flattened()), edge_count(edges) {
    const int64_t work = shape.batch * (edges * shape.out_pixels() + kElementCost * activations());
    threads = std::clamp<int64_t>(work / limit.thread_work, 1, num_threads());
  }

  // Elements of an image's input and output.
  int64_t activations() const {
    return shape.channels * shape.pixels() + shape.out_channels * shape.out_pixels();
  }

  template <class T>
  T* get(Slot slot, int64_t count) const {
    return scratch.get<T>(slot, static_cast<size_t>(count));
  }

  const int64_t* pointers(IndexRef index, int64_t count) const {
    if (index.is_64) return static_cast<const int64_t*>(index.data);
    int64_t* widened = get<int64_t>(kPointers, count);
    std::copy_n(static_cast<const int32_t*>(index.data), count, widened);
    return widened;
  }

  // A vector of values in the type that they are multiplied in.
  const A* widened(TensorRef tensor, int64_t count, Slot slot) const {
    if (tensor.dtype == dtype_of<A>()) return static_cast<const A*>(tensor.data);
    A* to = get<A>(slot, count);
    const char* from = static_cast<const char*>(tensor.data);
    parallel_ranges(count, 1 << 16, [&](int64_t begin, int64_t end) {
      kernels_of<A>(active_isa()).widen[static_cast<int>(tensor.dtype)](from + begin * size_of(tensor.dtype), 1, end - begin, to + begin);
    });
    return to;
  }

  static constexpr DType native() { return dtype_of<P>(); }

  // Whether these kernels know all of the batches: pairs are made of neighbouring pixels, in rows.
  static bool know(const std::vector<Batch>& batches) {
    if constexpr (std::is_same_v<P, A>) return true;
    for (const Batch& batch : batches)
      if (batch.kind != TileKind::row && batch.kind != TileKind::shifted) return false;
    return true;
  }

  int64_t edge_tasks() const { return edge_count < (1 << 15) ? 1 : threads; }

  Panels panels(int64_t group_channels, int64_t window, int64_t rows) const {
    return Panels::of(group_channels, window * int64_t{sizeof(P)}, edge_count / std::max<int64_t>(1, rows),
                      limit.panel_bytes, limit.panel_edges);
  }

  // Whether a row tile takes the operand that its edges shift as it lies in the tensor. Even without borders a copy
  // pays while it stays in the second level cache: it is read in order, and its vectors are aligned.
  bool reads_in_place(DType dtype, int64_t channels) const {
    return shape.y.plain() && shape.x.plain() && dtype == native() &&
           channels * shape.pixels() * int64_t{sizeof(P)} > limit.cache_bytes / 2 * 3;
  }

  // A shifted tile's working memory may be a little larger than a row tile's: nothing else of the tile is read again.
  int64_t shifted_elements() const {
    return std::min(limit.tile_elements, limit.cache_bytes / 5 * 6 / int64_t{sizeof(P)});
  }
  // Copies cost writing them: what few edges an operand's channel has would not win that back.
  // Pairs write half as much, and without shifts they would give way to lane tiles of float.
  bool shifts_pay(int64_t channels) const {
    const bool pairs_alone = !std::is_same_v<P, A> && !in_rows;
    return limit.cache_bytes > 0 && (pairs_alone || edge_count >= limit.shifted_edges * channels);
  }

  // Elements of working memory for a tile: a row tile's should stay in the second level cache.
  int64_t tile_elements() const {
    return in_rows ? std::min(limit.tile_elements, limit.cache_bytes / int64_t{sizeof(P)}) : limit.tile_elements;
  }
};

// Part `part` of `parts` of the rows, about equal in work.
inline Span share_of_rows(const int64_t* starts, int64_t rows, int64_t part, int64_t parts) {
  const auto cut = [&](int64_t p) {
    const int64_t goal = (starts[rows] + kRowCost * rows) * p / parts;
    int64_t low = 0, high = rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (starts[middle] + kRowCost * middle < goal) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  return {part == 0 ? 0 : cut(part), part + 1 == parts ? rows : cut(part + 1)};
}

inline Span share(int64_t size, int64_t part, int64_t parts) {
  return {size * part / parts, size * (part + 1) / parts};
}

// How a batch's tiles are dealt to threads: several tiles at once, each by one thread, where the tiles share
// out evenly and each thread can have its own sums; else one tile after another, all threads on its channels.
struct Teams {
  int64_t count, size;

  static Teams of(int64_t tiles, int64_t threads, bool own_sums_fit) {
    const int64_t rounds = (tiles + threads - 1) / threads;
    const bool even = tiles * 10 >= rounds * threads * 8;
    if (threads > 1 && (!even || !own_sums_fit)) return {1, threads};
    return {std::min(tiles, threads), 1};
  }
};

// Whether one tile's planes have their gaps where the other's have them.
inline bool same_layout(const Tile& a, const Tile& b) {
  return a.rows.begin == b.rows.begin && a.images.length() == b.images.length();
}

// Edges' offsets are 32 bits wide; tiles keep planes far smaller unless a single row of pixels is not.
inline void check_offsets(int64_t elements) {
  if (elements > std::numeric_limits<int32_t>::max())
    throw std::length_error("conv2d: a row of pixels of all channels is too large to address with 32 bits");
}

}  // namespace sparsekern
