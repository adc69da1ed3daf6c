// A block keeps a chunk of the minors' activations in shared memory, while the next one arrives. ldmatrix gathers the
// rows of 16 slots for 16 tokens at a time; one mma multiplies them by a matrix that has, for each slot, its value in
// the column of its place and 0 in the seven others: 8 sums at 16 tokens, in registers through all chunks.
//
// A value that is not finite makes all 8 majors of its block NaN at its token, as it would make all majors NaN in a
// dense product.
#include "cuda/spmm.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/slots_device.h"
#include "cuda/activation_tile.h"

namespace sparsekern::cuda {

namespace {

constexpr int kWarps = kSpmmWarps, kThreads = kWarps * static_cast<int>(kWarp);

template <class T>
struct Operands {
  const uint16_t* order;
  const int32_t* pointers;
  const uint32_t* slots;
  const T* x;
  const float* bias;
  T* y;
  int64_t tokens, majors, minors, stride, items;
  int32_t chunk, chunks, blocks, row_sets, row_sets_an_order, buffer_bytes;
};

// Two slots' values, each where its place is the lane's own column, else 0. `own`: place_bits of that column, twice.
SK_DEVICE uint32_t values_in(uint32_t low_slot, uint32_t high_slot, uint32_t own) {
  const uint32_t values = pick_bytes(low_slot, high_slot, 0x7632), places = pick_bytes(low_slot, high_slot, 0x5410);
  return values & equal_halves((places & (kPlaceMask | kPlaceMask << 16)) | 0x10001000u, own);
}

// A place as f16, never 0 or NaN.
SK_DEVICE uint32_t place_bits(uint32_t place) { return place << kPlaceShift | 0x1000u; }

// What a warp adds up: an item is a tile of tokens and a set of majors, in each chunk in turn.
struct Stage {
  int64_t item;
  int32_t chunk;
};

template <class T>
SK_DEVICE Stage next_stage(const Operands<T>& o, const Stage& stage) {
  if (stage.chunk + 1 < o.chunks) return {stage.item, stage.chunk + 1};
  return {stage.item + gridDim.x, 0};
}

template <int kTokens, class T>
SK_DEVICE void copy_stage(const Operands<T>& o, const Stage& stage, char* buffer) {
  if (stage.item < o.items) {
    const int64_t first = static_cast<int64_t>(stage.chunk) * o.chunk, rest = o.minors - first;
    const int features = static_cast<int>(rest < o.chunk ? rest : o.chunk);
    const int64_t set = stage.item % o.row_sets / o.row_sets_an_order;
    copy_tile<kTokens, kThreads>(buffer, o.x + first * o.stride, o.stride, o.order + set * o.minors + first, features,
                                 stage.item / o.row_sets * kTokens);
  }
  copy_async_commit();
}

// The slots that a lane needs of a group: those of its values, and the one whose row it addresses.
struct LaneSlots {
  Words4 values;
  uint32_t addressed;
};

// Where a lane reads them.
struct LaneReader {
  const Words4* values;
  const uint32_t* addressed;

  SK_DEVICE LaneReader(const uint32_t* slots, int32_t group, int lane) {
    const uint32_t* const at = slots + static_cast<int64_t>(group) * kGroup;
    values = reinterpret_cast<const Words4*>(at) + lane % 4;
    addressed = at + memory_of(lane % 8 + lane / 16 * 8);
  }

  SK_DEVICE LaneSlots next() {
    const LaneSlots slots{load_constant(values), load_constant(addressed)};
    values += kGroup / 4;
    addressed += kGroup;
    return slots;
  }
};

template <class T, int kTokens, int kBlocks>
SK_DEVICE void store(const Operands<T>& o, const float (&sums)[kBlocks][kTokens / 16][4], int64_t first_token,
                     int32_t first_block, int lane) {
  SK_UNROLL for (int b = 0; b < kBlocks; b += 2) {
    // Of a strip's two blocks a lane has four adjacent majors.
    const int64_t major = major_of(first_block + b, lane % 4 * 2);
    if (major >= o.majors) continue;
    const int known = static_cast<int>(o.majors - major < 4 ? o.majors - major : 4);
    float bias[4] = {};
    if (o.bias != nullptr) {
      SK_UNROLL for (int i = 0; i < 4; ++i) {
        if (i < known) bias[i] = load_constant(o.bias + major + i);
      }
    }
    SK_UNROLL for (int half = 0; half < kTokens / 8; ++half) {
      const int64_t token = first_token + half * 8 + lane / 4;
      if (token >= o.tokens) continue;
      const float* const low = &sums[b][half / 2][half % 2 * 2];
      const float* const high = &sums[b + 1][half / 2][half % 2 * 2];
      const T results[4] = {narrow<T>(low[0] + bias[0]), narrow<T>(low[1] + bias[1]), narrow<T>(high[0] + bias[2]),
                            narrow<T>(high[1] + bias[3])};
      T* const to = o.y + token * o.majors + major;
      if (o.majors % 4 == 0) {
        *reinterpret_cast<Words2*>(to) = {results[0].bits | static_cast<uint32_t>(results[1].bits) << 16,
                                          results[2].bits | static_cast<uint32_t>(results[3].bits) << 16};
      } else {
        SK_UNROLL for (int i = 0; i < 4; ++i) {
          if (i < known) to[i] = results[i];
        }
      }
    }
  }
}

template <class T, int kTokens, int kBlocks>
SK_KERNEL(kThreads, 1)
spmm_kernel(Operands<T> o) {
  char* const shared = shared_memory();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint32_t own = place_bits(lane / 4) | place_bits(lane / 4) << 16;
  const uint32_t unit = lane / 8 % 2;  // of the 16 tokens that one ldmatrix reads
  float sums[kBlocks][kTokens / 16][4] = {};
  Stage stage{blockIdx.x, 0};
  copy_stage<kTokens>(o, stage, shared);
  for (int buffer = 0; stage.item < o.items; buffer ^= 1) {
    const Stage next = next_stage(o, stage);
    const int32_t first_block = (static_cast<int32_t>(stage.item % o.row_sets) * kWarps + warp) * kBlocks;
    // Lane b has the pointer to the warp's list b.
    const int32_t list = first_block + lane < o.blocks ? first_block + lane : o.blocks;
    const int32_t pointer = load_constant(o.pointers + static_cast<int64_t>(stage.chunk) * (o.blocks + 1) + list);
    int32_t group = shuffle(pointer, 0);
    LaneReader reader(o.slots, group, lane);
    LaneSlots ahead = reader.next();
    copy_async_wait<0>();
    sync_block();  // the chunk is there, and nobody reads the other buffer any more
    if (next.item < o.items) copy_stage<kTokens>(o, next, shared + (buffer ^ 1) * o.buffer_bytes);
    const uint32_t tile = shared_address(shared) + buffer * o.buffer_bytes;
    SK_UNROLL for (int b = 0; b < kBlocks; ++b) {
      const int32_t end = shuffle(pointer, b + 1);
      for (; group < end; ++group) {
        const LaneSlots slots = ahead;
        ahead = reader.next();
        const uint32_t values[2] = {values_in(slots.values.x, slots.values.y, own),
                                    values_in(slots.values.z, slots.values.w, own)};
        const uint32_t row = tile + unit_offset<kTokens>(slots.addressed & kMinorMask, unit);
        SK_UNROLL for (int i = 0; i < kTokens / 16; ++i) {
          uint32_t gathered[4];
          load_matrices_transposed(gathered, row ^ static_cast<uint32_t>(i << 5));
          multiply_add<T>(sums[b][i], gathered, values);
        }
      }
    }
    if (next.chunk == 0) {
      store<T, kTokens, kBlocks>(o, sums, stage.item / o.row_sets * kTokens, first_block, lane);
      SK_UNROLL for (int b = 0; b < kBlocks; ++b) {
        SK_UNROLL for (int i = 0; i < kTokens / 16; ++i) {
          SK_UNROLL for (int j = 0; j < 4; ++j) sums[b][i][j] = 0;
        }
      }
    }
    stage = next;
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T, int kTokens, int kBlocks>
void spmm_of(const Queue& queue, const SpmmArguments& a) {
  const int64_t row_sets = ceil_div(a.cut.blocks, kWarps * kBlocks), items = row_sets * ceil_div(a.tokens, kTokens);
  const int64_t grid = std::min<int64_t>(items, processors_of(queue));
  const int32_t buffer_bytes = a.cut.chunk * kTokens * 2;
  const bool one_stage = items == grid && a.cut.chunks == 1;
  static_assert(kSpmmSetBlocks % (kWarps * kBlocks) == 0);
  const Operands<T> operands{a.order,
                             a.pointers,
                             a.slots,
                             static_cast<const T*>(a.x),
                             a.bias,
                             static_cast<T*>(a.y),
                             a.tokens,
                             a.majors,
                             a.cut.minors,
                             a.stride,
                             items,
                             a.cut.chunk,
                             a.cut.chunks,
                             a.cut.blocks,
                             static_cast<int32_t>(row_sets),
                             static_cast<int32_t>(ceil_div(a.cut.set_blocks, kWarps * kBlocks)),
                             buffer_bytes};
  launch(queue, "spmm", spmm_kernel<T, kTokens, kBlocks>, {static_cast<unsigned>(grid)}, kThreads,
         static_cast<size_t>(buffer_bytes) * (one_stage ? 1 : 2), operands);
}

template <class T>
void spmm_with(const Queue& queue, const SpmmTile& tile, const SpmmArguments& arguments) {
  const auto is = [&](int i) { return tile.tokens == kSpmmTiles[i].tokens && tile.blocks == kSpmmTiles[i].blocks; };
  if (is(0)) return spmm_of<T, kSpmmTiles[0].tokens, kSpmmTiles[0].blocks>(queue, arguments);
  if (is(1)) return spmm_of<T, kSpmmTiles[1].tokens, kSpmmTiles[1].blocks>(queue, arguments);
  if (is(2)) return spmm_of<T, kSpmmTiles[2].tokens, kSpmmTiles[2].blocks>(queue, arguments);
  if (is(3)) return spmm_of<T, kSpmmTiles[3].tokens, kSpmmTiles[3].blocks>(queue, arguments);
  throw std::invalid_argument("spmm has no tile of " + std::to_string(tile.tokens) + " tokens and " +
                              std::to_string(tile.blocks) + " blocks");
}

}  // namespace

void spmm(const Queue& queue, const SpmmTile& tile, const SpmmArguments& arguments) {
  (arguments.dtype == Dtype::bfloat16 ? spmm_with<bf16> : spmm_with<f16>)(queue, tile, arguments);
}

}  // namespace sparsekern::cuda
