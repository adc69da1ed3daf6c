// What the linear products share: values as a product reads them, tiles of tokens, threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cache.h"
#include "isa/isa.h"
#include "linear/edge_order.h"
#include "linear/linear.h"
#include "linear/tiling.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {
namespace linear {

// Elements of values below which a thread is not worth waking.
constexpr int64_t kValueGrain = 1 << 15;
// A product with this many tiles goes over packed edges.
constexpr int64_t kPackTiles = 2;

enum Slot : size_t { kPointers, kValues, kBias, kTile, kSums, kParts, kChunk, kBiasParts };

template <class A>
inline const LinearKernels<A>& kernels();
template <>
inline const LinearKernels<float>& kernels<float>() {
  return active_isa().linear_f32;
}
template <>
inline const LinearKernels<double>& kernels<double>() {
  return active_isa().linear_f64;
}

// Whether tiles of such activations are paired, and the bytes of their elements.
template <class A>
bool paired(const Activations& x) {
  return sizeof(A) == sizeof(float) && x.dtype == DType::bf16;
}
template <class A>
int tile_element_bytes(const Activations& x) {
  return paired<A>(x) ? 2 : sizeof(A);
}

inline int64_t at_least_one(int64_t count) { return std::max<int64_t>(count, 1); }

// The type that A is stored as where nothing is rounded.
template <class A>
constexpr DType native() {
  return sizeof(A) == 8 ? DType::f64 : DType::f32;
}

// Pointers as int64, whatever they are stored as.
inline const int64_t* wide_pointers(const Compressed& t, int64_t count, Scratch& scratch) {
  if (t.wide) return static_cast<const int64_t*>(t.pointers);
  int64_t* wide = scratch.get<int64_t>(kPointers, count + 1);
  const auto* narrow = static_cast<const int32_t*>(t.pointers);
  std::copy(narrow, narrow + count + 1, wide);
  return wide;
}

// The edges' values, through a permutation where there is one.
template <class A>
struct ValueReader {
  Values values;
  const void* permutation;
  bool wide;

  void read(const Runs& runs, A* out, const int32_t* indices = nullptr, int32_t* indices_out = nullptr) const {
    const auto* narrow = wide ? nullptr : static_cast<const int32_t*>(permutation);
    const auto* wider = wide ? static_cast<const int64_t*>(permutation) : nullptr;
    kernels<A>().read_runs(values.dtype, values.data, narrow, wider, runs, out, indices, indices_out);
  }

  // All of them in the stored order: where they are, or widened into scratch.
  const A* as_stored(int64_t count, Scratch& scratch) const {
    if (values.dtype == native<A>()) return static_cast<const A*>(values.data);
    A* wide_values = scratch.get<A>(kValues, at_least_one(count));
    const auto* from = static_cast<const char*>(values.data);
    parallel_ranges(count, kValueGrain, [&](int64_t begin, int64_t end) {
      kernels<A>().widen(values.dtype, from + begin * size_of(values.dtype), end - begin, wide_values + begin);
    });
    return wide_values;
  }

  // All of them as a packed order visits them.
  void packed(const EdgeOrder& order, A* out) const {
    order.for_each_run([&](const Runs& runs, int64_t place) { read(runs, out + place); });
  }
  const A* packed(const EdgeOrder& order, int64_t count, Scratch& scratch) const {
    A* out = scratch.get<A>(kValues, at_least_one(count));
    packed(order, out);
    return out;
  }
};

inline Tokens tokens_of(const Activations& x, const TokenTile& tile, bool stream = false) {
  char* data = static_cast<char*>(x.data);
  const int64_t row_bytes = x.stride * static_cast<int64_t>(size_of(x.dtype));
  return {x.dtype, data ? data + tile.begin * row_bytes : nullptr, x.stride, tile.count, stream};
}

// Whether a result of so many tokens is written past the caches, which takes rows of whole cache lines.
inline bool streams(const Activations& y, int64_t tokens) {
  const int64_t row_bytes = y.stride * static_cast<int64_t>(size_of(y.dtype));
  return row_bytes % 64 == 0 && past_caches(y.data, tokens * row_bytes);
}

// The order of a product's edges. Outputs one after another in one panel need nothing kept.
template <class Find>
std::shared_ptr<const EdgeOrder> find_order(LinearPlan* plan, const StoredEdges& edges, Visit visit, const Find& find) {
  const bool plain = !visit.packed && visit.panel >= edges.gathered;
  return plan && !plain ? find(*plan) : std::make_shared<const EdgeOrder>(edges, visit);
}

// A product cut into tiles. `by_tokens`: threads share out the tiles, and each has its own memory; else all threads work
// on one tile at a time and share out its outputs.
template <class A>
struct Schedule {
  const StoredEdges& edges;
  const EdgeOrder& order;
  const std::vector<TokenTile>& tiles;
  bool by_tokens;

  // Of a feature in a tile's memory, in elements of A.
  static int64_t width_of(const TokenTile& tile) {
    return int64_t{tile.vectors} * kernels<A>().lanes / (tile.paired ? 2 : 1);
  }

  static bool share_tokens(size_t tiles) {
    const int64_t threads = num_threads();
    return threads == 1 || static_cast<int64_t>(tiles) >= 2 * threads;
  }

  // Calls run(tile, panel's number, gathered tile, sums, thread, begin, end) for one panel of one tile and the outputs
  // [begin, end). `feature_sums`, where given, are [threads][gathered] sums of the gathered features, added to.
  template <class Run>
  void run(const Activations& gathered, A* feature_sums, Scratch& scratch, const Run& run) const {
    const LinearKernels<A>& k = kernels<A>();
    const int64_t threads = num_threads(), copies = by_tokens ? threads : 1;
    const int64_t tile_size = edges.gathered * width_of(tiles.front());
    const int64_t sums_size =
        order.panels().size() > 1 ? edges.outputs * int64_t{k.lanes} * tiles.front().vectors : 0;
    A* tile_memory = scratch.get<A>(kTile, at_least_one(tile_size * copies));
    A* sums = sums_size ? scratch.get<A>(kSums, sums_size * copies) : nullptr;
    if (by_tokens) {
      const int64_t count = static_cast<int64_t>(tiles.size());
      parallel_tasks(threads, [&](int64_t thread) {
        A* my_tile = tile_memory + thread * tile_size;
        A* my_sums = sums ? sums + thread * sums_size : nullptr;
        A* my_feature_sums = feature_sums ? feature_sums + thread * edges.gathered : nullptr;
        for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
          const TokenTile& tile = tiles[i];
          k.load_tile(tokens_of(gathered, tile), 0, edges.gathered, tile.vectors, tile.paired, my_tile,
                      my_feature_sums);
          for (size_t p = 0; p < order.panels().size(); ++p)
            run(tile, p, my_tile, my_sums, thread, int64_t{0}, edges.outputs);
        }
      });
      return;
    }
    const int64_t blocks = (edges.gathered + kLinearBlock - 1) / kLinearBlock;
    for (const TokenTile& tile : tiles) {
      const int64_t width = width_of(tile);
      parallel_ranges(blocks, 4, [&](int64_t first, int64_t last) {
        const int64_t begin = first * kLinearBlock, end = std::min(edges.gathered, last * kLinearBlock);
        k.load_tile(tokens_of(gathered, tile), begin, end, tile.vectors, tile.paired, tile_memory + begin * width,
                    feature_sums);
      });
      parallel_tasks(threads, [&](int64_t thread) {
        const int64_t begin = balanced_begin(edges.pointers, edges.outputs, thread, threads);
        const int64_t end = balanced_begin(edges.pointers, edges.outputs, thread + 1, threads);
        for (size_t p = 0; p < order.panels().size(); ++p) run(tile, p, tile_memory, sums, thread, begin, end);
      });
    }
  }
};

}  // namespace linear
}  // namespace sparsekern
