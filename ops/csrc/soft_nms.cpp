#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) {
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, bool gaussian, float iou_threshold, float sigma, "
      "float min_score) -> Tensor");
}
