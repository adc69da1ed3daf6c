// Runs CUDA kernels as C++ on the CPU: each thread of a block is a fibre, blocks run one after another.
//
// Threads run until they meet at a barrier or in an operation of their whole warp, in an order that `order_seed`
// changes: results that depend on it show a race. What cannot be (a barrier that not all threads reach, lanes of a warp
// in different operations) throws std::runtime_error from `run`.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace sparsekern::emulation {

inline constexpr unsigned kWarpSize = 32;

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

// A copy from global to shared memory that is under way: made when it is waited for, and not before, so that a kernel
// that reads too early reads old contents.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;  // of the 16 that are written; the others become 0
};

class Block;

struct Thread {
  ucontext_t context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  Block* block = nullptr;
  Index3 index;
  unsigned number = 0;
  const char* waits_for = nullptr;  // a barrier or a warp's operation; nullptr: it can run
  bool done = false;
  std::vector<std::vector<Copy>> copies;  // groups under way, oldest first; the last is not yet closed
};

// The thread that runs.
Thread& self();

// Settles the order in which threads run; 0: by their numbers.
void set_order_seed(uint64_t seed);

// Remembers that a kernel was started, and all that were, by their distance from the start of their library.
void note_kernel(const void* kernel);
std::set<uintptr_t> noted_kernels();

// Runs `body` for all threads of all blocks, each block with `shared_bytes` of shared memory that begin as NaN.
void run(Index3 grid, Index3 block, size_t shared_bytes, const std::function<void()>& body);

const Index3& thread_index();
const Index3& block_index();
const Index3& block_size();
const Index3& grid_size();
void* shared_memory();
size_t shared_size();

// All threads of the block meet.
void meet_block();

// All lanes of the caller's warp meet under this name; the last one to come calls `complete` with their arguments.
void meet_warp(const char* name, void* argument, void (*complete)(void* const* arguments));

}  // namespace sparsekern::emulation
