#include "conv2d/call.h"
#include "conv2d/mover.h"
#include "conv2d/shift_mover.h"

namespace sparsekern {
namespace {

template <class P>
class Backward : Call<P> {
  using typename Call<P>::A;
  using Call<P>::shape;
  using Call<P>::edge_count;
  using Call<P>::kernels;

 public:
  Backward(const Conv2dShape& given, int64_t edges, TensorRef grad, TensorRef x, TensorRef values, IndexRef ccol,
           const int32_t* row, TensorRef x_grad, TensorRef values_grad, TensorRef bias_grad)
      : Call<P>(given, edges), grad_(grad), x_(x), values_(values), x_grad_(x_grad), values_grad_(values_grad), bias_grad_(bias_grad),
        ccol_ref_(ccol), row_(row), planes_(shape.channels * shape.classes()) {}

  // False, and nothing is done, where the planes cannot be of this type.
  bool run() {
    const std::vector<Batch> batches = this->batches();
    if (!this->know(batches)) return false;
    take_operands();
    if (!batches.empty()) place_edges(batches[0]);
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
    const int64_t bias_size = bias_grad_.data ? shape.out_channels * kernels.sum_lanes : 0;
    bias_sums_ = this->template get<A>(kBiasSums, most_teams * bias_size);
    std::fill_n(bias_sums_, most_teams * bias_size, A(0));
    for (size_t b = 0; b < batches.size(); ++b) run_batch(batches[b], teams[b], sums);
    if (values_grad_.data) store_values_grad(sums, most_teams);
    if (bias_grad_.data) store_bias_grad(most_teams);
    return true;
  }

 private:
  void take_operands() {
    ccol_ = this->pointers(ccol_ref_, shape.columns() + 1);
    weights_ = x_grad_.data ? this->widened(values_, edge_count, kWeights) : nullptr;
    edges_ = this->template get<Edge<A>>(kEdges, edge_count);
    starts_ = this->template get<int64_t>(kStarts, planes_ + 1);
    places_ = starts_;
    starts_[0] = 0;
    for (int64_t p = 0; p < planes_; ++p) {
      starts_[p + 1] = starts_[p];
      for_segments(p, 0, [&](int64_t begin, int64_t end, const Axis::Tap&, const Axis::Tap&) {
        starts_[p + 1] += end - begin;
      });
    }
  }

  std::vector<Batch> batches() const {
    if (this->shifts_pay(shape.out_channels)) {
      const Shifts shifts = Shifts::backward(shape, kernels.lanes);
      const bool direct = shifts.images == 1 && shape.classes() == 1;
      const int64_t row_elements =
          shifts.pitch(kernels.lanes) * (shifts.copies() * shape.out_channels + (direct ? 0 : planes_));
      std::vector<Batch> shifted =
          make_shifted_batch(shape, shifts, shape.y.extent(), row_elements, this->shifted_elements());
      if (!shifted.empty()) return shifted;
    }
    const int64_t row_elements = shape.x.extent() * (planes_ + shape.out_channels);
    return make_batches(shape, shape.y.extent(), row_elements, kernels.lanes, this->in_rows, this->tile_elements());
  }

  // The edges of input plane p = class * channels + channel in a panel: for each tap of its class, the part of the
  // tap's column that belongs to the channel's group and the panel. Calls body(begin, end, tap of y, tap of x).
  template <class Body>
  void for_segments(int64_t p, int64_t panel, const Body& body) const {
    const int64_t cls = p / shape.channels, channel = p % shape.channels;
    const int64_t first_row = channel / shape.group_channels() * shape.group_out_channels();
    const Span rows = intersect({first_row, first_row + shape.group_out_channels()},
                                {first_row + panel * panels_.channels, first_row + (panel + 1) * panels_.channels});
    int64_t column = channel % shape.group_channels() * shape.taps();
    for (const Axis::Tap& r : shape.y.taps) {
      for (const Axis::Tap& s : shape.x.taps) {
        if (r.cls * shape.x.classes() + s.cls == cls) {
          int64_t begin = ccol_[column], end = ccol_[column + 1];
          if (rows.length() < shape.out_channels) {
            const int32_t* from = std::lower_bound(row_ + begin, row_ + end, rows.begin);
            end = std::lower_bound(from, row_ + end, rows.end) - row_;
            begin = from - row_;
          }
          body(begin, end, r, s);
        }
        ++column;
      }
    }
  }

  // Chooses the panels, the same for all batches as their sums are, and places the edges panel by panel: those of
  // plane i in panel p at places_[p * planes + i].
  void place_edges(const Batch& batch) {
    // An edge that reads whole lines once for two products: the second level cache keeps up with that.
    if (batch.tiles.empty() || batch.kind == TileKind::lane || batch.kind == TileKind::shifted) return;
    const Planes planes = Planes::backward(shape, batch, kernels.lanes, false);
    int64_t window = 1;
    for (int64_t cls = 0; cls < shape.classes(); ++cls)
      window = std::max(window, planes.window(planes.backward_blocks(batch.tiles[0], cls, kernels.backward_vectors)));
    panels_ = this->panels(shape.group_out_channels(), window, planes_);
    if (panels_.count == 1) return;
    int64_t* places = this->template get<int64_t>(kPlaces, panels_.count * planes_ + 1);
    int64_t place = 0;
    for (int64_t panel = 0; panel < panels_.count; ++panel) {
      for (int64_t p = 0; p < planes_; ++p) {
        places[panel * planes_ + p] = place;
        for_segments(p, panel, [&](int64_t begin, int64_t end, const Axis::Tap&, const Axis::Tap&) {
          place += end - begin;
        });
      }
    }
    places[panels_.count * planes_] = place;
    places_ = places;
  }

  // Calls body(place, begin, end, tap of y, tap of x) for the runs of edges of input plane p: where a run is placed
  // and which of the stored edges it is.
  template <class Body>
  void for_runs(int64_t p, const Body& body) const {
    for (int64_t panel = 0; panel < panels_.count; ++panel) {
      int64_t place = places_[panel * planes_ + p];
      for_segments(p, panel, [&](int64_t begin, int64_t end, const Axis::Tap& r, const Axis::Tap& s) {
        body(place, begin, end, r, s);
        place += end - begin;
      });
    }
  }

  void fill_edges(const Planes& planes) {
    const int64_t grad_plane = planes.grad_size * planes.unit;
    const bool shifted = planes.kind == TileKind::shifted;
    check_offsets(grad_plane * shape.out_channels * std::max<int64_t>(1, planes.shifts.copies()) + planes.slack());
    parallel_tasks(this->edge_tasks(), [&](int64_t task) {
      const Span mine = share_of_rows(starts_, planes_, task, this->edge_tasks());
      for (int64_t p = mine.begin; p < mine.end; ++p) {
        for_runs(p, [&](int64_t place, int64_t begin, int64_t end, const Axis::Tap& r, const Axis::Tap& s) {
          int64_t start = (planes.margin - r.shift * planes.pitch) * planes.unit;
          if (shifted) start += planes.shifts.of_tap[&s - shape.x.taps.data()] * shape.out_channels * grad_plane;
          else start -= s.shift * planes.unit;
          for (int64_t k = begin; k < end; ++k)
            edges_[place++] = {static_cast<int32_t>(start + row_[k] * grad_plane), weights_ ? weights_[k] : A(0)};
        });
      }
    });
  }

  void run_batch(const Batch& batch, Teams teams, A* sums) {
    const bool in_place = batch.kind == TileKind::row && this->reads_in_place(grad_.dtype, shape.out_channels);
    const Planes planes = Planes::backward(shape, batch, kernels.lanes, in_place);
    fill_edges(planes);
    const int64_t tiles = static_cast<int64_t>(batch.tiles.size());
    int64_t in_size = planes_ * planes.input_size * planes.unit + planes.slack();
    if (planes.direct) in_size = converts() ? shape.channels * shape.pixels() : 0;
    const int64_t copies = std::max<int64_t>(1, planes.shifts.copies());
    const int64_t grad_size =
        in_place ? 0 : copies * shape.out_channels * planes.grad_size * planes.unit + planes.slack();
    // But for flat tiles, blocks cover exactly the pixels, so the gradient can take the input's place.
    const int64_t out_size = batch.kind == TileKind::flat && x_grad_.data ? in_size : 0;
    const int64_t waiting_size =
        panels_.count > 1 && x_grad_.data ? planes_ * kernels.backward_vectors * kernels.lanes : 0;
    P* inputs = this->template get<P>(kInputPlanes, in_size * teams.count);
    P* grads = this->template get<P>(kGradPlanes, grad_size * teams.count);
    P* outputs = this->template get<P>(kOutPlanes, out_size * teams.count);
    A* waiting = this->template get<A>(kSums, waiting_size * teams.count);
    parallel_tasks(teams.count, [&](int64_t team) {
      const Span mine = share(tiles, team, teams.count);
      P* input = inputs + in_size * team;
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        const Tile& tile = batch.tiles[t];
        const bool clear = t == mine.begin || !same_layout(tile, batch.tiles[t - 1]);
        run_tile(planes, tile, clear, teams.size, input, grads + grad_size * team,
                 out_size ? outputs + out_size * team : input, waiting + waiting_size * team,
                 sums + edge_count * team, bias_sums_ + shape.out_channels * kernels.sum_lanes * team);
      }
    });
  }

  // Row tiles: whether the tensors' elements are not those that kernels work on.
  bool converts() const { return grad_.dtype != this->native(); }

  void run_tile(const Planes& planes, const Tile& tile, bool clear, int64_t workers, P* input, P* grad, P* output,
                A* waiting, A* sums, A* bias_sums) {
    const Mover<P> x{kernels, x_, shape.channels, shape.pixels(), planes.kind, planes.unit, false};
    const Mover<P> dx{kernels, x_grad_, shape.channels, shape.pixels(), planes.kind, planes.unit,
                      shape.batch * shape.channels * shape.pixels() > kStreamElements};
    const Mover<P> dy{kernels, grad_, shape.out_channels, shape.out_pixels(), planes.kind, planes.unit, false};
    const bool row = planes.direct, shifted = planes.kind == TileKind::shifted;
    const int64_t image = tile.images.begin;
    // The input's rows that a row tile works on.
    const Span rows = shape.y.positions(tile.rows);
    if (planes.in_place) grad = dy.template image<P>(image);
    if (row && !converts()) {
      if (values_grad_.data) input = x.template image<P>(image);
      if (x_grad_.data) output = dx.template image<P>(image);
    }
    Layout layout, grad_layout;
    if (!row && !shifted) layout = planes.input(tile, tile.rows);
    if (!shifted) grad_layout = planes.grad(tile);
    parallel_tasks(workers, [&](int64_t worker) {
      const Span outs = share(shape.out_channels, worker, workers);
      const ShiftMover<P> shift{shape, planes};
      const Span pixels = out_pixels_of(tile);
      const int64_t bytes = std::max<int64_t>(1, tile.images.length() * pixels.length() * size_of(grad_.dtype));
      const int64_t few = bias_grad_.data ? std::max<int64_t>(1, kBiasBytes / bytes) : shape.out_channels;
      for (int64_t c = outs.begin; c < outs.end; c += few) {
        const Span these = intersect(outs, {c, c + few});
        if (bias_grad_.data) dy.sum(tile.images, these, pixels, bias_sums);
        if (shifted) {
          shift.pack_shifted_grad(dy, tile, these, clear, grad);
        } else if (!planes.in_place) {
          if (clear) dy.clear_gaps(grad_layout, these, grad);
          dy.pack(grad_layout, tile, these, grad);
        }
      }
      if (!values_grad_.data) return;
      const Span channels = share(shape.channels, worker, workers);
      if (row) {
        if (converts()) x.widen_rows(image, channels, rows, shape.x.size, input);
        return;
      }
      if (shifted) return shift.pack_input(x, tile, channels, input);
      // A lane tile's blocks cover exactly the pixels.
      if (clear && planes.kind == TileKind::flat) x.clear_gaps(layout, channels, input);
      x.pack(layout, tile, channels, input);
    });
    const auto& table = !values_grad_.data ? kernels.input_grad
                        : !x_grad_.data    ? kernels.weight_grad
                                           : kernels.backward;
    parallel_tasks(workers, [&](int64_t worker) {
      const Span mine = share_of_rows(starts_, planes_, worker, workers);
      for (int64_t cls = 0; cls < shape.classes(); ++cls) {
        const Span planes_here = intersect(mine, {cls * shape.channels, (cls + 1) * shape.channels});
        if (planes_here.length() == 0) continue;
        const BackwardArgs<P> args{input, output, row ? shape.pixels() : planes.input_size * planes.unit, grad,
                                   planes_here.begin, planes_here.end, sums, row && !converts() && dx.stream};
        for (const Block& block : planes.backward_blocks(tile, cls, kernels.backward_vectors)) {
          for (int64_t p = 0; p < panels_.count; ++p) {
            const ChannelPanel<A> panel{{edges_, places_ + p * planes_}, waiting,
                                        kernels.backward_vectors * kernels.lanes, p == 0, p + 1 == panels_.count};
            table[block.rows_log2][block.width](args, panel, block);
          }
        }
      }
    });
    if (!x_grad_.data || (row && !converts())) return;
    parallel_tasks(workers, [&](int64_t worker) {
      const Span channels = share(shape.channels, worker, workers);
      if (row) dx.narrow_rows(image, channels, rows, shape.x.size, output);
      else if (shifted) ShiftMover<P>{shape, planes}.unpack_input_grad(dx, tile, channels, output);
      else dx.unpack(layout, tile, channels, output);
    });
  }

  // The output's pixels that are this tile's, not also another's.
  Span out_pixels_of(const Tile& tile) const {
    const Span rows = intersect({0, shape.y.out}, tile.rows);
    return {rows.begin * shape.x.out, rows.end * shape.x.out};
  }

  void store_bias_grad(int64_t teams) {
    A* totals = this->template get<A>(kBias, shape.out_channels);
    std::fill_n(totals, shape.out_channels, A(0));
    const A* sums = bias_sums_;
    for (int64_t team = 0; team < teams; ++team)
      for (int64_t c = 0; c < shape.out_channels; ++c)
        for (int lane = 0; lane < kernels.sum_lanes; ++lane) totals[c] += *sums++;
    kernels_of<A>(active_isa()).narrow[static_cast<int>(bias_grad_.dtype)](totals, shape.out_channels, 1,
                                                                           bias_grad_.data);
  }

  // Adds up the teams' sums, always in the same order, and puts them where the values are stored.
  void store_values_grad(A* sums, int64_t teams) {
    const auto narrow = kernels_of<A>(active_isa()).narrow[static_cast<int>(values_grad_.dtype)];
    if (teams > 1)
      parallel_ranges(edge_count, 1 << 15, [&](int64_t begin, int64_t end) {
        for (int64_t team = 1; team < teams; ++team)
          for (int64_t k = begin; k < end; ++k) sums[k] += sums[team * edge_count + k];
      });
    parallel_tasks(this->edge_tasks(), [&](int64_t task) {
      const Span mine = share_of_rows(starts_, planes_, task, this->edge_tasks());
      for (int64_t p = mine.begin; p < mine.end; ++p) {
        for_runs(p, [&](int64_t place, int64_t begin, int64_t end, const Axis::Tap&, const Axis::Tap&) {
          char* to = static_cast<char*>(values_grad_.data) + begin * size_of(values_grad_.dtype);
          narrow(sums + place, end - begin, 1, to);
        });
      }
    });
  }

  TensorRef grad_, x_, values_, x_grad_, values_grad_, bias_grad_;
  IndexRef ccol_ref_;
  const int64_t* ccol_;
  const int32_t* row_;
  int64_t planes_;  // of the input: channels x classes
  const A* weights_;
  Edge<A>* edges_;
  A* bias_sums_;            // of each team, a vector for each output channel
  int64_t* starts_;         // edges of the planes before each
  Panels panels_{1, shape.out_channels};
  const int64_t* places_;
};

}  // namespace

void conv2d_backward(const Conv2dShape& shape, int64_t edges, TensorRef grad, TensorRef x, TensorRef values,
                     IndexRef ccol, const int32_t* row, TensorRef x_grad, TensorRef values_grad, TensorRef bias_grad) {
  if (!x_grad.data && !values_grad.data && !bias_grad.data) return;  // the gradient of no values has no address either
  const auto run = [&](auto plane) {
    return Backward<decltype(plane)>(shape, edges, grad, x, values, ccol, row, x_grad, values_grad, bias_grad).run();
  };
  if (grad.dtype == DType::f64) run(double());
  else if (grad.dtype != DType::bf16 || !run(Bf16Bits())) run(float());
}

}  // namespace sparsekern
