#include "cuda/emulation/block.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SPARSEKERN_ASAN 1
#else
#define SPARSEKERN_ASAN 0
#endif

namespace sparsekern::emulation {

namespace {

constexpr size_t kStackBytes = size_t{1} << 15;  // AddressSanitizer clears as much at each switch

// Written in the scheduler's context and read there: the fibres only ever run in between.
Thread* running = nullptr;
ucontext_t scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
uint64_t order_seed = 0;
std::set<uintptr_t> started;

// The stack of a block's thread of this number, for one block after the other: nothing initialises them.
char* stack_at(unsigned number) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= number) stacks.emplace_back(new char[kStackBytes]);
  return stacks[number].get();
}

void leave(Thread& thread) {
#if SPARSEKERN_ASAN
  __sanitizer_start_switch_fiber(thread.done ? nullptr : &thread.fake_stack, scheduler_stack, scheduler_stack_bytes);
#endif
  swapcontext(&thread.context, &scheduler);
#if SPARSEKERN_ASAN
  __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void enter(Thread& thread) {
  running = &thread;
#if SPARSEKERN_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, thread.stack, kStackBytes);
#endif
  swapcontext(&scheduler, &thread.context);
#if SPARSEKERN_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
  running = nullptr;
}

}  // namespace

// What the threads of one block share.
class Block {
 public:
  Block(Index3 grid, Index3 size, size_t shared_bytes, const std::function<void()>& body)
      : grid(grid), size(size), body(body), shared(shared_bytes), count(size.x * size.y * size.z) {
    threads.reserve(count);
    for (unsigned number = 0; number < count; ++number) {
      auto thread = std::make_unique<Thread>();
      thread->stack = stack_at(number);
      thread->block = this;
      thread->number = number;
      thread->index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
      threads.push_back(std::move(thread));
    }
    warps.resize((count + kWarpSize - 1) / kWarpSize);
  }

  void run_at(Index3 at, std::mt19937_64& random) {
    index = at;
    // Every bit set is a NaN in each floating type: nobody computes with what nobody has written.
    std::fill(shared.begin(), shared.end(), static_cast<char>(0xff));
    for (auto& thread : threads) start(*thread);
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    unsigned left = count;
    while (left > 0) {
      if (order_seed != 0) std::shuffle(order.begin(), order.end(), random);
      bool moved = false;
      for (const unsigned number : order) {
        Thread& thread = *threads[number];
        if (thread.done || thread.waits_for) continue;
        enter(thread);
        moved = true;
        if (!failure.empty()) throw std::runtime_error(failure);
        if (thread.done) --left;
      }
      if (!moved) throw std::runtime_error(stuck());
    }
  }

  void fail(const std::string& message) { failure = message; }

  const Index3 grid, size;
  const std::function<void()>& body;
  Index3 index;
  std::vector<char> shared;
  std::vector<std::unique_ptr<Thread>> threads;

  struct Warp {
    void* arguments[kWarpSize] = {};
    unsigned arrived = 0;
    const char* name = nullptr;
  };
  std::vector<Warp> warps;
  unsigned at_barrier = 0;
  const unsigned count;

 private:
  static void main() {
    Thread& thread = *running;
#if SPARSEKERN_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    try {
      thread.block->body();
    } catch (const std::exception& error) {
      thread.block->fail(error.what());
    }
    thread.done = true;
    leave(thread);
  }

  void start(Thread& thread) {
    thread.done = false;
    thread.waits_for = nullptr;
    thread.fake_stack = nullptr;
    thread.copies.assign(1, {});
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, &Block::main, 0);
  }

  std::string stuck() const {
    std::string message = "threads of block (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
                          std::to_string(index.z) + ") wait for ever:";
    for (const auto& thread : threads) {
      message += " " + std::to_string(thread->number) + (thread->done ? ":ended" : std::string(":") + thread->waits_for);
    }
    return message;
  }

  std::string failure;
};

Thread& self() { return *running; }
void set_order_seed(uint64_t seed) { order_seed = seed; }
const Index3& thread_index() { return running->index; }
const Index3& block_index() { return running->block->index; }
const Index3& block_size() { return running->block->size; }
const Index3& grid_size() { return running->block->grid; }
void* shared_memory() { return running->block->shared.data(); }
size_t shared_size() { return running->block->shared.size(); }

void note_kernel(const void* kernel) {
  Dl_info library;
  if (dladdr(kernel, &library)) {
    started.insert(reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(library.dli_fbase));
  }
}
std::set<uintptr_t> noted_kernels() { return started; }

void run(Index3 grid, Index3 size, size_t shared_bytes, const std::function<void()>& body) {
  std::mt19937_64 random(order_seed);
  Block block(grid, size, shared_bytes, body);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) block.run_at({x, y, z}, random);
    }
  }
}

void meet_block() {
  Thread& thread = *running;
  Block& block = *thread.block;
  if (++block.at_barrier < block.count) {
    thread.waits_for = "barrier";
    leave(thread);
    return;
  }
  block.at_barrier = 0;
  for (auto& other : block.threads) {
    if (other->waits_for && !std::strcmp(other->waits_for, "barrier")) other->waits_for = nullptr;
  }
}

void meet_warp(const char* name, void* argument, void (*complete)(void* const* arguments)) {
  Thread& thread = *running;
  const unsigned lane = thread.number % kWarpSize, first = thread.number - lane;
  Block::Warp& warp = thread.block->warps[thread.number / kWarpSize];
  if (warp.arrived == 0) {
    warp.name = name;
  } else if (std::strcmp(warp.name, name)) {
    throw std::runtime_error(std::string("lanes of one warp are in ") + warp.name + " and in " + name);
  }
  warp.arguments[lane] = argument;
  if (++warp.arrived < kWarpSize) {
    thread.waits_for = name;
    leave(thread);
    return;
  }
  complete(warp.arguments);
  for (unsigned other = 0; other < kWarpSize; ++other) thread.block->threads[first + other]->waits_for = nullptr;
  warp.arrived = 0;
}

}  // namespace sparsekern::emulation
