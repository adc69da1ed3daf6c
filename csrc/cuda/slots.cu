#include "cuda/slots.h"

#include "cuda/launch.h"
#include "cuda/slots_device.h"

namespace sparsekern::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

template <class Index>
struct Matrix {
  const Index* pointers;
  const int32_t* minors;
  const Index* permutation;
  int64_t majors;
};

struct Span {
  int64_t begin = 0, end = 0;
};

// The edges of one major in one chunk.
template <class Index>
SK_DEVICE Span span_of(const Matrix<Index>& matrix, const Cut& cut, int64_t major, int64_t first_minor) {
  if (major >= matrix.majors) return {};
  const int64_t begin = matrix.pointers[major], end = matrix.pointers[major + 1];
  if (cut.chunks == 1) return {begin, end};
  const int64_t from = lower_bound(matrix.minors, begin, end, first_minor);
  return {from, lower_bound(matrix.minors, from, end, first_minor + cut.chunk)};
}

// A warp's list: lanes 0 to 7 hold the spans of its block's majors.
struct List {
  int64_t number;
  int64_t first_minor;
  int32_t block;
  int lane;
  bool exists;
};

SK_DEVICE List list_of_warp(const Cut& cut) {
  List list;
  list.number = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  list.lane = threadIdx.x % kWarp;
  list.exists = list.number < static_cast<int64_t>(cut.chunks) * (cut.blocks + 1);
  list.block = static_cast<int32_t>(list.number % (cut.blocks + 1));
  list.first_minor = list.number / (cut.blocks + 1) * cut.chunk;
  return list;
}

template <class Index>
SK_DEVICE Span span_of_lane(const Matrix<Index>& matrix, const Cut& cut, const List& list) {
  if (list.lane >= kBlock || list.block >= cut.blocks) return {};
  return span_of(matrix, cut, major_of(list.block, list.lane), list.first_minor);
}

template <class Index>
SK_KERNEL(kThreads, 4)
count_kernel(Matrix<Index> matrix, Cut cut, int32_t* counts) {
  const List list = list_of_warp(cut);
  if (!list.exists) return;
  const Span span = span_of_lane(matrix, cut, list);
  int32_t edges = static_cast<int32_t>(span.end - span.begin);
  for (unsigned lanes = 1; lanes < kBlock; lanes *= 2) edges += shuffle_xor(edges, lanes);
  if (list.lane == 0) counts[list.number] = (edges + kGroup - 1) / kGroup;
}

// Calls visit(place, j, the minor's place in the chunk, its class, its number within the class) with all lanes at
// once, lanes that have no edge with j = -1, until all edges of the list were visited. `counts`: the edges of each
// class, from 0 on. in_chunk: of the list's set, nullptr: minors lie as they come.
template <class Index, class Visit>
SK_DEVICE void each_edge(const Matrix<Index>& matrix, const List& list, const Span& span, const uint16_t* in_chunk,
                         int32_t (&counts)[kClasses], const Visit& visit) {
  const unsigned before = (1u << list.lane) - 1;
  SK_UNROLL for (int c = 0; c < kClasses; ++c) counts[c] = 0;
  for (int place = 0; place < kBlock; ++place) {
    const int64_t end = shuffle(span.end, place);
    for (int64_t first = shuffle(span.begin, place); first < end; first += kWarp) {
      const bool inside = first + list.lane < end;
      const int64_t j = inside ? first + list.lane : -1;
      int minor = 0;
      if (inside) minor = in_chunk ? in_chunk[matrix.minors[j]] : static_cast<int>(matrix.minors[j] - list.first_minor);
      const int mine = minor % kClasses;
      int32_t number = 0;
      SK_UNROLL for (int c = 0; c < kClasses; ++c) {
        const unsigned those = ballot(inside && mine == c);
        if (mine == c) number = counts[c] + count_bits(those & before);
        counts[c] += count_bits(those);
      }
      visit(place, j, minor, mine, number);
    }
  }
}

// Where a list's slots go: a row of 8 slots, those that ldmatrix reads at once, has a place for each class. A class of
// more edges than there are rows has the rest in places that other classes leave, those of the last rows first; the
// n-th such edges of all classes go together, so that one row has the conflicts of all.
struct Places {
  const int32_t (&counts)[kClasses];
  int32_t rows;

  // How many of the classes' edges beyond their places come before the n-th of class `own`.
  SK_DEVICE int32_t surplus_before(int32_t n, int own) const {
    int32_t before = 0;
    SK_UNROLL for (int c = 0; c < kClasses; ++c) {
      const int32_t surplus = counts[c] - rows > 0 ? counts[c] - rows : 0, those = n + (c < own ? 1 : 0);
      before += surplus < those ? surplus : those;
    }
    return before;
  }

  // How many of the places that are left come before that of class `own` in the n-th row from the last.
  SK_DEVICE int32_t left_before(int32_t n, int own) const {
    int32_t before = 0;
    SK_UNROLL for (int c = 0; c < kClasses; ++c) {
      const int32_t left = rows - counts[c] > 0 ? rows - counts[c] : 0, those = n + (c < own ? 1 : 0);
      before += left < those ? left : those;
    }
    return before;
  }

  SK_DEVICE int32_t slot_of(int own, int32_t number) const {
    if (number < rows) return number * kClasses + own;
    const int32_t wanted = surplus_before(number - rows, own);
    int32_t least = 0, most = rows - 1;  // the last row from the end before whose places no more than `wanted` are left
    while (least < most) {
      const int32_t middle = (least + most + 1) / 2;
      if (left_before(middle, 0) <= wanted) {
        least = middle;
      } else {
        most = middle - 1;
      }
    }
    int32_t slot = 0;
    SK_UNROLL for (int c = 0; c < kClasses; ++c) {
      if (rows - counts[c] > least && left_before(least, c) == wanted) slot = (rows - 1 - least) * kClasses + c;
    }
    return slot;
  }
};

template <class Index>
SK_KERNEL(kThreads, 2)
fill_kernel(Matrix<Index> matrix, Cut cut, const uint16_t* in_chunk, const int32_t* pointers, uint16_t* places,
            int32_t* edges, int32_t* lists) {
  const List list = list_of_warp(cut);
  if (!list.exists) return;
  const int32_t first = pointers[list.number], last = pointers[list.number + 1];
  const bool has_edges = list.block < cut.blocks;
  for (int64_t group = first + list.lane; group < last; group += kWarp) {
    lists[group] = has_edges ? static_cast<int32_t>(list.number) : -1;
  }
  const int64_t room = static_cast<int64_t>(last - first) * kGroup, at = static_cast<int64_t>(first) * kGroup;
  const auto memory = [&](int64_t slot) { return at + slot / kGroup * kGroup + memory_of(slot % kGroup); };
  if (!has_edges) {
    for (int64_t slot = list.lane; slot < room; slot += kWarp) {
      places[at + slot] = 0;
      edges[at + slot] = -1;
    }
    return;
  }
  const Span span = span_of_lane(matrix, cut, list);
  if (in_chunk != nullptr) in_chunk += list.block / cut.set_blocks * cut.minors;
  int32_t totals[kClasses], counts[kClasses];
  each_edge(matrix, list, span, in_chunk, totals, [](int, int64_t, int, int, int32_t) {});
  const Places slots{totals, static_cast<int32_t>(room / kClasses)};
  each_edge(matrix, list, span, in_chunk, counts, [&](int place, int64_t j, int minor, int mine, int32_t number) {
    if (j < 0) return;
    const int64_t to = memory(slots.slot_of(mine, number));
    places[to] = static_cast<uint16_t>(place << kPlaceShift | minor);
    edges[to] = static_cast<int32_t>(matrix.permutation ? matrix.permutation[j] : j);
  });
  sync_warp();
  // The other places repeat one of their row, or, where the last row is empty, one of the row before.
  int fullest = 0, own = list.lane % kClasses;
  int32_t most = 0, surplus = 0, mine = 0;
  SK_UNROLL for (int c = 0; c < kClasses; ++c) {
    if (totals[c] > most) most = totals[c], fullest = c;
    surplus += totals[c] > slots.rows ? totals[c] - slots.rows : 0;
    mine = c == own ? totals[c] : mine;
  }
  for (int64_t slot = list.lane; slot < room; slot += kWarp) {
    const int32_t row = static_cast<int32_t>(slot / kClasses);
    if (row < mine || slots.left_before(slots.rows - 1 - row, own) < surplus) continue;
    const int64_t to = memory(slot);
    places[to] = places[memory((row < most ? row : most - 1) * kClasses + fullest)];
    edges[to] = -1;
  }
}

constexpr int kPacked = 4;  // slots a thread

template <class W, class T>
SK_KERNEL(kThreads, 4)
pack_kernel(const int32_t* groups, const Words2* places, const Words4* edges, const W* values, Words4* slots) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i * kPacked >= static_cast<int64_t>(*groups) * kGroup) return;
  const Words2 place = load_constant(places + i);
  const Words4 edge = load_constant(edges + i);
  const auto slot = [&](uint32_t edge, uint32_t place) {
    if (static_cast<int32_t>(edge) < 0) return place;
    return static_cast<uint32_t>(narrow<T>(widen(load_constant(values + edge))).bits) << 16 | place;
  };
  slots[i] = {slot(edge.x, place.x & 0xffff), slot(edge.y, place.x >> 16), slot(edge.z, place.y & 0xffff),
              slot(edge.w, place.y >> 16)};
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

template <class Index>
Matrix<Index> typed(const Compressed& matrix) {
  return {static_cast<const Index*>(matrix.pointers), matrix.minors, static_cast<const Index*>(matrix.permutation),
          matrix.majors};
}

unsigned blocks_of_lists(const Cut& cut) {
  return blocks_for(static_cast<int64_t>(cut.chunks) * (cut.blocks + 1) * kWarp);
}

template <class Index>
void count_of(const Queue& queue, const Compressed& matrix, const Cut& cut, int32_t* counts) {
  launch(queue, "count_groups", count_kernel<Index>, {blocks_of_lists(cut)}, kThreads, 0, typed<Index>(matrix), cut,
         counts);
}

template <class Index>
void fill_of(const Queue& queue, const Compressed& matrix, const Cut& cut, const uint16_t* in_chunk,
             const int32_t* pointers, uint16_t* places, int32_t* edges, int32_t* lists) {
  launch(queue, "fill_layout", fill_kernel<Index>, {blocks_of_lists(cut)}, kThreads, 0, typed<Index>(matrix), cut,
         in_chunk, pointers, places, edges, lists);
}

template <class W, class T>
void pack_of(const Queue& queue, const int32_t* groups, int64_t most_groups, const uint16_t* places,
             const int32_t* edges, const void* values, uint32_t* slots) {
  launch(queue, "pack_slots", pack_kernel<W, T>, {blocks_for(most_groups * (kGroup / kPacked))}, kThreads, 0, groups,
         reinterpret_cast<const Words2*>(places), reinterpret_cast<const Words4*>(edges),
         static_cast<const W*>(values), reinterpret_cast<Words4*>(slots));
}

}  // namespace

void count_groups(const Queue& queue, const Compressed& matrix, const Cut& cut, int32_t* counts) {
  (matrix.wide ? count_of<int64_t> : count_of<int32_t>)(queue, matrix, cut, counts);
}

void fill_layout(const Queue& queue, const Compressed& matrix, const Cut& cut, const uint16_t* in_chunk,
                 const int32_t* pointers, uint16_t* places, int32_t* edges, int32_t* lists) {
  (matrix.wide ? fill_of<int64_t> : fill_of<int32_t>)(queue, matrix, cut, in_chunk, pointers, places, edges, lists);
}

void pack_slots(const Queue& queue, const int32_t* groups, int64_t most_groups, const uint16_t* places,
                const int32_t* edges, const void* values, Dtype values_dtype, Dtype dtype, uint32_t* slots) {
  const bool wide = values_dtype == Dtype::float32;
  const auto pack = dtype == Dtype::bfloat16 ? (wide ? pack_of<float, bf16> : pack_of<bf16, bf16>)
                                             : (wide ? pack_of<float, f16> : pack_of<f16, f16>);
  pack(queue, groups, most_groups, places, edges, values, slots);
}

}  // namespace sparsekern::cuda
