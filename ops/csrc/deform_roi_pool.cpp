#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) {
  m.def(
      "deform_roi_pool(Tensor[] features, Tensor rois, Tensor levels, Tensor? offsets, "
      "float[] scales, int output_size, int samples, float offset_scale, bool align) -> Tensor");
  m.def(
      "deform_roi_pool_backward(Tensor grad, Tensor[] features, Tensor rois, Tensor levels, "
      "Tensor? offsets, float[] scales, int output_size, int samples, float offset_scale, "
      "bool align, bool deterministic) -> (Tensor[], Tensor)");
}
