#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) {
  m.def(
      "assign_targets(Tensor boxes, Tensor gt_boxes, float floor_iou, float tie_iou) "
      "-> (Tensor, Tensor, Tensor)");
}
