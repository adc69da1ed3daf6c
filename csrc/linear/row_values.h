// The values of a weight in the order in which a product of few tokens visits them, kept while they stay the same.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "linear/kernels.h"
#include "parallel.h"

namespace sparsekern {

// Reading values by row costs a cache miss for every few of them; a product of few tokens is bound by that. Where the same
// values are met again (inference, recurrent layers) they are kept by row. What tells that they are the same is their
// address and torch's count of writes, and, because writes through `.data` are not counted, a digest of all their bytes.
template <class A>
class RowValues {
 public:
  using Kept = std::shared_ptr<const std::vector<A>>;

  // To be called at each product. Whether values were met often enough, `patience` times before, to be kept.
  bool meet(const void* source, int64_t version, int64_t patience) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (source != source_ || version != version_) {
      // Values that are written between any two products are not worth the memory. Others come again, and find it.
      if (!fresh_) memory_.reset();
      source_ = source;
      version_ = version;
      start_again();
    }
    return ++meetings_ > patience;
  }

  // The values as `order` visits them, after `meet` has said yes; null where they were written after all. `digest` and
  // `read` are called where needed; the latter fills (count,) values.
  template <class Digest, class Read>
  Kept find(const void* source, int64_t version, const std::shared_ptr<const void>& order, int64_t count,
            const Digest& digest, const Read& read) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (source != source_ || version != version_) return nullptr;
    const uint64_t now = digest();
    if (fresh_ && now != digest_) {
      start_again();
      return nullptr;
    }
    if (!fresh_ || order != order_) {
      // Another thread may still read what was kept.
      if (!memory_ || memory_.use_count() > 1 || static_cast<int64_t>(memory_->size()) != count)
        memory_ = std::make_shared<std::vector<A>>(count);
      std::atomic_thread_fence(std::memory_order_acquire);
      read(memory_->data());
      fresh_ = true;
      digest_ = now;
      order_ = order;
    }
    return memory_;
  }

 private:
  void start_again() {
    meetings_ = 0;
    fresh_ = false;
  }

  std::mutex mutex_;
  const void* source_ = nullptr;
  int64_t version_ = 0, meetings_ = 0;
  bool fresh_ = false;  // memory_ holds the values whose digest is digest_
  uint64_t digest_ = 0;
  std::shared_ptr<const void> order_;
  std::shared_ptr<std::vector<A>> memory_;
};

// A number that tells `bytes` bytes from what they were before: the kernel's digests of blocks, one after another. A change
// of a single element always shows.
template <class A>
uint64_t digest_of(const LinearKernels<A>& kernels, const void* data, int64_t bytes) {
  constexpr int64_t kBlock = 1 << 18;
  const int64_t blocks = (bytes + kBlock - 1) / kBlock;
  std::vector<uint64_t> digests(blocks);
  parallel_ranges(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      digests[b] = kernels.digest(static_cast<const char*>(data) + b * kBlock, std::min(kBlock, bytes - b * kBlock));
  });
  uint64_t all = 0xcbf29ce484222325;  // FNV-1a
  for (const uint64_t digest : digests) all = (all ^ digest) * 0x100000001b3;
  return all;
}

}  // namespace sparsekern
