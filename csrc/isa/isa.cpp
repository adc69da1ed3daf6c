#include "isa/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace sparsekern {
namespace {

#if SPARSEKERN_X86
const IsaKernels& with_bf16() {
  static const IsaKernels kernels = [] {
    IsaKernels k = kernels_avx512;
    k.name = "avx512_bf16";
    k.linear_f32.backward = linear_backward_avx512_bf16;
    k.conv2d_bf16 = conv2d_avx512_bf16;
    return k;
  }();
  return kernels;
}
#endif

struct Choices {
  std::array<const IsaKernels*, 4> kernels{};
  std::array<const char*, 5> names{};
  int count = 0;

  void add(const IsaKernels& isa) {
    kernels[count] = &isa;
    names[count++] = isa.name;
  }
  const IsaKernels* find(const char* name) const {
    for (int i = 0; i < count; ++i)
      if (std::strcmp(names[i], name) == 0) return kernels[i];
    return nullptr;
  }
};

const Choices& choices() {
  static const Choices found = [] {
    Choices c;
#if SPARSEKERN_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512bf16")) c.add(with_bf16());
      c.add(kernels_avx512);
    }
    if (avx2) c.add(kernels_avx2);
#endif
    c.add(kernels_portable);
    return c;
  }();
  return found;
}

std::atomic<const IsaKernels*>& active() {
  static std::atomic<const IsaKernels*> chosen{[] {
    const char* wanted = std::getenv("SPARSEKERN_ISA");
    const IsaKernels* found = wanted ? choices().find(wanted) : nullptr;
    return found ? found : choices().kernels[0];
  }()};
  return chosen;
}

}  // namespace

const IsaKernels& active_isa() { return *active().load(std::memory_order_relaxed); }

bool use_isa(const char* name) {
  const IsaKernels* found = choices().find(name);
  if (found) active().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

const char* const* available_isas() { return choices().names.data(); }

}  // namespace sparsekern
