// Exact greedy suppression: boxes by falling score, each compared only with kept boxes near it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <optional>

#include "cpu/box_grid.h"
#include "cpu/sort_scores.h"

namespace d2det_ops {
namespace {

using torch::stable::Tensor;

template <typename T>
std::vector<int64_t> greedy(const Box<T>* boxes, const T* scores, const int64_t* groups,
                            int64_t count, double threshold, bool over_smaller, int64_t max_keep) {
  const Reach reach = over_smaller ? Reach::of_any_overlap() : Reach::of_iou(threshold);
  BoxGrid<T> kept(count);
  std::vector<int64_t> result;
  for (const int32_t i : by_falling_score(scores, count)) {
    if (static_cast<int64_t>(result.size()) >= max_keep) break;
    const Box<T> box = boxes[i];
    const T area = box.area();
    const int64_t group = groups == nullptr ? 0 : groups[i];
    const auto suppresses = [&](int32_t id, const Box<T>& other, T other_area) {
      const T shared = intersection(other, box);
      if (!(shared > 0)) return false;
      const T whole = over_smaller ? std::min(other_area, area) : other_area + area - shared;
      return shared / whole > threshold && (groups == nullptr || groups[id] == group);
    };
    if (kept.any(box, group, reach, suppresses)) continue;
    kept.insert(i, box, group);
    result.push_back(i);
  }
  return result;
}

Tensor to_tensor(const std::vector<int64_t>& values, const Tensor& like) {
  Tensor result = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())},
                                           torch::headeronly::ScalarType::Long);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

template <typename T>
Tensor run(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
           double threshold, bool over_smaller, int64_t max_keep) {
  const auto* rows = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  const int64_t* group = groups.has_value() ? groups->const_data_ptr<int64_t>() : nullptr;
  return to_tensor(greedy(rows, scores.const_data_ptr<T>(), group, boxes.size(0), threshold,
                          over_smaller, max_keep),
                   boxes);
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
           double threshold, bool over_smaller, int64_t max_keep) {
  STD_TORCH_CHECK(boxes.size(0) < std::numeric_limits<int32_t>::max(), "nms: too many boxes");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(), "nms: boxes and scores differ in dtype");
  const Tensor rows = torch::stable::contiguous(boxes), values = torch::stable::contiguous(scores);
  std::optional<Tensor> group;
  if (groups.has_value()) group = torch::stable::contiguous(*groups);
  if (max_keep < 0) max_keep = rows.size(0);
  Tensor result;
  THO_DISPATCH_V2(rows.scalar_type(), "nms", AT_WRAP([&] {
                    result = run<scalar_t>(rows, values, group, threshold, over_smaller, max_keep);
                  }),
                  AT_FLOATING_TYPES);
  return result;
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CPU, m) { m.impl("nms", TORCH_BOX(&d2det_ops::nms)); }
