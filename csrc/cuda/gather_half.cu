#include "cuda/gather_half.h"

#include "cuda/launch.h"
#include "cuda/slots_device.h"
#include "cuda/tiles_device.h"

namespace sparsekern::cuda {

namespace {

constexpr int kThreads = kWarp * kGatherHalfWarps;
constexpr int kCell = 8;                        // elements
constexpr int kFragments = kWarpCells / 2;      // of 16 tokens, of a warp
constexpr int kBlocks = kStrip / kBlock;

// Where a cell of tokens goes, counted from its row, and which of its elements do.
struct Landing {
  int64_t offset;
  int first, end;
};

template <class T, bool kByPixel>
SK_KERNEL(kThreads, 2)
gather_half_kernel(const GatherHalf task, const T* from, const int32_t* pointers, const uint32_t* slots,
                   const float* bias, T* to) {
  const Tiles& tiles = task.tiles;
  // Where results go waits in shared memory, or it would take registers from the sums.
  Landing* const landings = reinterpret_cast<Landing*>(shared_memory());
  TableEntry* const table = reinterpret_cast<TableEntry*>(shared_memory() + task.landing_bytes());
  char* const tile = reinterpret_cast<char*>(table) + table_bytes(tiles);

  const int row_blocks = task.row_blocks();
  const int block = static_cast<int>(blockIdx.x % row_blocks);
  const int64_t rest = blockIdx.x / row_blocks;
  const int out_class = static_cast<int>(rest / tiles.count());
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_cell = warp % task.token_warps * kWarpCells;
  const int strip = warp / task.token_warps;  // in the block
  uint32_t mine[kFragments];  // of each fragment, the half whose rows this lane names to ldmatrix
  {
    const Place place = place_of(tiles, rest % tiles.count(), out_class, kCell);
    fill_table(tiles, task.from, place, kCell, table);
    SK_UNROLL
    for (int i = 0; i < kFragments; ++i) {
      mine[i] = shared_address(tile) + token_cell(tiles, place, first_cell + 2 * i + lane / 8 % 2, kCell).cell * 16;
    }
    if (strip == 0 && lane < kWarpCells) {
      const TokenCell token = token_cell(tiles, place, first_cell + lane, kCell);
      landings[first_cell + lane] = {token.y * task.to_y + token.x * task.to_x + token.image * task.to_image,
                                     token.first, token.end};
    }
  }

  // The channels of the groups that the block's rows belong to.
  const int last_row = (block + 1) * task.block_rows < task.rows ? (block + 1) * task.block_rows - 1 : task.rows - 1;
  const int group_rows = task.rows / task.row_groups;
  const int first_channel = block * task.block_rows / group_rows * task.group_channels;
  const int end_channel = (last_row / group_rows + 1) * task.group_channels;
  const int planes = (end_channel - first_channel) * tiles.classes();
  const int first_list = (out_class * row_blocks + block) * (task.block_rows / kBlock);
  const int lists = task.block_rows / kBlock;

  float sums[kBlocks][kFragments][4];
  SK_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    SK_UNROLL
    for (int i = 0; i < kFragments; ++i) {
      SK_UNROLL
      for (int j = 0; j < 4; ++j) sums[b][i][j] = 0;
    }
  }

  const uint32_t place = static_cast<uint32_t>(lane / 4) << kPlaceShift;  // of the values that this lane multiplies by
  const int named = memory_of(lane % 8 + lane / 16 * 8);                   // the slot whose row it names
  SK_NO_UNROLL
  for (int chunk = 0; chunk < task.chunks; ++chunk) {
    const int32_t* list = pointers + static_cast<int64_t>(chunk) * (task.slot_blocks() + 1) + first_list;
    if (load_constant(list) == load_constant(list + lists)) continue;  // nobody's slots: all agree
    const int first_plane = chunk * task.chunk_planes;
    const int count = planes - first_plane < task.chunk_planes ? planes - first_plane : task.chunk_planes;
    sync_block();
    copy_planes<kByPixel>(tiles, from, task.from, table, first_channel, first_plane, count, tile);
    copy_async_wait<0>();
    sync_block();
    list += strip * kBlocks;
    int group = load_constant(list);
    SK_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const int end = load_constant(list + b + 1);
      SK_NO_UNROLL
      for (; group < end; ++group) {
        const uint32_t* const words = slots + static_cast<int64_t>(group) * kGroup;
        const Words4 four = load_constant(reinterpret_cast<const Words4*>(words) + lane % 4);
        const uint32_t offset = (load_constant(words + named) & kMinorMask) * 16;
        const auto value = [&](uint32_t slot) { return (slot ^ place) & kPlaceMask ? 0 : slot; };
        const uint32_t values[2] = {pick_bytes(value(four.x), value(four.y), 0x7632),
                                    pick_bytes(value(four.z), value(four.w), 0x7632)};
        SK_UNROLL
        for (int i = 0; i < kFragments; ++i) {
          uint32_t tokens[4];
          load_matrices_transposed(tokens, mine[i] + offset);
          multiply_add<T>(sums[b][i], tokens, values);
        }
      }
    }
  }

  // This lane has, of tokens lane / 4 of each cell, four adjacent rows: two of each block of its strip.
  sync_block();
  const int first_row = block * task.block_rows + strip * kStrip + lane % 4 * 4;
  if (first_row >= task.rows) return;
  const int rows = task.rows - first_row < 4 ? task.rows - first_row : 4;
  float more[4];
  SK_UNROLL
  for (int r = 0; r < 4; ++r) more[r] = bias && r < rows ? load_constant(bias + first_row + r) : 0;
  const int element = lane / 4;
  const int64_t step = kByPixel ? task.to_x * tiles.x.out_step : task.to_image;
  SK_UNROLL
  for (int i = 0; i < kFragments; ++i) {
    SK_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Landing landing = landings[first_cell + 2 * i + half];
      if (element < landing.first || element >= landing.end) continue;
      T* const out = to + landing.offset + element * step + first_row * task.to_row;
      const T four[4] = {narrow<T>(sums[0][i][2 * half] + more[0]), narrow<T>(sums[0][i][2 * half + 1] + more[1]),
                         narrow<T>(sums[1][i][2 * half] + more[2]), narrow<T>(sums[1][i][2 * half + 1] + more[3])};
      if (task.to_row == 1 && task.to_image % 4 == 0) {
        *reinterpret_cast<Words2*>(out) = {static_cast<uint32_t>(four[1].bits) << 16 | four[0].bits,
                                           static_cast<uint32_t>(four[3].bits) << 16 | four[2].bits};
      } else {
        SK_UNROLL
        for (int r = 0; r < 4; ++r) {
          if (r < rows) out[r * task.to_row] = four[r];
        }
      }
    }
  }
}

template <class T>
void gather_of(const Queue& queue, const GatherHalf& task, const void* from, const int32_t* pointers,
               const uint32_t* slots, const float* bias, void* to) {
  const auto kernel = task.tiles.by_pixel ? gather_half_kernel<T, true> : gather_half_kernel<T, false>;
  launch(queue, "gather_half", kernel, {static_cast<unsigned>(task.blocks())}, task.warps * kWarp, task.shared_bytes(),
         task, static_cast<const T*>(from), pointers, slots, bias, static_cast<T*>(to));
}

}  // namespace

void gather_half(const Queue& queue, const GatherHalf& task, Dtype dtype, const void* from, const int32_t* pointers,
                 const uint32_t* slots, const float* bias, void* to) {
  (dtype == Dtype::bfloat16 ? gather_of<bf16> : gather_of<f16>)(queue, task, from, pointers, slots, bias, to);
}

}  // namespace sparsekern::cuda
