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
                                bool direct, int64_t tile_elements) {
  const int64_t reach = shape.y.reach;
  if (direct) return {make_batch(TileKind::direct, {0, shape.batch}, 1, extent, extent)};

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

Planes Planes::forward(const Conv2dShape& shape, const Batch& batch, int64_t lanes) {
  const bool lane = batch.kind == TileKind::lane;
  Planes p{shape, batch.kind, lanes, lane ? lanes : 1, shape.x.extent(), 0, 0, 0, 0, 0};
  p.image_size = (batch.rows + shape.y.reach) * p.pitch;
  p.input_size = lane ? p.image_size : ceil_div(batch.images * p.image_size, lanes) * lanes;
  p.margin = shape.y.reach * p.pitch + shape.x.reach;
  p.out_size = p.input_size;
  if (batch.kind == TileKind::direct) p.input_size = p.out_size = shape.pixels();
  return p;
}

Planes Planes::backward(const Conv2dShape& shape, const Batch& batch, int64_t lanes) {
  const bool lane = batch.kind == TileKind::lane;
  Planes p{shape, batch.kind, lanes, lane ? lanes : 1, shape.x.extent(), 0, 0, 0, 0, 0};
  p.image_size = batch.rows * p.pitch;
  p.input_size = lane ? p.image_size : ceil_div(batch.images * p.image_size, lanes) * lanes;
  p.margin = shape.y.reach * p.pitch + shape.x.reach;
  p.grad_size = p.margin + p.input_size;
  if (batch.kind == TileKind::direct) p.input_size = p.grad_size = shape.pixels();
  return p;
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

// Vectors over `length` consecutive elements, evenly dealt to blocks. With `overlap` none reaches past the end.
std::vector<Block> Planes::flat_blocks(int64_t length, int most, bool overlap) const {
  std::vector<Block> blocks;
  const int64_t vectors = ceil_div(length, lanes);
  const int64_t count = ceil_div(vectors, most);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t first = vectors * b / count, end = vectors * (b + 1) / count;
    const int width = static_cast<int>(end - first);
    Block block{0, width, first * lanes, 0, (width - 1) * lanes, 0, first * lanes};
    if (overlap && end == vectors) {
      block.skip = static_cast<int>(vectors * lanes - length);
      block.last -= block.skip;
    }
    blocks.push_back(block);
  }
  return blocks;
}

// Blocks of pixels: wide rows cut into even pieces, narrow ones taken several at a time.
void Planes::add_blocks(std::vector<Block>& blocks, Span rows, Span columns, int64_t first_row, int64_t out_pitch,
                        int most) const {
  const int64_t pieces = ceil_div(columns.length(), most);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = columns.begin + columns.length() * piece / pieces;
    const int64_t end = columns.begin + columns.length() * (piece + 1) / pieces;
    const int64_t width = end - begin;
    for (int64_t row = rows.begin; row < rows.end;) {
      int rows_log2 = 0;
      while (pieces == 1 && rows_log2 + 1 < Conv2dKernels<float>::kShapes && (width << (rows_log2 + 1)) <= most &&
             row + (2 << rows_log2) <= rows.end)
        ++rows_log2;
      blocks.push_back({rows_log2, static_cast<int>(width), ((row - first_row) * pitch + begin) * unit, pitch * unit,
                        (width - 1) * unit, 0, row * out_pitch + begin});
      row += int64_t{1} << rows_log2;
    }
  }
}

std::vector<Block> Planes::forward_blocks(const Tile& tile, int most) const {
  if (kind == TileKind::direct) return flat_blocks(shape.pixels(), most, true);
  if (kind == TileKind::flat) {
    const int64_t rows = tile.rows.length() - 1;
    return flat_blocks((tile.images.length() - 1) * image_size + rows * pitch + shape.x.out, most, false);
  }
  std::vector<Block> blocks;
  const int64_t half = most / 2, pixels = tile.rows.length() * shape.x.out;
  if (shape.x.out > most && shape.x.out % most != 0 && shape.x.out % half == 0 && pixels % most == 0) {
    // Two half rows of a block may lie on different rows of pixels: full blocks, whole cache lines of results.
    const auto at = [&](int64_t q) { return (q / shape.x.out * pitch + q % shape.x.out) * unit; };
    for (int64_t q = 0; q < pixels; q += most)
      blocks.push_back({1, static_cast<int>(half), at(q), at(q + half) - at(q), (half - 1) * unit, 0,
                        tile.rows.begin * shape.x.out + q});
    return blocks;
  }
  add_blocks(blocks, tile.rows, {0, shape.x.out}, tile.rows.begin, shape.x.out, most);
  return blocks;
}

std::vector<Block> Planes::backward_blocks(const Tile& tile, int64_t cls, int most) const {
  if (kind == TileKind::direct) return flat_blocks(shape.pixels(), most, true);
  if (kind == TileKind::flat) return flat_blocks(tile.images.length() * image_size, most, false);
  const Span rows = intersect(tile.rows, shape.y.inside(cls / shape.x.classes()));
  std::vector<Block> blocks;
  add_blocks(blocks, rows, shape.x.inside(cls % shape.x.classes()), tile.rows.begin, 0, most);
  return blocks;
}

}  // namespace sparsekern
