// Panels of the channels that edges read (see ChannelPanel in kernels.h): how many there are.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sparsekern {

struct Panels {
  int64_t count, channels;  // channels of a group in a panel

  // A block meets `window` bytes of each of a group's `channels`; rows have edges_per_row edges on average.
  static Panels of(int64_t channels, int64_t window, int64_t edges_per_row, int64_t panel_bytes, int64_t panel_edges) {
    const int64_t fit = std::max<int64_t>(1, panel_bytes / window);
    const int64_t count = std::max<int64_t>(1, (channels + fit - 1) / fit);
    // Between panels a block's sums leave and enter the registers: too few edges do not pay for that.
    if (count == 1 || edges_per_row < panel_edges * count) return {1, std::max<int64_t>(1, channels)};
    return {count, (channels + count - 1) / count};
  }
};

}  // namespace sparsekern
