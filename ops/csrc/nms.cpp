#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) {
  m.def(
      "nms(Tensor boxes, Tensor scores, Tensor? groups, float threshold, bool over_smaller, "
      "int max_keep) -> Tensor");
}
