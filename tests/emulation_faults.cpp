// Kernels with a mistake each, for test_cuda.py: `faults NAME SEED` runs one over the emulation, with threads in the
// order of the seed, and prints what it computed. With a fix (NAME-right), the same without the mistake.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "cuda/launch.h"

using namespace sparsekern::cuda;

namespace {

constexpr int kThreads = 64;

SK_KERNEL(kThreads, 1) past_shared(float* out, bool right) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  shared[threadIdx.x + (right ? 0 : 1)] = 1;
  sync_block();
  out[threadIdx.x] = shared[threadIdx.x + (right ? 0 : 1)];
}

SK_KERNEL(kThreads, 1) past_global(float* out, bool right) { out[threadIdx.x + (right ? 0 : 1)] = 1; }

SK_KERNEL(kThreads, 1) divergent_barrier(float* out, bool right) {
  if (right || threadIdx.x < kThreads / 2) sync_block();
  out[threadIdx.x] = 1;
}

SK_KERNEL(kThreads, 1) lanes_apart(float* out, bool right) {
  float sum = 1;
  if (right || threadIdx.x % 2) {
    sum = shuffle_xor(sum, 1);
  } else {
    sum = ballot(true) ? 1 : 0;
  }
  out[threadIdx.x] = sum;
}

// A lane ends, and the others of its warp wait for it.
SK_KERNEL(kThreads, 1) lane_missing(float* out, bool right) {
  out[threadIdx.x] = 1;
  if (!right && threadIdx.x == 5) return;
  out[threadIdx.x] = shuffle(1.0f, 0);
}

SK_DEVICE float* copied(const float* from) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  copy_async_16(shared + threadIdx.x % 16 * 4, from + threadIdx.x % 16 * 4, true);
  return shared;
}

// Reads what it has copied without having waited for it.
SK_KERNEL(kThreads, 1) no_wait(float* out, bool right) {
  const float* const shared = copied(out);
  copy_async_commit();
  if (right) copy_async_wait<0>();
  sync_block();
  out[threadIdx.x] = shared[threadIdx.x];
}

// Waits for what it has closed, and reads what it has not.
SK_KERNEL(kThreads, 1) no_commit(float* out, bool right) {
  const float* const shared = copied(out);
  if (right) copy_async_commit();
  copy_async_wait<0>();
  sync_block();
  out[threadIdx.x] = shared[threadIdx.x];
}

// Waits for all copies but the last, and reads that.
SK_KERNEL(kThreads, 1) early_wait(float* out, bool right) {
  copy_async_commit();
  const float* const shared = copied(out);
  copy_async_commit();
  if (right) copy_async_commit();
  copy_async_wait<1>();
  sync_block();
  out[threadIdx.x] = shared[threadIdx.x];
}

// Reads what another thread writes, with or without a barrier in between.
SK_KERNEL(kThreads, 1) race(float* out, bool right) {
  int* const shared = reinterpret_cast<int*>(shared_memory());
  shared[threadIdx.x] = 0;
  sync_block();
  shared[threadIdx.x] = 1;
  if (right) sync_block();
  int sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += shared[i];
  out[threadIdx.x] = static_cast<float>(sum);
}

SK_DEVICE void copy_one(float* out, char* to, const float* from, bool inside = true) {
  copy_async_16(to, from, inside);
  copy_async_commit();
  copy_async_wait<0>();
  sync_block();
  out[threadIdx.x] = 1;
}

SK_KERNEL(kThreads, 1) misaligned_copy(float* out, bool right) {
  copy_one(out, shared_memory() + (right ? 0 : 8), out);
}

SK_KERNEL(kThreads, 1) misaligned_source(float* out, bool right) {
  copy_one(out, shared_memory(), out + (right ? 0 : 2));
}

SK_KERNEL(kThreads, 1) copy_past_shared(float* out, bool right) {
  copy_one(out, shared_memory() + (right ? 240 : 256), out);
}

// What is not inside is not read.
SK_KERNEL(kThreads, 1) copy_past_global(float* out, bool right) {
  copy_one(out, shared_memory(), out + kThreads, !right);
}

SK_KERNEL(kThreads, 1) read_past_global(float* out, bool right) {
  const float read = load_constant(out + (right ? 0 : kThreads));
  sync_block();
  out[threadIdx.x] = read - 1;
}

SK_KERNEL(kThreads, 1) misaligned_read(float* out, bool right) {
  const Words2 read = load_constant(reinterpret_cast<const Words2*>(out + (right ? 0 : 1)));
  sync_block();
  out[threadIdx.x] = bits_float(read.x) - 1;
}

SK_KERNEL(kThreads, 1) misaligned_write(float* out, bool right) {
  *reinterpret_cast<Words4*>(shared_memory() + (right ? 0 : 8)) = {1, 2, 3, 4};
  out[threadIdx.x] = 1;
}

SK_KERNEL(kThreads, 1) address_past_shared(float* out, bool right) {
  out[threadIdx.x] = shared_address(shared_memory() + (right ? 256 : 257)) == 256 ? 1 : 0;
}

SK_KERNEL(kThreads, 1) equal_zeros(float* out, bool right) {
  out[threadIdx.x] = equal_halves(right ? 0x3c003c00 : 0x3c000000, 0x3c003c00) == ~0u ? 1 : 0;
}

SK_KERNEL(kThreads, 1) equal_nans(float* out, bool right) {
  out[threadIdx.x] = equal_halves(0x3c003c00, right ? 0x3c003c00 : 0x3c007c01) == ~0u ? 1 : 0;
}

SK_KERNEL(kThreads, 1) matrix_past_shared(float* out, bool right) {
  uint32_t matrices[4];
  load_matrices_transposed(matrices, right ? 240 : 256);
  out[threadIdx.x] = matrices[0] == 0xffffffffu ? 1 : 0;
}

SK_KERNEL(kThreads, 1) misaligned_matrix(float* out, bool right) {
  uint32_t matrices[4];
  load_matrices(matrices, threadIdx.x % 8 * 16 + (right ? 0 : 8));
  out[threadIdx.x] = matrices[0] == 0xffffffffu ? 1 : 0;
}

SK_KERNEL(kThreads, 1) unwritten_shared(float* out, bool right) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  if (right) shared[threadIdx.x] = 1;
  out[threadIdx.x] = shared[threadIdx.x] + 1;
}

// Reads what the block before it has left in shared memory.
SK_KERNEL(kThreads, 1) other_block(float* out, bool right) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  if (right || blockIdx.y == 0) shared[threadIdx.x] = 2;
  out[threadIdx.x] = shared[threadIdx.x];
}

// Eight lanes, whose rows are read at once, name two rows in the same banks.
SK_KERNEL(kThreads, 1) bank_conflicts(float* out, bool right) {
  uint32_t matrices[4];
  load_matrices(matrices, threadIdx.x % (right ? 8 : 2) * 128 / (right ? 8 : 1));
  sync_block();
  out[threadIdx.x] = static_cast<float>(detail::matrix_reads.passes) / detail::matrix_reads.matrices;
}

SK_KERNEL(kThreads, 1) nothing(float* out, bool) { out[threadIdx.x] = 1; }

// How a kernel is started, with the mistake or without.
struct Start {
  unsigned threads = kThreads;
  size_t shared_bytes = kThreads * sizeof(float);
  Grid grid = {1, 1, 1};
};
struct Named {
  const char* name;
  void (*kernel)(float*, bool);
  Start wrong = {}, right = {};
};
constexpr Named kAll[] = {{"past-shared", past_shared},
                          {"past-global", past_global},
                          {"divergent-barrier", divergent_barrier},
                          {"lanes-apart", lanes_apart},
                          {"lane-missing", lane_missing},
                          {"no-wait", no_wait},
                          {"no-commit", no_commit},
                          {"early-wait", early_wait},
                          {"race", race},
                          {"misaligned-copy", misaligned_copy},
                          {"misaligned-source", misaligned_source},
                          {"copy-past-shared", copy_past_shared},
                          {"copy-past-global", copy_past_global},
                          {"read-past-global", read_past_global},
                          {"misaligned-read", misaligned_read},
                          {"misaligned-write", misaligned_write},
                          {"address-past-shared", address_past_shared},
                          {"equal-zeros", equal_zeros},
                          {"equal-nans", equal_nans},
                          {"matrix-past-shared", matrix_past_shared},
                          {"misaligned-matrix", misaligned_matrix},
                          {"unwritten-shared", unwritten_shared},
                          {"other-block", other_block, {kThreads, 256, {1, 2}}, {kThreads, 256, {1, 2}}},
                          {"bank-conflicts", bank_conflicts},
                          {"too-much-shared", nothing, {kThreads, 1 << 20}},
                          {"too-many-threads", nothing, {1056}},
                          {"half-a-warp", nothing, {48}},
                          {"too-wide", nothing, {kThreads, 0, {1, 65536}}},
                          {"too-deep", nothing, {kThreads, 0, {1, 1, 65536}}}};

}  // namespace

int main(int, char** arguments) {
  std::string name = arguments[1];
  const std::string fixed = "-right";
  const bool right = name.size() > fixed.size() && name.compare(name.size() - fixed.size(), fixed.size(), fixed) == 0;
  if (right) name.resize(name.size() - fixed.size());
  sparsekern::emulation::set_order_seed(std::strtoull(arguments[2], nullptr, 10));
  for (const Named& named : kAll) {
    if (name != named.name) continue;
    float* out = nullptr;
    if (posix_memalign(reinterpret_cast<void**>(&out), 16, kThreads * sizeof(float)) != 0) return 2;
    const std::unique_ptr<float, void (*)(void*)> owner(out, std::free);
    for (int i = 0; i < kThreads; ++i) out[i] = 2;
    const Start& start = right ? named.right : named.wrong;
    try {
      launch(Queue{0, nullptr}, named.name, named.kernel, start.grid, start.threads, start.shared_bytes, out, right);
    } catch (const std::exception& error) {
      std::printf("error: %s\n", error.what());
      return 1;
    }
    for (int i = 0; i < kThreads; ++i) std::printf("%g ", out[i]);
    std::printf("\n");
    return 0;
  }
  std::printf("no kernel %s\n", name.c_str());
  return 2;
}
