// Arrays that are read from end to end again and again: on huge pages where the system grants them, and aligned to them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sparsekern {

constexpr size_t kHugePage = size_t{2} << 20;

// Blocks that were given back and wait for the next of their size: whenever a topology changes, what is kept of it is made
// anew, and the pages of a fresh block cost more than what is written to them.
class SpareBlocks {
 public:
  static SpareBlocks& get() {
    static SpareBlocks* const blocks = new SpareBlocks;  // never freed: others may give back later
    return *blocks;
  }

  // Of so many whole huge pages; null where there is none of that size.
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(spare_.rbegin(), spare_.rend(), [&](const Block& b) { return b.bytes == bytes; });
    if (found == spare_.rend()) return nullptr;
    void* const memory = found->memory;
    total_ -= bytes;
    spare_.erase(found.base() - 1);
    return memory;
  }

  void keep(void* memory, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_.push_back({memory, bytes});
    for (total_ += bytes; total_ > kMost; spare_.erase(spare_.begin())) {
      total_ -= spare_.front().bytes;
      std::free(spare_.front().memory);
    }
  }

 private:
  static constexpr size_t kMost = size_t{64} << 20;

  struct Block {
    void* memory;
    size_t bytes;
  };
  std::mutex mutex_;
  std::vector<Block> spare_;  // the oldest first
  size_t total_ = 0;
};

template <class T>
struct PageAllocator {
  using value_type = T;

  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}

  T* allocate(size_t count) {
    const size_t bytes = size_of(count);
    const bool huge = bytes >= kHugePage;
    void* memory = huge ? SpareBlocks::get().take(bytes) : nullptr;
    if (memory) return static_cast<T*>(memory);
    memory = std::aligned_alloc(huge ? kHugePage : kLine, bytes);
    if (!memory) throw std::bad_alloc();
#ifdef __linux__
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t count) {
    const size_t bytes = size_of(count);
    if (bytes >= kHugePage) SpareBlocks::get().keep(memory, bytes);
    else std::free(memory);
  }

  // Elements without a value stay as they are: whoever asks for them fills them.
  template <class U>
  void construct(U* place) {
    ::new (static_cast<void*>(place)) U;
  }
  template <class U, class... Args>
  void construct(U* place, Args&&... args) {
    ::new (static_cast<void*>(place)) U(static_cast<Args&&>(args)...);
  }

  friend bool operator==(const PageAllocator&, const PageAllocator&) { return true; }
  friend bool operator!=(const PageAllocator&, const PageAllocator&) { return false; }

 private:
  static constexpr size_t kLine = 64;

  // Bytes of a block, in whole cache lines or whole huge pages.
  static size_t size_of(size_t count) {
    const size_t bytes = count * sizeof(T), page = bytes < kHugePage ? kLine : kHugePage;
    return (bytes + page - 1) / page * page;
  }
};

template <class T>
using PagedVector = std::vector<T, PageAllocator<T>>;

}  // namespace sparsekern
