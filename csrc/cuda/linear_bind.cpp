#include <pybind11/stl.h>

#include <algorithm>

#include "cuda/bind.h"
#include "cuda/minor_order.h"
#include "cuda/sddmm.h"
#include "cuda/slots.h"
#include "cuda/spmm.h"
#include "cuda/transpose.h"

namespace py = pybind11;

namespace sparsekern::cuda {

void bind_linear(py::module_& m) {
  py::class_<Compressed>(m, "Compressed", "A compressed matrix, by addresses; permutation 0: none.")
      .def(py::init([](uintptr_t pointers, uintptr_t minors, uintptr_t permutation, bool wide, int64_t majors) {
        return Compressed{pointer(pointers), pointer<const int32_t>(minors), pointer(permutation), wide, majors};
      }));
  py::class_<Cut>(m, "Cut", "How a layout is cut into chunks, blocks and sets of blocks.")
      .def(py::init([](int64_t majors, int64_t minors, int32_t chunk, int32_t set_blocks) {
        const int64_t chunks = (minors + chunk - 1) / chunk, blocks = (majors + kStrip - 1) / kStrip * 2;
        return Cut{minors, chunk, static_cast<int32_t>(chunks), static_cast<int32_t>(blocks),
                   static_cast<int32_t>(std::min<int64_t>(set_blocks, blocks))};
      }))
      .def_property_readonly("sets", &Cut::sets)
      .def_readonly("minors", &Cut::minors)
      .def_readonly("set_blocks", &Cut::set_blocks)
      .def_readonly("chunks", &Cut::chunks)
      .def_readonly("blocks", &Cut::blocks);
  m.def("count_groups", [](const Queue& queue, const Compressed& matrix, const Cut& cut, uintptr_t counts) {
    count_groups(queue, matrix, cut, pointer<int32_t>(counts));
  });
  m.def("order_minors", [](const Queue& queue, uintptr_t starts, uintptr_t majors, const Cut& cut, uintptr_t order,
                           uintptr_t places) {
    order_minors(queue, pointer<const int32_t>(starts), pointer<const int32_t>(majors), cut, pointer<uint16_t>(order),
                 pointer<uint16_t>(places));
  });
  m.def("fill_layout", [](const Queue& queue, const Compressed& matrix, const Cut& cut, uintptr_t in_chunk,
                          uintptr_t pointers, uintptr_t places, uintptr_t edges, uintptr_t lists) {
    fill_layout(queue, matrix, cut, pointer<const uint16_t>(in_chunk), pointer<const int32_t>(pointers),
                pointer<uint16_t>(places), pointer<int32_t>(edges), pointer<int32_t>(lists));
  });
  m.def("pack_slots", [](const Queue& queue, uintptr_t groups, int64_t most_groups, uintptr_t places, uintptr_t edges,
                         uintptr_t values, int values_dtype, int dtype, uintptr_t slots) {
    pack_slots(queue, pointer<const int32_t>(groups), most_groups, pointer<const uint16_t>(places),
               pointer<const int32_t>(edges), pointer(values), Dtype{values_dtype}, Dtype{dtype},
               pointer<uint32_t>(slots));
  });
  m.def("transpose_halves", [](const Queue& queue, int dtype, uintptr_t from, int64_t rows, int64_t columns,
                               int64_t stride, uintptr_t to, int64_t padded_rows, bool interleaved, uintptr_t sums) {
    transpose_halves(queue, Dtype{dtype}, pointer(from), rows, columns, stride, pointer(to), padded_rows, interleaved,
                     pointer<float>(sums));
  });
  m.def("spmm", [](const Queue& queue, std::pair<int, int> tile, int dtype, int64_t tokens, int64_t majors,
                   const Cut& cut, uintptr_t order, uintptr_t pointers, uintptr_t slots, uintptr_t x,
                   int64_t stride, uintptr_t bias, uintptr_t y) {
    spmm(queue, {tile.first, tile.second},
         {Dtype{dtype}, tokens, majors, cut, pointer<const uint16_t>(order), pointer<const int32_t>(pointers),
          pointer<const uint32_t>(slots), pointer(x), stride, pointer<const float>(bias), pointer(y)});
  });
  m.def("sddmm_splits", &sddmm_splits);
  m.def("sddmm", [](const Queue& queue, int64_t splits, int dtype, int out_dtype, int64_t tokens, int64_t majors,
                    const Cut& cut, uintptr_t order, uintptr_t groups, int64_t most_groups, uintptr_t places,
                    uintptr_t edges, uintptr_t lists, uintptr_t gathered, int64_t gathered_stride,
                    uintptr_t stationary, int64_t stationary_stride, uintptr_t partial, uintptr_t out) {
    sddmm(queue, splits,
          {Dtype{dtype}, Dtype{out_dtype}, tokens, majors, cut, pointer<const uint16_t>(order),
           pointer<const int32_t>(groups), most_groups, pointer<const uint16_t>(places),
           pointer<const int32_t>(edges), pointer<const int32_t>(lists),
           pointer(gathered), gathered_stride, pointer(stationary), stationary_stride, pointer<float>(partial),
           pointer(out)});
  });
  std::vector<std::pair<int, int>> tiles;
  for (const SpmmTile& tile : kSpmmTiles) tiles.emplace_back(tile.tokens, tile.blocks);
  m.attr("spmm_tiles") = tiles;
  m.attr("spmm_warps") = kSpmmWarps;
  m.attr("spmm_set_blocks") = kSpmmSetBlocks;
  m.attr("sddmm_block") = kSddmmBlock;
  m.attr("sddmm_tokens") = kSddmmTokens;
}

}  // namespace sparsekern::cuda
