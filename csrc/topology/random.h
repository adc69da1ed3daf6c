// Random numbers for topology: xoshiro256** (Blackman and Vigna 2018) seeded by splitmix64.
// One seed gives one sequence, whatever the number of threads.
#pragma once

#include <cstdint>

namespace sparsekern {

class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15u;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      word = z ^ (z >> 31);
    }
  }

  uint64_t next() {
    const uint64_t result = rotate(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = rotate(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound), without bias (Lemire 2019).
  uint64_t below(uint64_t bound) {
    unsigned __int128 product = wide(next(), bound);
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t unfair = (0 - bound) % bound;
      while (static_cast<uint64_t>(product) < unfair) product = wide(next(), bound);
    }
    return static_cast<uint64_t>(product >> 64);
  }

 private:
  static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  static unsigned __int128 wide(uint64_t a, uint64_t b) { return static_cast<unsigned __int128>(a) * b; }

  uint64_t state_[4];
};

}  // namespace sparsekern
