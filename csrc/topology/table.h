// The topology kernels of one instruction set.
#pragma once

#include "topology/merge.h"
#include "topology/pick.h"
#include "topology/sift.h"

namespace sparsekern {
namespace SK_ISA {

constexpr TopologyKernels topology_kernels() {
  return {{keys_between<float, uint32_t>, positions_up_to<float, uint32_t>},
          {keys_between<double, uint64_t>, positions_up_to<double, uint64_t>},
          merge_columns<int32_t>,
          merge_columns<int64_t>,
          sift};
}

}  // namespace SK_ISA
}  // namespace sparsekern
