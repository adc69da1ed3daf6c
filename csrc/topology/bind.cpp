// Topology for Python: arrays come as addresses (Tensor.data_ptr()) whose types and sizes the caller has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "topology/candidates.h"
#include "topology/keys.h"
#include "topology/marks.h"
#include "topology/replace.h"
#include "topology/sample.h"
#include "topology/select.h"
#include "topology/signed_sums.h"
#include "topology/sums.h"
#include "topology/transpose.h"
#include "topology/validate.h"

namespace py = pybind11;

namespace sparsekern {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Calls body with an int32_t or an int64_t, the type of the pointer arrays.
template <class Body>
auto with_pointer_type(bool wide, const Body& body) {
  return wide ? body(int64_t{}) : body(int32_t{});
}

const char* name_of(Fault fault) {
  switch (fault) {
    case Fault::none: return "";
    case Fault::pointer_start: return "pointer_start";
    case Fault::pointer_order: return "pointer_order";
    case Fault::pointer_end: return "pointer_end";
    case Fault::range: return "range";
    case Fault::order: return "order";
    case Fault::duplicate: return "duplicate";
    case Fault::permutation: return "permutation";
  }
  return "";
}

py::tuple as_tuple(const Finding& finding) { return py::make_tuple(name_of(finding.fault), finding.position); }

using Pair = std::array<int64_t, 2>;

// A convolution's kernel along axis a.
Window window(int a, const Pair& taps, const Pair& stride, const Pair& padding, const Pair& dilation, const Pair& size,
              const Pair& out_size) {
  return {taps[a], stride[a], padding[a], dilation[a], size[a], out_size[a]};
}

// Calls body with the GIL released.
template <class Body>
auto unlocked(const Body& body) {
  py::gil_scoped_release release;
  return body();
}

}  // namespace

void bind_topology(py::module_& m) {
  m.def(
      "check_compressed",
      [](uintptr_t pointers, uintptr_t indices, int64_t n_major, int64_t n_minor, int64_t nnz, bool wide) {
        return as_tuple(unlocked([&] {
          return with_pointer_type(wide, [&](auto pointer) {
            return check_compressed(at<decltype(pointer)>(pointers), at<int32_t>(indices), n_major, n_minor, nnz);
          });
        }));
      },
      "(fault, position) of a CSC or CSR pair; fault is empty when it is good.");
  m.def(
      "check_transpose",
      [](uintptr_t ccol, uintptr_t row, uintptr_t crow, uintptr_t col, uintptr_t permutation, int64_t n_rows,
         int64_t nnz, bool wide) {
        return as_tuple(unlocked([&] {
          return with_pointer_type(wide, [&](auto pointer) {
            using P = decltype(pointer);
            return check_transpose(at<P>(ccol), at<int32_t>(row), at<P>(crow), at<int32_t>(col), at<P>(permutation),
                                   n_rows, nnz);
          });
        }));
      },
      "(fault, position) of the derived arrays; both pairs have passed check_compressed.");
  m.def("transpose", [](uintptr_t ccol, uintptr_t row, int64_t n_rows, int64_t n_cols, int64_t nnz, uintptr_t crow,
                        uintptr_t col, uintptr_t permutation, bool wide) {
    unlocked([&] {
      with_pointer_type(wide, [&](auto pointer) {
        using P = decltype(pointer);
        transpose(at<P>(ccol), at<int32_t>(row), n_rows, n_cols, nnz, at<P>(crow), at<int32_t>(col),
                  at<P>(permutation));
      });
    });
  });
  m.def(
      "first_present",
      [](uintptr_t ccol, uintptr_t row, int64_t n_cols, uintptr_t grown_ccol, uintptr_t grown_row, bool wide) {
        return unlocked([&] {
          return with_pointer_type(wide, [&](auto pointer) {
            using P = decltype(pointer);
            return first_present(Edges<P>{at<P>(ccol), at<int32_t>(row)}, n_cols,
                                 Edges<P>{at<P>(grown_ccol), at<int32_t>(grown_row)});
          });
        });
      },
      "Number of the first grown edge that is in the matrix already, or -1.");
  m.def(
      "replace_edges",
      [](uintptr_t ccol, uintptr_t row, int64_t n_cols, uintptr_t pruned, uintptr_t candidate_ccol,
         uintptr_t candidate_row, uintptr_t chosen, int64_t count, uintptr_t new_ccol, uintptr_t grown, bool wide) {
        unlocked([&] {
          with_pointer_type(wide, [&](auto pointer) {
            using P = decltype(pointer);
            replace_edges(at<P>(ccol), at<int32_t>(row), n_cols, at<uint64_t>(pruned),
                          Edges<P>{at<P>(candidate_ccol), at<int32_t>(candidate_row)}, at<uint64_t>(chosen), count,
                          at<P>(new_ccol), at<uint64_t>(grown));
          });
        });
      },
      "Takes the pruned edges out and puts `count` chosen candidates in; row in place. Marks the new edges in `grown`.");
  m.def(
      "move_values",
      [](uintptr_t pruned, uintptr_t grown, int64_t size, uintptr_t values, int bytes) {
        unlocked([&] {
          const auto move = [&](auto word) {
            move_values(at<uint64_t>(pruned), at<uint64_t>(grown), size, at<decltype(word)>(values));
          };
          if (bytes == 2) move(uint16_t{});
          if (bytes == 4) move(uint32_t{});
          if (bytes == 8) move(uint64_t{});
        });
      },
      "Moves values of 2, 4 or 8 bytes in place as replace_edges moved their edges; zero for new ones.");
  m.def("mark_positions", [](uintptr_t positions, int64_t count, int64_t size, uintptr_t marks) {
    unlocked([&] { mark_positions(at<int64_t>(positions), count, size, at<uint64_t>(marks)); });
  });
  m.def("marked_positions", [](uintptr_t marks, int64_t size, uintptr_t positions) {
    unlocked([&] { marked_positions(at<uint64_t>(marks), size, at<int64_t>(positions)); });
  });
  m.def(
      "pack_keys",
      [](uintptr_t rows, uintptr_t cols, int64_t count, int64_t n_rows, int64_t n_cols, uintptr_t keys) {
        return unlocked([&] {
          return pack_keys(at<int64_t>(rows), at<int64_t>(cols), count, n_rows, n_cols, at<uint64_t>(keys));
        });
      },
      "Writes int64 keys of int64 (row, column) pairs; the position of the first out of range, or -1.");
  m.def("sort_keys", [](uintptr_t keys, int64_t count, uint64_t bound) {
    unlocked([&] { sort_keys(at<uint64_t>(keys), count, bound); });
  });
  m.def(
      "unpack_keys",
      [](uintptr_t keys, int64_t count, int64_t n_rows, int64_t n_cols, uintptr_t ccol, uintptr_t row, bool wide) {
        return unlocked([&] {
          return with_pointer_type(wide, [&](auto pointer) {
            return unpack_keys(at<uint64_t>(keys), count, n_rows, n_cols, at<decltype(pointer)>(ccol), at<int32_t>(row));
          });
        });
      },
      "Sorted keys to CSC; the position of the first key that repeats the one before, or -1.");
  m.def(
      "distinct_below",
      [](int64_t seed, uint64_t bound, int64_t count, uintptr_t out) {
        unlocked([&] {
          Random random(static_cast<uint64_t>(seed));
          distinct_below(random, bound, count, at<uint64_t>(out));
        });
      },
      "Writes `count` distinct keys below `bound`, sorted.");
  m.def(
      "draw_candidates",
      [](int64_t seed, uintptr_t ccol, uintptr_t row, int64_t n_rows, int64_t n_cols, int64_t groups,
         uintptr_t row_weights, uintptr_t col_weights, double epsilon, int64_t count, uintptr_t new_ccol,
         uintptr_t new_row, bool wide) {
        return unlocked([&] {
          return with_pointer_type(wide, [&](auto pointer) {
            using P = decltype(pointer);
            if (!row_weights)
              return draw_uniform(static_cast<uint64_t>(seed), at<P>(ccol), at<int32_t>(row), n_rows, n_cols, count,
                                  at<P>(new_ccol), at<int32_t>(new_row));
            return draw_weighted(static_cast<uint64_t>(seed), at<P>(ccol), at<int32_t>(row), n_rows, n_cols, groups,
                                 at<double>(row_weights), at<double>(col_weights), epsilon, count, at<P>(new_ccol),
                                 at<int32_t>(new_row));
          });
        });
      },
      "Writes up to `count` edges that are not in the matrix as CSC, drawn by row and column weight (alike where their "
      "addresses are 0); returns how many, -1 where a weight is not finite. Adds epsilon times their mean to all weights, "
      "and makes them alike where all are 0.");
  m.def(
      "sum_magnitudes",
      [](uintptr_t x, int64_t items, int64_t features, int64_t stride, uintptr_t sums, bool is_double) {
        unlocked([&] {
          if (is_double)
            sum_magnitudes(at<double>(x), items, features, stride, at<double>(sums));
          else
            sum_magnitudes(at<float>(x), items, features, stride, at<double>(sums));
        });
      },
      "Writes the sum over items of each feature's absolute value.");
  m.def(
      "sum_windows",
      [](uintptr_t planes, int64_t channels, const Pair& taps, const Pair& stride, const Pair& padding,
         const Pair& dilation, const Pair& size, const Pair& out_size, uintptr_t sums) {
        const auto axis = [&](int a) { return window(a, taps, stride, padding, dilation, size, out_size); };
        unlocked([&] { sum_windows(at<double>(planes), channels, axis(0), axis(1), at<double>(sums)); });
      },
      "Writes what each position of a convolution's kernel sees of each float64 plane, added up over all outputs.");
  m.def(
      "signed_sums",
      [](int dtype, uintptr_t x, int64_t images, int64_t channels, const Pair& taps, const Pair& stride,
         const Pair& padding, const Pair& dilation, const Pair& size, const Pair& out_size, uintptr_t signs,
         uintptr_t sums) {
        const auto axis = [&](int a) { return window(a, taps, stride, padding, dilation, size, out_size); };
        const auto type = static_cast<DType>(dtype);
        unlocked([&] {
          const auto sum = type == DType::f64 ? signed_sums<double> : signed_sums<float>;
          sum(type, at<void>(x), images, channels, axis(0), axis(1), at<int8_t>(signs), at<double>(sums));
        });
      },
      "Writes what each position of a convolution's kernel sees of each channel, added up over all outputs and images "
      "under int8 signs of the outputs.");
  m.def("all_finite", [](uintptr_t values, int64_t size, bool is_double) {
    return unlocked([&] {
      return is_double ? all_finite(at<double>(values), size) : all_finite(at<float>(values), size);
    });
  });
  m.def(
      "select_by_magnitude",
      [](uintptr_t values, int64_t size, int64_t k, bool largest, uintptr_t marks, bool is_double) {
        unlocked([&] {
          if (is_double)
            select_by_magnitude(at<double>(values), size, k, largest, at<uint64_t>(marks));
          else
            select_by_magnitude(at<float>(values), size, k, largest, at<uint64_t>(marks));
        });
      },
      "Marks the k largest or smallest absolute values.");
}

}  // namespace sparsekern
