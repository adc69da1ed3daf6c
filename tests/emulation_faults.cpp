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

// Reads what it has copied without having waited for it.
SK_KERNEL(kThreads, 1) no_wait(float* out, bool right) {
  float* const shared = reinterpret_cast<float*>(shared_memory());
  copy_async_16(shared + threadIdx.x % 16 * 4, out + threadIdx.x % 16 * 4, true);
  copy_async_commit();
  if (right) copy_async_wait<0>();
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

struct Named {
  const char* name;
  void (*kernel)(float*, bool);
};
constexpr Named kAll[] = {{"past-shared", past_shared},
                          {"past-global", past_global},
                          {"divergent-barrier", divergent_barrier},
                          {"lanes-apart", lanes_apart},
                          {"no-wait", no_wait},
                          {"race", race},
                          {"misaligned-matrix", misaligned_matrix},
                          {"unwritten-shared", unwritten_shared},
                          {"too-much-shared", unwritten_shared}};

}  // namespace

int main(int, char** arguments) {
  std::string name = arguments[1];
  const std::string fixed = "-right";
  const bool right = name.size() > fixed.size() && name.compare(name.size() - fixed.size(), fixed.size(), fixed) == 0;
  if (right) name.resize(name.size() - fixed.size());
  sparsekern::emulation::set_order_seed(std::strtoull(arguments[2], nullptr, 10));
  const size_t shared_bytes = name == "too-much-shared" && !right ? size_t{1} << 20 : kThreads * sizeof(float);
  for (const Named& named : kAll) {
    if (name != named.name) continue;
    float* out = nullptr;
    if (posix_memalign(reinterpret_cast<void**>(&out), 16, kThreads * sizeof(float)) != 0) return 2;
    const std::unique_ptr<float, void (*)(void*)> owner(out, std::free);
    for (int i = 0; i < kThreads; ++i) out[i] = 2;
    try {
      launch(Queue{0, nullptr}, named.name, named.kernel, {1}, kThreads, shared_bytes, out, right);
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
