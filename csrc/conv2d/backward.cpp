#include "conv2d/call.h"
#include "conv2d/mover.h"

namespace sparsekern {
namespace {

template <class A>
class Backward : Call<A> {
  using Call<A>::shape;
  using Call<A>::edge_count;
  using Call<A>::kernels;

 public:
  Backward(const Conv2dShape& shape, int64_t edges, TensorRef grad, TensorRef x, TensorRef values, IndexRef ccol,
           const int32_t* row, TensorRef x_grad, TensorRef values_grad)
      : Call<A>(shape, edges), grad_(grad), x_(x), x_grad_(x_grad), values_grad_(values_grad),
        ccol_(this->pointers(ccol, shape.columns() + 1)), row_(row), planes_(shape.channels * shape.classes()) {
    weights_ = x_grad.data ? this->widened(values, edge_count, kWeights) : nullptr;
    edges_ = this->template get<Edge<A>>(kEdges, edge_count);
    starts_ = this->template get<int64_t>(kStarts, planes_ + 1);
    starts_[0] = 0;
    for (int64_t p = 0; p < planes_; ++p) {
      starts_[p + 1] = starts_[p];
      for_segments(p, [&](int64_t begin, int64_t end, const Axis::Tap&, const Axis::Tap&) {
        starts_[p + 1] += end - begin;
      });
    }
  }

  void run() {
    const int64_t row_elements = shape.x.extent() * (planes_ + shape.out_channels);
    const std::vector<Batch> batches = make_batches(shape, shape.y.extent(), row_elements, kernels.lanes,
                                                    this->direct(grad_.dtype), this->limit.tile_elements);
    // Sums of each team's own may take as much memory as the activations, together.
    const bool own_sums_fit =
        !values_grad_.data || edge_count * this->threads <= shape.batch * this->activations();
    int64_t most_teams = 1;
    std::vector<Teams> teams;
    for (const Batch& batch : batches) {
      teams.push_back(Teams::of(static_cast<int64_t>(batch.tiles.size()), this->threads, own_sums_fit));
      most_teams = std::max(most_teams, teams.back().count);
    }
    A* sums = this->template get<A>(kPartials, values_grad_.data ? most_teams * edge_count : 0);
    if (values_grad_.data)
      parallel_ranges(most_teams * edge_count, 1 << 16,
                      [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, A(0)); });
    for (size_t b = 0; b < batches.size(); ++b) run_batch(batches[b], teams[b], sums);
    if (values_grad_.data) store_values_grad(sums, most_teams);
  }

 private:
  // The edges of input plane p = class * channels + channel: for each tap of its class, the part of the tap's column
  // that belongs to the channel's group. Calls body(begin, end, tap of y, tap of x).
  template <class Body>
  void for_segments(int64_t p, const Body& body) const {
    const int64_t cls = p / shape.channels, channel = p % shape.channels;
    const int64_t group = channel / shape.group_channels();
    int64_t column = channel % shape.group_channels() * shape.taps();
    for (const Axis::Tap& r : shape.y.taps) {
      for (const Axis::Tap& s : shape.x.taps) {
        if (r.cls * shape.x.classes() + s.cls == cls) {
          int64_t begin = ccol_[column], end = ccol_[column + 1];
          if (shape.groups > 1) {
            const int32_t* rows = row_;
            const auto first_of = [&](int64_t g) {
              return std::lower_bound(rows + begin, rows + end, g * shape.group_out_channels()) - rows;
            };
            const int64_t group_begin = first_of(group);
            end = first_of(group + 1);
            begin = group_begin;
          }
          body(begin, end, r, s);
        }
        ++column;
      }
    }
  }

  void fill_edges(const Planes& planes) {
    const int64_t grad_plane = planes.grad_size * planes.unit;
    check_offsets(grad_plane * shape.out_channels + planes.slack());
    parallel_tasks(edge_tasks(), [&](int64_t task) {
      const Span mine = share_of_rows(starts_, planes_, task, edge_tasks());
      for (int64_t p = mine.begin; p < mine.end; ++p) {
        Edge<A>* edge = edges_ + starts_[p];
        for_segments(p, [&](int64_t begin, int64_t end, const Axis::Tap& r, const Axis::Tap& s) {
          const int64_t start = (planes.margin - r.shift * planes.pitch - s.shift) * planes.unit;
          for (int64_t k = begin; k < end; ++k)
            *edge++ = {static_cast<int32_t>(start + row_[k] * grad_plane), weights_ ? weights_[k] : A(0)};
        });
      }
    });
  }

  int64_t edge_tasks() const { return edge_count < (1 << 15) ? 1 : this->threads; }

  void run_batch(const Batch& batch, Teams teams, A* sums) {
    const Planes planes = Planes::backward(shape, batch, kernels.lanes);
    fill_edges(planes);
    const int64_t tiles = static_cast<int64_t>(batch.tiles.size());
    const bool direct = batch.kind == TileKind::direct;
    const int64_t in_size = direct ? 0 : planes_ * planes.input_size * planes.unit + planes.slack();
    const int64_t grad_size = direct ? 0 : shape.out_channels * planes.grad_size * planes.unit + planes.slack();
    // A lane tile's blocks cover exactly the pixels, so the gradient can take the input's place.
    const int64_t out_size = batch.kind == TileKind::flat && x_grad_.data ? in_size : 0;
    A* inputs = this->template get<A>(kInputPlanes, in_size * teams.count);
    A* grads = this->template get<A>(kGradPlanes, grad_size * teams.count);
    A* outputs = this->template get<A>(kOutPlanes, out_size * teams.count);
    parallel_tasks(teams.count, [&](int64_t team) {
      const Span mine = share(tiles, team, teams.count);
      A* input = inputs + in_size * team;
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        const Tile& tile = batch.tiles[t];
        const bool clear = t == mine.begin || !same_layout(tile, batch.tiles[t - 1]);
        run_tile(planes, tile, clear, teams.size, input, grads + grad_size * team,
                 out_size ? outputs + out_size * team : input, sums + edge_count * team);
      }
    });
  }

  void run_tile(const Planes& planes, const Tile& tile, bool clear, int64_t workers, A* input, A* grad, A* output,
                A* sums) {
    const Mover<A> x{kernels, x_, shape.channels, shape.pixels(), planes.kind, planes.unit, false};
    const Mover<A> dx{kernels, x_grad_, shape.channels, shape.pixels(), planes.kind, planes.unit,
                      shape.batch * shape.channels * shape.pixels() > kStreamElements};
    const Mover<A> dy{kernels, grad_, shape.out_channels, shape.out_pixels(), planes.kind, planes.unit, false};
    Layout layout;
    if (planes.kind == TileKind::direct) {
      const int64_t image = tile.images.begin;
      grad = reinterpret_cast<A*>(dy.at(image * dy.image_stride()));
      if (values_grad_.data) input = reinterpret_cast<A*>(x.at(image * x.image_stride()));
      if (x_grad_.data) output = reinterpret_cast<A*>(dx.at(image * dx.image_stride()));
    } else {
      layout = planes.input(tile, tile.rows);
      const Layout grad_layout = planes.grad(tile);
      parallel_tasks(workers, [&](int64_t worker) {
        const Span outs = share(shape.out_channels, worker, workers);
        if (clear) dy.clear_gaps(grad_layout, outs, grad);
        dy.pack(grad_layout, tile, outs, grad);
        if (!values_grad_.data) return;
        const Span channels = share(shape.channels, worker, workers);
        if (clear) x.clear_gaps(layout, channels, input);
        x.pack(layout, tile, channels, input);
      });
    }
    const auto& table = !values_grad_.data ? kernels.input_grad
                        : !x_grad_.data    ? kernels.weight_grad
                                           : kernels.backward;
    parallel_tasks(workers, [&](int64_t worker) {
      const Span mine = share_of_rows(starts_, planes_, worker, workers);
      for (int64_t cls = 0; cls < shape.classes(); ++cls) {
        const Span rows = intersect(mine, {cls * shape.channels, (cls + 1) * shape.channels});
        if (rows.length() == 0) continue;
        const BackwardArgs<A> args{input, output, planes.input_size * planes.unit, grad,
                                   {edges_, starts_}, rows.begin, rows.end, sums};
        for (const Block& block : planes.backward_blocks(tile, cls, kernels.backward_vectors))
          table[block.rows_log2][block.width](args, block);
      }
    });
    if (x_grad_.data && planes.kind != TileKind::direct) {
      parallel_tasks(workers, [&](int64_t worker) {
        dx.unpack(layout, tile, share(shape.channels, worker, workers), output);
      });
    }
  }

  // Adds up the teams' sums, always in the same order, and puts them where the values are stored.
  void store_values_grad(A* sums, int64_t teams) {
    const int d = static_cast<int>(values_grad_.dtype);
    parallel_tasks(edge_tasks(), [&](int64_t task) {
      const Span mine = share_of_rows(starts_, planes_, task, edge_tasks());
      const int64_t first = starts_[mine.begin], end = starts_[mine.end];
      for (int64_t team = 1; team < teams; ++team)
        for (int64_t k = first; k < end; ++k) sums[k] += sums[team * edge_count + k];
      for (int64_t p = mine.begin; p < mine.end; ++p) {
        const A* from = sums + starts_[p];
        for_segments(p, [&](int64_t begin, int64_t end, const Axis::Tap&, const Axis::Tap&) {
          char* to = static_cast<char*>(values_grad_.data) + begin * size_of(values_grad_.dtype);
          kernels.narrow[d](from, end - begin, 1, to);
          from += end - begin;
        });
      }
    });
  }

  TensorRef grad_, x_, x_grad_, values_grad_;
  const int64_t* ccol_;
  const int32_t* row_;
  int64_t planes_;  // of the input: channels x classes
  const A* weights_;
  Edge<A>* edges_;
  int64_t* starts_;
};

}  // namespace

void conv2d_backward(const Conv2dShape& shape, int64_t edges, TensorRef grad, TensorRef x, TensorRef values,
                     IndexRef ccol, const int32_t* row, TensorRef x_grad, TensorRef values_grad) {
  if (!x_grad.data && !values_grad.data) return;  // the gradient of no values has no address either
  if (grad.dtype == DType::f64) Backward<double>(shape, edges, grad, x, values, ccol, row, x_grad, values_grad).run();
  else Backward<float>(shape, edges, grad, x, values, ccol, row, x_grad, values_grad).run();
}

}  // namespace sparsekern
