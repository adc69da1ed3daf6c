#include "linear/tiling.h"

#include <algorithm>

#include "cache.h"

namespace sparsekern {
namespace {

// What visiting an output costs besides its edges, in edges.
constexpr int64_t kOutputCost = 8;
// Edges that an output must find in a panel to repay the visit: in the forward, in that of few tokens with kept values, in
// the backward, where the edges of a single tile are not packed, so that each visit begins with a cache miss, and in a
// backward for the values alone.
constexpr int64_t kForwardEdges = 8, kKeptEdges = 12, kBackwardEdges = 16, kCutEdges = 32, kWeightsEdges = 40;
// Tiles are the narrower the fewer edges an output has: what is loaded and stored once matters more, what is loaded for
// each edge less, and a narrow tile stays in the caches beside the activations that stream past it.
constexpr int64_t kManyEdges = 64, kSomeEdges = 8;
// Bytes of a forward's near panel, or the first cache where that is larger: visits of smaller ones find too few edges.
constexpr int64_t kSmallestPanel = 48 << 10;
// Columns whose values a row may gather from: their lines and pages are all in use at once.
constexpr int64_t kGatherColumns = 1024;

int64_t feature_bytes(const ProductSize& s, int vectors) { return int64_t{vectors} * s.lanes * s.element_bytes; }

// A panel of this many features pays when each output finds `least` edges in it.
bool pays(const ProductSize& s, int64_t panel, int64_t least) {
  return panel < s.gathered && s.edges * panel >= least * s.gathered * s.outputs;
}

// The fewest vectors, a power of two, that hold the tokens; at most `most`.
int vectors_for(const ProductSize& s, int most) {
  int vectors = 1;
  while (vectors < most && int64_t{vectors} * s.lanes < s.tokens) vectors *= 2;
  return vectors;
}

bool is_single(const ProductSize& s, int vectors) { return s.tokens <= int64_t{vectors} * s.lanes; }

// Half as many vectors, down to two, until the whole tile takes at most so many bytes.
int narrowed(const ProductSize& s, int vectors, int64_t bytes) {
  while (vectors > 2 && s.gathered * feature_bytes(s, vectors) > bytes) vectors /= 2;
  return vectors;
}

}  // namespace

Tiling forward_tiling(const ProductSize& s) {
  int vectors = vectors_for(s, std::min(4, s.max_vectors));
  if (is_single(s, vectors)) {
    const int64_t panel = pays(s, kGatherColumns, kCutEdges) ? kGatherColumns : 2 * kGatherColumns;
    return {vectors, pays(s, panel, kCutEdges) ? panel : s.gathered};
  }
  const int64_t first = caches().first, second = caches().second;
  const int64_t near = std::max(first, kSmallestPanel) / feature_bytes(s, vectors);
  if (pays(s, near, kForwardEdges)) return {vectors, near};
  vectors = narrowed(s, vectors, second / 8);
  const int64_t far = second / 2 / feature_bytes(s, vectors);
  if (s.gathered > 2 * far && pays(s, far, kForwardEdges)) return {vectors, far};
  return {std::max(vectors, std::min(2, s.max_vectors)), s.gathered};
}

// Without sums that wait between panels these may be as small as their visits allow.
static Tiling weights_tiling(const ProductSize& s) {
  const int vectors = vectors_for(s, std::min(4, s.max_vectors));
  if (is_single(s, vectors)) return {vectors, s.gathered};
  const int64_t second = caches().second, whole = second / feature_bytes(s, vectors);
  for (const int64_t panel : {whole / 8, whole / 4, whole / 2})
    if (pays(s, panel, kWeightsEdges)) return {vectors, panel};
  if (s.gathered > whole && pays(s, whole / 2, kBackwardEdges)) return {vectors, whole / 2};
  return {narrowed(s, vectors, second), s.gathered};
}

Tiling backward_tiling(const ProductSize& s) {
  if (s.weights_only) return weights_tiling(s);
  const int vectors = vectors_for(s, s.max_vectors);
  if (is_single(s, vectors)) return {vectors, s.gathered};
  const int64_t second = caches().second, edges = s.edges / std::max<int64_t>(1, s.outputs);
  const int64_t panel = second / 4 / feature_bytes(s, vectors);
  if (s.gathered > 2 * panel && pays(s, panel, kBackwardEdges)) return {vectors, panel};
  const int64_t bytes = edges >= kManyEdges ? second : edges >= kSomeEdges ? second / 2 : second / 8;
  return {narrowed(s, vectors, bytes), s.gathered};
}

int64_t kept_panel(const ProductSize& s, int vectors) {
  const int64_t near = caches().first / feature_bytes(s, vectors), far = caches().second / 2 / feature_bytes(s, vectors);
  return pays(s, near, kKeptEdges) ? near : pays(s, far, kForwardEdges) ? far : s.gathered;
}

int64_t scatter_panel(const ProductSize& s, int64_t threads) {
  const int64_t near = std::max<int64_t>(1, caches().first / 2 / feature_bytes(s, 1));
  const int64_t panels = pays(s, near, kForwardEdges / 2) ? (s.gathered + near - 1) / near : 1;
  const int64_t shared = (panels + threads - 1) / threads * threads;
  return std::max<int64_t>(1, (s.gathered + shared - 1) / shared);
}

std::vector<TokenTile> cut_tokens(int64_t tokens, int vectors, int lanes, bool paired) {
  std::vector<TokenTile> tiles;
  for (int64_t begin = 0; begin < tokens;) {
    const int64_t count = std::min<int64_t>(tokens - begin, int64_t{vectors} * lanes);
    int wide = vectors;
    while (wide > 1 && wide / 2 * lanes >= count) wide /= 2;
    tiles.push_back({begin, count, wide, paired && wide > 1});
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
