#include "linear/tiling.h"

#include <algorithm>
#include <array>

#include "parallel.h"

namespace sparsekern {
namespace {

// What visiting an output costs besides its edges, in edges.
constexpr int64_t kOutputCost = 8;
// Shares of the caches that gathered features may take: the rest is for what streams past them.
constexpr int64_t kFirstLevelBytes = 64 << 10;
constexpr int64_t kSecondLevelBytes = 512 << 10;

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

int64_t feature_bytes(const ProductSize& s, int vectors) { return int64_t{vectors} * s.lanes * s.element_bytes; }

// A panel of this many features pays when each output finds `least` edges in it.
bool pays(const ProductSize& s, int64_t panel, int64_t least) {
  return panel < s.gathered && s.edges * panel >= least * s.gathered * s.outputs;
}

}  // namespace

Tiling forward_tiling(const ProductSize& s) {
  int vectors = std::min(4, s.max_vectors);
  const int64_t near = kFirstLevelBytes / feature_bytes(s, vectors);
  if (pays(s, near, 24)) return {vectors, std::max(near / 2, std::min(near, 24 * s.gathered * s.outputs / s.edges))};
  while (vectors > 1 && s.gathered * feature_bytes(s, vectors) > 2 * kSecondLevelBytes) {
    const int64_t far = kSecondLevelBytes / feature_bytes(s, vectors);
    if (pays(s, far, 8)) return {vectors, far};
    vectors /= 2;
  }
  return {std::max(vectors, std::min(2, s.max_vectors)), s.gathered};
}

Tiling backward_tiling(const ProductSize& s) {
  int vectors = s.max_vectors;
  while (vectors > 2 && s.gathered * feature_bytes(s, vectors) > kSecondLevelBytes) {
    const int64_t far = kSecondLevelBytes / 2 / feature_bytes(s, vectors);
    if (pays(s, far, 16)) return {vectors, far};
    if (s.gathered * feature_bytes(s, vectors / 2) <= 2 * kSecondLevelBytes) return {vectors / 2, s.gathered};
    vectors /= 2;
  }
  return {vectors, s.gathered};
}

std::vector<TokenTile> cut_tokens(int64_t tokens, int vectors, int lanes) {
  std::vector<TokenTile> tiles;
  for (int64_t begin = 0; begin < tokens;) {
    const int64_t count = std::min<int64_t>(tokens - begin, int64_t{vectors} * lanes);
    int wide = vectors;
    while (wide > 1 && wide / 2 * lanes >= count) wide /= 2;
    tiles.push_back({begin, count, wide});
    begin += count;
  }
  return tiles;
}

std::vector<Panel> cut_panels(const int64_t* pointers, const int32_t* indices, int64_t outputs, int64_t gathered,
                              int64_t panel, Scratch& scratch, size_t pointer_slot, size_t order_slot) {
  const int64_t count = std::max<int64_t>(1, (gathered + panel - 1) / panel);
  uint8_t* orders = scratch.get<uint8_t>(order_slot, std::max<int64_t>(1, count * outputs));
  std::vector<Panel> panels;
  if (count == 1) {
    order_by_edges(pointers, pointers + 1, outputs, orders);
    panels.push_back({pointers, pointers + 1, orders, true, true});
    return panels;
  }
  int64_t* cuts = scratch.get<int64_t>(pointer_slot, (count + 1) * outputs);
  parallel_ranges(outputs, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int32_t* edge = indices + pointers[i];
      const int32_t* end = indices + pointers[i + 1];
      for (int64_t p = 0; p <= count; ++p) {
        edge = std::lower_bound(edge, end, std::min(gathered, p * panel));
        cuts[p * outputs + i] = edge - indices;
      }
    }
  });
  for (int64_t p = 0; p < count; ++p) {
    const int64_t* begin = cuts + p * outputs;
    uint8_t* order = orders + p * outputs;
    order_by_edges(begin, begin + outputs, outputs, order);
    panels.push_back({begin, begin + outputs, order, p == 0, p == count - 1});
  }
  return panels;
}

VisitOrder::VisitOrder(const std::vector<Panel>& panels, int64_t outputs, Scratch& scratch, size_t slot)
    : stored_(panels), packed_(panels), outputs_(outputs) {
  const int64_t count = static_cast<int64_t>(panels.size());
  int64_t* places = scratch.get<int64_t>(slot, 2 * count * outputs + 1);
  int64_t place = 0;
  for (int64_t p = 0; p < count; ++p) {
    int64_t* begin = places + 2 * p * outputs;
    int64_t* end = begin + outputs;
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t output = i / kLinearBlock * kLinearBlock + panels[p].order[i];
      begin[output] = place;
      place += panels[p].end[output] - panels[p].begin[output];
      end[output] = place;
    }
    packed_[p].begin = begin;
    packed_[p].end = end;
  }
}

int64_t balanced_begin(const int64_t* pointers, int64_t outputs, int64_t part, int64_t parts) {
  if (part <= 0) return 0;
  if (part >= parts) return outputs;
  const int64_t total = pointers[outputs] + kOutputCost * outputs;
  int64_t low = 0, high = outputs;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if ((pointers[middle] + kOutputCost * middle) * parts < total * part)
      low = middle + 1;
    else
      high = middle;
  }
  return std::min(outputs, (low + kLinearBlock / 2) / kLinearBlock * kLinearBlock);
}

}  // namespace sparsekern
