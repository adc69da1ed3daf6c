#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "cuda/bind.h"
#include "cuda/gather.h"
#include "cuda/gather_half.h"
#include "cuda/inner.h"

namespace py = pybind11;

namespace sparsekern::cuda {

namespace {

// In the order of TileAxis.
TileAxis axis_of(const std::array<int, 17>& n) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16]};
}

Strides strides_of(const std::array<int64_t, 5>& n) { return {n[0], n[1], n[2], n[3], static_cast<int>(n[4])}; }

}  // namespace

void bind_tiles(py::module_& m) {
  m.attr("GATHER_WARPS") = kGatherWarps;
  m.attr("LANE_ROWS") = kLaneRows;
  m.attr("INNER_WARPS") = kInnerWarps;
  m.attr("LANE_UNITS") = kLaneUnits;
  m.attr("UNIT_EDGES") = kUnitEdges;
  m.attr("GATHER_HALF_WARPS") = kGatherHalfWarps;
  m.attr("WARP_CELLS") = kWarpCells;
  m.attr("INNER_HALF_WARPS") = kInnerHalfWarps;
  m.attr("WARP_GROUPS") = kWarpGroups;
  py::class_<Tiles>(m, "Tiles", "Tiles of activations: csrc/cuda/tiles.h names the numbers.")
      .def(py::init([](const std::array<int, 17>& y, const std::array<int, 17>& x, int images, int inner_cells,
                       int image_tiles, bool by_pixel, const std::array<int, 4>& pitches) {
        return Tiles{axis_of(y),  axis_of(x), images,     inner_cells, image_tiles,
                     by_pixel,    pitches[0], pitches[1], pitches[2],  pitches[3]};
      }));
  py::class_<Gather>(m, "Gather", "How blocks share the work of a product: csrc/cuda/gather.h names the numbers.")
      .def(py::init([](const Tiles& tiles, const std::array<int, 9>& n, const std::array<int64_t, 5>& from,
                       const std::array<int64_t, 4>& to) {
        return Gather{tiles, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], strides_of(from),
                      to[0], to[1], to[2], to[3]};
      }))
      .def_property_readonly("shared_bytes", &Gather::shared_bytes)
      .def_property_readonly("blocks", &Gather::blocks);
  py::class_<Inner>(m, "Inner", "How blocks share a weight's gradient: csrc/cuda/inner.h names the numbers.")
      .def(py::init([](const Tiles& x, const Tiles& grad, const std::array<int, 10>& n, int64_t units,
                       const std::array<int64_t, 5>& from, const std::array<int64_t, 5>& grad_from) {
        return Inner{x, grad, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], units, strides_of(from),
                     strides_of(grad_from)};
      }))
      .def_property_readonly("shared_bytes", &Inner::shared_bytes);
  py::class_<GatherHalf>(m, "GatherHalf", "As Gather: csrc/cuda/gather_half.h names the numbers.")
      .def(py::init([](const Tiles& tiles, const std::array<int, 8>& n, const std::array<int64_t, 5>& from,
                       const std::array<int64_t, 4>& to) {
        return GatherHalf{tiles, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], strides_of(from),
                          to[0], to[1], to[2], to[3]};
      }))
      .def_property_readonly("shared_bytes", &GatherHalf::shared_bytes)
      .def_property_readonly("blocks", &GatherHalf::blocks);
  py::class_<InnerHalf>(m, "InnerHalf", "As Inner: csrc/cuda/gather_half.h names the numbers.")
      .def(py::init([](const Tiles& x, const Tiles& grad, const std::array<int, 10>& n, int64_t groups,
                       const std::array<int64_t, 5>& from, const std::array<int64_t, 5>& grad_from) {
        return InnerHalf{x, grad, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], groups, strides_of(from),
                         strides_of(grad_from)};
      }))
      .def_property_readonly("shared_bytes", &InnerHalf::shared_bytes);
  m.def("gather_half", [](const Queue& queue, const GatherHalf& task, int dtype, uintptr_t from, uintptr_t pointers,
                          uintptr_t slots, uintptr_t bias, uintptr_t to) {
    gather_half(queue, task, Dtype{dtype}, pointer(from), pointer<const int32_t>(pointers),
                pointer<const uint32_t>(slots), pointer<const float>(bias), pointer(to));
  });
  m.def("inner_half", [](const Queue& queue, const InnerHalf& task, int dtype, uintptr_t x, uintptr_t grad,
                         uintptr_t items, uintptr_t places, uintptr_t lists, uintptr_t partial) {
    inner_half(queue, task, Dtype{dtype}, pointer(x), pointer(grad), pointer(items), pointer<const uint16_t>(places),
               pointer<const int32_t>(lists), pointer<float>(partial));
  });
  m.def("pack_edges", [](const Queue& queue, int64_t count, uintptr_t cells, uintptr_t sources, uintptr_t values,
                         uintptr_t edges) {
    pack_edges(queue, count, pointer<const int>(cells), pointer<const int>(sources), pointer<const float>(values),
               pointer<Edge>(edges));
  });
  m.def("gather", [](const Queue& queue, const Gather& task, uintptr_t from, uintptr_t ranges, uintptr_t edges,
                     uintptr_t bias, uintptr_t to) {
    gather(queue, task, pointer<const float>(from), pointer<const Words2>(ranges), pointer<const Edge>(edges),
           pointer<const float>(bias), pointer<float>(to));
  });
  m.def("inner", [](const Queue& queue, const Inner& task, uintptr_t x, uintptr_t grad, uintptr_t items, uintptr_t rows,
                    uintptr_t cells, uintptr_t partial) {
    inner(queue, task, pointer<const float>(x), pointer<const float>(grad), pointer<const Item>(items),
          pointer<const int>(rows), pointer<const Words4>(cells), pointer<float>(partial));
  });
  m.def("add_slices", [](const Queue& queue, int64_t count, int slices, uintptr_t partial, uintptr_t sources,
                         uintptr_t out) {
    add_slices(queue, count, slices, pointer<const float>(partial), pointer<const int>(sources), pointer<float>(out));
  });
}

}  // namespace sparsekern::cuda
