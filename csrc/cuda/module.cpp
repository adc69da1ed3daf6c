// sparsekern._cuda: the CUDA kernels by addresses, sizes and a stream. Compiled over the emulation the same module,
// named otherwise, runs them on the CPU's memory, for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "cuda/bind.h"
#include "cuda/queue.h"
#include "cuda/transpose.h"
#if SPARSEKERN_CUDA_EMULATED
#include "cuda/device.h"
#endif

#ifndef SPARSEKERN_CUDA_MODULE
#define SPARSEKERN_CUDA_MODULE _cuda
#endif

namespace py = pybind11;

PYBIND11_MODULE(SPARSEKERN_CUDA_MODULE, m) {
  using namespace sparsekern::cuda;
  py::class_<Queue>(m, "Queue", "A device's number and one of its streams, as an integer.")
      .def(py::init([](int device, uintptr_t stream) { return Queue{device, pointer(stream)}; }));
  m.def("transpose", [](const Queue& queue, uintptr_t from, int64_t rows, int64_t columns, int64_t stride, uintptr_t to,
                        int64_t padded_rows, size_t element_bytes) {
    transpose(queue, pointer(from), rows, columns, stride, pointer(to), padded_rows, element_bytes);
  });
  bind_tiles(m);
  m.def("shared_bytes", [](const Queue& queue) { return shared_bytes_of(queue); }, "Shared memory of one block.");
  m.def("processors", [](const Queue& queue) { return processors_of(queue); });
  bind_linear(m);
#if SPARSEKERN_CUDA_EMULATED
  m.def("emulate", [](uint64_t order_seed, size_t shared_bytes, int processors) {
    sparsekern::emulation::set_order_seed(order_seed);
    emulated_shared_bytes = shared_bytes;
    emulated_processors = processors;
  }, py::arg("order_seed") = 0, py::arg("shared_bytes") = 227 * 1024, py::arg("processors") = 2);
  m.def("started_kernels", [] { return sparsekern::emulation::noted_kernels(); }, "Places in this library.");
  m.def("matrix_reads", [] {
    const auto reads = std::exchange(detail::matrix_reads, {});
    return std::pair(reads.matrices, reads.passes);
  });
#endif
}
