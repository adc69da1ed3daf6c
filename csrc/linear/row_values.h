// The values of a weight in the order in which a product of few tokens visits them, kept while they stay the same.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "linear/kernels.h"
#include "pages.h"
#include "parallel.h"

namespace sparsekern {

// Reading values by row costs a cache miss for every few of them; a product of few tokens is bound by that. Where the same
// values are met again (inference, recurrent layers) they are kept by row. What tells that they are the same is their
// address and torch's count of writes, and, because writes through `.data` are not counted, a digest of all their bytes.
template <class A>
class RowValues {
 public:
  struct Kept {
    std::shared_ptr<const PagedVector<A>> values;
    uint64_t digest;  // of the values that they were read from
  };

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

  // The values as `order` visits them, after `meet` has said yes; `values` is null where others came in between. `digest`
  // and `read` are called where they are not there yet; the latter fills (count,) values.
  template <class Digest, class Read>
  Kept find(const void* source, int64_t version, const std::shared_ptr<const void>& order, int64_t count,
            const Digest& digest, const Read& read) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (source != source_ || version != version_) return {};
    if (!fresh_ || order != order_) {
      // Another thread may still read what was kept.
      if (!memory_ || memory_.use_count() > 1 || static_cast<int64_t>(memory_->size()) != count)
        memory_ = std::make_shared<PagedVector<A>>(count);
      std::atomic_thread_fence(std::memory_order_acquire);
      digest_ = digest();
      read(memory_->data());
      fresh_ = true;
      order_ = order;
    }
    return {memory_, digest_};
  }

  // The values were written to and nobody counted it.
  void forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    start_again();
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
  std::shared_ptr<PagedVector<A>> memory_;
};

// A number that tells memory from what it was before: the kernel's digests of blocks, one after another. A change of
// a single element always shows. Threads that do something else as well call `run`, each for its share.
template <class A>
class Digest {
 public:
  Digest(const LinearKernels<A>& kernels, const void* data, int64_t bytes)
      : kernels_(kernels), data_(static_cast<const char*>(data)), bytes_(bytes), blocks_((bytes + kBlock - 1) / kBlock) {}

  void run(int64_t task, int64_t tasks) {
    const int64_t blocks = static_cast<int64_t>(blocks_.size());
    for (int64_t b = blocks * task / tasks; b < blocks * (task + 1) / tasks; ++b)
      blocks_[b] = kernels_.digest(data_ + b * kBlock, std::min(kBlock, bytes_ - b * kBlock));
  }
  uint64_t value() const {
    uint64_t all = 0xcbf29ce484222325;  // FNV-1a
    for (const uint64_t block : blocks_) all = (all ^ block) * 0x100000001b3;
    return all;
  }

 private:
  static constexpr int64_t kBlock = 1 << 15;
  const LinearKernels<A>& kernels_;
  const char* data_;
  int64_t bytes_;
  std::vector<uint64_t> blocks_;
};

}  // namespace sparsekern
