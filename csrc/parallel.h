// Parallel loops on torch's own threads, through torch's stable C interface: torch.set_num_threads holds
// and no second OpenMP runtime is started.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>

namespace sparsekern {

inline int64_t num_threads() {
  uint32_t n = 1;
  torch_get_num_threads(&n);
  return n;
}

// Calls body(task) once for each task in [0, tasks). Tasks are dealt to threads in fixed contiguous chunks. What a
// body throws first is thrown here once all threads are done.
template <class Body>
void parallel_tasks(int64_t tasks, const Body& body) {
  if (tasks <= 1) {
    if (tasks == 1) body(int64_t{0});
    return;
  }
  struct Context {
    const Body& body;
    std::exception_ptr error;
    std::once_flag first_error;
  } context{body, nullptr, {}};
  const AOTITorchError status = torch_parallel_for(
      0, tasks, 1,
      [](int64_t begin, int64_t end, void* pointer) {
        auto& shared = *static_cast<Context*>(pointer);
        try {
          for (int64_t task = begin; task < end; ++task) shared.body(task);
        } catch (...) {
          std::call_once(shared.first_error, [&] { shared.error = std::current_exception(); });
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
  if (status != AOTI_TORCH_SUCCESS) throw std::runtime_error("torch's parallel loop failed");
}

// Calls body(begin, end) on disjoint ranges that cover [0, size), none (but the last) shorter than grain.
template <class Body>
void parallel_ranges(int64_t size, int64_t grain, const Body& body) {
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), size / std::max<int64_t>(1, grain)));
  parallel_tasks(tasks, [&](int64_t task) { body(size * task / tasks, size * (task + 1) / tasks); });
}

}  // namespace sparsekern
