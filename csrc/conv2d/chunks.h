// Rows of elements a vector at a time. Included once per instruction set: nothing here may come from std::.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// Calls body(pixel, count) for chunks of at most kLanes pixels. A remainder starts earlier instead of being
// shorter where it can: doing a pixel twice is cheaper than masks.
template <class A, class Body>
SK_INLINE void for_chunks(int64_t pixels, const Body& body) {
  for (int64_t q = 0; q < pixels; q += kLanes<A>) {
    const int64_t left = pixels - q;
    const int64_t first = left >= kLanes<A> || pixels < kLanes<A> ? q : pixels - kLanes<A>;
    body(first, static_cast<int>(pixels < kLanes<A> ? left : kLanes<A>));  // one call, so that it is inlined
  }
}

}  // namespace SK_ISA
}  // namespace sparsekern
