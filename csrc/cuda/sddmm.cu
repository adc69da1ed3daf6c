// A warp keeps the sums of its groups of slots in registers through all tokens. The minors' activations of a chunk are
// in shared memory, while the next tokens arrive; ldmatrix gathers the rows of 16 slots, and one mma multiplies them by
// the 8 majors of their block, whose activations a lane reads 16 bytes at a time: 16 x 8 sums, of which each slot has
// one. A lane keeps two of its four from tile to tile, those that may be a slot's own: a warp has twice as many groups
// then, and activations arrive for twice as many edges.
#include "cuda/sddmm.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/slots_device.h"
#include "cuda/activation_tile.h"

namespace sparsekern::cuda {

namespace {

constexpr int kWarps = kSddmmWarps, kGroups = kSddmmGroups, kThreads = kWarps * static_cast<int>(kWarp);
constexpr int kTokens = kSddmmTokens;
static_assert(kGroups == static_cast<int>(kWarp), "a lane has the list of a group");

template <class T>
struct Operands {
  const uint16_t* order;
  const int32_t* groups;
  const uint16_t* places;
  const int32_t* lists;
  const T* gathered;
  const T* stationary;
  float* partial;
  int64_t minors, gathered_stride, stationary_stride, tiles, splits, slots;
  int32_t majors, chunk, blocks, buffer_bytes;
};

// Rows of a tile in units of 16 bytes, two of them in a register.
SK_DEVICE uint32_t row_at(const uint32_t (&rows)[kGroups / 2], int q) {
  const uint32_t two = opaque(rows[q / 2]);
  return q % 2 ? two >> 12 & 0xffff0u : two << 4 & 0xffff0u;
}

template <class T>
SK_KERNEL(kThreads, 1)
sddmm_kernel(Operands<T> o) {
  char* const shared = shared_memory();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t split = blockIdx.x % o.splits, first = blockIdx.x / o.splits * kSddmmBlock;
  const int64_t groups = *o.groups;
  if (first >= groups) return;
  const int32_t chunk = o.lists[first] / (o.blocks + 1);
  const int64_t first_minor = static_cast<int64_t>(chunk) * o.chunk;
  const int features = static_cast<int>(o.minors - first_minor < o.chunk ? o.minors - first_minor : o.chunk);
  const T* const gathered = o.gathered + first_minor * o.gathered_stride;
  const uint16_t* const order = o.order + first_minor;
  const int64_t end_tile = o.tiles * (split + 1) / o.splits;
  int64_t tile = o.tiles * split / o.splits;
  copy_tile<kTokens, kThreads>(shared, gathered, o.gathered_stride, order, features, tile * kTokens);
  copy_async_commit();

  // Lane q has the list of the warp's group q; those without one come last.
  const int64_t own = first + warp * kGroups;
  const int32_t list = own + lane < groups ? o.lists[own + lane] : -1;
  const int count = count_bits(ballot(list >= 0));
  const int32_t list_before = shuffle(list, (lane + kWarp - 1) % kWarp);
  const unsigned fresh = ballot(lane == 0 || list != list_before);  // another block than the group before
  const int32_t block = list >= 0 ? list % (o.blocks + 1) : 0;
  // The rows that the lane addresses, of slot lane % 16 and unit lane / 16; whether slots lane / 4 and lane / 4 + 8
  // have an odd place in their block.
  uint32_t rows[kGroups / 2] = {};
  uint32_t odd[2] = {};
  SK_UNROLL for (int q = 0; q < kGroups; ++q) {
    if (q < count) {
      const uint16_t* const places = o.places + (own + q) * kGroup;
      const uint32_t offset = unit_offset<kTokens>(places[memory_of(lane % 16)] & kMinorMask, lane / 16);
      rows[q / 2] |= offset / 16 << q % 2 * 16;
      SK_UNROLL for (int half = 0; half < 2; ++half) {
        odd[half] |= (places[memory_of(lane / 4 + half * 8)] >> kPlaceShift & 1u) << q;
      }
    }
  }

  float kept[kGroups][2] = {};
  for (int buffer = 0; tile < end_tile; ++tile, buffer ^= 1) {
    copy_async_wait<0>();
    sync_block();  // the tokens are there, and nobody reads the other buffer any more
    if (tile + 1 < end_tile) {
      copy_tile<kTokens, kThreads>(shared + (buffer ^ 1) * o.buffer_bytes, gathered, o.gathered_stride, order, features,
                                   (tile + 1) * kTokens);
      copy_async_commit();
    }
    const uint32_t rows_at = shared_address(shared) + buffer * o.buffer_bytes;
    const T* const stationary = o.stationary + tile * kTokens + lane % 4 * 8;
    uint32_t majors[kTokens / 16][2];
    SK_UNROLL for (int q = 0; q < kGroups; ++q) {
      if (q < count) {
        if (fresh >> q & 1) {
          // Beyond the last major no slot has a place: whatever is read there comes to nothing.
          const int32_t major = major_of(shuffle(block, q), lane / 4), last = o.majors - 1;
          const T* const from = stationary + (major < last ? major : last) * o.stationary_stride;
          SK_UNROLL for (int part = 0; part < kTokens / 32; ++part) {
            const Words4 words = load_constant(reinterpret_cast<const Words4*>(from) + part * 4);
            majors[2 * part][0] = words.x;
            majors[2 * part][1] = words.y;
            majors[2 * part + 1][0] = words.z;
            majors[2 * part + 1][1] = words.w;
          }
        }
        const uint32_t row = rows_at + row_at(rows, q);
        float sums[kTokens / 16][4] = {};  // apart, so that no multiplication waits for another
        SK_UNROLL for (int i = 0; i < kTokens / 16; ++i) {
          uint32_t rows_of_slots[4];
          load_matrices(rows_of_slots, row ^ static_cast<uint32_t>(i << 5));
          multiply_add<T>(sums[i], rows_of_slots, majors[i]);
        }
        SK_UNROLL for (int half = 0; half < 2; ++half) {
          const bool is_odd = opaque(odd[half]) >> q & 1;
          SK_UNROLL for (int i = 0; i < kTokens / 16; ++i) {
            kept[q][half] += is_odd ? sums[i][2 * half + 1] : sums[i][2 * half];
          }
        }
      }
    }
  }

  // Slot g (and g + 8) has its sum where its place is: in lane place / 2 of four.
  SK_UNROLL for (int q = 0; q < kGroups; ++q) {
    if (q >= count) break;
    SK_UNROLL for (int half = 0; half < 2; ++half) {
      const int64_t slot = (own + q) * kGroup + memory_of(lane / 4 + half * 8);
      const int place = o.places[slot] >> kPlaceShift;
      if (place / 2 == lane % 4) o.partial[split * o.slots + slot] = kept[q][half];
    }
  }
}

constexpr int kAddThreads = 256;

// out[edge of slot i] = the sum of the splits' sums, in their order.
template <class W>
SK_KERNEL(kAddThreads, 4)
add_kernel(const int32_t* groups, const int32_t* edges, const float* partial, int64_t slots, int64_t splits, W* out) {
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  if (slot >= static_cast<int64_t>(*groups) * kGroup) return;
  const int32_t edge = edges[slot];
  if (edge < 0) return;
  float sum = partial[slot];
  for (int64_t split = 1; split < splits; ++split) sum += partial[split * slots + slot];
  out[edge] = narrow<W>(sum);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
void sddmm_of(const Queue& queue, int64_t splits, const SddmmArguments& a) {
  const int64_t tiles = ceil_div(a.tokens, kTokens), runs = ceil_div(a.most_groups, kSddmmBlock);
  const int32_t buffer_bytes = a.cut.chunk * kTokens * 2;
  const Operands<T> operands{a.order,
                             a.groups,
                             a.places,
                             a.lists,
                             static_cast<const T*>(a.gathered),
                             static_cast<const T*>(a.stationary),
                             a.partial,
                             a.cut.minors,
                             a.gathered_stride,
                             a.stationary_stride,
                             tiles,
                             splits,
                             a.most_groups * kGroup,
                             static_cast<int32_t>(a.majors),
                             a.cut.chunk,
                             a.cut.blocks,
                             buffer_bytes};
  launch(queue, "sddmm", sddmm_kernel<T>, {static_cast<unsigned>(runs * splits)}, kThreads,
         static_cast<size_t>(buffer_bytes) * 2, operands);
}

template <class W>
void add(const Queue& queue, int64_t splits, const SddmmArguments& a) {
  const int64_t slots = a.most_groups * kGroup;
  launch(queue, "sddmm_add", add_kernel<W>, {static_cast<unsigned>(ceil_div(slots, kAddThreads))}, kAddThreads, 0,
         a.groups, a.edges, a.partial, slots, splits, static_cast<W*>(a.out));
}

}  // namespace

int64_t sddmm_splits(const Queue& queue, int64_t most_groups, int64_t tokens, int64_t most) {
  constexpr int64_t kStart = 2;  // a block's beginning and end cost as much as so many tiles
  const int64_t tiles = ceil_div(tokens, kTokens), runs = ceil_div(most_groups, kSddmmBlock);
  const int64_t processors = processors_of(queue);
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= std::min(tiles, most); ++splits) {
    const int64_t time = ceil_div(runs * splits, processors) * (ceil_div(tiles, splits) + kStart);
    if (time < least) best = splits, least = time;
  }
  return best;
}

void sddmm(const Queue& queue, int64_t splits, const SddmmArguments& arguments) {
  (arguments.dtype == Dtype::bfloat16 ? sddmm_of<bf16> : sddmm_of<f16>)(queue, splits, arguments);
  const auto write = arguments.out_dtype == Dtype::float32    ? add<float>
                     : arguments.out_dtype == Dtype::bfloat16 ? add<bf16>
                                                              : add<f16>;
  write(queue, splits, arguments);
}

}  // namespace sparsekern::cuda
