#include "linear/product.h"

namespace sparsekern {
namespace linear {
namespace {

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
    const StoredEdges edges{wide_pointers(t.by_row, t.rows, scratch), t.by_row.indices, t.rows, t.columns};
    const Tiling tiling =
        forward_tiling({tokens, t.columns, t.rows, t.nnz, k.lanes, k.max_vectors, tile_element_bytes<A>(x)});
    const std::vector<TokenTile> tiles = cut_tokens(tokens, tiling.vectors, k.lanes, paired<A>(x));
    const ValueReader<A> reader{w, t.permutation, t.by_row.wide};
    if (tiles.size() >= kPackTiles) {
      const Visit visit{tiling.panel, true};
      const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.forward(edges, visit); });
      return by_row(edges, *order, tiles, order->packed_indices(), reader.packed(*order, t.nnz, scratch));
    }
    // Kept values give the same bits as others: each sum is made in the same order.
    if (tokens == 1) return by_column();
    if (tokens <= k.lanes) {
      const auto kept = kept_values(true, [&](A* out) { reader.packed(*few_order(edges), out); });
      if (!kept) return by_column();
      const auto order = few_order(edges);
      return by_row(edges, *order, tiles, order->packed_indices(), kept->data(),
                    [&](const LinearForwardTask<A>& task, int64_t) { k.forward_few(task); });
    }
    const Visit visit{tiling.panel, false};
    const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.forward(edges, visit); });
    const auto kept = kept_values(false, [&](A* out) {
      parallel_ranges(t.rows, 256, [&](int64_t begin, int64_t end) {
        reader.read({edges.pointers, edges.pointers + 1, nullptr, begin, end}, out + edges.pointers[begin]);
      });
    });
    if (kept) return by_row(edges, *order, tiles, edges.indices, kept->data());
    const Chunks chunks(*this, edges, *order);
    by_row(edges, *order, tiles, nullptr, nullptr, [&](const LinearForwardTask<A>& task, int64_t thread) {
      chunks.run(task, reader, thread);
    });
  }

 private:
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
        k.forward(task);
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
    const A* start = bias.data ? widened(bias, t.rows, kBias) : zeros(t.rows, kBias);
    const bool stream = streams(y, tokens);
    Schedule<A>{edges, order, tiles, Schedule<A>::share_tokens(tiles.size())}.run(
        x, nullptr, scratch,
        [&](const TokenTile& tile, size_t p, const A* x_tile, A* sums, int64_t thread, int64_t begin, int64_t end) {
          multiply({order.panels()[p], col, values, start, x_tile, sums, tokens_of(y, tile, stream), tile.vectors,
                    tile.paired, begin, end},
                   thread);
        });
  }

  std::shared_ptr<const EdgeOrder> few_order(const StoredEdges& edges) const {
    return t.plan->few(edges, {t.columns, true});
  }

  // The values by row, where the same ones were met before; `read` fills them.
  template <class Read>
  typename RowValues<A>::Kept kept_values(bool as_few, const Read& read) const {
    if (!t.plan || t.nnz == 0) return nullptr;
    const auto digest = [&] { return digest_of(k, w.data, t.nnz * static_cast<int64_t>(size_of(w.dtype))); };
    return t.plan->template row_values<A>(as_few).find(w.data, w.version, t.nnz, digest, read);
  }

  const A* widened(const Values& values, int64_t count, Slot slot) const {
    if (values.dtype == native<A>()) return static_cast<const A*>(values.data);
    A* wide = scratch.get<A>(slot, at_least_one(count));
    k.widen(values.dtype, values.data, count, wide);
    return wide;
  }

  const A* zeros(int64_t count, Slot slot) const {
    A* zero = scratch.get<A>(slot, at_least_one(count));
    std::fill_n(zero, count, A{0});
    return zero;
  }

  // At most one vector of tokens: edge by edge as the values are stored, each thread on rows of its own.
  void by_column() const {
    const bool one = tokens == 1;
    const int64_t width = one ? 1 : k.lanes;
    const StoredEdges edges{wide_pointers(t.by_column, t.columns, scratch), t.by_column.indices, t.columns, t.rows};
    const int64_t threads = t.nnz * width < kValueGrain ? 1 : num_threads();
    const ProductSize size{tokens, t.rows, t.columns, t.nnz, static_cast<int>(width), 1, sizeof(A)};
    const Visit visit{scatter_panel(size, threads), false};
    const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.scatter(edges, visit); });
    const A* values = ValueReader<A>{w, nullptr, false}.as_stored(t.nnz, scratch);
    const A* wide_bias = bias.data ? widened(bias, t.rows, kBias) : nullptr;
    const TokenTile tile{0, tokens, 1, false};
    A* x_tile = scratch.get<A>(kTile, at_least_one(t.columns * width));
    if (one) k.widen(x.dtype, x.data, t.columns, x_tile);
    else k.load_tile(tokens_of(x, tile), 0, t.columns, 1, false, x_tile, nullptr);
    A* y_tile = scratch.get<A>(kSums, at_least_one(t.rows * width));
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
          k.sum_parts(y_tile, 0, 1, begin, end, y.dtype, y.data);
        } else {
          k.scatter(scatter);
          k.store_tile(y_tile + begin * width, 1, tokens_of(y, tile), begin, end);
        }
      }
    });
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
