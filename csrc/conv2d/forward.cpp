#include <utility>

#include "conv2d/call.h"
#include "conv2d/mover.h"

namespace sparsekern {
namespace {

template <class A>
class Forward : Call<A> {
  using Call<A>::shape;
  using Call<A>::edge_count;
  using Call<A>::kernels;

 public:
  Forward(const Conv2dShape& shape, int64_t edges, TensorRef x, TensorRef values, TensorRef bias, IndexRef crow,
          const int32_t* col, IndexRef permutation, TensorRef y)
      : Call<A>(shape, edges), x_(x), y_(y), crow_(this->pointers(crow, shape.out_channels + 1)), col_(col),
        permutation_(permutation) {
    const int64_t rows = shape.out_channels;
    weights_ = this->widened(values, edge_count, kWeights);
    if (bias.data) {
      bias_ = this->widened(bias, rows, kBias);
    } else {
      A* zeros = this->template get<A>(kBias, rows);
      std::fill_n(zeros, rows, A(0));
      bias_ = zeros;
    }
    edges_ = this->template get<Edge<A>>(kEdges, edge_count);
  }

  void run() {
    const int64_t row_elements = shape.x.extent() * shape.channels * shape.classes();
    const std::vector<Batch> batches = make_batches(shape, shape.y.out, row_elements, kernels.lanes,
                                                    this->direct(x_.dtype), this->limit.tile_elements);
    for (const Batch& batch : batches) {
      const Planes planes = Planes::forward(shape, batch, kernels.lanes);
      if (permutation_.is_64) fill_edges<int64_t>(planes);
      else fill_edges<int32_t>(planes);
      const int64_t tiles = static_cast<int64_t>(batch.tiles.size());
      const Teams teams = Teams::of(tiles, this->threads, true);
      const int64_t in_planes = shape.channels * shape.classes() * planes.input_size;
      const int64_t in_size = batch.kind == TileKind::direct ? 0 : in_planes * planes.unit + planes.slack();
      const int64_t out_size = batch.kind == TileKind::flat ? shape.out_channels * planes.out_size : 0;
      A* inputs = this->template get<A>(kInputPlanes, in_size * teams.count);
      A* outputs = this->template get<A>(kOutPlanes, out_size * teams.count);
      parallel_tasks(teams.count, [&](int64_t team) {
        const Span mine = share(tiles, team, teams.count);
        for (int64_t t = mine.begin; t < mine.end; ++t) {
          const Tile& tile = batch.tiles[t];
          const bool clear = t == mine.begin || !same_layout(tile, batch.tiles[t - 1]);
          run_tile(planes, tile, clear, teams.size, inputs + in_size * team, outputs + out_size * team);
        }
      });
    }
  }

 private:
  template <class Index>
  void fill_edges(const Planes& planes) {
    const int64_t plane = planes.input_size * planes.unit;
    check_offsets(shape.channels * shape.classes() * plane + planes.slack());
    int32_t* column_offset = this->template get<int32_t>(kColumns, shape.columns());
    int64_t column = 0;
    for (int64_t c = 0; c < shape.group_channels(); ++c)
      for (const Axis::Tap& r : shape.y.taps)
        for (const Axis::Tap& s : shape.x.taps)
          column_offset[column++] = static_cast<int32_t>(
              ((r.cls * shape.x.classes() + s.cls) * shape.channels + c) * plane +
              (r.shift * planes.pitch + s.shift) * planes.unit);
    const Index* permutation = static_cast<const Index*>(permutation_.data);
    parallel_tasks(edge_tasks(), [&](int64_t task) {
      const Span mine = share_of_rows(crow_, shape.out_channels, task, edge_tasks());
      for (int64_t o = mine.begin; o < mine.end; ++o) {
        const int64_t group = o / shape.group_out_channels();
        const int32_t start = static_cast<int32_t>(group * shape.group_channels() * plane);
        for (int64_t j = crow_[o]; j < crow_[o + 1]; ++j)
          edges_[j] = {start + column_offset[col_[j]], weights_[permutation[j]]};
      }
    });
  }

  int64_t edge_tasks() const { return edge_count < (1 << 15) ? 1 : this->threads; }

  void run_tile(const Planes& planes, const Tile& tile, bool clear, int64_t workers, A* input, A* output) {
    const Mover<A> x{kernels, x_, shape.channels, shape.pixels(), planes.kind, planes.unit, false};
    const Mover<A> y{kernels, y_, shape.out_channels, shape.out_pixels(), planes.kind, planes.unit,
                     shape.batch * shape.out_channels * shape.out_pixels() > kStreamElements};
    const int d = static_cast<int>(y_.dtype);
    Sink<A> sink{};
    if (planes.kind == TileKind::direct) {
      input = reinterpret_cast<A*>(x.at(tile.images.begin * x.image_stride()));
      sink = {nullptr, y.at(tile.images.begin * y.image_stride()), y.pixels, 0, 1, false};
    } else {
      const Layout layout = planes.input(tile, {tile.rows.begin, tile.rows.end + shape.y.reach});
      parallel_tasks(workers, [&](int64_t worker) {
        const Span channels = share(shape.channels, worker, workers);
        if (clear) x.clear_gaps(layout, channels, input);
        x.pack(layout, tile, channels, input);
      });
      if (planes.kind == TileKind::flat) sink = {nullptr, output, planes.out_size, 0, 1, false};
      else sink = {kernels.put_lanes[d], y.at(tile.images.begin * y.image_stride()), y.pixels, y.image_stride(),
                   static_cast<int>(tile.images.length()), y.stream};
    }
    const std::vector<Block> blocks = planes.forward_blocks(tile, kernels.forward_vectors);
    parallel_tasks(workers, [&](int64_t worker) {
      const Span rows = share_of_rows(crow_, shape.out_channels, worker, workers);
      const ForwardArgs<A> args{input, {edges_, crow_}, rows.begin, rows.end, bias_, sink};
      for (const Block& block : blocks) kernels.forward[block.rows_log2][block.width](args, block);
    });
    if (planes.kind == TileKind::flat) {
      const Layout layout = planes.output(tile);
      parallel_tasks(workers, [&](int64_t worker) {
        y.unpack(layout, tile, share(shape.out_channels, worker, workers), output);
      });
    }
  }

  TensorRef x_, y_;
  const int64_t* crow_;
  const int32_t* col_;
  IndexRef permutation_;
  const A* weights_;
  const A* bias_;
  Edge<A>* edges_;
};

}  // namespace

Conv2dLimits conv2d_limits;

Conv2dLimits exchange_conv2d_limits(Conv2dLimits limits) { return std::exchange(conv2d_limits, limits); }

void conv2d_forward(const Conv2dShape& shape, int64_t edges, TensorRef x, TensorRef values, TensorRef bias,
                    IndexRef crow, const int32_t* col, IndexRef permutation, TensorRef y) {
  if (x.dtype == DType::f64) Forward<double>(shape, edges, x, values, bias, crow, col, permutation, y).run();
  else Forward<float>(shape, edges, x, values, bias, crow, col, permutation, y).run();
}

}  // namespace sparsekern
