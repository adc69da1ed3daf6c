#include "cuda/gather.h"

#include "cuda/launch.h"
#include "cuda/tiles_device.h"

namespace sparsekern::cuda {

namespace {

// And two blocks a processor, so that one copies while the other computes.
constexpr int kThreads = kWarp * kGatherWarps;
constexpr int kRows = kLaneRows;
constexpr int kCell = 4;       // elements

// Where a cell of tokens goes, counted from its row, and which of its elements do.
struct Landing {
  int64_t offset;
  int first, end;
};

SK_KERNEL(256, 4)
pack_edges_kernel(int64_t count, const int* cells, const int* sources, const float* values, Edge* edges) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int source = load_constant(sources + at);
  const Words2 edge{static_cast<uint32_t>(load_constant(cells + at)) * 16,
                    source < 0 ? 0 : float_bits(load_constant(values + source))};
  *reinterpret_cast<Words2*>(edges + at) = edge;
}

SK_DEVICE void add_product(float (&sums)[kCell], uint32_t value, Words4 cell) {
  const float factor = bits_float(value);
  sums[0] += factor * bits_float(cell.x);
  sums[1] += factor * bits_float(cell.y);
  sums[2] += factor * bits_float(cell.z);
  sums[3] += factor * bits_float(cell.w);
}

template <int kLanes, bool kByPixel>
SK_KERNEL(kThreads, 2)
gather_kernel(const Gather task, const float* from, const Words2* ranges, const Edge* edges, const float* bias,
              float* to) {
  const Tiles& tiles = task.tiles;
  // Where results go waits in shared memory, or it would take registers from the sums.
  Landing* const landings = reinterpret_cast<Landing*>(shared_memory());
  TableEntry* const table = reinterpret_cast<TableEntry*>(shared_memory() + task.landing_bytes());
  char* const tile = reinterpret_cast<char*>(table) + table_bytes(task.tiles);

  const int row_blocks = task.row_blocks();
  const int block = static_cast<int>(blockIdx.x % row_blocks);
  const int64_t rest = blockIdx.x / row_blocks;
  const int out_class = static_cast<int>(rest / tiles.count());
  const Place place = place_of(tiles, rest % tiles.count(), out_class, kCell);
  fill_table(tiles, task.from, place, kCell, table);

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int number = warp % task.token_warps * kLanes + lane % kLanes;
  const int row = ((warp / task.token_warps) * (kWarp / kLanes) + lane / kLanes) * kRows;  // in the block
  const char* mine;
  {
    const TokenCell token = token_cell(tiles, place, number, kCell);
    mine = tile + token.cell * 16;
    if (row == 0) {
      const int64_t offset = token.y * task.to_y + token.x * task.to_x + token.image * task.to_image;
      landings[number] = {offset, token.first, token.end};
    }
  }

  // The channels of the groups that the block's rows belong to.
  const int last_row = (block + 1) * task.block_rows < task.rows ? (block + 1) * task.block_rows - 1 : task.rows - 1;
  const int group_rows = task.rows / task.row_groups;
  const int first_channel = block * task.block_rows / group_rows * task.group_channels;
  const int end_channel = (last_row / group_rows + 1) * task.group_channels;
  const int planes = (end_channel - first_channel) * tiles.classes();

  float sums[kRows][kCell];
  SK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    SK_UNROLL
    for (int i = 0; i < kCell; ++i) sums[r][i] = 0;
  }

  SK_NO_UNROLL
  for (int chunk = 0; chunk < task.chunks; ++chunk) {
    const Words2* list =
        ranges + ((static_cast<int64_t>(out_class) * row_blocks + block) * task.chunks + chunk) * task.block_rows;
    if (load_constant(list).x == load_constant(list + task.block_rows).x) continue;  // nobody's edges: all agree
    const int first_plane = chunk * task.chunk_planes;
    const int count = planes - first_plane < task.chunk_planes ? planes - first_plane : task.chunk_planes;
    sync_block();
    copy_planes<kByPixel>(tiles, from, task.from, table, first_channel, first_plane, count, tile);
    copy_async_wait<0>();
    sync_block();
    list += row;
    Words2 next = load_constant(list);
    SK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Words2 range = next;
      if (r + 1 < kRows) next = load_constant(list + r + 1);
      uint32_t edge = range.x;
      SK_NO_UNROLL
      for (; edge + 2 <= range.y; edge += 2) {
        const Words4 two = load_constant(reinterpret_cast<const Words4*>(edges + edge));
        add_product(sums[r], two.y, *reinterpret_cast<const Words4*>(mine + two.x));
        add_product(sums[r], two.w, *reinterpret_cast<const Words4*>(mine + two.z));
      }
      if (edge < range.y) {
        const Words2 one = load_constant(reinterpret_cast<const Words2*>(edges + edge));
        add_product(sums[r], one.y, *reinterpret_cast<const Words4*>(mine + one.x));
      }
    }
  }

  sync_block();
  const Landing token = landings[number];
  const int first_row = block * task.block_rows + row;
  if (token.first >= token.end || first_row >= task.rows) return;
  const int rows = task.rows - first_row < kRows ? task.rows - first_row : kRows;
  if (bias) {
    SK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float more = r < rows ? load_constant(bias + first_row + r) : 0;
      SK_UNROLL
      for (int i = 0; i < kCell; ++i) sums[r][i] += more;
    }
  }
  float* const out = to + first_row * task.to_row + token.offset;
  if (!kByPixel && task.to_row == 1) {
    // Images of one pixel: rows are adjacent, and as many as a sector of memory has.
    const bool whole = rows == kRows && task.to_image % 4 == 0;
    SK_UNROLL
    for (int i = 0; i < kCell; ++i) {
      if (i >= token.end) continue;  // the first one exists: cells of images begin with one
      float* const at = out + i * task.to_image;
      if (whole) {
        SK_UNROLL
        for (int r = 0; r < kRows; r += 4) {
          *reinterpret_cast<Words4*>(at + r) = {float_bits(sums[r][i]), float_bits(sums[r + 1][i]),
                                                float_bits(sums[r + 2][i]), float_bits(sums[r + 3][i])};
        }
      } else {
        SK_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (r < rows) at[r] = sums[r][i];
        }
      }
    }
    return;
  }
  const int64_t step = task.to_x * tiles.x.out_step;
  SK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) continue;
    float* const at = out + r * task.to_row;
    if (!kByPixel) {
      *reinterpret_cast<Words4*>(at) = {float_bits(sums[r][0]), float_bits(sums[r][1]), float_bits(sums[r][2]),
                                        float_bits(sums[r][3])};
    } else {
      SK_UNROLL
      for (int i = 0; i < kCell; ++i) {
        if (i >= token.first && i < token.end) at[i * step] = sums[r][i];
      }
    }
  }
}

template <int kLanes>
void gather_of(const Queue& queue, const Gather& task, const float* from, const Words2* ranges, const Edge* edges,
               const float* bias, float* to) {
  const auto kernel = task.tiles.by_pixel ? gather_kernel<kLanes, true> : gather_kernel<kLanes, false>;
  launch(queue, "gather", kernel, {static_cast<unsigned>(task.blocks())}, task.warps * kWarp,
         task.shared_bytes(), task, from, ranges, edges, bias, to);
}

}  // namespace

void pack_edges(const Queue& queue, int64_t count, const int* cells, const int* sources, const float* values,
                Edge* edges) {
  launch(queue, "pack_edges", pack_edges_kernel, {static_cast<unsigned>((count + 255) / 256)}, 256, 0, count, cells,
         sources, values, edges);
}

void gather(const Queue& queue, const Gather& task, const float* from, const Words2* ranges, const Edge* edges,
            const float* bias, float* to) {
  const auto run = task.lanes == 32 ? gather_of<32> : task.lanes == 16 ? gather_of<16> : gather_of<8>;
  run(queue, task, from, ranges, edges, bias, to);
}

}  // namespace sparsekern::cuda
