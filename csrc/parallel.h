// Parallel loops on torch's own threads, through torch's stable C interface: torch.set_num_threads holds
// and no second OpenMP runtime is started.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>

namespace sparsekern {

inline int64_t num_threads() {
  uint32_t n = 1;
  torch_get_num_threads(&n);
  return n;
}

// Calls body(task) once for each task in [0, tasks). Tasks are dealt to threads in fixed contiguous chunks.
template <class Body>
void parallel_tasks(int64_t tasks, const Body& body) {
  if (tasks <= 1) {
    if (tasks == 1) body(int64_t{0});
    return;
  }
  torch_parallel_for(
      0, tasks, 1,
      [](int64_t begin, int64_t end, void* context) {
        for (int64_t task = begin; task < end; ++task) (*static_cast<const Body*>(context))(task);
      },
      const_cast<Body*>(&body));
}

// Calls body(begin, end) on disjoint ranges that cover [0, size), none (but the last) shorter than grain.
template <class Body>
void parallel_ranges(int64_t size, int64_t grain, const Body& body) {
  const int64_t tasks = std::max<int64_t>(1, std::min(num_threads(), size / std::max<int64_t>(1, grain)));
  parallel_tasks(tasks, [&](int64_t task) { body(size * task / tasks, size * (task + 1) / tasks); });
}

}  // namespace sparsekern
