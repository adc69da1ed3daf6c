// The values of a weight in the order of its rows, kept while they stay the same.
#pragma once

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

  // The values by row if they are worth keeping: null at the first meeting. `digest` and `read` are called only where
  // needed; the latter fills (nnz,) values.
  template <class Digest, class Read>
  Kept find(const void* source, int64_t version, int64_t count, const Digest& digest, const Read& read) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (source != source_ || version != version_) {
      source_ = source;
      version_ = version;
      kept_.reset();
      return nullptr;
    }
    const uint64_t now = digest();
    if (!kept_ || now != digest_) {
      const auto values = std::make_shared<std::vector<A>>(count);
      read(values->data());
      kept_ = values;
      digest_ = now;
    }
    return kept_;
  }

 private:
  std::mutex mutex_;
  const void* source_ = nullptr;
  int64_t version_ = 0;
  uint64_t digest_ = 0;
  Kept kept_;
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
