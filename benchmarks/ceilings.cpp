// What the processor can do at most: multiply-adds, loads from each level of memory, copies.
// Compiled for the machine it runs on and called from ceilings.py. Rates are sums over the threads, each of which
// works on memory of its own for the same span of time.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kAccumulators = 16;  // 32 registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kAccumulators = 12;  // 16 registers
#else
constexpr int kBytes = 16, kAccumulators = 12;
#endif
constexpr int kLanes = kBytes / sizeof(float);
typedef float Vec __attribute__((vector_size(kBytes)));

Vec spread(float value) { return Vec{} + value; }

// The compiler must take the value for used, and for changed.
void keep(Vec& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Block = std::unique_ptr<float, Free>;

Block filled(int64_t bytes) {
  constexpr int64_t kPage = 2 << 20;
  const int64_t size = (bytes + kPage - 1) / kPage * kPage;
  Block block(static_cast<float*>(std::aligned_alloc(kPage, size)));
#if defined(MADV_HUGEPAGE)
  madvise(block.get(), size, MADV_HUGEPAGE);  // otherwise misses of the page table would be measured as well
#endif
  for (int64_t i = 0; i < bytes / static_cast<int64_t>(sizeof(float)); ++i) block.get()[i] = 1.0f;
  return block;
}

// Units of work a second that `threads` threads do together. `make` gives a thread its work: a function that does some
// and returns how much.
double rate(int threads, double seconds, const std::function<std::function<double()>()>& make) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> ready{0};
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread) {
    pool.emplace_back([&, thread] {
      const std::function<double()> work = make();
      work();
      ++ready;
      while (ready < threads) {
      }
      double done = 0, elapsed = 0;
      for (const auto start = Clock::now(); elapsed < seconds;) {
        done += work();
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      rates[thread] = done / elapsed;
    });
  }
  double sum = 0;
  for (int thread = 0; thread < threads; ++thread) {
    pool[thread].join();
    sum += rates[thread];
  }
  return sum;
}

double multiply_adds_in_registers() {
  constexpr int kSteps = 20000;
  Vec sums[kAccumulators];
  for (auto& sum : sums) sum = spread(1.0f);
  Vec factor = spread(0.999f), addend = spread(0.001f);
  for (int step = 0; step < kSteps; ++step) {
    keep(factor);
#pragma GCC unroll 16
    for (auto& sum : sums) sum = sum * factor + addend;
  }
  for (auto& sum : sums) keep(sum);
  return 2.0 * kSteps * kAccumulators * kLanes;
}

double multiply_adds_with_loads(const float* data, int64_t bytes) {
  constexpr int kAtATime = 8;
  const int64_t step = kAtATime * kLanes, size = bytes / sizeof(float) / step * step;
  const int64_t passes = 1 + (1 << 20) / bytes;
  Vec sums[kAtATime] = {};
  Vec factor = spread(0.999f);
  for (int64_t pass = 0; pass < passes; ++pass) {
    keep(factor);
    for (int64_t i = 0; i < size; i += step) {
#pragma GCC unroll 8
      for (int j = 0; j < kAtATime; ++j) {
        sums[j] += *reinterpret_cast<const Vec*>(data + i + j * kLanes) * factor;
      }
    }
    asm volatile("" ::: "memory");
  }
  for (auto& sum : sums) keep(sum);
  return 2.0 * passes * size;
}

}  // namespace

extern "C" {

int vector_bytes() { return kBytes; }

// Floating-point operations a second of multiply-adds on registers.
double fma_rate(int threads, double seconds) {
  return rate(threads, seconds, [] { return std::function<double()>(multiply_adds_in_registers); });
}

// The same with one operand loaded from a block of this size, which each thread reads from end to end.
double load_fma_rate(int threads, double seconds, int64_t bytes) {
  return rate(threads, seconds, [=] {
    std::shared_ptr<float> data = filled(bytes);
    return [=] { return multiply_adds_with_loads(data.get(), bytes); };
  });
}

// Bytes a second that are copied from one block of this size to another; each is read and written.
double copy_rate(int threads, double seconds, int64_t bytes) {
  return rate(threads, seconds, [=] {
    std::shared_ptr<float> from = filled(bytes), to = filled(bytes);
    return [=] {
      std::memcpy(to.get(), from.get(), bytes);
      asm volatile("" ::"r"(to.get()) : "memory");
      return static_cast<double>(bytes);
    };
  });
}

}  // extern "C"
