#include "linear/edge_order.h"

#include <algorithm>
#include <array>

namespace sparsekern {
namespace {

void order_by_edges(const int64_t* begin, const int64_t* end, int64_t outputs, uint8_t* order) {
  const int64_t blocks = (outputs + kLinearBlock - 1) / kLinearBlock;
  parallel_ranges(blocks, 64, [&](int64_t first, int64_t last) {
    std::array<uint64_t, kLinearBlock> keys;
    for (int64_t b = first; b < last; ++b) {
      const int64_t start = b * kLinearBlock, size = std::min(kLinearBlock, outputs - start);
      for (int64_t i = 0; i < size; ++i)
        keys[i] = static_cast<uint64_t>((end[start + i] - begin[start + i]) * kLinearBlock + i);
      std::sort(keys.begin(), keys.begin() + size);
      for (int64_t i = 0; i < size; ++i) order[start + i] = static_cast<uint8_t>(keys[i] % kLinearBlock);
    }
  });
}

}  // namespace

EdgeOrder EdgeOrder::stored(const int64_t* pointers, int64_t outputs, Scratch& scratch, Slots slots) {
  uint8_t* order = scratch.get<uint8_t>(slots.order, outputs);
  for (int64_t i = 0; i < outputs; ++i) order[i] = static_cast<uint8_t>(i % kLinearBlock);
  EdgeOrder result;
  result.outputs_ = outputs;
  result.panels_.push_back({pointers, order, true, true});
  return result;
}

EdgeOrder EdgeOrder::packed(const int64_t* pointers, const int32_t* indices, int64_t outputs, int64_t gathered,
                            int64_t panel, Scratch& scratch, Slots slots) {
  const int64_t count = std::max<int64_t>(1, (gathered + panel - 1) / panel);
  int64_t* cuts = scratch.get<int64_t>(slots.cuts, (count + 1) * outputs);
  parallel_ranges(outputs, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* edge = indices + pointers[i];
      const int32_t* end = indices + pointers[i + 1];
      for (int64_t p = 0; p < count; ++p) {
        edge = std::lower_bound(edge, end, p * panel);
        cuts[p * outputs + i] = edge - indices;
      }
      cuts[count * outputs + i] = pointers[i + 1];
    }
  });
  uint8_t* orders = scratch.get<uint8_t>(slots.order, count * outputs);
  int64_t* places = scratch.get<int64_t>(slots.places, count * (outputs + 1));
  EdgeOrder result;
  result.outputs_ = outputs;
  result.cuts_ = cuts;
  int64_t place = 0;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t* begin = cuts + p * outputs;
    const int64_t* end = begin + outputs;
    uint8_t* order = orders + p * outputs;
    int64_t* mine = places + p * (outputs + 1);
    order_by_edges(begin, end, outputs, order);
    for (int64_t i = 0; i < outputs; ++i) {
      mine[i] = place;
      const int64_t output = i / kLinearBlock * kLinearBlock + order[i];
      place += end[output] - begin[output];
    }
    mine[outputs] = place;
    result.panels_.push_back({mine, order, p == 0, p == count - 1});
  }
  return result;
}

}  // namespace sparsekern
