// Instance norm, gate and weighted average in one pass over the logits and one over the features:
// gates are computed once a pixel and never leave the block.
#include <tuple>

#include "cuda/adaptive_pool.cuh"

namespace d2det_ops {
namespace {

// Fills in mean and rstd of the block's channels, in two passes as the variance wants it.
template <typename T, typename A, typename W>
__device__ void normalise(const StridedMap<const T>& logits, const W& windows, A eps,
                          bool active, A* values, Gate<A>& gate) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  A* scratch = reinterpret_cast<A*>(d2det_shared);
  const A pixels = A(windows.pixels());
  A sum = 0;
  if (active) {
    each_of_warp(
        windows.pixels(),
        [&](int p) { return static_cast<A>(logits(p / windows.width, p % windows.width)); },
        [&](int p, A logit) {
          values[p * kWarpSize + lane] = logit;
          sum += logit;
        });
  }
  gate.mean = sum_over_warps(sum, scratch) / pixels;
  sum = 0;
  for (int p = warp; active && p < windows.pixels(); p += kGateWarps) {
    const A apart = values[p * kWarpSize + lane] - gate.mean;
    sum += apart * apart;
  }
  gate.rstd = A(1) / std::sqrt(sum_over_warps(sum, scratch) / pixels + eps);
}

template <typename T, typename W, typename A = Sum<T>>
__global__ void __launch_bounds__(kGateWarps* kWarpSize)
    pool_gated(StridedMap<const T> x, StridedMap<const T> logits, const A* weight, const A* bias,
               W windows, A eps, A gate_scale, int64_t channels, StridedMap<T> out, A* mean,
               A* rstd, A* spill) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const auto groups = static_cast<unsigned>((channels + kWarpSize - 1) / kWarpSize);
  const int64_t roi = blockIdx.x / groups, channel = blockIdx.x % groups * kWarpSize + lane;
  const bool active = channel < channels;  // all lanes walk on, to meet at the barriers
  A* gates = gate_memory(spill, windows.pixels());
  Gate<A> gate{0, 0, active ? weight[channel] : A(0), active ? bias[channel] : A(0), gate_scale};
  normalise(logits.at(roi, channel), windows, eps, active, gates, gate);
  for (int p = warp; active && p < windows.pixels(); p += kGateWarps) {
    gates[p * kWarpSize + lane] = gate(gates[p * kWarpSize + lane]);
  }
  __syncthreads();
  if (!active) return;
  const StridedMap<const T> in = x.at(roi, channel);
  const StridedMap<T> to = out.at(roi, channel);
  for (int o = warp; o < windows.outputs(); o += kGateWarps) {
    A weighted = 0, total = 0;
    each_pixel(windows, o, [&](int row, int column) {
      const A g = gates[(row * windows.width + column) * kWarpSize + lane];
      weighted += g * static_cast<A>(in(row, column));
      total += g;
    });
    to(o / windows.out_width, o % windows.out_width) = static_cast<T>(weighted / total);
  }
  if (warp != 0) return;
  mean[roi * channels + channel] = gate.mean;
  rstd[roi * channels + channel] = gate.rstd;
}

template <typename T, typename W>
std::tuple<Tensor, Tensor, Tensor> run(const Tensor& x, const Tensor& logits, const Tensor& weight,
                                       const Tensor& bias, const W& windows, double eps,
                                       double gate_scale) {
  using A = Sum<T>;
  const int64_t rois = x.size(0), channels = x.size(1);
  const Tensor out = empty_map(x, windows.out_height, windows.out_width);
  const Tensor mean = torch::stable::new_empty(x, {rois, channels}, scalar_type_of<A>());
  const Tensor rstd = torch::stable::new_empty(x, {rois, channels}, scalar_type_of<A>());
  const Tensor scale = contiguous_as(weight, scalar_type_of<A>());
  const Tensor shift = contiguous_as(bias, scalar_type_of<A>());
  const int64_t blocks = rois * ceil_div(channels, kWarpSize);
  const Launcher launch(x);
  const GateMemory<A> memory(x, blocks, windows.pixels());
  launch(pool_gated<T, W>, blocks, kGateWarps * kWarpSize, memory.shared_bytes,
         strided_map(x, x.const_data_ptr<T>()), strided_map(logits, logits.const_data_ptr<T>()),
         scale.const_data_ptr<A>(), shift.const_data_ptr<A>(), windows, static_cast<A>(eps),
         static_cast<A>(gate_scale), channels, strided_map(out, out.mutable_data_ptr<T>()),
         mean.mutable_data_ptr<A>(), rstd.mutable_data_ptr<A>(), memory.spill);
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> adaptive_pool(const Tensor& x, const Tensor& logits,
                                                 const Tensor& weight, const Tensor& bias,
                                                 double eps, double gate_scale,
                                                 int64_t kernel_size, int64_t stride,
                                                 int64_t padding) {
  const Windows windows = check_gate(x, logits, weight, bias, kernel_size, stride, padding);
  return dispatch_floating(x.scalar_type(), "adaptive_pool", [&](auto zero) {
    using T = decltype(zero);
    if (!PaperWindows::are(windows)) {
      return run<T>(x, logits, weight, bias, windows, eps, gate_scale);
    }
    return run<T>(x, logits, weight, bias, PaperWindows(), eps, gate_scale);
  });
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) {
  m.impl("adaptive_pool", TORCH_BOX(&d2det_ops::adaptive_pool));
}
