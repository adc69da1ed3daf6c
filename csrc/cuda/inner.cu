#include "cuda/inner.h"

#include "cuda/launch.h"
#include "cuda/tiles_device.h"

namespace sparsekern::cuda {

namespace {

constexpr int kThreads = kWarp * kInnerWarps;
constexpr int kCell = 4;    // elements
constexpr int kLanes = 8;   // that share a unit, each with a cell: as many as shared memory serves at once
constexpr int kUnits = kLaneUnits;

// Where the cell of one of a unit's edges is, in bytes. Two cells to a word: apart they would be too many registers.
SK_DEVICE uint32_t offset_of(const Words4& cells, int edge) {
  const uint32_t* const words = &cells.x;
  const uint32_t word = words[edge / 2];
  return edge % 2 ? word >> 16 << 4 : (word & 0xffff) << 4;
}

template <bool kByPixel>
SK_KERNEL(kThreads, 1)
inner_kernel(const Inner task, const float* x, const float* grad, const Item* items, const int* unit_rows,
             const Words4* unit_cells, float* partial) {
  char* const shared = shared_memory();
  TableEntry* const x_table = reinterpret_cast<TableEntry*>(shared);
  TableEntry* const grad_table = reinterpret_cast<TableEntry*>(shared + table_bytes(task.x));
  // Each cell of tokens: where it is in a plane of x, in bytes; -1: its tokens do not exist.
  int* const starts = reinterpret_cast<int*>(reinterpret_cast<char*>(grad_table) + table_bytes(task.grad));
  const int steps = task.steps();
  char* const x_tile = reinterpret_cast<char*>(starts) + task.start_bytes();
  const int x_bytes = task.chunk_planes * task.x.plane_pitch * 16;  // the gradient's tile follows
  const int tile_bytes = static_cast<int>(task.tile_bytes());

  const Words4 item = load_constant(reinterpret_cast<const Words4*>(items + blockIdx.x));
  const int first_unit = static_cast<int>(item.y), end_unit = static_cast<int>(item.z);
  if (first_unit >= end_unit) return;  // or tiles would be copied for nothing
  const int block = static_cast<int>(item.x) / task.chunks, chunk = static_cast<int>(item.x) % task.chunks;
  const int first_row = block * task.block_rows;
  const int rows = task.rows - first_row < task.block_rows ? task.rows - first_row : task.block_rows;
  const int group_rows = task.rows / task.row_groups;
  const int first_channel = first_row / group_rows * task.group_channels;
  const int end_channel = ((first_row + rows - 1) / group_rows + 1) * task.group_channels;
  const int first_plane = chunk * task.chunk_planes;
  const int planes_left = (end_channel - first_channel) * task.x.classes() - first_plane;
  const int planes = planes_left < task.chunk_planes ? planes_left : task.chunk_planes;

  const int unit_threads = task.unit_warps * kWarp, token_part = threadIdx.x / unit_threads;
  const int part = threadIdx.x % unit_threads / kLanes, parts = unit_threads / kLanes, lane = threadIdx.x % kLanes;
  float sums[kUnits][kUnitEdges];
  Words4 cells[kUnits];
  int row_at[kUnits];  // the unit's row of the gradient's tile, in bytes; -1: there is no such unit
  SK_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const int unit = first_unit + u * parts + part;
    const bool exists = unit < end_unit;
    cells[u] = exists ? load_constant(unit_cells + unit) : Words4{0, 0, 0, 0};
    row_at[u] = exists ? (load_constant(unit_rows + unit) * task.grad.plane_pitch + lane) * 16 : -1;
    SK_UNROLL
    for (int e = 0; e < kUnitEdges; ++e) sums[u][e] = 0;
  }

  const int64_t tiles = task.x.count();
  const int64_t first_tile = tiles * blockIdx.y / task.slices, end_tile = tiles * (blockIdx.y + 1) / task.slices;
  // One tile is copied while another is computed with.
  const auto copy = [&](int64_t number, int buffer) {
    const Place at = place_of(task.x, number, 0, kCell);
    fill_table(task.x, task.from, at, kCell, x_table);
    fill_table(task.grad, task.grad_from, at, kCell, grad_table);
    SK_NO_UNROLL
    for (int cell = threadIdx.x; cell < steps * kLanes; cell += blockDim.x) {
      const TokenCell token = token_cell(task.x, at, cell, kCell);
      starts[buffer * steps * kLanes + cell] = token.first < token.end ? token.cell * 16 : -1;
    }
    sync_block();
    char* const tile = x_tile + buffer * tile_bytes;
    copy_planes<kByPixel>(task.x, x, task.from, x_table, first_channel, first_plane, planes, tile);
    copy_planes<kByPixel>(task.grad, grad, task.grad_from, grad_table, first_row, 0, rows, tile + x_bytes);
  };
  if (first_tile < end_tile) copy(first_tile, 0);
  int buffer = 0;
  SK_NO_UNROLL
  for (int64_t number = first_tile; number < end_tile; ++number, buffer ^= 1) {
    copy_async_wait<0>();
    sync_block();
    if (number + 1 < end_tile) copy(number + 1, buffer ^ 1);
    const int* const start_of = starts + buffer * steps * kLanes;
    const char* const x_at = x_tile + buffer * tile_bytes;
    SK_NO_UNROLL
    for (int step = token_part; step < steps; step += task.warps / task.unit_warps) {
      const int start = start_of[step * kLanes + lane];
      if (start < 0) continue;
      const char* const mine = x_at + start;
      const char* const gradient = x_at + x_bytes + step * kLanes * 16;
      SK_UNROLL
      for (int u = 0; u < kUnits; ++u) {
        if (row_at[u] < 0) continue;
        const Words4 g = *reinterpret_cast<const Words4*>(gradient + row_at[u]);
        const Words4 now{opaque(cells[u].x), opaque(cells[u].y), opaque(cells[u].z), opaque(cells[u].w)};
        SK_UNROLL
        for (int e = 0; e < kUnitEdges; ++e) {
          const Words4 a = *reinterpret_cast<const Words4*>(mine + offset_of(now, e));
          sums[u][e] += bits_float(g.x) * bits_float(a.x);
          sums[u][e] += bits_float(g.y) * bits_float(a.y);
          sums[u][e] += bits_float(g.z) * bits_float(a.z);
          sums[u][e] += bits_float(g.w) * bits_float(a.w);
        }
      }
    }
  }

  // Each exchange halves the edges that a lane has sums of, until it has one of all eight lanes.
  sync_block();
  float* const added = reinterpret_cast<float*>(x_tile);
  SK_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    // A whole warp without such units.
    if (first_unit + static_cast<int>(u * parts + part / (kWarp / kLanes) * (kWarp / kLanes)) >= end_unit) continue;
    float four[4], two[2];
    SK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float keep = lane & 4 ? sums[u][i + 4] : sums[u][i], give = lane & 4 ? sums[u][i] : sums[u][i + 4];
      four[i] = keep + shuffle_xor(give, 4);
    }
    SK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float keep = lane & 2 ? four[i + 2] : four[i], give = lane & 2 ? four[i] : four[i + 2];
      two[i] = keep + shuffle_xor(give, 2);
    }
    const float keep = lane & 1 ? two[1] : two[0], give = lane & 1 ? two[0] : two[1];
    added[u * blockDim.x + threadIdx.x] = keep + shuffle_xor(give, 1);
  }
  sync_block();
  if (token_part != 0) return;
  SK_UNROLL
  for (int u = 0; u < kUnits; ++u) {
    const int unit = first_unit + u * parts + part;
    if (unit >= end_unit) continue;
    float sum = 0;
    for (unsigned thread = threadIdx.x; thread < blockDim.x; thread += unit_threads) {
      sum += added[u * blockDim.x + thread];
    }
    partial[(blockIdx.y * task.units + unit) * kUnitEdges + lane] = sum;
  }
}

SK_KERNEL(256, 4)
add_slices_kernel(int64_t count, int slices, const float* partial, const int* sources, float* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int source = load_constant(sources + at);
  if (source < 0) return;
  float sum = 0;
  for (int slice = 0; slice < slices; ++slice) sum += load_constant(partial + slice * count + at);
  out[source] = sum;
}

}  // namespace

void inner(const Queue& queue, const Inner& task, const float* x, const float* grad, const Item* items, const int* rows,
           const Words4* cells, float* partial) {
  const auto kernel = task.x.by_pixel ? inner_kernel<true> : inner_kernel<false>;
  launch(queue, "inner", kernel, {static_cast<unsigned>(task.items), static_cast<unsigned>(task.slices)},
         task.warps * kWarp, task.shared_bytes(), task, x, grad, items, rows, cells, partial);
}

void add_slices(const Queue& queue, int64_t count, int slices, const float* partial, const int* sources, float* out) {
  launch(queue, "add_slices", add_slices_kernel, {static_cast<unsigned>((count + 255) / 256)}, 256, 0, count, slices,
         partial, sources, out);
}

}  // namespace sparsekern::cuda
