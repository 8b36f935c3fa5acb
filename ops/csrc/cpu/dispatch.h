// From a tensor's dtype to a C++ type.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace d2det_ops {

// Returns body(T{}) with T the C++ type of a floating `dtype`.
template <typename F>
auto dispatch_floating(torch::headeronly::ScalarType dtype, const char* op, F body) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": not a floating dtype, ", torch::headeronly::toString(dtype));
  }
}
}  // namespace d2det_ops
