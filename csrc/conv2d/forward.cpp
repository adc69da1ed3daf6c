#include <utility>

#include "conv2d/call.h"
#include "conv2d/mover.h"
#include "conv2d/shift_mover.h"

namespace sparsekern {
namespace {

template <class P>
class Forward : Call<P> {
  using typename Call<P>::A;
  using Call<P>::shape;
  using Call<P>::edge_count;
  using Call<P>::kernels;

 public:
  Forward(const Conv2dShape& given, int64_t edges, TensorRef x, TensorRef values, TensorRef bias, IndexRef crow,
          const int32_t* col, IndexRef permutation, TensorRef y)
      : Call<P>(given, edges), x_(x), y_(y), values_(values), bias_ref_(bias), crow_ref_(crow),
        rows_(shape.out_channels), col_(col), permutation_(permutation) {}

  // False, and nothing is done, where the planes cannot be of this type.
  bool run() {
    const std::vector<Batch> batches = this->batches();
    if (!this->know(batches)) return false;
    take_operands();
    for (const Batch& batch : batches) {
      const bool in_place = batch.kind == TileKind::row && this->reads_in_place(x_.dtype, shape.channels);
      const Planes planes = Planes::forward(shape, batch, kernels.lanes, in_place);
      panels_ = choose_panels(planes, batch);
      if (permutation_.is_64) fill_edges<int64_t>(planes);
      else fill_edges<int32_t>(planes);
      const int64_t tiles = static_cast<int64_t>(batch.tiles.size());
      const Teams teams = Teams::of(tiles, this->threads, true);
      const int64_t copies =
          planes.kind == TileKind::shifted ? shape.y.classes() * planes.shifts.copies() : shape.classes();
      const int64_t in_planes = shape.channels * copies * planes.input_size;
      const int64_t in_size = in_place ? 0 : in_planes * planes.unit + planes.slack();
      int64_t out_size = 0;
      if (batch.kind != TileKind::lane && !planes.direct) out_size = rows_ * planes.out_size;
      if (planes.direct && y_.dtype != this->native()) out_size = rows_ * shape.out_pixels();
      const int64_t sums_size = panels_.count > 1 ? rows_ * kernels.forward_vectors * kernels.lanes : 0;
      P* inputs = this->template get<P>(kInputPlanes, in_size * teams.count);
      P* outputs = this->template get<P>(kOutPlanes, out_size * teams.count);
      A* sums = this->template get<A>(kSums, sums_size * teams.count);
      parallel_tasks(teams.count, [&](int64_t team) {
        const Span mine = share(tiles, team, teams.count);
        for (int64_t t = mine.begin; t < mine.end; ++t) {
          const Tile& tile = batch.tiles[t];
          const bool clear = t == mine.begin || !same_layout(tile, batch.tiles[t - 1]);
          run_tile(planes, tile, clear, teams.size, inputs + in_size * team, outputs + out_size * team,
                   sums + sums_size * team);
        }
      });
    }
    return true;
  }

 private:
  void take_operands() {
    crow_ = this->pointers(crow_ref_, rows_ + 1);
    weights_ = this->widened(values_, edge_count, kWeights);
    if (bias_ref_.data) {
      bias_ = this->widened(bias_ref_, rows_, kBias);
    } else {
      A* zeros = this->template get<A>(kBias, rows_);
      std::fill_n(zeros, rows_, A(0));
      bias_ = zeros;
    }
    edges_ = this->template get<Edge<A>>(kEdges, edge_count);
  }

  std::vector<Batch> batches() const {
    if (this->shifts_pay(shape.channels)) {
      const Shifts shifts = Shifts::forward(shape, kernels.lanes);
      const int64_t copies = shape.y.classes() * shifts.copies();
      const int64_t row_elements =
          shifts.pitch(kernels.lanes) * (copies * shape.channels + (shifts.images > 1 ? rows_ : 0));
      std::vector<Batch> shifted =
          make_shifted_batch(shape, shifts, shape.y.out, row_elements, this->shifted_elements());
      if (!shifted.empty()) return shifted;
    }
    const int64_t row_elements = shape.x.extent() * shape.channels * shape.classes();
    return make_batches(shape, shape.y.out, row_elements, kernels.lanes, this->in_rows && !lanes_pay(row_elements),
                        this->tile_elements());
  }

  int block_vectors(const Planes& planes) const {
    return planes.kind == TileKind::shifted ? kernels.backward_vectors : kernels.forward_vectors;
  }

  // Whether rows have so many edges that lane tiles, whose vectors are all aligned, win over row tiles, which have no
  // transposition: where enough of them fall into each of the lane tiles' panels.
  bool lanes_pay(int64_t row_elements) const {
    if (shape.batch < kernels.lanes) return false;
    const Batch batch = make_batches(shape, shape.y.out, row_elements, kernels.lanes, false,
                                     this->limit.tile_elements)[0];
    const Planes planes = Planes::forward(shape, batch, kernels.lanes, false);
    const Panels panels = choose_panels(planes, batch);
    return panels.count > 1 && edge_count >= rows_ * panels.count * this->limit.lane_panel_edges;
  }

  Panels choose_panels(const Planes& planes, const Batch& batch) const {
    if (batch.tiles.empty()) return {1, 1};
    const int64_t window = planes.window(planes.forward_blocks(batch.tiles[0], block_vectors(planes)));
    const int64_t classes = planes.kind == TileKind::shifted ? shape.y.classes() : shape.classes();
    return this->panels(shape.group_channels(), window * classes, rows_);
  }

  template <class Index>
  void fill_edges(const Planes& planes) {
    const int64_t plane = planes.input_size * planes.unit;
    check_offsets(shape.channels * std::max(shape.classes(), shape.y.classes() * planes.shifts.copies()) * plane +
                  planes.slack());
    int32_t* column_offset = this->template get<int32_t>(kColumns, shape.columns());
    int64_t column = 0;
    const bool shifted = planes.kind == TileKind::shifted;
    for (int64_t c = 0; c < shape.group_channels(); ++c) {
      for (const Axis::Tap& r : shape.y.taps) {
        for (size_t t = 0; t < shape.x.taps.size(); ++t) {
          const Axis::Tap& s = shape.x.taps[t];
          const int64_t number = shifted ? r.cls * planes.shifts.copies() + planes.shifts.of_tap[t]
                                         : r.cls * shape.x.classes() + s.cls;
          column_offset[column++] =
              static_cast<int32_t>((number * shape.channels + c) * plane +
                                   (r.shift * planes.pitch + (shifted ? 0 : s.shift)) * planes.unit);
        }
      }
    }
    place_edges();
    const Index* permutation = static_cast<const Index*>(permutation_.data);
    parallel_tasks(this->edge_tasks(), [&](int64_t task) {
      const Span mine = share_of_rows(crow_, rows_, task, this->edge_tasks());
      for (int64_t o = mine.begin; o < mine.end; ++o) {
        const int64_t group = o / shape.group_out_channels();
        const int32_t start = static_cast<int32_t>(group * shape.group_channels() * plane);
        int64_t j = crow_[o];
        for (int64_t p = o; p < panels_.count * rows_; p += rows_)
          for (int64_t place = places_[p]; place < places_[p + 1]; ++place, ++j)
            edges_[place] = {start + column_offset[col_[j]], weights_[permutation[j]]};
      }
    });
  }

  // Rows' edges lie panel by panel: those of row o in panel p at places_[p * rows + o].
  void place_edges() {
    if (panels_.count == 1) {
      places_ = crow_;
      return;
    }
    int64_t* places = this->template get<int64_t>(kPlaces, panels_.count * rows_ + 1);
    for (int64_t o = 0; o < rows_; ++o) {
      const int32_t *from = col_ + crow_[o], *end = col_ + crow_[o + 1];
      for (int64_t p = 0; p < panels_.count; ++p) {
        const int32_t* to = std::lower_bound(from, end, (p + 1) * panels_.channels * shape.taps());
        places[p * rows_ + o + 1] = to - from;
        from = to;
      }
    }
    places[0] = 0;
    for (int64_t i = 0; i < panels_.count * rows_; ++i) places[i + 1] += places[i];
    places_ = places;
  }

  void run_tile(const Planes& planes, const Tile& tile, bool clear, int64_t workers, P* input, P* output, A* sums) {
    const Mover<P> x{kernels, x_, shape.channels, shape.pixels(), planes.kind, planes.unit, false};
    const Mover<P> y{kernels, y_, rows_, shape.out_pixels(), planes.kind, planes.unit,
                     shape.batch * rows_ * shape.out_pixels() > kStreamElements};
    const int64_t image = tile.images.begin;
    if (planes.in_place) {
      input = x.template image<P>(image);
    } else if (planes.kind == TileKind::shifted) {
      parallel_tasks(workers, [&](int64_t worker) {
        const Span channels = share(shape.channels, worker, workers);
        ShiftMover<P>{shape, planes}.pack_shifted_input(x, tile, channels, clear, input);
      });
    } else {
      const Layout layout = planes.input(tile, {tile.rows.begin, tile.rows.end + shape.y.reach});
      parallel_tasks(workers, [&](int64_t worker) {
        const Span channels = share(shape.channels, worker, workers);
        if (clear) x.clear_gaps(layout, channels, input);
        x.pack(layout, tile, channels, input);
      });
    }
    const bool converts = planes.direct && y_.dtype != this->native();
    Sink<P> sink{nullptr, output, planes.direct ? y.pixels : planes.out_size, 0, 1, false};
    if (planes.direct && !converts) sink = {nullptr, y.at(image * y.image_stride()), y.pixels, 0, 1, y.stream};
    if (planes.kind == TileKind::lane)
      sink = {kernels.put_lanes[static_cast<int>(y_.dtype)], y.at(image * y.image_stride()), y.pixels,
              y.image_stride(), static_cast<int>(tile.images.length()), y.stream};
    const std::vector<Block> blocks = planes.forward_blocks(tile, block_vectors(planes));
    parallel_tasks(workers, [&](int64_t worker) {
      const Span rows = share_of_rows(crow_, rows_, worker, workers);
      const ForwardArgs<P> args{input, rows.begin, rows.end, bias_, sink};
      for (const Block& block : blocks) {
        for (int64_t p = 0; p < panels_.count; ++p) {
          const ChannelPanel<A> panel{{edges_, places_ + p * rows_}, sums, block_vectors(planes) * kernels.lanes,
                                       p == 0, p + 1 == panels_.count};
          kernels.forward[block.rows_log2][block.width](args, panel, block);
        }
      }
      if (converts) y.narrow_rows(tile.images.begin, rows, tile.rows, shape.x.out, output);
    });
    if (planes.kind == TileKind::shifted && !planes.direct) {
      parallel_tasks(workers, [&](int64_t worker) {
        ShiftMover<P>{shape, planes}.unpack_output(y, tile, share(rows_, worker, workers), output);
      });
    }
    if (planes.kind == TileKind::flat) {
      const Layout layout = planes.output(tile);
      parallel_tasks(workers, [&](int64_t worker) {
        y.unpack(layout, tile, share(rows_, worker, workers), output);
      });
    }
  }

  TensorRef x_, y_, values_, bias_ref_;
  IndexRef crow_ref_;
  int64_t rows_;  // output channels
  const int64_t* crow_;
  const int32_t* col_;
  IndexRef permutation_;
  const A* weights_;
  const A* bias_;
  Edge<A>* edges_;
  Panels panels_;
  const int64_t* places_;
};

}  // namespace

Conv2dLimits conv2d_limits;

Conv2dLimits exchange_conv2d_limits(Conv2dLimits limits) { return std::exchange(conv2d_limits, limits); }

void conv2d_forward(const Conv2dShape& shape, int64_t edges, TensorRef x, TensorRef values, TensorRef bias,
                    IndexRef crow, const int32_t* col, IndexRef permutation, TensorRef y) {
  const auto run = [&](auto plane) {
    return Forward<decltype(plane)>(shape, edges, x, values, bias, crow, col, permutation, y).run();
  };
  if (x.dtype == DType::f64) run(double());
  else if (x.dtype != DType::bf16 || !run(Bf16Bits())) run(float());
}

}  // namespace sparsekern
