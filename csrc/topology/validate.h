// Checks of index arrays. Nothing is read through an index before that index was found good.
#pragma once

#include <atomic>
#include <cstdint>

#include "parallel.h"

namespace sparsekern {

enum class Fault { none, pointer_start, pointer_order, pointer_end, range, order, duplicate, permutation };

// What is wrong first, and at which position of the array concerned.
struct Finding {
  Fault fault = Fault::none;
  int64_t position = -1;
};

constexpr int64_t kValidateGrain = 1 << 17;  // items that are worth a thread

// The smallest i in [0, size) with bad(i), or size.
template <class Bad>
int64_t first_bad(int64_t size, const Bad& bad) {
  std::atomic<int64_t> first{size};
  parallel_ranges(size, kValidateGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!bad(i)) continue;
      int64_t known = first.load();
      while (i < known && !first.compare_exchange_weak(known, i)) {
      }
      return;
    }
  });
  return first.load();
}

// A compressed pair (CSC or CSR): pointers (n_major + 1), indices (nnz), each index in [0, n_minor) and ascending
// within its column (row).
template <class P>
Finding check_compressed(const P* pointers, const int32_t* indices, int64_t n_major, int64_t n_minor, int64_t nnz) {
  if (pointers[0] != 0) return {Fault::pointer_start, 0};
  const int64_t unordered = first_bad(n_major, [&](int64_t i) { return pointers[i + 1] < pointers[i]; });
  if (unordered < n_major) return {Fault::pointer_order, unordered + 1};
  if (pointers[n_major] != nnz) return {Fault::pointer_end, n_major};

  const auto bad_at = [&](int64_t begin, int64_t end) {
    int64_t previous = -1;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t index = indices[k];
      if (index <= previous || index >= n_minor) return k;
      previous = index;
    }
    return end;
  };
  const int64_t major =
      first_bad(n_major, [&](int64_t i) { return bad_at(pointers[i], pointers[i + 1]) < pointers[i + 1]; });
  if (major == n_major) return {};
  const int64_t k = bad_at(pointers[major], pointers[major + 1]);
  if (indices[k] < 0 || indices[k] >= n_minor) return {Fault::range, k};
  return {indices[k] == indices[k - 1] ? Fault::duplicate : Fault::order, k};
}

// That (crow, col, permutation) is the transpose of (ccol, row); both pairs have passed check_compressed. As many
// distinct CSR edges as stored ones, each naming a stored edge of its own row and column, are the same edges.
template <class P>
Finding check_transpose(const P* ccol, const int32_t* row, const P* crow, const int32_t* col, const P* permutation,
                        int64_t n_rows, int64_t nnz) {
  const auto bad_at = [&](int64_t r) {
    for (int64_t j = crow[r]; j < crow[r + 1]; ++j) {
      const int64_t k = permutation[j];
      const bool good = k >= 0 && k < nnz && row[k] == r && k >= ccol[col[j]] && k < ccol[col[j] + 1];
      if (!good) return j;
    }
    return static_cast<int64_t>(crow[r + 1]);
  };
  const int64_t bad_row = first_bad(n_rows, [&](int64_t r) { return bad_at(r) < crow[r + 1]; });
  if (bad_row == n_rows) return {};
  return {Fault::permutation, bad_at(bad_row)};
}

}  // namespace sparsekern
