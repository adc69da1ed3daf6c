// device_gpu.h's functions as what they do, lane by lane: for tests on a CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

#include "cuda/emulation/block.h"

// The CPU kernels' conversions.
#define SK_ISA emulated
#include "isa/element.h"
#undef SK_ISA

namespace sparsekern::cuda {

inline char* shared_memory() { return static_cast<char*>(emulation::shared_memory()); }

inline void sync_block() { emulation::meet_block(); }
inline void sync_warp() { emulation::meet_warp("sync_warp", nullptr, [](void* const*) {}); }

inline float widen(float value) { return value; }
inline float widen(bf16 value) { return emulated::widen(emulated::bf16{value.bits}); }
inline float widen(f16 value) { return emulated::widen(emulated::f16{value.bits}); }

template <class T>
T narrow(float value);
template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline bf16 narrow<bf16>(float value) {
  emulated::bf16 half;
  emulated::narrow(value, &half);
  return {half.bits};
}
template <>
inline f16 narrow<f16>(float value) {
  emulated::f16 half;
  emulated::narrow(value, &half);
  return {half.bits};
}

inline uint32_t float_bits(float value) { return emulated::float_to_bits(value); }
inline float bits_float(uint32_t bits) { return emulated::bits_to_float(bits); }

inline uint32_t opaque(uint32_t bits) { return bits; }

inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) picked |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}

inline uint32_t equal_halves(uint32_t a, uint32_t b) {
  for (const uint32_t halves : {a, b}) {
    for (const uint32_t half : {halves & 0x7fff, halves >> 16 & 0x7fff}) {
      if (half == 0 || half > 0x7c00) throw std::runtime_error("equal_halves of a zero or a NaN");
    }
  }
  return ((a ^ b) & 0xffff ? 0 : 0xffffu) | ((a ^ b) >> 16 ? 0 : 0xffff0000u);
}

template <class T>
T load_constant(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T)) throw std::runtime_error("a misaligned read of global memory");
  return *from;
}

namespace detail {

template <class T>
struct Shuffled {
  T value;
  unsigned from;
  T result;
};

template <class T>
T exchange(const char* name, T value, unsigned from) {
  Shuffled<T> mine{value, from % kWarp, value};
  emulation::meet_warp(name, &mine, [](void* const* lanes) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      auto& asked = *static_cast<Shuffled<T>*>(lanes[lane]);
      asked.result = static_cast<Shuffled<T>*>(lanes[asked.from])->value;
    }
  });
  return mine.result;
}

inline unsigned lane() { return emulation::self().number % kWarp; }

inline void check_shared(const char* what, const void* address, size_t bytes, size_t alignment) {
  const char* begin = static_cast<const char*>(emulation::shared_memory());
  const char* at = static_cast<const char*>(address);
  if (at < begin || at + bytes > begin + emulation::shared_size() || (at - begin) % alignment) {
    throw std::runtime_error(std::string(what) + ": byte " + std::to_string(at - begin) + " of " +
                             std::to_string(emulation::shared_size()) + " bytes of shared memory, wanted " +
                             std::to_string(bytes) + ", aligned to " + std::to_string(alignment));
  }
}

struct Matrices {
  uint32_t* result;
  const void* row;
};

// A GPU reads the eight rows of a matrix at once, in as many passes as there are different ones of them in the same 16
// of 128 bytes: what load_matrices took since the last look.
struct MatrixReads {
  int64_t matrices = 0, passes = 0;
};
inline MatrixReads matrix_reads;

// rows: of the eight, the 16 bytes' number in shared memory.
inline void count_passes(const int64_t (&rows)[8]) {
  int64_t most = 0;
  for (int bank = 0; bank < 8; ++bank) {
    std::set<int64_t> different;
    for (const int64_t row : rows) {
      if (row % 8 == bank) different.insert(row);
    }
    most = std::max<int64_t>(most, different.size());
  }
  ++matrix_reads.matrices;
  matrix_reads.passes += most;
}

template <bool kTransposed>
void load_matrices(const char* name, uint32_t (&matrices)[4], uint32_t address) {
  const char* const row = static_cast<const char*>(emulation::shared_memory()) + address;
  check_shared(name, row, 16, 16);
  Matrices mine{matrices, row};
  emulation::meet_warp(name, &mine, [](void* const* lanes) {
    uint16_t elements[4][8][8];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      std::memcpy(elements[lane / 8][lane % 8], static_cast<Matrices*>(lanes[lane])->row, 16);
    }
    for (unsigned m = 0; m < 4; ++m) {
      int64_t rows[8];
      for (unsigned i = 0; i < 8; ++i) {
        const char* const row = static_cast<const char*>(static_cast<Matrices*>(lanes[8 * m + i])->row);
        rows[i] = (row - static_cast<const char*>(emulation::shared_memory())) / 16;
      }
      count_passes(rows);
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned major = lane / 4, minor = 2 * (lane % 4);
      for (unsigned m = 0; m < 4; ++m) {
        const uint16_t low = kTransposed ? elements[m][minor][major] : elements[m][major][minor];
        const uint16_t high = kTransposed ? elements[m][minor + 1][major] : elements[m][major][minor + 1];
        static_cast<Matrices*>(lanes[lane])->result[m] = static_cast<uint32_t>(high) << 16 | low;
      }
    }
  });
}

struct Fragments {
  float* sums;
  const uint32_t* a;
  const uint32_t* b;
};

template <class T>
float half_of(uint32_t pair, unsigned which) {
  return widen(T{static_cast<uint16_t>(pair >> 16 * which)});
}

}  // namespace detail

template <class T>
T shuffle_xor(T value, unsigned lanes) {
  return detail::exchange("shuffle_xor", value, detail::lane() ^ lanes);
}
template <class T>
T shuffle(T value, unsigned from) {
  return detail::exchange("shuffle", value, from);
}

inline unsigned ballot(bool yes) {
  struct Vote {
    bool yes;
    unsigned result;
  } mine{yes, 0};
  emulation::meet_warp("ballot", &mine, [](void* const* lanes) {
    unsigned bits = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) bits |= (static_cast<Vote*>(lanes[lane])->yes ? 1u : 0u) << lane;
    for (unsigned lane = 0; lane < kWarp; ++lane) static_cast<Vote*>(lanes[lane])->result = bits;
  });
  return mine.result;
}
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }

inline int atomic_add(int* to, int value) {
  const int before = *to;
  *to += value;
  return before;
}

inline void copy_async_16(void* to, const void* from, bool inside) {
  detail::check_shared("copy_async_16", to, 16, 16);
  if (inside && reinterpret_cast<uintptr_t>(from) % 16) throw std::runtime_error("copy_async_16 reads misaligned");
  emulation::self().copies.back().push_back({to, from, inside ? 16u : 0u});
}
inline void copy_async_commit() { emulation::self().copies.emplace_back(); }
template <int kUnderWay>
void copy_async_wait() {
  auto& groups = emulation::self().copies;
  while (groups.size() > kUnderWay + 1) {
    for (const emulation::Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

inline uint32_t shared_address(const void* at) {
  detail::check_shared("shared_address", at, 0, 1);
  return static_cast<uint32_t>(static_cast<const char*>(at) - static_cast<const char*>(emulation::shared_memory()));
}

inline void load_matrices(uint32_t (&matrices)[4], uint32_t row) {
  detail::load_matrices<false>("load_matrices", matrices, row);
}
inline void load_matrices_transposed(uint32_t (&matrices)[4], uint32_t row) {
  detail::load_matrices<true>("load_matrices_transposed", matrices, row);
}

template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  detail::Fragments mine{sums, a, b};
  emulation::meet_warp("multiply_add", &mine, [](void* const* lanes) {
    float left[16][16], right[16][8];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const auto& fragments = *static_cast<detail::Fragments*>(lanes[lane]);
      const unsigned g = lane / 4, t = lane % 4;
      for (unsigned half = 0; half < 2; ++half) {
        for (unsigned part = 0; part < 4; ++part) {
          left[g + part % 2 * 8][2 * t + half + part / 2 * 8] = detail::half_of<T>(fragments.a[part], half);
        }
        right[2 * t + half][g] = detail::half_of<T>(fragments.b[0], half);
        right[2 * t + half + 8][g] = detail::half_of<T>(fragments.b[1], half);
      }
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      float* const sums = static_cast<detail::Fragments*>(lanes[lane])->sums;
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 16; ++k) sums[i] += left[row][k] * right[k][column];
      }
    }
  });
}

}  // namespace sparsekern::cuda
