#include "conv2d/layout.h"

namespace sparsekern {
namespace {

// Unaligned vectors cross cache lines: what a flat tile's vector costs in lane tiles' vectors.
constexpr int64_t kFlatCost = 2;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Batch make_batch(TileKind kind, Span images, int64_t images_per_tile, int64_t extent, int64_t rows_per_tile) {
  Batch batch{kind, images_per_tile, rows_per_tile, {}};
  for (int64_t row = 0; row < extent; row += rows_per_tile)
    for (int64_t n = images.begin; n < images.end; n += images_per_tile)
      batch.tiles.push_back(
          {{n, std::min(n + images_per_tile, images.end)}, {row, std::min(row + rows_per_tile, extent)}});
  return batch;
}

// Rows in each of the fewest, evenly sized bands that fit.
int64_t rows_per_tile(int64_t extent, int64_t row_elements, int64_t reach, int64_t tile_elements) {
  const int64_t fit = std::max<int64_t>(tile_elements / std::max<int64_t>(1, row_elements) - reach, reach + 1);
  return ceil_div(extent, ceil_div(extent, fit));
}

}  // namespace

std::vector<Batch> make_batches(const Conv2dShape& shape, int64_t extent, int64_t row_elements, int64_t lanes,
                                bool in_rows, int64_t tile_elements) {
  const int64_t reach = shape.y.reach;
  if (in_rows) {
    const int64_t rows = rows_per_tile(extent, row_elements, reach, tile_elements);
    return {make_batch(TileKind::row, {0, shape.batch}, 1, extent, rows)};
  }

  std::vector<Batch> batches;
  // The images left over by full lane tiles share their vectors in a flat tile, unless they nearly fill the lanes.
  int64_t in_lanes = shape.batch / lanes * lanes;
  const int64_t left = shape.batch - in_lanes;
  const int64_t image_size = (shape.y.out + reach) * shape.x.extent();
  if (left * image_size * kFlatCost >= lanes * shape.out_pixels()) in_lanes = shape.batch;
  if (in_lanes > 0) {
    batches.push_back(make_batch(TileKind::lane, {0, in_lanes}, lanes, extent,
                                 rows_per_tile(extent, row_elements * lanes, reach, tile_elements)));
  }
  if (in_lanes < shape.batch) {
    const int64_t fit = tile_elements / std::max<int64_t>(1, row_elements * (extent + reach));
    const int64_t images = std::clamp<int64_t>(fit, 1, shape.batch - in_lanes);
    const int64_t rows = fit >= 1 ? extent : rows_per_tile(extent, row_elements, reach, tile_elements);
    batches.push_back(make_batch(TileKind::flat, {in_lanes, shape.batch}, images, extent, rows));
  }
  return batches;
}

std::vector<Batch> make_shifted_batch(const Conv2dShape& shape, const Shifts& shifts, int64_t extent,
                                      int64_t row_elements, int64_t tile_elements) {
  const int64_t fit = tile_elements / std::max<int64_t>(1, row_elements) - shape.y.reach;
  if (shifts.width == 0 || fit < extent) return {};
  return {make_batch(TileKind::shifted, {0, shape.batch}, shifts.images, extent, extent)};
}

bool rows_fill_vectors(const Conv2dShape& shape, int64_t lanes) {
  return shape.y.stride == 1 && shape.x.stride == 1 && fills_vectors(shape.x.size, lanes) &&
         fills_vectors(shape.x.out, lanes);
}

// What the runs from position `begin` on leave free up to the plane's end.
void Layout::find_gaps(int64_t begin) {
  const int64_t end = begin + plane_size;
  for (const Run& run : runs) {
    if (run.at < begin) continue;
    if (run.at > begin) gaps.push_back({begin, run.at});
    begin = run.at + run.length;
  }
  if (begin < end) gaps.push_back({begin, end});
}

void Layout::find_places() {
  place.assign(pixels.length(), -1);
  for (const Run& run : runs)
    for (int64_t i = 0; i < run.length; ++i)
      place[run.pixel + i * run.step - pixels.begin] = static_cast<int32_t>(run.at + i);
}

Planes Planes::forward(const Conv2dShape& shape, const Batch& batch, int64_t lanes, bool in_place) {
  const bool lane = batch.kind == TileKind::lane;
  Planes p{shape, batch.kind, in_place, lanes, lane ? lanes : 1, shape.x.extent(), 0, 0, 0, 0, 0,
           batch.kind == TileKind::row, {}};
  if (batch.kind == TileKind::shifted) {
    p.make_shifted(Shifts::forward(shape, lanes), batch.rows);
    p.direct = p.shifts.images == 1;
    p.input_size = p.plane_size(1);
    p.out_size = batch.rows * p.pitch;
    return p;
  }
  p.image_size = (batch.rows + shape.y.reach) * p.pitch;
  p.input_size = p.plane_size(batch.images);
  p.margin = shape.y.reach * p.pitch + shape.x.reach;
  p.out_size = p.input_size;
  if (in_place) p.input_size = shape.pixels();
  return p;
}

Planes Planes::backward(const Conv2dShape& shape, const Batch& batch, int64_t lanes, bool in_place) {
  const bool lane = batch.kind == TileKind::lane;
  Planes p{shape, batch.kind, in_place, lanes, lane ? lanes : 1, shape.x.extent(), 0, 0, 0, 0, 0,
           batch.kind == TileKind::row, {}};
  if (batch.kind == TileKind::shifted) {
    p.make_shifted(Shifts::backward(shape, lanes), batch.rows);
    p.direct = p.shifts.images == 1 && shape.classes() == 1;
    p.margin = shape.y.reach * p.pitch;
    p.grad_size = p.plane_size(1);
    p.input_size = batch.rows * p.pitch;
    return p;
  }
  p.image_size = batch.rows * p.pitch;
  p.input_size = p.plane_size(batch.images);
  p.margin = shape.y.reach * p.pitch + shape.x.reach;
  p.grad_size = p.margin + p.input_size;
  if (in_place) p.grad_size = shape.out_pixels();
  return p;
}

// Copies of `rows` rows and of those that edges reach to.
void Planes::make_shifted(const Shifts& with, int64_t rows) {
  shifts = with;
  pitch = shifts.pitch(lanes);
  image_size = (rows + shape.y.reach) * pitch;
}

// Positions of a plane that holds a tile's images of image_size.
int64_t Planes::plane_size(int64_t images) const {
  if (kind == TileKind::lane) return image_size;
  const int64_t vectors = ceil_div(images * image_size, lanes);
  // An odd number of vectors: channels a power of two apart would meet in few of the cache's sets.
  return (kind == TileKind::flat ? vectors : vectors | 1) * lanes;
}

Layout Planes::input(const Tile& tile, Span rows) const {
  Layout layout{};
  layout.plane_size = input_size;
  const Span y = shape.y.positions(rows);
  layout.pixels = {y.begin * shape.x.size, y.end * shape.x.size};
  for (int64_t cy = 0; cy < shape.y.classes(); ++cy) {
    for (int64_t cx = 0; cx < shape.x.classes(); ++cx) {
      const Span steps = intersect(rows, shape.y.inside(cy));
      const Span columns = shape.x.inside(cx);
      const int64_t plane = (cy * shape.x.classes() + cx) * shape.channels * input_size;
      for (int64_t image = 0; image < (kind == TileKind::lane ? 1 : tile.images.length()); ++image) {
        for (int64_t i = steps.begin; i < steps.end; ++i) {
          layout.add_run({image, shape.y.position(cy, i) * shape.x.size + shape.x.position(cx, columns.begin),
                          shape.x.stride,
                          plane + image * image_size + (i - rows.begin) * pitch + columns.begin, columns.length()});
        }
      }
      layout.find_gaps(plane);
    }
  }
  if (kind == TileKind::lane) layout.find_places();
  return layout;
}

Layout Planes::grad(const Tile& tile) const {
  Layout layout{};
  layout.plane_size = grad_size;
  const Span rows = intersect({0, shape.y.out}, {tile.rows.begin - shape.y.reach, tile.rows.end});
  layout.pixels = {rows.begin * shape.x.out, rows.end * shape.x.out};
  for (int64_t image = 0; image < (kind == TileKind::lane ? 1 : tile.images.length()); ++image)
    for (int64_t y = rows.begin; y < rows.end; ++y)
      layout.add_run({image, y * shape.x.out, 1, margin + image * image_size + (y - tile.rows.begin) * pitch,
                      shape.x.out});
  layout.find_gaps(0);
  if (kind == TileKind::lane) layout.find_places();
  return layout;
}

Layout Planes::output(const Tile& tile) const {
  Layout layout{};
  layout.plane_size = out_size;
  layout.pixels = {tile.rows.begin * shape.x.out, tile.rows.end * shape.x.out};
  for (int64_t image = 0; image < tile.images.length(); ++image)
    for (int64_t y = tile.rows.begin; y < tile.rows.end; ++y)
      layout.add_run({image, y * shape.x.out, 1, image * image_size + (y - tile.rows.begin) * pitch, shape.x.out});
  return layout;
}

// Vectors over `length` consecutive elements, evenly dealt to blocks. They may reach past the end.
std::vector<Block> Planes::flat_blocks(int64_t length, int most) const {
  std::vector<Block> blocks;
  const int64_t vectors = ceil_div(length, lanes);
  const int64_t count = ceil_div(vectors, most);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t first = vectors * b / count, end = vectors * (b + 1) / count;
    const int width = static_cast<int>(end - first);
    blocks.push_back({0, width, first * lanes, 0, (width - 1) * lanes, 0, first * lanes, 0});
  }
  return blocks;
}

// As many of `left` rows of `width` vectors as a block of at most `most` takes, as a power of two.
int most_rows_log2(int64_t left, int64_t width, int64_t most) {
  int rows_log2 = 0;
  while (rows_log2 + 1 < Conv2dKernels<float>::kShapes && (width << (rows_log2 + 1)) <= most &&
         (int64_t{2} << rows_log2) <= left)
    ++rows_log2;
  return rows_log2;
}

// Vectors over rows of pixels that are elements. A row's last vector overlaps the one before it where vectors do not
// divide the row. Rows count from first_row in the plane and from out_row, x.size apart, in the tensor.
std::vector<Block> Planes::row_blocks(Span rows, Span columns, int64_t first_row, int64_t out_row, int most) const {
  std::vector<Block> blocks;
  const int64_t length = columns.length();
  if (length == pitch && length % lanes == 0) {
    // Rows without gaps are one long row.
    const int64_t start = (rows.begin - first_row) * pitch, out = (rows.begin - out_row) * length;
    const int64_t vectors = rows.length() * length / lanes, count = ceil_div(vectors, most);
    for (int64_t b = 0; b < count; ++b) {
      const int64_t first = vectors * b / count, width = vectors * (b + 1) / count - first;
      blocks.push_back({0, static_cast<int>(width), start + first * lanes, 0, (width - 1) * lanes, 0,
                        out + first * lanes, 0});
    }
    return blocks;
  }
  const int64_t vectors = ceil_div(length, lanes);
  const int64_t pieces = ceil_div(vectors, most);
  for (int64_t row = rows.begin; row < rows.end;) {
    int rows_log2 = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = vectors * piece / pieces, end = vectors * (piece + 1) / pieces;
      const int64_t width = end - first;
      if (pieces == 1) rows_log2 = most_rows_log2(rows.end - row, width, most);
      const int skip = end == vectors ? static_cast<int>(vectors * lanes - length) : 0;
      blocks.push_back({rows_log2, static_cast<int>(width), (row - first_row) * pitch + columns.begin + first * lanes,
                        pitch, (width - 1) * lanes - skip, skip, (row - out_row) * length + first * lanes, length});
    }
    row += int64_t{1} << rows_log2;
  }
  return blocks;
}

// Blocks of pixels that are vectors: wide rows cut into even pieces, narrow ones taken several at a time.
void Planes::add_lane_blocks(std::vector<Block>& blocks, Span rows, Span columns, int64_t first_row, int most) const {
  const int64_t pieces = ceil_div(columns.length(), most);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = columns.begin + columns.length() * piece / pieces;
    const int64_t end = columns.begin + columns.length() * (piece + 1) / pieces;
    const int64_t width = end - begin;
    for (int64_t row = rows.begin; row < rows.end;) {
      const int rows_log2 = pieces == 1 ? most_rows_log2(rows.end - row, width, most) : 0;
      const int64_t at = ((row - first_row) * pitch + begin) * unit;
      blocks.push_back({rows_log2, static_cast<int>(width), at, pitch * unit, (width - 1) * unit, 0, at, pitch * unit});
      row += int64_t{1} << rows_log2;
    }
  }
}

std::vector<Block> Planes::forward_blocks(const Tile& tile, int most) const {
  if (kind == TileKind::shifted && !direct)
    return row_blocks(tile.rows, {0, pitch}, tile.rows.begin, tile.rows.begin, most);
  if (kind == TileKind::shifted) return row_blocks(tile.rows, {0, shape.x.out}, tile.rows.begin, 0, most);
  if (kind == TileKind::row)
    return row_blocks(tile.rows, {0, shape.x.out}, in_place ? 0 : tile.rows.begin, 0, most);
  if (kind == TileKind::flat) {
    const int64_t rows = tile.rows.length() - 1;
    return flat_blocks((tile.images.length() - 1) * image_size + rows * pitch + shape.x.out, most);
  }
  std::vector<Block> blocks;
  const int64_t half = most / 2, pixels = tile.rows.length() * shape.x.out;
  if (shape.x.out > most && shape.x.out % most != 0 && shape.x.out % half == 0 && pixels % most == 0) {
    // Two half rows of a block may lie on different rows of pixels: full blocks, whole cache lines of results.
    const auto at = [&](int64_t q) { return (q / shape.x.out * pitch + q % shape.x.out) * unit; };
    for (int64_t q = 0; q < pixels; q += most)
      blocks.push_back({1, static_cast<int>(half), at(q), at(q + half) - at(q), (half - 1) * unit, 0,
                        tile.rows.begin * shape.x.out + q, half});
    return blocks;
  }
  add_lane_blocks(blocks, tile.rows, {0, shape.x.out}, tile.rows.begin, most);
  for (Block& block : blocks) {
    const int64_t position = block.at / unit;
    block.out = (tile.rows.begin + position / pitch) * shape.x.out + position % pitch;
    block.out_pitch = shape.x.out;
  }
  return blocks;
}

std::vector<Block> Planes::backward_blocks(const Tile& tile, int64_t cls, int most) const {
  if (kind == TileKind::flat) return flat_blocks(tile.images.length() * image_size, most);
  const Span rows = intersect(tile.rows, shape.y.inside(cls / shape.x.classes()));
  const Span columns = shape.x.inside(cls % shape.x.classes());
  if (kind == TileKind::shifted && !direct)
    return row_blocks(rows, {0, pitch}, tile.rows.begin, tile.rows.begin, most);
  if (kind == TileKind::shifted)
    return row_blocks(rows, {0, shifts.width}, tile.rows.begin, shape.y.inside(0).begin, most);
  if (kind == TileKind::row)
    return row_blocks(rows, columns, in_place ? 0 : tile.rows.begin, shape.y.inside(0).begin, most);
  std::vector<Block> blocks;
  add_lane_blocks(blocks, rows, columns, tile.rows.begin, most);
  return blocks;
}

int64_t Planes::window(const std::vector<Block>& blocks) const {
  int64_t most = 1;
  for (const Block& block : blocks) {
    const int64_t rows = (int64_t{1} << block.rows_log2) + shape.y.reach;
    const int64_t length = block.last + lanes;
    if (kind == TileKind::shifted) most = std::max(most, (length + (rows - 1) * pitch) * shifts.copies());
    else most = std::max(most, rows * (length + shape.x.reach * unit));
  }
  return most;
}

}  // namespace sparsekern
