#include "linear/product.h"

namespace sparsekern {
namespace linear {
namespace {

template <class A>
struct Backward {
  const Topology& t;
  int64_t tokens;
  Activations grad, x;
  Values w;
  Activations dx;
  Values dw, dbias;
  Scratch& scratch = Scratch::of_this_thread();
  const LinearKernels<A>& k = kernels<A>();

  void run() const {
    const StoredEdges edges{wide_pointers(t.by_column, t.columns, scratch), t.by_column.indices, t.columns, t.rows};
    const Tiling tiling =
        backward_tiling({tokens, t.rows, t.columns, t.nnz, k.lanes, k.max_vectors, tile_element_bytes<A>(grad), !dx.data});
    const std::vector<TokenTile> tiles = cut_tokens(tokens, tiling.vectors, k.lanes, paired<A>(grad));
    const Visit visit{tiling.panel, tiles.size() >= kPackTiles};
    const auto order = find_order(t.plan, edges, visit, [&](LinearPlan& p) { return p.backward(edges, visit); });
    const ValueReader<A> reader{w, nullptr, false};
    const A* values = nullptr;
    if (dx.data) values = visit.packed ? reader.packed(*order, t.nnz, scratch) : reader.as_stored(t.nnz, scratch);

    const int64_t threads = num_threads();
    // Threads that share out tokens each need their own dw: no more memory for that than the activations take.
    const bool by_tokens = Schedule<A>::share_tokens(tiles.size()) &&
                           (threads == 1 || t.nnz * threads <= tokens * (t.rows + t.columns));
    const int64_t parts = by_tokens ? threads : 1;
    A* dw_sums = nullptr;
    if (dw.data) {
      const bool in_place = parts == 1 && dw.dtype == native<A>() && !visit.packed;
      dw_sums = in_place ? static_cast<A*>(dw.data) : scratch.get<A>(kParts, at_least_one(t.nnz * parts));
      clear(dw_sums, t.nnz * parts);
    }
    A* bias_sums = nullptr;
    if (dbias.data) {
      bias_sums = scratch.get<A>(kBiasParts, at_least_one(t.rows * parts));
      clear(bias_sums, t.rows * parts);
    }
    const bool stream = dx.data && streams(dx, tokens);
    const int32_t* row = visit.packed ? order->packed_indices() : edges.indices;
    Schedule<A>{edges, *order, tiles, by_tokens}.run(
        grad, bias_sums, scratch,
        [&](const TokenTile& tile, size_t p, const A* grad_tile, A* sums, int64_t thread, int64_t begin, int64_t end) {
          A* my_dw = dw_sums ? dw_sums + (by_tokens ? thread * t.nnz : 0) : nullptr;
          k.backward({order->panels()[p], row, values, grad_tile, dx.data ? sums : nullptr, tokens_of(x, tile),
                      tokens_of(dx, tile, stream), my_dw, tile.vectors, tile.paired, begin, end});
        });
    if (dbias.data) k.sum_parts(bias_sums, t.rows, parts, 0, t.rows, dbias.dtype, dbias.data);
    if (dw.data && dw_sums != dw.data) put_back(*order, dw_sums, parts);
  }

 private:
  void clear(A* sums, int64_t count) const {
    parallel_ranges(count, kValueGrain, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, A{0}); });
  }

  // Adds up the parts, always in the same order, and puts them where the values are stored.
  void put_back(const EdgeOrder& order, A* sums, int64_t parts) const {
    const auto add = [&](DType dtype, void* out) {
      parallel_ranges(t.nnz, kValueGrain, [&](int64_t begin, int64_t end) {
        k.sum_parts(sums, t.nnz, parts, begin, end, dtype, out);
      });
    };
    if (!order.visit().packed) return add(dw.dtype, dw.data);
    if (parts > 1) add(native<A>(), sums);
    order.for_each_run([&](const Runs& runs, int64_t place) { k.write_runs(sums + place, runs, dw.dtype, dw.data); });
  }
};

}  // namespace
}  // namespace linear

void linear_backward(const Topology& topology, int64_t tokens, const Activations& grad, const Activations& x,
                     const Values& w, const Activations& dx, const Values& dw, const Values& dbias) {
  if (tokens == 0) {
    if (dw.data) std::memset(dw.data, 0, topology.nnz * size_of(dw.dtype));
    if (dbias.data) std::memset(dbias.data, 0, topology.rows * size_of(dbias.dtype));
    return;
  }
  if (grad.dtype == DType::f64) linear::Backward<double>{topology, tokens, grad, x, w, dx, dw, dbias}.run();
  else linear::Backward<float>{topology, tokens, grad, x, w, dx, dw, dbias}.run();
}

}  // namespace sparsekern
