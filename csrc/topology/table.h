// The topology kernels of one instruction set.
#pragma once

#include "topology/move.h"
#include "topology/pick.h"
#include "topology/sift.h"
#include "topology/tap_sums.h"

namespace sparsekern {
namespace SK_ISA {

constexpr TopologyKernels topology_kernels() {
  return {{keys_between<float, uint32_t>, mark_up_to<float, uint32_t>},
          {keys_between<double, uint64_t>, mark_up_to<double, uint64_t>},
          count_marks,
          {squeeze<uint16_t>, spread<uint16_t>},
          {squeeze<uint32_t>, spread<uint32_t>},
          {squeeze<uint64_t>, spread<uint64_t>},
          place_grown<int32_t>,
          place_grown<int64_t>,
          sift,
          {add_tap_sums<float, float>, add_tap_sums<double, double>, add_tap_sums<float, bf16>, add_tap_sums<float, f16>}};
}

}  // namespace SK_ISA
}  // namespace sparsekern
