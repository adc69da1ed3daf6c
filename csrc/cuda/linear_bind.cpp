#include "cuda/bind.h"
#include "cuda/slots.h"

namespace py = pybind11;

namespace sparsekern::cuda {

void bind_linear(py::module_& m) {
  py::class_<Compressed>(m, "Compressed", "A compressed matrix, by addresses; permutation 0: none.")
      .def(py::init([](uintptr_t pointers, uintptr_t minors, uintptr_t permutation, bool wide, int64_t majors) {
        return Compressed{pointer(pointers), pointer<const int32_t>(minors), pointer(permutation), wide, majors};
      }));
  py::class_<Cut>(m, "Cut", "How a layout is cut into chunks and blocks.")
      .def(py::init([](int64_t majors, int64_t minors, int32_t chunk) {
        const int64_t chunks = (minors + chunk - 1) / chunk, blocks = (majors + kStrip - 1) / kStrip * 2;
        return Cut{minors, chunk, static_cast<int32_t>(chunks), static_cast<int32_t>(blocks)};
      }))
      .def_readonly("chunks", &Cut::chunks)
      .def_readonly("blocks", &Cut::blocks);
  m.def("count_groups", [](const Queue& queue, const Compressed& matrix, const Cut& cut, uintptr_t counts) {
    count_groups(queue, matrix, cut, pointer<int32_t>(counts));
  });
  m.def("fill_layout", [](const Queue& queue, const Compressed& matrix, const Cut& cut, uintptr_t pointers,
                          uintptr_t places, uintptr_t edges, uintptr_t lists) {
    fill_layout(queue, matrix, cut, pointer<const int32_t>(pointers), pointer<uint16_t>(places),
                pointer<int32_t>(edges), pointer<int32_t>(lists));
  });
  m.def("pack_slots", [](const Queue& queue, uintptr_t groups, int64_t most_groups, uintptr_t places, uintptr_t edges,
                         uintptr_t values, int values_dtype, int dtype, uintptr_t slots) {
    pack_slots(queue, pointer<const int32_t>(groups), most_groups, pointer<const uint16_t>(places),
               pointer<const int32_t>(edges), pointer(values), Dtype{values_dtype}, Dtype{dtype},
               pointer<uint32_t>(slots));
  });
}

}  // namespace sparsekern::cuda
