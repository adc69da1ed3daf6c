#include "linear/product.h"

namespace sparsekern {
namespace linear {
namespace {

// How often values are met before they are kept by row, which costs as much as so many products by column. A product of
// more than a vector of tokens gathers them by row each time.
constexpr int64_t kTokenPatience = 8, kVectorPatience = 3, kTilePatience = 1;

template <class A>
struct Forward {
  const Topology& t;
  int64_t tokens;
  Activations x;
  Values w, bias;
  Activations y;
  Scratch& scratch = Scratch::of_this_thread();
  const LinearKernels<A>& k = kernels<A>();

  void run() const {
    // Kept values give the same bits as others: each sum is made in the same order.
    if (tokens == 1 && by_slices()) return;
    const StoredEdges edges = stored_rows();
    const Tiling tiling =
        forward_tiling({tokens, t.columns, t.rows, t.nnz, k.lanes, k.max_vectors, tile_element_bytes<A>(x)});
    const bool single = tokens <= int64_t{tiling.vectors} * k.lanes;
    const std::vector<TokenTile> tiles = cut_tokens(tokens, tiling.vectors, k.lanes, !single && paired<A>(x));
    const ValueReader<A> reader{w, t.permutation, t.by_row.wide};
    if (!single) {
      const Visit visit{tiling.panel, true};
      const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.forward(edges, visit); });
      return by_row(edges, *order, tiles, order->packed_indices(), reader.packed(*order, t.nnz, scratch));
    }
    if (tokens > 1 && by_kept_rows(edges, tiling.vectors)) return;
    if (tokens <= k.lanes) return by_column();
    const Visit visit{tiling.panel, false};
    const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.forward(edges, visit); });
    const Chunks chunks(*this, edges, *order);
    by_row(edges, *order, tiles, nullptr, nullptr, [&](const LinearForwardTask<A>& task, int64_t thread) {
      chunks.run(task, reader, thread);
    });
  }

 private:
  StoredEdges stored_rows() const {
    return {wide_pointers(t.by_row, t.rows, scratch), t.by_row.indices, t.rows, t.columns};
  }

  // A single tile reads each value once: they are gathered for a block of outputs at a time, and stay in a near cache.
  struct Chunks {
    Chunks(const Forward& product, const StoredEdges& edges, const EdgeOrder& order)
        : k(product.k), edges(edges), order(order) {
      if (order.visit().packed) return;
      for (size_t p = 0; p < order.panels().size(); ++p)
        for (int64_t begin = 0; begin < edges.outputs; begin += kLinearBlock)
          most = std::max(most, edges_of(order.panels()[p], begin, std::min(edges.outputs, begin + kLinearBlock)));
      // Each thread's on a cache line of its own.
      bytes = (most * static_cast<int64_t>(sizeof(A) + sizeof(int32_t)) + 63) / 64 * 64;
      memory = product.scratch.template get<char>(kChunk, at_least_one(bytes * num_threads()));
    }

    static int64_t edges_of(const Panel& panel, int64_t begin, int64_t end) {
      int64_t count = 0;
      for (int64_t i = begin; i < end; ++i) count += panel.end[i] - panel.begin[i];
      return count;
    }

    void run(LinearForwardTask<A> task, const ValueReader<A>& reader, int64_t thread) const {
      A* values = reinterpret_cast<A*>(memory + bytes * thread);
      int32_t* col = reinterpret_cast<int32_t*>(values + most);
      int64_t begins[kLinearBlock], ends[kLinearBlock];
      const Panel panel = task.panel;
      const int64_t first = task.row_begin, last = task.row_end;
      for (int64_t begin = first; begin < last; begin += kLinearBlock) {
        const int64_t end = std::min(last, begin + kLinearBlock);
        int64_t place = 0;
        for (int64_t r = begin; r < end; ++r) {
          const int64_t count = panel.end[r] - panel.begin[r];
          begins[r - begin] = place;
          ends[r - begin] = place += count;
        }
        reader.read({panel.begin, panel.end, nullptr, begin, end}, values, edges.indices, col);
        task.panel.begin = begins - begin;
        task.panel.end = ends - begin;
        task.col = col;
        task.values = values;
        task.row_begin = begin;
        task.row_end = end;
        k.forward_few(task);
      }
    }

    const LinearKernels<A>& k;
    const StoredEdges& edges;
    const EdgeOrder& order;
    int64_t most = 0, bytes = 0;
    char* memory = nullptr;
  };

  void by_row(const StoredEdges& edges, const EdgeOrder& order, const std::vector<TokenTile>& tiles,
              const int32_t* col, const A* values) const {
    by_row(edges, order, tiles, col, values, [&](const LinearForwardTask<A>& task, int64_t) { k.forward(task); });
  }

  template <class Multiply>
  void by_row(const StoredEdges& edges, const EdgeOrder& order, const std::vector<TokenTile>& tiles,
              const int32_t* col, const A* values, const Multiply& multiply) const {
    const A* start = starts();
    const bool stream = streams(y, tokens);
    Schedule<A>{edges, order, tiles, Schedule<A>::share_tokens(tiles.size())}.run(
        x, nullptr, scratch,
        [&](const TokenTile& tile, size_t p, const A* x_tile, A* sums, int64_t thread, int64_t begin, int64_t end) {
          multiply({order.panels()[p], col, values, start, x_tile, sums, tokens_of(y, tile, stream), tile.vectors,
                    tile.paired, begin, end},
                   thread);
        });
  }

  // Where values were met before: they are kept, and `multiply` is given them, and a digest to make at the same time of
  // the values as they are now. Whether that is the product. `spare` values are kept besides the edges' own.
  template <class FindOrder, class Read, class Multiply>
  bool with_kept(FewTokens kind, int64_t patience, int64_t spare, const FindOrder& find_order, const Read& read,
                 const Multiply& multiply) const {
    if (!t.plan || t.nnz == 0) return false;
    RowValues<A>& values = t.plan->template row_values<A>(kind);
    if (!values.meet(w.data, w.version, patience)) return false;
    const auto order = find_order();
    const int64_t bytes = t.nnz * static_cast<int64_t>(size_of(w.dtype));
    Digest<A> digest(k, w.data, bytes);
    const auto kept = values.find(
        w.data, w.version, order, t.nnz + spare,
        [&] {
          Digest<A> now(k, w.data, bytes);
          const int64_t tasks = t.nnz < kValueGrain ? 1 : num_threads();
          parallel_tasks(tasks, [&](int64_t task) { now.run(task, tasks); });
          return now.value();
        },
        [&](A* out) { read(*order, out); });
    if (!kept.values) return false;
    multiply(*order, kept.values->data(), digest);
    if (digest.value() == kept.digest) return true;
    values.forget();
    return false;
  }

  // One token.
  bool by_slices() const {
    const int64_t threads = t.nnz < kValueGrain ? 1 : num_threads();
    return with_kept(
        kOneToken, kTokenPatience, kSliceRows, [&] { return t.plan->slices([&] { return stored_rows(); }, threads); },
        [&](const TokenSlices& slices, A* out) {
          slices.read(stored_rows(), out, [&](const Runs& runs, A* to) { reader().read(runs, to); });
        },
        [&](const TokenSlices& slices, const A* values, Digest<A>& digest) {
          const A* wide_bias = bias.data ? widened(bias, t.rows, kBias) : nullptr;
          const A* x_wide = widened({x.dtype, x.data}, t.columns, kTile);
          A* sums = token_sums();
          const TokenSliceOrder order = slices.order();
          parallel_tasks(threads, [&](int64_t task) {
            digest.run(task, threads);
            k.forward_token({order, values, wide_bias, x_wide, sums, slices.begin_of(task), slices.begin_of(task + 1)});
          });
          finish_token(sums, 0, t.rows);
        });
  }

  // More, in a single tile.
  bool by_kept_rows(const StoredEdges& edges, int vectors) const {
    const bool narrow = tokens <= k.narrow_lanes;
    const int width = narrow ? k.narrow_lanes : vectors * k.lanes;
    const Visit visit{kept_panel({tokens, t.columns, t.rows, t.nnz, width, 1, sizeof(A)}, 1), true, true};
    const bool one = tokens <= k.lanes;
    const FewTokens kind = one ? kOneVector : kVectors;
    return with_kept(
        kind, one ? kVectorPatience : kTilePatience, 0, [&] { return t.plan->few(edges, visit, kind); },
        [&](const EdgeOrder& order, A* out) { reader().packed(order, out); },
        [&](const EdgeOrder& order, const A* values, Digest<A>& digest) {
          const A* start = starts();
          const TokenTile tile{0, tokens, vectors, false};
          A* x_tile = scratch.get<A>(kTile, at_least_one(t.columns * width));
          A* sums = order.panels().size() > 1 ? scratch.get<A>(kSums, at_least_one(t.rows * width)) : nullptr;
          parallel_ranges((t.columns + kLinearBlock - 1) / kLinearBlock, 4, [&](int64_t first, int64_t last) {
            const int64_t begin = first * kLinearBlock, end = std::min(t.columns, last * kLinearBlock);
            if (narrow) k.load_narrow(tokens_of(x, tile), begin, end, x_tile + begin * width);
            else k.load_tile(tokens_of(x, tile), begin, end, vectors, false, x_tile + begin * width, nullptr);
          });
          const int64_t tasks = t.nnz * width < kValueGrain ? 1 : num_threads();
          parallel_tasks(tasks, [&](int64_t task) {
            const int64_t begin = balanced_begin(edges.pointers, t.rows, task, tasks);
            const int64_t end = balanced_begin(edges.pointers, t.rows, task + 1, tasks);
            digest.run(task, tasks);
            for (const Panel& panel : order.panels()) {
              const LinearForwardTask<A> part{
                  panel, order.packed_indices(), values, start, x_tile, sums, tokens_of(y, tile), vectors,
                  false, begin, end, order.narrow_indices()};
              if (narrow) k.forward_narrow(part);
              else k.forward_few(part);
            }
          });
        });
  }

  ValueReader<A> reader() const { return {w, t.permutation, t.by_row.wide}; }

  // A single token's sums: where they are wanted, or in scratch where they are to be rounded.
  A* token_sums() const {
    return y.dtype == native<A>() ? static_cast<A*>(y.data) : scratch.get<A>(kSums, at_least_one(t.rows));
  }
  void finish_token(const A* sums, int64_t begin, int64_t end) const {
    if (y.dtype != native<A>()) k.sum_parts(sums, 0, 1, begin, end, y.dtype, y.data);
  }

  const A* widened(const Values& values, int64_t count, Slot slot) const {
    if (values.dtype == native<A>()) return static_cast<const A*>(values.data);
    A* wide = scratch.get<A>(slot, at_least_one(count));
    k.widen(values.dtype, values.data, count, wide);
    return wide;
  }

  // What each row's sum starts from.
  const A* starts() const {
    if (bias.data) return widened(bias, t.rows, kBias);
    A* zeros = scratch.get<A>(kBias, at_least_one(t.rows));
    std::fill_n(zeros, t.rows, A{0});
    return zeros;
  }

  // At most one vector of tokens: edge by edge as the values are stored, each thread on rows of its own.
  void by_column() const {
    const bool one = tokens == 1, narrow = !one && tokens <= k.narrow_lanes;
    const int64_t width = one ? 1 : narrow ? k.narrow_lanes : k.lanes;
    const StoredEdges edges{wide_pointers(t.by_column, t.columns, scratch), t.by_column.indices, t.columns, t.rows};
    const int64_t threads = t.nnz * width < kValueGrain ? 1 : num_threads();
    const ProductSize size{tokens, t.rows, t.columns, t.nnz, static_cast<int>(width), 1, sizeof(A)};
    const Visit visit{scatter_panel(size, threads), false};
    const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.scatter(edges, visit); });
    const A* values = ValueReader<A>{w, nullptr, false}.as_stored(t.nnz, scratch);
    const A* wide_bias = bias.data ? widened(bias, t.rows, kBias) : nullptr;
    const TokenTile tile{0, tokens, 1, false};
    const A* x_tile = one ? widened({x.dtype, x.data}, t.columns, kTile) : loaded_tile(tile, narrow, width);
    A* y_tile = one ? token_sums() : scratch.get<A>(kSums, at_least_one(t.rows * width));
    const int64_t panels = static_cast<int64_t>(order->panels().size());
    const int64_t tasks = std::min(threads, panels);
    parallel_tasks(tasks, [&](int64_t task) {
      for (int64_t p = panels * task / tasks; p < panels * (task + 1) / tasks; ++p) {
        const int64_t begin = p * visit.panel, end = std::min(t.rows, begin + visit.panel);
        for (int64_t r = begin; r < end; ++r)
          std::fill_n(y_tile + r * width, width, wide_bias ? wide_bias[r] : A{0});
        const LinearScatterTask<A> scatter{order->panels()[p], t.by_column.indices, values, x_tile, y_tile, t.columns};
        if (one) {
          k.scatter_token(scatter);
          finish_token(y_tile, begin, end);
        } else if (narrow) {
          k.scatter_narrow(scatter);
          k.store_narrow(y_tile + begin * width, tokens_of(y, tile), begin, end);
        } else {
          k.scatter(scatter);
          k.store_tile(y_tile + begin * width, 1, tokens_of(y, tile), begin, end);
        }
      }
    });
  }

  const A* loaded_tile(const TokenTile& tile, bool narrow, int64_t width) const {
    A* x_tile = scratch.get<A>(kTile, at_least_one(t.columns * width));
    if (narrow) k.load_narrow(tokens_of(x, tile), 0, t.columns, x_tile);
    else k.load_tile(tokens_of(x, tile), 0, t.columns, 1, false, x_tile, nullptr);
    return x_tile;
  }
};

}  // namespace
}  // namespace linear

void linear_forward(const Topology& topology, int64_t tokens, const Activations& x, const Values& w,
                    const Values& bias, const Activations& y) {
  if (tokens == 0) return;
  if (x.dtype == DType::f64) linear::Forward<double>{topology, tokens, x, w, bias, y}.run();
  else linear::Forward<float>{topology, tokens, x, w, bias, y}.run();
}

}  // namespace sparsekern
