// Gradients of adaptive_pool, with the gates computed again instead of kept. With w the gates, U and
// V the windows' sums of w * x and w, y = U / V and a = grad / V:
//   dx = w * sum(a)      d gate exponent = w * (x * sum(a) - sum(a * y))      over a pixel's windows
// then back through scale * sigmoid and the instance norm. Every sum has a fixed order.
#include <tuple>

#include "cuda/adaptive_pool.cuh"

namespace d2det_ops {
namespace {

// The tensors of one call; per (RoI, channel): mean, rstd and the sums for weight and bias.
template <typename T, typename A>
struct Tape {
  StridedMap<const T> grad, x, logits;
  const A *weight, *bias, *mean, *rstd;
  StridedMap<T> x_grad, logits_grad;
  A *weight_sums, *bias_sums;
  A gate_scale;
  int64_t channels;
};

// The block's part of a call: one channel a lane.
template <typename T, typename A, typename W>
struct Lane {
  StridedMap<const T> grad, x, logits;
  Gate<A> gate;
  A *gates, *ratios, *means;  // w a pixel; a and a * y a window, in the block's memory

  __device__ Lane(const Tape<T, A>& tape, int64_t roi, int64_t channel, A* memory,
                  const W& windows)
      : grad(tape.grad.at(roi, channel)),
        x(tape.x.at(roi, channel)),
        logits(tape.logits.at(roi, channel)),
        gate{tape.mean[roi * tape.channels + channel], tape.rstd[roi * tape.channels + channel],
             tape.weight[channel], tape.bias[channel], tape.gate_scale},
        gates(memory + threadIdx.x % kWarpSize),
        ratios(gates + windows.pixels() * kWarpSize),
        means(ratios + windows.outputs() * kWarpSize) {}

  __device__ A logit(const W& windows, int pixel) const {
    return static_cast<A>(logits(pixel / windows.width, pixel % windows.width));
  }

  // a and a * y of one window.
  __device__ void weigh_window(const W& windows, int output) {
    A weighted = 0, total = 0;
    each_pixel(windows, output, [&](int row, int column) {
      const A g = gates[(row * windows.width + column) * kWarpSize];
      weighted += g * static_cast<A>(x(row, column));
      total += g;
    });
    const T above = grad(output / windows.out_width, output % windows.out_width);
    const A ratio = static_cast<A>(above) / total;
    ratios[output * kWarpSize] = ratio;
    means[output * kWarpSize] = ratio * (weighted / total);
  }

  // Sums of a and of a * y over the windows that hold one pixel.
  __device__ void sum_windows(const W& windows, int pixel, A& ratio, A& mean) const {
    ratio = mean = 0;
    each_window(windows, pixel, [&](int output) {
      ratio += ratios[output * kWarpSize];
      mean += means[output * kWarpSize];
    });
  }
};

template <typename T, typename W, typename A = Sum<T>>
__global__ void __launch_bounds__(kGateWarps* kWarpSize)
    unpool_gated(const __grid_constant__ Tape<T, A> tape, W windows, A* spill) {
  const int warp = threadIdx.x / kWarpSize, pixels = windows.pixels();
  const auto groups = static_cast<unsigned>((tape.channels + kWarpSize - 1) / kWarpSize);
  const int64_t roi = blockIdx.x / groups;
  const int64_t wanted = blockIdx.x % groups * kWarpSize + threadIdx.x % kWarpSize;
  // Lanes past the last channel walk through it again, to meet at the barriers, and write nothing.
  const bool active = wanted < tape.channels;
  const int64_t channel = active ? wanted : tape.channels - 1;
  Lane<T, A, W> lane(tape, roi, channel, gate_memory(spill, pixels + 2 * windows.outputs()),
                     windows);
  const Gate<A>& gate = lane.gate;

  const auto logit = [&](int p) { return lane.logit(windows, p); };
  each_of_warp(pixels, logit, [&](int p, A value) { lane.gates[p * kWarpSize] = gate(value); });
  __syncthreads();
  for (int o = warp; o < windows.outputs(); o += kGateWarps) lane.weigh_window(windows, o);
  __syncthreads();

  A bias_sum = 0, weight_sum = 0;
  const StridedMap<T> x_grad = tape.x_grad.at(roi, channel);
  struct Pixel {
    A logit, x;
  };
  each_of_warp(
      pixels,
      [&](int p) {
        return Pixel{logit(p), static_cast<A>(lane.x(p / windows.width, p % windows.width))};
      },
      [&](int p, const Pixel& pixel) {
        A ratio, mean;
        lane.sum_windows(windows, p, ratio, mean);
        const A g = lane.gates[p * kWarpSize], normal = gate.normal(pixel.logit);
        if (active) x_grad(p / windows.width, p % windows.width) = static_cast<T>(g * ratio);
        const A exponent = g * (pixel.x * ratio - mean);
        const A closed = gate.closed(normal);
        const A affine = exponent * gate.scale * closed * (1 - closed);
        lane.gates[p * kWarpSize] = affine;  // the gate of this pixel is done with
        bias_sum += affine;
        weight_sum += affine * normal;
      });
  bias_sum = sum_over_warps(bias_sum, reinterpret_cast<A*>(d2det_shared));
  weight_sum = sum_over_warps(weight_sum, reinterpret_cast<A*>(d2det_shared));

  if (!active) return;
  const StridedMap<T> logits_grad = tape.logits_grad.at(roi, channel);
  each_of_warp(pixels, logit, [&](int p, A value) {
    const A normal = gate.normal(value), affine = lane.gates[p * kWarpSize];
    const A centred = affine - bias_sum / A(pixels) - normal * (weight_sum / A(pixels));
    logits_grad(p / windows.width, p % windows.width) =
        static_cast<T>(gate.weight * gate.rstd * centred);
  });
  if (warp != 0) return;
  tape.weight_sums[roi * tape.channels + channel] = weight_sum;
  tape.bias_sums[roi * tape.channels + channel] = bias_sum;
}

template <typename T, typename W>
std::tuple<Tensor, Tensor, Tensor, Tensor> run(const Tensor& grad, const Tensor& x,
                                               const Tensor& logits, const Tensor& weight,
                                               const Tensor& bias, const Tensor& mean,
                                               const Tensor& rstd, const W& windows,
                                               double gate_scale) {
  using A = Sum<T>;
  const int64_t rois = x.size(0), channels = x.size(1);
  const Tensor x_grad = empty_map(x, windows.height, windows.width);
  const Tensor logits_grad = empty_map(x, windows.height, windows.width);
  const Tensor weight_sums = torch::stable::new_empty(x, {rois, channels}, scalar_type_of<A>());
  const Tensor bias_sums = torch::stable::new_empty(x, {rois, channels}, scalar_type_of<A>());
  const Tensor scale = contiguous_as(weight, scalar_type_of<A>());
  const Tensor shift = contiguous_as(bias, scalar_type_of<A>());
  const Tensor means = contiguous_as(mean, scalar_type_of<A>());
  const Tensor rstds = contiguous_as(rstd, scalar_type_of<A>());
  const Tape<T, A> tape{strided_map(grad, grad.const_data_ptr<T>()),
                        strided_map(x, x.const_data_ptr<T>()),
                        strided_map(logits, logits.const_data_ptr<T>()),
                        scale.const_data_ptr<A>(), shift.const_data_ptr<A>(),
                        means.const_data_ptr<A>(), rstds.const_data_ptr<A>(),
                        strided_map(x_grad, x_grad.mutable_data_ptr<T>()),
                        strided_map(logits_grad, logits_grad.mutable_data_ptr<T>()),
                        weight_sums.mutable_data_ptr<A>(), bias_sums.mutable_data_ptr<A>(),
                        static_cast<A>(gate_scale), channels};
  const int64_t blocks = rois * ceil_div(channels, kWarpSize);
  const Launcher launch(x);
  const GateMemory<A> memory(x, blocks, windows.pixels() + 2 * windows.outputs());
  launch(unpool_gated<T, W>, blocks, kGateWarps * kWarpSize, memory.shared_bytes, tape, windows,
         memory.spill);
  const auto total = [&](const Tensor& sums, const Tensor& like) {
    const std::array<int64_t, 1> rows{0};
    return torch::stable::to(torch::stable::sum(sums, rows), like.scalar_type());
  };
  return {x_grad, logits_grad, total(weight_sums, weight), total(bias_sums, bias)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adaptive_pool_backward(
    const Tensor& grad, const Tensor& x, const Tensor& logits, const Tensor& weight,
    const Tensor& bias, const Tensor& mean, const Tensor& rstd, double gate_scale,
    int64_t kernel_size, int64_t stride, int64_t padding) {
  const Windows windows = check_gate(x, logits, weight, bias, kernel_size, stride, padding);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == x.scalar_type() &&
                      grad.size(0) == x.size(0) && grad.size(1) == x.size(1) &&
                      grad.size(2) == windows.out_height && grad.size(3) == windows.out_width,
                  "adaptive_pool_backward: grad does not fit x");
  check_device(x, grad, "adaptive_pool_backward", "grad");
  check_device(x, mean, "adaptive_pool_backward", "mean");
  check_device(x, rstd, "adaptive_pool_backward", "rstd");
  return dispatch_floating(x.scalar_type(), "adaptive_pool_backward", [&](auto zero) {
    using T = decltype(zero);
    if (!PaperWindows::are(windows)) {
      return run<T>(grad, x, logits, weight, bias, mean, rstd, windows, gate_scale);
    }
    return run<T>(grad, x, logits, weight, bias, mean, rstd, PaperWindows(), gate_scale);
  });
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) {
  m.impl("adaptive_pool_backward", TORCH_BOX(&d2det_ops::adaptive_pool_backward));
}
