// Random numbers for topology: xoshiro256** (Blackman and Vigna 2018) seeded by splitmix64.
// One seed gives one sequence, whatever the number of threads.
#pragma once

#include <cmath>
#include <cstdint>

namespace sparsekern {

class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) word = mixed(seed += kStep);
  }

  // One of many sequences of a seed, for work that is cut into parts.
  Random(uint64_t seed, uint64_t part) : Random(mixed(seed + kStep) ^ mixed(part * kStep)) {}

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

  // Uniform in (0, 1].
  double unit() { return static_cast<double>((next() >> 11) + 1) * 0x1p-53; }

  // Uniform in [0, bound), without bias (Lemire 2019).
  uint64_t below(uint64_t bound) {
    unsigned __int128 product = wide(next(), bound);
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t unfair = (0 - bound) % bound;
      while (static_cast<uint64_t>(product) < unfair) product = wide(next(), bound);
    }
    return static_cast<uint64_t>(product >> 64);
  }

  // A Poisson variate; 0 where the mean is not positive.
  int64_t poisson(double mean) {
    if (!(mean > 0)) return 0;
    if (mean < 12) {  // multiplication of uniform numbers (Knuth)
      const double end = std::exp(-mean);
      int64_t k = 0;
      for (double product = unit(); product > end; product *= unit()) ++k;
      return k;
    }
    // Transformed rejection with squeeze (Hoermann 1993, PTRS).
    const double b = 0.931 + 2.53 * std::sqrt(mean), a = -0.059 + 0.02483 * b;
    const double inverse_alpha = 1.1239 + 1.1328 / (b - 3.4), v_r = 0.9277 - 3.6224 / (b - 2);
    while (true) {
      const double u = unit() - 0.5, v = unit(), u_s = 0.5 - std::fabs(u);
      const double k = std::floor((2 * a / u_s + b) * u + mean + 0.43);
      if (u_s >= 0.07 && v <= v_r) return static_cast<int64_t>(k);
      if (k < 0 || (u_s < 0.013 && v > u_s)) continue;
      if (std::log(v * inverse_alpha / (a / (u_s * u_s) + b)) <= k * std::log(mean) - mean - std::lgamma(k + 1))
        return static_cast<int64_t>(k);
    }
  }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;

  static uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  static unsigned __int128 wide(uint64_t a, uint64_t b) { return static_cast<unsigned __int128>(a) * b; }

  uint64_t state_[4];
};

}  // namespace sparsekern
