#include "linear/linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "isa/isa.h"
#include "linear/edge_order.h"
#include "linear/tiling.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {
namespace {

// Elements of values below which a thread is not worth waking.
constexpr int64_t kValueGrain = 1 << 15;

// Results from this size on are written past the caches.
constexpr int64_t kStreamBytes = 4 << 20;
// A product with this many tiles goes over packed edges; with this many it may as well cut them into panels.
constexpr int64_t kPackTiles = 4;
constexpr int64_t kPanelTiles = 2;

enum Slot : size_t { kPointers, kValues, kBias, kTile, kSums, kParts, kPlaces, kOrder, kCuts, kIndices };

template <class A>
const LinearKernels<A>& kernels();
template <>
const LinearKernels<float>& kernels<float>() {
  return active_isa().linear_f32;
}
template <>
const LinearKernels<double>& kernels<double>() {
  return active_isa().linear_f64;
}

int64_t at_least_one(int64_t count) { return std::max<int64_t>(count, 1); }

// Pointers as int64, whatever they are stored as.
const int64_t* wide_pointers(const Topology& t, int64_t count, Scratch& scratch) {
  if (t.wide_pointers) return static_cast<const int64_t*>(t.pointers);
  int64_t* wide = scratch.get<int64_t>(kPointers, count + 1);
  const auto* narrow = static_cast<const int32_t*>(t.pointers);
  std::copy(narrow, narrow + count + 1, wide);
  return wide;
}

// The values of the edges as a product visits them, read where they are or widened (and permuted) on the way.
template <class A>
struct ValueReader {
  Values values;
  const Topology& t;
  bool permuted;

  bool as_stored() const { return !permuted && size_of(values.dtype) == sizeof(A); }
  void read(int64_t begin, int64_t count, A* out) const {
    const auto* from = static_cast<const char*>(values.data);
    const auto* narrow = static_cast<const int32_t*>(t.permutation);
    const auto* wide = static_cast<const int64_t*>(t.permutation);
    kernels<A>().widen(values.dtype, permuted ? from : from + begin * size_of(values.dtype),
                       permuted && !t.wide_pointers ? narrow + begin : nullptr,
                       permuted && t.wide_pointers ? wide + begin : nullptr, count, out);
  }
};

Tokens tokens_of(const Activations& x, const TokenTile& tile, bool stream = false) {
  char* data = static_cast<char*>(x.data);
  const int64_t row_bytes = x.stride * static_cast<int64_t>(size_of(x.dtype));
  return {x.dtype, data ? data + tile.begin * row_bytes : nullptr, x.stride, tile.count, stream};
}

// Whether a result of so many tokens is too large to be found in a cache by whoever reads it next.
bool streams(const Activations& y, int64_t tokens) {
  const int64_t row_bytes = y.stride * static_cast<int64_t>(size_of(y.dtype));
  return tokens * row_bytes >= kStreamBytes && row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(y.data) % 64 == 0;
}

// The tiles of a product and the memory that each needs. `by_tokens`: threads share out the tiles, and each
// has its own memory; else all threads work on one tile at a time and share out its outputs.
template <class A>
struct Plan {
  Plan(const std::vector<TokenTile>& cut, int64_t gathered, int64_t outputs, int64_t panels)
      : tiles(cut),
        tile_size(gathered * kernels<A>().lanes * tiles.front().vectors),
        sums_size(panels > 1 ? outputs * kernels<A>().lanes * tiles.front().vectors : 0) {}

  int64_t tile_count() const { return static_cast<int64_t>(tiles.size()); }

  const std::vector<TokenTile>& tiles;
  int64_t tile_size;
  int64_t sums_size;
};

// Runs a product over its tiles and panels. `run(tile, panel, gathered tile, sums, thread, begin, end)` does one
// panel of one tile for outputs [begin, end).
template <class A, class Run>
void run_tiles(const Plan<A>& plan, const std::vector<Panel>& panels, const Activations& gathered,
               int64_t gathered_features, const int64_t* pointers, int64_t outputs, bool by_tokens,
               Scratch& scratch, const Run& run) {
  const LinearKernels<A>& k = kernels<A>();
  const int64_t threads = num_threads();
  const int64_t copies = by_tokens ? threads : 1;
  A* tiles = scratch.get<A>(kTile, at_least_one(plan.tile_size * copies));
  A* sums = plan.sums_size ? scratch.get<A>(kSums, plan.sums_size * copies) : nullptr;
  if (by_tokens) {
    const int64_t count = plan.tile_count();
    parallel_tasks(threads, [&](int64_t thread) {
      A* my_tile = tiles + thread * plan.tile_size;
      A* my_sums = sums ? sums + thread * plan.sums_size : nullptr;
      for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
        const TokenTile& tile = plan.tiles[i];
        k.load_tile(tokens_of(gathered, tile), 0, gathered_features, tile.vectors, my_tile);
        for (const Panel& panel : panels) run(tile, panel, my_tile, my_sums, thread, int64_t{0}, outputs);
      }
    });
    return;
  }
  const int64_t blocks = (gathered_features + kLinearBlock - 1) / kLinearBlock;
  for (const TokenTile& tile : plan.tiles) {
    const int64_t width = int64_t{tile.vectors} * k.lanes;
    parallel_ranges(blocks, 4, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kLinearBlock, end = std::min(gathered_features, last * kLinearBlock);
      k.load_tile(tokens_of(gathered, tile), begin, end, tile.vectors, tiles + begin * width);
    });
    parallel_tasks(threads, [&](int64_t thread) {
      const int64_t begin = balanced_begin(pointers, outputs, thread, threads);
      const int64_t end = balanced_begin(pointers, outputs, thread + 1, threads);
      for (const Panel& panel : panels) run(tile, panel, tiles, sums, int64_t{0}, begin, end);
    });
  }
}

// The edges as a product is to visit them: as stored, or packed where it goes over them often.
template <class A>
struct Edges {
  // `reader` null where no values are wanted.
  Edges(const Topology& t, const int64_t* pointers, int64_t outputs, int64_t gathered, Tiling tiling,
        int64_t tile_count, const ValueReader<A>* reader, Scratch& scratch)
      : order(make_order(t, pointers, outputs, gathered, tiling.panel, tile_count, scratch)), indices(t.indices) {
    if (!order.is_packed()) {
      if (reader) values = read_all(t, *reader, scratch);
      return;
    }
    int32_t* packed_indices = scratch.get<int32_t>(kIndices, at_least_one(t.nnz));
    A* packed_values = reader ? scratch.get<A>(kValues, at_least_one(t.nnz)) : nullptr;
    order.for_each_run([&](int64_t stored, int64_t packed, int64_t count) {
      std::copy_n(t.indices + stored, count, packed_indices + packed);
      if (reader) reader->read(stored, count, packed_values + packed);
    });
    indices = packed_indices;
    values = packed_values;
  }

  static EdgeOrder make_order(const Topology& t, const int64_t* pointers, int64_t outputs, int64_t gathered,
                              int64_t panel, int64_t tile_count, Scratch& scratch) {
    const EdgeOrder::Slots slots{kPlaces, kOrder, kCuts};
    if (tile_count < (panel < gathered ? kPanelTiles : kPackTiles))
      return EdgeOrder::stored(pointers, outputs, scratch, slots);
    return EdgeOrder::packed(pointers, t.indices, outputs, gathered, panel, scratch, slots);
  }

  static const A* read_all(const Topology& t, const ValueReader<A>& reader, Scratch& scratch) {
    if (reader.as_stored()) return static_cast<const A*>(reader.values.data);
    A* wide = scratch.get<A>(kValues, at_least_one(t.nnz));
    parallel_ranges(t.nnz, kValueGrain,
                    [&](int64_t begin, int64_t end) { reader.read(begin, end - begin, wide + begin); });
    return wide;
  }

  EdgeOrder order;
  const int32_t* indices;
  const A* values = nullptr;
};

template <class A>
void forward(const Topology& t, int64_t tokens, const Activations& x, const Values& w, const Values& bias,
             const Activations& y) {
  Scratch& scratch = Scratch::of_this_thread();
  const LinearKernels<A>& k = kernels<A>();
  const int64_t* crow = wide_pointers(t, t.rows, scratch);
  A* wide_bias = nullptr;
  if (bias.data) {
    wide_bias = scratch.get<A>(kBias, at_least_one(t.rows));
    k.widen(bias.dtype, bias.data, nullptr, nullptr, t.rows, wide_bias);
  }
  const Tiling tiling =
      forward_tiling({t.columns, t.rows, t.nnz, k.lanes, k.max_vectors, static_cast<int>(sizeof(A))});
  const std::vector<TokenTile> tiles = cut_tokens(tokens, tiling.vectors, k.lanes);
  const ValueReader<A> reader{w, t, true};
  const Edges<A> edges(t, crow, t.rows, t.columns, tiling, tiles.size(), &reader, scratch);
  const Plan<A> plan(tiles, t.columns, t.rows, edges.order.panels().size());
  const int64_t threads = num_threads();
  const bool by_tokens = threads == 1 || plan.tile_count() >= 2 * threads;
  const bool stream = streams(y, tokens);
  run_tiles<A>(plan, edges.order.panels(), x, t.columns, crow, t.rows, by_tokens, scratch,
               [&](const TokenTile& tile, const Panel& panel, const A* x_tile, A* sums, int64_t, int64_t begin,
                   int64_t end) {
                 k.forward({panel, edges.indices, edges.values, wide_bias, x_tile, sums, tokens_of(y, tile, stream),
                            tile.vectors, begin, end});
               });
}

template <class A>
void backward(const Topology& t, int64_t tokens, const Activations& grad, const Activations& x, const Values& w,
              const Activations& dx, const Values& dw) {
  Scratch& scratch = Scratch::of_this_thread();
  const LinearKernels<A>& k = kernels<A>();
  const int64_t* ccol = wide_pointers(t, t.columns, scratch);
  const Tiling tiling =
      backward_tiling({t.rows, t.columns, t.nnz, k.lanes, k.max_vectors, static_cast<int>(sizeof(A))});
  const std::vector<TokenTile> tiles = cut_tokens(tokens, tiling.vectors, k.lanes);
  const ValueReader<A> reader{w, t, false};
  const Edges<A> edges(t, ccol, t.columns, t.rows, tiling, tiles.size(), dx.data ? &reader : nullptr, scratch);
  const Plan<A> plan(tiles, t.rows, t.columns, edges.order.panels().size());
  const int64_t threads = num_threads();
  // Threads that share out tokens each need their own dw: no more memory for that than the activations take.
  const bool by_tokens = threads == 1 || (plan.tile_count() >= 2 * threads &&
                                          t.nnz * threads <= tokens * (t.rows + t.columns));
  const int64_t parts = by_tokens && dw.data ? threads : 1;
  A* dw_sums = nullptr;
  if (dw.data) {
    const bool in_place = parts == 1 && size_of(dw.dtype) == sizeof(A) && !edges.order.is_packed();
    dw_sums = in_place ? static_cast<A*>(dw.data) : scratch.get<A>(kParts, at_least_one(t.nnz * parts));
    parallel_ranges(t.nnz * parts, kValueGrain,
                    [&](int64_t begin, int64_t end) { std::fill(dw_sums + begin, dw_sums + end, A{0}); });
  }
  const bool stream = dx.data && streams(dx, tokens);
  run_tiles<A>(plan, edges.order.panels(), grad, t.rows, ccol, t.columns, by_tokens, scratch,
               [&](const TokenTile& tile, const Panel& panel, const A* grad_tile, A* sums, int64_t thread,
                   int64_t begin, int64_t end) {
                 k.backward({panel, edges.indices, edges.values, grad_tile, sums, tokens_of(x, tile),
                             tokens_of(dx, tile, stream), dw_sums ? dw_sums + thread * t.nnz : nullptr, tile.vectors,
                             begin, end});
               });
  if (!dw.data || dw_sums == dw.data) return;
  const auto sum_parts = [&](DType dtype, void* out) {
    parallel_ranges(t.nnz, kValueGrain, [&](int64_t begin, int64_t end) {
      k.sum_parts(dw_sums, t.nnz, parts, begin, end, dtype, out);
    });
  };
  if (!edges.order.is_packed()) return sum_parts(dw.dtype, dw.data);
  // The sums of all parts gather in the first, which is then put back into the stored order.
  if (parts > 1) sum_parts(sizeof(A) == 8 ? DType::f64 : DType::f32, dw_sums);
  const size_t bytes = size_of(dw.dtype);
  edges.order.for_each_run([&](int64_t stored, int64_t packed, int64_t count) {
    k.sum_parts(dw_sums + packed, t.nnz, 1, 0, count, dw.dtype, static_cast<char*>(dw.data) + stored * bytes);
  });
}

}  // namespace

void linear_forward(const Topology& topology, int64_t tokens, const Activations& x, const Values& w,
                    const Values& bias, const Activations& y) {
  if (tokens == 0) return;
  if (x.dtype == DType::f64)
    forward<double>(topology, tokens, x, w, bias, y);
  else
    forward<float>(topology, tokens, x, w, bias, y);
}

void linear_backward(const Topology& topology, int64_t tokens, const Activations& grad, const Activations& x,
                     const Values& w, const Activations& dx, const Values& dw) {
  if (tokens == 0) {
    if (dw.data) std::memset(dw.data, 0, topology.nnz * size_of(dw.dtype));
    return;
  }
  if (grad.dtype == DType::f64)
    backward<double>(topology, tokens, grad, x, w, dx, dw);
  else
    backward<float>(topology, tokens, grad, x, w, dx, dw);
}

}  // namespace sparsekern
