// The order in which the minors of a chunk lie in shared memory, so that lists of slots find them in unlike banks.
#pragma once

#include <cstdint>

#include "cuda/queue.h"
#include "cuda/slots.h"

namespace sparsekern::cuda {

// order[s * minors + c * chunk + p] = the minor at place p of chunk c for the majors of set s, counted from the chunk's
// first, and places[s * minors + c * chunk + that minor] = p: permutations of each chunk. The matrix is given by minor:
// starts (minors + 1), and majors (edges), ascending within each minor.
//
// One minor after the other goes to that class of places (p modulo 8) of which the lists it is in have had least.
void order_minors(const Queue& queue, const int32_t* starts, const int32_t* majors, const Cut& cut, uint16_t* order,
                  uint16_t* places);

}  // namespace sparsekern::cuda
