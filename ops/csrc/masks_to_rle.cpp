#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) {
  m.def(
      "masks_to_rle(Tensor masks, Tensor boxes, int height, int width, int x, int y, "
      "float threshold, bool released) -> (Tensor, Tensor)");
}
