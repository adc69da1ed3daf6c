// What the products of one topology keep from call to call.
#pragma once

#include <memory>
#include <mutex>

#include "linear/edge_order.h"
#include "linear/row_values.h"

namespace sparsekern {

// Calls on several threads may share one.
class LinearPlan {
 public:
  using Kept = std::shared_ptr<const EdgeOrder>;

  // The order of that visit, made where it is not there yet. One of each direction and packing is kept.
  Kept forward(const StoredEdges& edges, Visit visit) { return find(forward_[visit.packed], edges, visit); }
  Kept backward(const StoredEdges& edges, Visit visit) { return find(backward_, edges, visit); }
  // For few tokens: edges by column, panels of rows.
  Kept scatter(const StoredEdges& edges, Visit visit) { return find(scatter_, edges, visit); }

  // For few tokens whose values are kept: one panel, packed.
  Kept few(const StoredEdges& edges, Visit visit) { return find(few_, edges, visit); }

  // Values by row: in the stored order of the rows, or as `few` visits them.
  template <class A>
  RowValues<A>& row_values(bool as_few) {
    if constexpr (sizeof(A) == sizeof(double)) return row_values_f64_[as_few];
    else return row_values_f32_[as_few];
  }

 private:
  Kept find(Kept& kept, const StoredEdges& edges, Visit visit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!kept || !(kept->visit() == visit)) kept = std::make_shared<EdgeOrder>(edges, visit);
    return kept;
  }

  std::mutex mutex_;
  Kept forward_[2], backward_, scatter_, few_;
  RowValues<float> row_values_f32_[2];
  RowValues<double> row_values_f64_[2];
};

}  // namespace sparsekern
