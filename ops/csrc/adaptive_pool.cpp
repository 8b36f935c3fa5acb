#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) {
  m.def(
      "adaptive_pool(Tensor x, Tensor logits, Tensor weight, Tensor bias, float eps, "
      "float gate_scale, int kernel_size, int stride, int padding) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adaptive_pool_backward(Tensor grad, Tensor x, Tensor logits, Tensor weight, Tensor bias, "
      "Tensor mean, Tensor rstd, float gate_scale, int kernel_size, int stride, int padding) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
