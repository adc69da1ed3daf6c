#include "linear/tiling.h"

#include <algorithm>

namespace sparsekern {
namespace {

// What visiting an output costs besides its edges, in edges.
constexpr int64_t kOutputCost = 8;
// Shares of the caches that gathered features may take: the rest is for what streams past them.
constexpr int64_t kFirstLevelBytes = 64 << 10;
constexpr int64_t kSecondLevelBytes = 512 << 10;

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
