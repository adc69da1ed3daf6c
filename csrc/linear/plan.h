// What the products of one topology keep from call to call.
#pragma once

#include <memory>
#include <mutex>

#include "linear/edge_order.h"
#include "linear/row_values.h"
#include "linear/token_slices.h"

namespace sparsekern {

// Products for which values are kept, each in an order of its own.
enum FewTokens { kOneToken, kOneVector, kVectors, kFewKinds };

// Calls on several threads may share one.
class LinearPlan {
 public:
  using Kept = std::shared_ptr<const EdgeOrder>;

  // The order of that visit, made where it is not there yet. One of each direction and packing is kept.
  Kept forward(const StoredEdges& edges, Visit visit) { return find(forward_[visit.packed], edges, visit); }
  Kept backward(const StoredEdges& edges, Visit visit) { return find(backward_, edges, visit); }
  // For few tokens: edges by column, panels of rows.
  Kept scatter(const StoredEdges& edges, Visit visit) { return find(scatter_, edges, visit); }

  // For few tokens whose values are kept: at most a vector of them, or more.
  Kept few(const StoredEdges& edges, Visit visit, FewTokens tokens) { return find(few_[tokens], edges, visit); }
  // And for one, on so many threads; edges() are asked for where there is none yet.
  template <class Edges>
  std::shared_ptr<const TokenSlices> slices(const Edges& edges, int64_t threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!slices_ || slices_->parts() != threads) slices_ = std::make_shared<TokenSlices>(edges(), threads);
    return slices_;
  }

  // Values in the order of `slices` or `few`.
  template <class A>
  RowValues<A>& row_values(FewTokens tokens) {
    if constexpr (sizeof(A) == sizeof(double)) return row_values_f64_[tokens];
    else return row_values_f32_[tokens];
  }

 private:
  Kept find(Kept& kept, const StoredEdges& edges, Visit visit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!kept || !(kept->visit() == visit)) kept = std::make_shared<EdgeOrder>(edges, visit);
    return kept;
  }

  std::mutex mutex_;
  Kept forward_[2], backward_, scatter_, few_[kFewKinds];
  std::shared_ptr<const TokenSlices> slices_;
  RowValues<float> row_values_f32_[kFewKinds];
  RowValues<double> row_values_f64_[kFewKinds];
};

}  // namespace sparsekern
