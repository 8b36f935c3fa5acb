// torch's stable sort, which has no C++ wrapper in the stable ABI yet.
#pragma once

#include <array>
#include <optional>

#include "cuda/common.cuh"

namespace d2det_ops {

struct SortedKeys {
  Tensor keys, order;  // order: int64 indices into the unsorted keys
};

// Sorts (N,) keys; equal ones keep their order, NaN counts as largest.
inline SortedKeys sort_stable(const Tensor& keys, bool descending) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(keys),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t(0)),
                                    torch::stable::detail::from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace d2det_ops
