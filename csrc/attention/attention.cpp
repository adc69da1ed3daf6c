#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cache.h"
#include "isa/isa.h"
#include "parallel.h"
#include "scratch.h"

namespace sparsekern {
namespace {

// Addresses of one head's elements.
struct Head {
  Head(const AttentionShape& shape, DType dtype, int64_t index)
      : element(static_cast<int64_t>(size_of(dtype))),
        part(shape.heads * shape.size),
        in((index / shape.heads * shape.tokens * 3 * shape.heads + index % shape.heads) * shape.size),
        out((index / shape.heads * shape.tokens * shape.heads + index % shape.heads) * shape.size) {}

  // Queries are part 0, keys 1, values 2.
  template <class P>
  P* of_input(P* data, int64_t which) const {
    return at(data, in + which * part);
  }
  template <class P>
  P* of_output(P* data) const {
    return at(data, out);
  }

 private:
  template <class P>
  P* at(P* data, int64_t offset) const {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return static_cast<Byte*>(data) + offset * element;
  }
  int64_t element, part, in, out;
};

// As many queries at once as keep both of their matrices of weights in half of the level 2 cache.
AttentionHead head_of(const AttentionShape& shape, const AttentionKernels& kernels) {
  const int64_t row = 2 * kernels.accumulator * std::max<int64_t>(1, shape.tokens);
  const int64_t fit = std::min(shape.tokens, caches().second / 2 / row);
  const int64_t block = std::max<int64_t>(1, (fit + kernels.rows - 1) / kernels.rows) * kernels.rows;
  const int64_t width = shape.heads * shape.size;
  return {shape.tokens, shape.size, 3 * width, width, block, 1 / std::sqrt(static_cast<double>(shape.size))};
}

// Calls body(number of the head, its addresses, scratch) for each head of each sequence.
template <class Body>
void for_heads(const AttentionShape& shape, DType dtype, const AttentionKernels& kernels, int64_t elements,
               const Body& body) {
  const size_t bytes = static_cast<size_t>(elements) * kernels.accumulator;
  parallel_tasks(shape.sequences * shape.heads, [&](int64_t index) {
    body(index, Head(shape, dtype, index), Scratch::of_this_thread().get<char>(0, bytes));
  });
}

}  // namespace

void attention_forward(const AttentionShape& shape, DType dtype, const void* qkv, void* out, void* log_sums) {
  const AttentionKernels& kernels = active_isa().attention[static_cast<int>(dtype)];
  const AttentionHead head = head_of(shape, kernels);
  for_heads(shape, dtype, kernels, kernels.scratch(head, false), [&](int64_t index, const Head& of, void* scratch) {
    kernels.forward({head, of.of_input(qkv, 0), of.of_input(qkv, 1), of.of_input(qkv, 2), of.of_output(out),
                     static_cast<char*>(log_sums) + index * shape.tokens * kernels.accumulator, scratch});
  });
}

void attention_backward(const AttentionShape& shape, DType dtype, const void* grad, const void* qkv,
                        const void* log_sums, void* qkv_grad) {
  const AttentionKernels& kernels = active_isa().attention[static_cast<int>(dtype)];
  const AttentionHead head = head_of(shape, kernels);
  for_heads(shape, dtype, kernels, kernels.scratch(head, true), [&](int64_t index, const Head& of, void* scratch) {
    kernels.backward({head, of.of_input(qkv, 0), of.of_input(qkv, 1), of.of_input(qkv, 2), of.of_output(grad),
                      static_cast<const char*>(log_sums) + index * shape.tokens * kernels.accumulator,
                      of.of_input(qkv_grad, 0), of.of_input(qkv_grad, 1), of.of_input(qkv_grad, 2), scratch});
  });
}

}  // namespace sparsekern
