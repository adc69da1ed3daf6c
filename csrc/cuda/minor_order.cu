#include "cuda/minor_order.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/slots_device.h"

namespace sparsekern::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kAtOnce = kThreads / kClasses;  // minors; they do not see each other's choices
static_assert(kAtOnce <= static_cast<int>(kWarp));

// A block has one chunk of one set, of whose lists it counts the first `counted`.
SK_KERNEL(kThreads, 4)
order_kernel(const int32_t* starts, const int32_t* majors, Cut cut, int32_t counted, uint16_t* order,
             uint16_t* places) {
  int32_t* const counts = reinterpret_cast<int32_t*>(shared_memory());  // (counted, kClasses) edges
  int32_t* const used = counts + static_cast<int64_t>(counted) * kClasses;  // (kClasses) places
  uint32_t* const costs = reinterpret_cast<uint32_t*>(used + kClasses);     // (kAtOnce, kClasses)
  int32_t* const chosen = used + kClasses + kThreads;                       // (kAtOnce) classes
  for (int i = threadIdx.x; i < (counted + 1) * kClasses; i += kThreads) counts[i] = 0;
  sync_block();
  const int32_t first_block = static_cast<int32_t>(blockIdx.x) / cut.chunks * cut.set_blocks;
  const int64_t first = static_cast<int64_t>(blockIdx.x) % cut.chunks * cut.chunk;
  const int32_t minors = static_cast<int32_t>(cut.minors - first < cut.chunk ? cut.minors - first : cut.chunk);
  const int64_t at = first_block / cut.set_blocks * cut.minors + first;
  const int own = threadIdx.x % kClasses, number = threadIdx.x / kClasses;
  for (int32_t batch = 0; batch < minors; batch += kAtOnce) {
    const int32_t minor = batch + number;
    int64_t begin = 0, end = 0;
    if (minor < minors) {
      begin = lower_bound(majors, starts[first + minor], starts[first + minor + 1], int64_t{first_block} * kBlock);
      end = lower_bound(majors, begin, starts[first + minor + 1], int64_t{first_block + counted} * kBlock);
    }
    uint32_t cost = 0;
    for (int64_t e = begin; e < end; ++e) cost += counts[(block_of(majors[e]) - first_block) * kClasses + own];
    costs[threadIdx.x] = cost;
    sync_block();
    if (threadIdx.x < kWarp) {
      // A lane for each minor; again for those that find their class full with the minors before.
      const int lane = threadIdx.x;
      const int32_t mine = batch + lane;
      for (bool waits = lane < kAtOnce && mine < minors; ballot(waits) != 0;) {
        int best = -1;
        uint32_t least = UINT32_MAX;
        for (int i = 0; waits && i < kClasses; ++i) {
          const int c = (mine + i) % kClasses;  // of equals each minor takes another first
          const bool full = used[c] * kClasses + c >= minors;
          if (!full && costs[lane * kClasses + c] < least) best = c, least = costs[lane * kClasses + c];
        }
        int32_t place = INT32_MAX;
        for (int c = 0; c < kClasses; ++c) {
          const unsigned those = ballot(best == c);
          if (best == c) place = (used[c] + count_bits(those & ((1u << lane) - 1))) * kClasses + c;
        }
        sync_warp();  // all have read what is used
        if (place < minors) {
          waits = false;
          order[at + place] = static_cast<uint16_t>(mine);
          places[at + mine] = static_cast<uint16_t>(place);
          chosen[lane] = best;
          atomic_add(used + best, 1);
        }
        sync_warp();
      }
    }
    sync_block();
    for (int64_t e = begin + own; e < end; e += kClasses) {
      atomic_add(counts + (block_of(majors[e]) - first_block) * kClasses + chosen[number], 1);
    }
    sync_block();
  }
}

}  // namespace

void order_minors(const Queue& queue, const int32_t* starts, const int32_t* majors, const Cut& cut, uint16_t* order,
                  uint16_t* places) {
  constexpr int64_t kListBytes = kClasses * sizeof(int32_t);
  constexpr int64_t kRestBytes = kListBytes + (kThreads + kAtOnce) * sizeof(int32_t);
  const int64_t room = (static_cast<int64_t>(shared_bytes_of(queue)) - kRestBytes) / kListBytes;
  const int32_t counted = static_cast<int32_t>(std::min<int64_t>(cut.set_blocks, room / 2 * 2));
  launch(queue, "order_minors", order_kernel, {static_cast<unsigned>(cut.sets() * cut.chunks)}, kThreads,
         static_cast<size_t>(counted * kListBytes + kRestBytes), starts, majors, cut, counted, order, places);
}

}  // namespace sparsekern::cuda
