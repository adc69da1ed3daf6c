#include "conv2d/conv2d.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "conv2d/kernels.h"
#include "conv2d/layout.h"
#include "isa/isa.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {
namespace {

template <class A>
const Conv2dKernels<A>& kernels_of(const IsaKernels& isa) {
  if constexpr (std::is_same_v<A, float>) return isa.conv2d_f32;
  else return isa.conv2d_f64;
}

// Slots of the calling thread's scratch.
enum Slot : size_t {
  kPointers, kWeights, kEdges, kStarts, kColumns, kBias, kInputPlanes, kGradPlanes, kOutPlanes, kPartials,
};

Conv2dLimits limits;

// A result larger than this is written past the caches: it would not stay in them until it is read.
constexpr int64_t kStreamElements = 1 << 19;

// What a row costs besides its edges, in edges.
constexpr int64_t kRowCost = 4;
// What moving an element of an activation costs, in multiply-adds.
constexpr int64_t kElementCost = 4;

// Every call's view of its tensors, memory and threads.
template <class A>
struct Call {
  const Conv2dShape& shape;
  const int64_t edge_count;
  const Conv2dKernels<A>& kernels = kernels_of<A>(active_isa());
  Scratch& scratch = Scratch::of_this_thread();
  const Conv2dLimits limit = limits;
  int64_t threads;

  Call(const Conv2dShape& shape, int64_t edges) : shape(shape), edge_count(edges) {
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
    if (tensor.dtype == native()) return static_cast<const A*>(tensor.data);
    A* to = get<A>(slot, count);
    const char* from = static_cast<const char*>(tensor.data);
    parallel_ranges(count, 1 << 16, [&](int64_t begin, int64_t end) {
      kernels.widen[static_cast<int>(tensor.dtype)](from + begin * size_of(tensor.dtype), 1, end - begin, to + begin);
    });
    return to;
  }

  static DType native() { return std::is_same_v<A, float> ? DType::f32 : DType::f64; }

  bool direct(DType activations) const {
    const auto plain = [](const Axis& axis) {
      return axis.taps.size() == 1 && axis.stride == 1 && axis.padding == 0;
    };
    return plain(shape.y) && plain(shape.x) && activations == native() && shape.pixels() >= 4 * kernels.lanes;
  }
};

// Part `part` of `parts` of the rows, about equal in work.
Span share_of_rows(const int64_t* starts, int64_t rows, int64_t part, int64_t parts) {
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

Span share(int64_t size, int64_t part, int64_t parts) { return {size * part / parts, size * (part + 1) / parts}; }

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

// One tensor seen from the tiles: copies channels between it and planes.
template <class A>
struct Mover {
  const Conv2dKernels<A>& kernels;
  TensorRef tensor;
  int64_t channels, pixels;
  TileKind kind;
  int64_t unit;
  bool stream;  // unpack past the caches

  char* at(int64_t element) const { return static_cast<char*>(tensor.data) + element * size_of(tensor.dtype); }
  int64_t image_stride() const { return channels * pixels; }

  LaneCopy<A> lane_copy(const Layout& layout, const Tile& tile, Span range, A* planes) const {
    return {at(tile.images.begin * image_stride()), image_stride(), pixels, range.begin, range.end,
            static_cast<int>(tile.images.length()), layout.pixels.begin, layout.pixels.length(), layout.place.data(),
            planes, layout.plane_size * unit, stream};
  }

  void clear_gaps(const Layout& layout, Span range, A* planes) const {
    for (int64_t c = range.begin; c < range.end; ++c)
      for (const Span& gap : layout.gaps)
        std::fill_n(planes + (c * layout.plane_size + gap.begin) * unit, gap.length() * unit, A(0));
  }

  void pack(const Layout& layout, const Tile& tile, Span range, A* planes) const {
    const int d = static_cast<int>(tensor.dtype);
    if (kind == TileKind::lane) return kernels.pack_lanes[d](lane_copy(layout, tile, range, planes));
    for (int64_t c = range.begin; c < range.end; ++c)
      for (const Run& run : layout.runs)
        kernels.widen[d](at((tile.images.begin + run.image) * image_stride() + c * pixels + run.pixel), run.step,
                         run.length, planes + c * layout.plane_size + run.at);
  }

  // Pixels that the planes do not hold become zero.
  void unpack(const Layout& layout, const Tile& tile, Span range, A* planes) const {
    const int d = static_cast<int>(tensor.dtype);
    if (kind == TileKind::lane) return kernels.unpack_lanes[d](lane_copy(layout, tile, range, planes));
    int64_t held = 0;
    for (const Run& run : layout.runs) held += run.length;
    const bool complete = held == tile.images.length() * layout.pixels.length();
    for (int64_t c = range.begin; c < range.end; ++c) {
      for (int64_t n = tile.images.begin; !complete && n < tile.images.end; ++n)
        std::memset(at(n * image_stride() + c * pixels + layout.pixels.begin), 0,
                    layout.pixels.length() * size_of(tensor.dtype));
      for (const Run& run : layout.runs)
        kernels.narrow[d](planes + c * layout.plane_size + run.at, run.length, run.step,
                          at((tile.images.begin + run.image) * image_stride() + c * pixels + run.pixel));
    }
  }
};

// Edges' offsets are 32 bits wide; tiles keep planes far smaller unless a single row of pixels is not.
void check_offsets(int64_t elements) {
  if (elements > std::numeric_limits<int32_t>::max())
    throw std::length_error("conv2d: a row of pixels of all channels is too large to address with 32 bits");
}

template <class A>
class Forward : Call<A> {
  using Call<A>::shape;
  using Call<A>::edge_count;
  using Call<A>::kernels;

 public:
  Forward(const Conv2dShape& shape, int64_t edges, TensorRef x, TensorRef values, TensorRef bias, IndexRef crow, const int32_t* col,
          IndexRef permutation, TensorRef y)
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
    for (const Batch& batch :
         make_batches(shape, shape.y.out, row_elements, kernels.lanes, this->direct(x_.dtype), this->limit.tile_elements)) {
      const Planes planes = Planes::forward(shape, batch, kernels.lanes);
      if (permutation_.is_64) fill_edges<int64_t>(planes);
      else fill_edges<int32_t>(planes);
      const int64_t tiles = static_cast<int64_t>(batch.tiles.size());
      const Teams teams = Teams::of(tiles, this->threads, true);
      const int64_t in_size =
          batch.kind == TileKind::direct ? 0 : shape.channels * shape.classes() * planes.input_size * planes.unit + planes.slack();
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
  static bool same_layout(const Tile& a, const Tile& b) {
    return a.rows.begin == b.rows.begin && a.images.length() == b.images.length();
  }

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

template <class A>
class Backward : Call<A> {
  using Call<A>::shape;
  using Call<A>::edge_count;
  using Call<A>::kernels;

 public:
  Backward(const Conv2dShape& shape, int64_t edges, TensorRef grad, TensorRef x, TensorRef values, IndexRef ccol, const int32_t* row,
           TensorRef x_grad, TensorRef values_grad)
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
    const std::vector<Batch> batches =
        make_batches(shape, shape.y.extent(), row_elements, kernels.lanes, this->direct(grad_.dtype), this->limit.tile_elements);
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
      parallel_ranges(most_teams * edge_count, 1 << 16, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, A(0)); });
    for (size_t b = 0; b < batches.size(); ++b) run_batch(batches[b], teams[b], sums);
    if (values_grad_.data) store_values_grad(sums, most_teams);
  }

 private:
  // The edges of input plane p = class * channels + channel: for each tap of its class, the part of the tap's column that
  // belongs to the channel's group. Calls body(begin, end, tap of y, tap of x).
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

  static bool same_layout(const Tile& a, const Tile& b) {
    return a.rows.begin == b.rows.begin && a.images.length() == b.images.length();
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
    const auto& table = !values_grad_.data ? kernels.input_grad : !x_grad_.data ? kernels.weight_grad : kernels.backward;
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

Conv2dLimits exchange_conv2d_limits(Conv2dLimits next) { return std::exchange(limits, next); }

void conv2d_forward(const Conv2dShape& shape, int64_t edges, TensorRef x, TensorRef values, TensorRef bias, IndexRef crow,
                    const int32_t* col, IndexRef permutation, TensorRef y) {
  if (x.dtype == DType::f64) Forward<double>(shape, edges, x, values, bias, crow, col, permutation, y).run();
  else Forward<float>(shape, edges, x, values, bias, crow, col, permutation, y).run();
}

void conv2d_backward(const Conv2dShape& shape, int64_t edges, TensorRef grad, TensorRef x, TensorRef values, IndexRef ccol,
                     const int32_t* row, TensorRef x_grad, TensorRef values_grad) {
  if (grad.dtype == DType::f64) Backward<double>(shape, edges, grad, x, values, ccol, row, x_grad, values_grad).run();
  else Backward<float>(shape, edges, grad, x, values, ccol, row, x_grad, values_grad).run();
}

}  // namespace sparsekern
