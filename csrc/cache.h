// Sizes of the caches, by which work is cut.
#pragma once

#include <unistd.h>

#include <cstdint>

namespace sparsekern {

struct Caches {
  int64_t first, second;  // bytes of a core's level 1 data cache and of its level 2 cache
};

// Those of this processor; modest ones where the system does not tell.
inline const Caches& caches() {
  static const Caches sizes = [] {
    Caches found{0, 0};
#ifdef _SC_LEVEL1_DCACHE_SIZE
    found = {sysconf(_SC_LEVEL1_DCACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE)};
#endif
    if (found.first <= 0) found.first = 32 << 10;
    if (found.second <= 0) found.second = 512 << 10;
    return found;
  }();
  return sizes;
}

// Whether a result of so many bytes is written past the caches: where it begins on a cache line and is well beyond what a
// core's own cache holds, so that what reads it next finds little of it there.
inline bool past_caches(const void* result, int64_t bytes) {
  return bytes >= 2 * caches().second && reinterpret_cast<uintptr_t>(result) % 64 == 0;
}

}  // namespace sparsekern
