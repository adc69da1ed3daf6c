// A digest of memory, at the speed that it can be read at. Compiled once per instruction set.
#pragma once

#include "isa/simd.h"

namespace sparsekern {
namespace SK_ISA {

// FNV-1a on the lanes of several vectors side by side, with a rotation. Each step maps a lane's state one to one for
// given words, and another way for another word: two memories that differ in one word never share a digest. Without the
// rotation a change of the highest bit, a float's sign, would stay one through all steps, and a second would undo it.
inline uint64_t digest_bytes(const char* data, int64_t bytes) {
  constexpr int kVectors = 4;
  constexpr int64_t kStep = kVectors * SK_VECTOR_BYTES;
  constexpr uint32_t kPrime = 0x01000193;
  alignas(SK_VECTOR_BYTES) uint32_t words[kStep / 4];
  WordVec state[kVectors];
  for (int v = 0; v < kVectors; ++v) state[v] = WordVec{} + (0x811c9dc5u + v);
  for (int64_t at = 0; at < bytes; at += kStep) {
    const char* from = data + at;
    if (bytes - at < kStep) {
      memset(words, 0, sizeof words);
      memcpy(words, from, bytes - at);
      from = reinterpret_cast<const char*>(words);
    }
    SK_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      WordVec word;
      memcpy(&word, from + v * SK_VECTOR_BYTES, sizeof word);
      state[v] = ((state[v] << 13 | state[v] >> 19) ^ word) * kPrime;
    }
  }
  // The vectors' states become one in steps of the same kind.
  for (int v = 1; v < kVectors; ++v) state[0] = ((state[0] << 13 | state[0] >> 19) ^ state[v]) * kPrime;
  uint64_t all = 0xcbf29ce484222325;
  memcpy(words, state, SK_VECTOR_BYTES);
  for (int i = 0; i < SK_VECTOR_BYTES / 4; ++i) all = (all ^ words[i]) * 0x100000001b3;
  return all;
}

}  // namespace SK_ISA
}  // namespace sparsekern
