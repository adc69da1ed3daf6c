#include "cuda/gather_half.h"
#include "cuda/launch.h"
#include "cuda/slots_device.h"
#include "cuda/tiles_device.h"

namespace sparsekern::cuda {

namespace {

constexpr int kThreads = kWarp * kInnerHalfWarps;
constexpr int kCell = 8;   // elements
constexpr int kCells = 4;  // of tokens, of a step: two fragments

template <class T, bool kByPixel>
SK_KERNEL(kThreads, 1)
inner_half_kernel(const InnerHalf task, const T* x, const T* grad, const Words4* items, const uint16_t* places,
                  const int32_t* lists, float* partial) {
  char* const shared = shared_memory();
  TableEntry* const x_table = reinterpret_cast<TableEntry*>(shared);
  TableEntry* const grad_table = reinterpret_cast<TableEntry*>(shared + table_bytes(task.x));
  // Each cell of tokens: where it is in a plane of x, in bytes; -1: its tokens do not exist.
  int* const starts = reinterpret_cast<int*>(reinterpret_cast<char*>(grad_table) + table_bytes(task.grad));
  const int steps = task.steps();
  char* const zeros = reinterpret_cast<char*>(starts) + task.start_bytes();
  char* const x_tile = zeros + 128;
  const int x_bytes = task.chunk_planes * task.x.plane_pitch * 16;  // the gradient's tile follows
  const int tile_bytes = static_cast<int>(task.tile_bytes());

  const Words4 item = load_constant(items + blockIdx.x);
  const int first_group = static_cast<int>(item.y), end_group = static_cast<int>(item.z);
  if (first_group >= end_group) return;  // or tiles would be copied for nothing
  const int block = static_cast<int>(item.x) % task.row_blocks(), chunk = static_cast<int>(item.x) / task.row_blocks();
  const int first_row = block * task.block_rows;
  const int rows = task.rows - first_row < task.block_rows ? task.rows - first_row : task.block_rows;
  const int group_rows = task.rows / task.row_groups;
  const int first_channel = first_row / group_rows * task.group_channels;
  const int end_channel = ((first_row + rows - 1) / group_rows + 1) * task.group_channels;
  const int first_plane = chunk * task.chunk_planes;
  const int planes_left = (end_channel - first_channel) * task.x.classes() - first_plane;
  const int planes = planes_left < task.chunk_planes ? planes_left : task.chunk_planes;

  // A warp's groups are adjacent: mostly of one block of rows, whose gradients it then loads once.
  const int warp = threadIdx.x / kWarp % task.unit_warps, token_part = threadIdx.x / kWarp / task.unit_warps;
  const int lane = threadIdx.x % kWarp;
  const int warp_group = first_group + warp * kWarpGroups;
  const int groups = end_group - warp_group < kWarpGroups ? end_group - warp_group : kWarpGroups;
  const int named = memory_of(lane % 16);                              // the slot whose row this lane names to ldmatrix
  const int half = lane / 16;                                          // and of which cell of a fragment
  float sums[kWarpGroups][4];
  // Of each group, the named slot's offset in bytes; and its block of rows, in the chunk's tile.
  uint32_t offsets[kWarpGroups];
  SK_UNROLL
  for (int q = 0; q < kWarpGroups; ++q) {
    const int64_t group = warp_group + q;
    offsets[q] = 0;
    if (q < groups) {
      const uint32_t minor = load_constant(places + group * kGroup + named) & kMinorMask;
      const int list = load_constant(lists + group) % (task.slot_blocks() + 1) - first_row / kBlock;
      offsets[q] = minor << 4 | static_cast<uint32_t>(list) << 17;
    }
    SK_UNROLL
    for (int j = 0; j < 4; ++j) sums[q][j] = 0;
  }
  if (threadIdx.x < 32) reinterpret_cast<float*>(zeros)[threadIdx.x] = 0;
  // Where in a row block's gradients the row is that this lane names.
  const int grad_pitch = task.grad.plane_pitch * 16;
  const int place = lane % 8;
  const uint32_t zeros_at = shared_address(zeros);

  const int64_t tiles = task.x.count();
  const int64_t first_tile = tiles * blockIdx.y / task.slices, end_tile = tiles * (blockIdx.y + 1) / task.slices;
  // One tile is copied while another is computed with.
  const auto copy = [&](int64_t number, int buffer) {
    const Place at = place_of(task.x, number, 0, kCell);
    fill_table(task.x, task.from, at, kCell, x_table);
    fill_table(task.grad, task.grad_from, at, kCell, grad_table);
    SK_NO_UNROLL
    for (int cell = threadIdx.x; cell < steps * kCells; cell += blockDim.x) {
      const TokenCell token = token_cell(task.x, at, cell, kCell);
      starts[buffer * steps * kCells + cell] = token.first < token.end ? token.cell * 16 : -1;
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
    const int* const start_of = starts + buffer * steps * kCells;
    const uint32_t x_at = shared_address(x_tile + buffer * tile_bytes), grad_at = x_at + x_bytes;
    SK_NO_UNROLL
    for (int step = token_part; step < steps; step += task.warps / task.unit_warps) {
      const int start[2] = {start_of[step * kCells + half], start_of[step * kCells + 2 + half]};
      const int grad_cell = step * kCells + lane / 8;
      const bool grad_exists = start_of[grad_cell] >= 0;
      uint32_t current = ~0u, gradients[4] = {0, 0, 0, 0};
      SK_UNROLL
      for (int q = 0; q < kWarpGroups; ++q) {
        if (q >= groups) continue;
        const uint32_t list = offsets[q] >> 17;
        if (list != current) {
          current = list;
          // Behind the last row lies anything: no edge is given its sums.
          const int row = static_cast<int>(major_of(list, place));
          load_matrices(gradients, grad_exists ? grad_at + row * grad_pitch + grad_cell * 16 : zeros_at);
        }
        const uint32_t mine = x_at + (offsets[q] & 0x1ffff);
        SK_UNROLL
        for (int k = 0; k < 2; ++k) {
          uint32_t tokens[4];
          load_matrices(tokens, start[k] >= 0 ? mine + start[k] : zeros_at);
          const uint32_t values[2] = {gradients[2 * k], gradients[2 * k + 1]};
          multiply_add<T>(sums[q], tokens, values);
        }
      }
    }
  }

  // Of the 8 rows that a slot was multiplied with, its own. Warps with the same groups add up their sums.
  sync_block();
  float* const added = reinterpret_cast<float*>(x_tile);
  SK_UNROLL
  for (int q = 0; q < kWarpGroups; ++q) {
    if (q >= groups) continue;
    SK_UNROLL
    for (int upper = 0; upper < 2; ++upper) {
      const int slot = memory_of(lane / 4 + upper * 8);
      const int own = load_constant(places + static_cast<int64_t>(warp_group + q) * kGroup + slot) >> kPlaceShift;
      if (own / 2 == lane % 4) {
        added[(threadIdx.x / kWarp * kWarpGroups + q) * kGroup + slot] =
            own % 2 ? sums[q][2 * upper + 1] : sums[q][2 * upper];
      }
    }
  }
  sync_block();
  const int slots = (end_group - first_group) * kGroup, apart = task.unit_warps * kWarpGroups * kGroup;
  SK_NO_UNROLL
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    float sum = 0;
    for (int at = slot; at < task.warps * kWarpGroups * kGroup; at += apart) sum += added[at];
    partial[(blockIdx.y * task.groups + first_group) * kGroup + slot] = sum;
  }
}

template <class T>
void inner_of(const Queue& queue, const InnerHalf& task, const void* x, const void* grad, const void* items,
              const uint16_t* places, const int32_t* lists, float* partial) {
  const auto kernel = task.x.by_pixel ? inner_half_kernel<T, true> : inner_half_kernel<T, false>;
  launch(queue, "inner_half", kernel, {static_cast<unsigned>(task.items), static_cast<unsigned>(task.slices)},
         task.warps * kWarp, task.shared_bytes(), task, static_cast<const T*>(x), static_cast<const T*>(grad),
         static_cast<const Words4*>(items), places, lists, partial);
}

}  // namespace

void inner_half(const Queue& queue, const InnerHalf& task, Dtype dtype, const void* x, const void* grad,
                const void* items, const uint16_t* places, const int32_t* lists, float* partial) {
  (dtype == Dtype::bfloat16 ? inner_of<bf16> : inner_of<f16>)(queue, task, x, grad, items, places, lists, partial);
}

}  // namespace sparsekern::cuda
