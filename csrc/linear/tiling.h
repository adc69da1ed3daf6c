// How a product is cut: into tiles of tokens, and the tile's features into panels that a cache holds.
#pragma once

#include <cstdint>
#include <vector>

#include "linear/kernels.h"

namespace sparsekern {

// Tokens [begin, begin + count), `vectors` vectors wide, in pairs or not.
struct TokenTile {
  int64_t begin, count;
  int vectors;
  bool paired;
};

struct Tiling {
  int vectors;    // of a full tile
  int64_t panel;  // gathered features in a panel; all of them where there is one panel
};

// What decides a tiling: `gathered` features are read at random, `edges` times for each of `outputs`.
struct ProductSize {
  int64_t tokens, gathered, outputs, edges;
  int lanes, max_vectors;
  int element_bytes;  // in a tile
  bool weights_only = false;  // a backward without dx
};

Tiling forward_tiling(const ProductSize& size);
Tiling backward_tiling(const ProductSize& size);
// Features in a panel of a single tile whose values are kept: no gather, so that the nearest cache alone decides.
int64_t kept_panel(const ProductSize& size, int vectors);
// Rows in a panel of a product that adds to its outputs (`gathered` are the rows), at least one panel for each thread.
int64_t scatter_panel(const ProductSize& size, int64_t threads);

// Full tiles, and a last one only as wide as it must be.
std::vector<TokenTile> cut_tokens(int64_t tokens, int vectors, int lanes, bool paired);

// Where part `part` of `parts` begins when blocks of outputs are dealt out by their share of the edges.
int64_t balanced_begin(const int64_t* pointers, int64_t outputs, int64_t part, int64_t parts);

}  // namespace sparsekern
