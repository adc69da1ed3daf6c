// The instructions of NVIDIA GPUs from sm_80 on that device.h promises.
#pragma once

namespace sparsekern::cuda {

// The block's dynamic shared memory, aligned to 128 bytes.
SK_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char sparsekern_shared[];
  return sparsekern_shared;
}

SK_DEVICE void sync_block() { __syncthreads(); }
SK_DEVICE void sync_warp() { __syncwarp(); }

SK_DEVICE float widen(float value) { return value; }
SK_DEVICE float widen(bf16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
SK_DEVICE float widen(f16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

// Round to nearest even.
template <class T>
SK_DEVICE T narrow(float value);
template <>
SK_DEVICE float narrow<float>(float value) {
  return value;
}
template <>
SK_DEVICE bf16 narrow<bf16>(float value) {
  bf16 half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
  return half;
}
template <>
SK_DEVICE f16 narrow<f16>(float value) {
  f16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
  return half;
}

SK_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
SK_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// The same bits, of which the compiler knows nothing: what is computed from them in a loop is not kept in registers
// over it.
SK_DEVICE uint32_t opaque(uint32_t bits) {
  asm volatile("" : "+r"(bits));
  return bits;
}

// Bytes of the eight of (low, high) that the four digits of `selector` name, lowest digit first.
SK_DEVICE uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

// 0xffff in each half in which a and b, taken as f16 that are neither NaN nor 0, are equal; else 0.
SK_DEVICE uint32_t equal_halves(uint32_t a, uint32_t b) {
  uint32_t mask;
  asm("set.eq.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b));
  return mask;
}

// A read of what no kernel that runs writes.
template <class T>
SK_DEVICE T load_constant(const T* from) {
  return __ldg(from);
}
template <>
SK_DEVICE Words4 load_constant<Words4>(const Words4* from) {
  const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
  return {words.x, words.y, words.z, words.w};
}
template <>
SK_DEVICE Words2 load_constant<Words2>(const Words2* from) {
  const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
  return {words.x, words.y};
}
template <>
SK_DEVICE bf16 load_constant<bf16>(const bf16* from) {
  return {__ldg(&from->bits)};
}
template <>
SK_DEVICE f16 load_constant<f16>(const f16* from) {
  return {__ldg(&from->bits)};
}

template <class T>
SK_DEVICE T shuffle_xor(T value, unsigned lanes) {
  return __shfl_xor_sync(kAllLanes, value, lanes);
}
template <class T>
SK_DEVICE T shuffle(T value, unsigned from) {
  return __shfl_sync(kAllLanes, value, from);
}

// Bit l says whether lane l's `yes` is true.
SK_DEVICE unsigned ballot(bool yes) { return __ballot_sync(kAllLanes, yes); }
SK_DEVICE int count_bits(unsigned bits) { return __popc(bits); }

SK_DEVICE int atomic_add(int* to, int value) { return atomicAdd(to, value); }

// 16 bytes from global to shared memory, both aligned to 16, past the registers; zeros where not `inside`, and nothing
// is then read. They are there once the group that the copy is in has been waited for and the block has met.
SK_DEVICE void copy_async_16(void* to, const void* from, bool inside) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// Closes the group of the copies that this thread has asked for since the last.
SK_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `kUnderWay` of this thread's groups are under way.
template <int kUnderWay>
SK_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

// Shared memory by 32-bit addresses, where many are computed: of a multiple of 128 bytes, a multiple of 128.
SK_DEVICE uint32_t shared_address(const void* at) { return static_cast<uint32_t>(__cvta_generic_to_shared(at)); }

// Four 8x8 matrices of 16-bit elements out of shared memory. Lane l gives the address of row l % 8 of matrix l / 8
// (16 bytes, aligned to 16). Of matrix m, matrices[m] holds in lane l the elements 2 (l % 4) and 2 (l % 4) + 1 of row
// l / 4; transposed: of column l / 4.
SK_DEVICE void load_matrices(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}
SK_DEVICE void load_matrices_transposed(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

// sums (16 x 8, float32) += a (16 x 16) b (16 x 8), T bf16 or f16. With g = lane / 4 and t = lane % 4:
// a[0]: row g, columns 2t, 2t+1; a[1]: row g+8; a[2]: row g, columns 2t+8, 2t+9; a[3]: row g+8, the same columns;
// b[0]: rows 2t, 2t+1 of column g; b[1]: rows 2t+8, 2t+9;
// sums[0], sums[1]: row g, columns 2t, 2t+1; sums[2], sums[3]: row g+8.
template <class T>
SK_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
SK_DEVICE void multiply_add<bf16>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
SK_DEVICE void multiply_add<f16>(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace sparsekern::cuda
