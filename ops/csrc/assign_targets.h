// What both backends of assign_targets check, and what they fill in.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

namespace d2det_ops {

// Of boxes (A, 4) or (N, A, 4); see d2det_ops/assign_targets.py.
struct Overlaps {
  torch::stable::Tensor iou, best, tied;
};

inline Overlaps new_overlaps(const torch::stable::Tensor& boxes,
                             const torch::stable::Tensor& gt_boxes) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(boxes.scalar_type() == gt_boxes.scalar_type(),
                  "assign_targets: boxes and gt_boxes differ in dtype");
  STD_TORCH_CHECK(boxes.dim() == gt_boxes.dim() && (boxes.dim() == 2 || boxes.dim() == 3) &&
                      boxes.size(-1) == 4 && gt_boxes.size(-1) == 4 &&
                      (boxes.dim() == 2 || boxes.size(0) == gt_boxes.size(0)),
                  "assign_targets: boxes must be (A, 4) or (N, A, 4), and gt_boxes like them");
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < boxes.dim() - 1; ++d) shape.push_back(boxes.size(d));
  return {torch::stable::new_empty(boxes, shape),
          torch::stable::new_empty(boxes, shape, ScalarType::Long),
          torch::stable::new_empty(boxes, shape, ScalarType::Long)};
}

}  // namespace d2det_ops
