// Working memory that is kept between calls: 64-byte aligned, on huge pages where the system grants them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sparsekern {

class Scratch {
 public:
  // A block of at least `count` elements of T, contents undefined. A slot's block is valid until the next
  // request for the same slot from the same Scratch.
  template <class T>
  T* get(size_t slot, size_t count) {
    if (slot >= blocks_.size()) blocks_.resize(slot + 1);
    Block& block = blocks_[slot];
    const size_t bytes = count * sizeof(T);
    // A block far too large for today's request is given back, so that one huge layer does not hold memory forever.
    if (bytes > block.bytes || block.bytes > kKeepFactor * (bytes + kHugePage)) block = Block(bytes);
    return static_cast<T*>(block.data.get());
  }

  // One Scratch for the calling thread, for drivers that hand parts of their blocks to the worker threads.
  static Scratch& of_this_thread() {
    thread_local Scratch scratch;
    return scratch;
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kPage = 4096;
  // A tile's block, if far smaller than a huge page, is read at random: its pages would be more than the processor keeps
  // translations of.
  static constexpr size_t kSmall = 64 << 10;
  static constexpr size_t kKeepFactor = 64;

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Block {
    Block() = default;
    explicit Block(size_t wanted) {
      const size_t page = wanted < kSmall ? kPage : kHugePage;
      bytes = (wanted / page + 1) * page;
      data.reset(std::aligned_alloc(page, bytes));
      if (!data) throw std::bad_alloc();
#ifdef __linux__
      if (page == kHugePage) madvise(data.get(), bytes, MADV_HUGEPAGE);
#endif
    }
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  std::vector<Block> blocks_;
};

}  // namespace sparsekern
