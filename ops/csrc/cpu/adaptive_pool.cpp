// Instance norm, gate and weighted average pooling in one pass over each RoI. One vector of
// channels at a time is copied to scratch, a vector a pixel, so that dtype and memory format matter
// only there and all the rest stays in the first cache. The backward starts from x and logits too.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "cpu/clones.h"
#include "cpu/dispatch.h"
#include "cpu/huge_pages.h"
#include "cpu/vec.h"
#include "cpu/vec_exp.h"

namespace d2det_ops {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Pooling windows along one axis: input k lies in windows [first[k], last[k]), and window o holds
// inputs [begin[o], end[o]).
struct Windows {
  int64_t extent, count;  // inputs, outputs
  std::vector<int64_t> first, last, begin, end;

  Windows(int64_t extent, int64_t kernel, int64_t stride, int64_t padding)
      : extent(extent), count((extent + 2 * padding - kernel) / stride + 1) {
    for (int64_t k = 0; k < extent; ++k) {
      const int64_t reach = k + padding - kernel;  // before the first window that contains k
      first.push_back(reach < 0 ? 0 : reach / stride + 1);
      last.push_back(std::min((k + padding) / stride + 1, count));
    }
    for (int64_t o = 0; o < count; ++o) {
      begin.push_back(std::max(o * stride - padding, int64_t(0)));
      end.push_back(std::min(o * stride - padding + kernel, extent));
    }
  }
};

// A map of one RoI: pixel p of channel c lies at data[p * pixel + c * channel].
struct Layout {
  int64_t pixels, channels, pixel, channel;

  Layout(int64_t pixels, int64_t channels, bool channels_last)
      : pixels(pixels),
        channels(channels),
        pixel(channels_last ? channels : 1),
        channel(channels_last ? 1 : pixels) {}

  int64_t size() const { return pixels * channels; }

  // Where the vectors after channel c of RoI r begin; the last RoI before `end` is followed by
  // itself.
  int64_t next(int64_t r, int64_t c, int64_t lanes, int64_t end) const {
    if (c + lanes < channels) return r * size() + (c + lanes) * channel;
    return std::min(r + 1, end - 1) * size();
  }

  // Copies channels [c, c + lanes) into one vector a pixel, or back.
  template <typename T>
  D2DET_INLINE void gather(const T* data, int64_t c, int lanes, Vec<Accumulator<T>>* to) const {
    data += c * channel;
    if (channel == 1 && lanes == kLanes<Accumulator<T>>) {
      for (int64_t p = 0; p < pixels; ++p) to[p] = load(data + p * pixel);
      return;
    }
    std::fill_n(to, pixels, Vec<Accumulator<T>>{});
    auto* lane = reinterpret_cast<Accumulator<T>*>(to);
    for (int l = 0; l < lanes; ++l, ++lane)
      for (int64_t p = 0; p < pixels; ++p)
        lane[p * kLanes<Accumulator<T>>] = Accumulator<T>(data[p * pixel + l * channel]);
  }

  template <typename T>
  D2DET_INLINE void scatter(const Vec<Accumulator<T>>* from, int64_t c, int lanes, T* data) const {
    data += c * channel;
    if (channel == 1 && lanes == kLanes<Accumulator<T>>) {
      for (int64_t p = 0; p < pixels; ++p) store(data + p * pixel, from[p]);
      return;
    }
    const auto* lane = reinterpret_cast<const Accumulator<T>*>(from);
    for (int l = 0; l < lanes; ++l, ++lane)
      for (int64_t p = 0; p < pixels; ++p)
        data[p * pixel + l * channel] = T(lane[p * kLanes<Accumulator<T>>]);
  }
};

template <typename T>
struct Problem {
  using A = Accumulator<T>;
  const T *x, *logits;     // (R, C, H, W)
  const A *weight, *bias;  // (C,)
  A eps, gate_scale;
  Windows rows, columns;
  Layout in, out;
};

// The scratch of one thread: one vector of channels of one RoI.
template <typename T>
struct Block {
  using A = Accumulator<T>;
  const Problem<T>& p;
  VecArray<A> x, z, gate, slope;  // an input pixel
  VecArray<A> row, row_x;         // an output column
  VecArray<A> sum, sum_x;         // an output pixel

  explicit Block(const Problem<T>& p)
      : p(p),
        x(p.in.pixels),
        z(x.size()),
        gate(x.size()),
        slope(x.size()),
        row(p.columns.count),
        row_x(row.size()),
        sum(p.out.pixels),
        sum_x(sum.size()) {}

  // The sum of term(z) over the pixels, in four chains: in one, each addition waits for the last.
  template <typename Term>
  D2DET_INLINE Vec<A> sum_z(const Term& term) const {
    Vec<A> a = {}, b = {}, c = {}, d = {};
    size_t i = 0;
    for (; i + 4 <= z.size(); i += 4)
      a += term(z[i]), b += term(z[i + 1]), c += term(z[i + 2]), d += term(z[i + 3]);
    for (; i < z.size(); ++i) a += term(z[i]);
    return (a + b) + (c + d);
  }

  // Biased mean and 1 / deviation of z.
  D2DET_INLINE void measure(Vec<A>& mean, Vec<A>& rstd) const {
    mean = sum_z([](Vec<A> v) { return v; }) / A(z.size());
    const Vec<A> centre = mean;
    const Vec<A> squares = sum_z([centre](Vec<A> v) { return (v - centre) * (v - centre); });
    const Vec<A> variance = squares / A(z.size()) + p.eps;
    for (int l = 0; l < kLanes<A>; ++l) rstd[l] = A(1) / std::sqrt(variance[l]);
  }

  // Fills gate = exp(scale (sigmoid(t) - 1)), t = weight z + bias of the normalised z, and if asked
  // slope = d gate / dt, and z with the normalised ones. The factor exp(-scale) cancels in the
  // quotient and keeps sums small. Meanwhile it asks for the vectors of x and logits at `next`:
  // neighbouring pixels lie too far apart for the processor to guess.
  template <bool kSlope>
  D2DET_INLINE void open(Vec<A> mean, Vec<A> rstd, Vec<A> weight, Vec<A> bias, int64_t next) {
    for (size_t i = 0; i < z.size(); ++i) {
      __builtin_prefetch(p.logits + next + i * p.in.pixel);
      __builtin_prefetch(p.x + next + i * p.in.pixel);
      const Vec<A> normal = (z[i] - mean) * rstd;
      const Vec<A> e = exponential(normal * weight + bias);
      const Vec<A> closed = A(1) / (e + A(1));  // 1 - sigmoid
      gate[i] = exponential(closed * -p.gate_scale);
      if constexpr (kSlope) {
        z[i] = normal;
        slope[i] = gate[i] * closed * (e * closed) * p.gate_scale;
      }
    }
  }

  // Fills sum and sum_x with the sums of gate and gate * x over each window.
  D2DET_INLINE void gather_windows() {
    sum.clear(), sum_x.clear();
    const int64_t width = p.columns.count;
    for (int64_t v = 0; v < p.rows.extent; ++v) {
      const int64_t start = v * p.columns.extent;
      for (int64_t j = 0; j < width; ++j) {
        Vec<A> part = {}, part_x = {};
        for (int64_t i = start + p.columns.begin[j]; i < start + p.columns.end[j]; ++i) {
          part += gate[i];
          part_x += gate[i] * x[i];
        }
        for (int64_t o = p.rows.first[v]; o < p.rows.last[v]; ++o) {
          sum[o * width + j] += part;
          sum_x[o * width + j] += part_x;
        }
      }
    }
  }

  // With sum = g / V and sum_x = g y / V an output pixel (V: sum of gates, y: output): replaces x
  // by its gradient, gate * S(sum), and slope by the gradient of t, slope * (x S(sum) - S(sum_x)),
  // where S sums over the windows of a pixel. Returns the sums of the latter, and of it times z.
  D2DET_INLINE void spread_windows(Vec<A>& total, Vec<A>& total_z) {
    const int64_t width = p.columns.count;
    for (int64_t v = 0, i = 0; v < p.rows.extent; ++v) {
      row.clear(), row_x.clear();
      for (int64_t o = p.rows.first[v]; o < p.rows.last[v]; ++o) {
        for (int64_t j = 0; j < width; ++j) {
          row[j] += sum[o * width + j];
          row_x[j] += sum_x[o * width + j];
        }
      }
      for (int64_t u = 0; u < p.columns.extent; ++u, ++i) {
        Vec<A> pull = {}, pull_x = {};
        for (int64_t o = p.columns.first[u]; o < p.columns.last[u]; ++o) {
          pull += row[o];
          pull_x += row_x[o];
        }
        slope[i] *= x[i] * pull - pull_x;
        x[i] = gate[i] * pull;
        total += slope[i];
        total_z += slope[i] * z[i];
      }
    }
  }
};

template <typename T>
D2DET_CLONES void forward(const Problem<T>& p, int64_t begin, int64_t end, T* out,
                          Accumulator<T>* mean, Accumulator<T>* rstd) {
  using A = Accumulator<T>;
  const int64_t channels = p.in.channels;
  Block<T> block(p);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      const int lanes = int(std::min<int64_t>(kLanes<A>, channels - c));
      p.in.gather(p.logits + r * p.in.size(), c, lanes, block.z.data());
      p.in.gather(p.x + r * p.in.size(), c, lanes, block.x.data());
      Vec<A> centre = {}, scale = {};
      block.measure(centre, scale);
      store(mean + r * channels + c, centre, lanes);
      store(rstd + r * channels + c, scale, lanes);
      const Vec<A> weight = load(p.weight + c, lanes), bias = load(p.bias + c, lanes);
      block.template open<false>(centre, scale, weight, bias, p.in.next(r, c, kLanes<A>, end));
      block.gather_windows();
      for (size_t o = 0; o < block.sum.size(); ++o) block.sum[o] = block.sum_x[o] / block.sum[o];
      p.out.scatter(block.sum.data(), c, lanes, out + r * p.out.size());
    }
  }
}

// grad_weight, grad_bias: (R, C), each RoI's part.
template <typename T>
D2DET_CLONES void backward(const Problem<T>& p, int64_t begin, int64_t end, const T* grad,
                           const Accumulator<T>* mean, const Accumulator<T>* rstd, T* grad_x,
                           T* grad_logits, Accumulator<T>* grad_weight, Accumulator<T>* grad_bias) {
  using A = Accumulator<T>;
  const int64_t channels = p.in.channels;
  Block<T> block(p);
  VecArray<A> g(p.out.pixels);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      const int lanes = int(std::min<int64_t>(kLanes<A>, channels - c));
      p.in.gather(p.logits + r * p.in.size(), c, lanes, block.z.data());
      p.in.gather(p.x + r * p.in.size(), c, lanes, block.x.data());
      p.out.gather(grad + r * p.out.size(), c, lanes, g.data());
      const Vec<A> weight = load(p.weight + c, lanes), bias = load(p.bias + c, lanes);
      const Vec<A> scale = load(rstd + r * channels + c, lanes);
      const Vec<A> centre = load(mean + r * channels + c, lanes);
      block.template open<true>(centre, scale, weight, bias, p.in.next(r, c, kLanes<A>, end));
      block.gather_windows();
      for (size_t o = 0; o < g.size(); ++o) {
        const Vec<A> y = block.sum_x[o] / block.sum[o];
        block.sum[o] = g[o] / block.sum[o];
        block.sum_x[o] = block.sum[o] * y;
      }
      Vec<A> total = {}, total_z = {};
      block.spread_windows(total, total_z);
      store(grad_weight + r * channels + c, total_z, lanes);
      store(grad_bias + r * channels + c, total, lanes);
      total /= A(p.in.pixels), total_z /= A(p.in.pixels);
      for (size_t i = 0; i < block.z.size(); ++i)
        block.z[i] = (block.slope[i] - total - block.z[i] * total_z) * (weight * scale);
      p.in.scatter(block.x.data(), c, lanes, grad_x + r * p.in.size());
      p.in.scatter(block.z.data(), c, lanes, grad_logits + r * p.in.size());
    }
  }
}

// The arguments both directions share.
struct Inputs {
  Tensor x, logits, weight, bias;
  double eps, gate_scale;
  int64_t kernel, stride, padding;

  bool channels_last() const { return x.stride(1) == 1; }

  MemoryFormat format() const {
    return channels_last() ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  }

  Tensor empty(int64_t height, int64_t width) const {
    Tensor result = torch::stable::empty({x.size(0), x.size(1), height, width}, x.scalar_type(),
                                         std::nullopt, std::nullopt, std::nullopt, format());
    prefer_huge_pages(result);
    return result;
  }

  void check() const {
    STD_TORCH_CHECK(x.dim() == 4 && logits.dim() == 4, "adaptive_pool: x must be (R, C, H, W)");
    for (int64_t axis = 0; axis < 4; ++axis) {
      STD_TORCH_CHECK(x.size(axis) == logits.size(axis), "adaptive_pool: x and logits differ");
    }
    STD_TORCH_CHECK(weight.numel() == x.size(1) && bias.numel() == x.size(1),
                    "adaptive_pool: weight and bias must be (C,)");
    STD_TORCH_CHECK(stride > 0 && padding >= 0 && kernel >= std::max<int64_t>(2 * padding, 1) &&
                        std::min(x.size(2), x.size(3)) + 2 * padding >= kernel,
                    "adaptive_pool: no windows of ", kernel, " with padding ", padding);
  }

  // Makes everything dense, and weight and bias of the dtype of sums.
  template <typename T>
  Problem<T> prepare() {
    using A = Accumulator<T>;
    check();
    x = torch::stable::contiguous(x, format());
    logits = torch::stable::contiguous(logits, format());
    weight = torch::stable::contiguous(torch::stable::to(weight, kAccumulatorType<T>));
    bias = torch::stable::contiguous(torch::stable::to(bias, kAccumulatorType<T>));
    const Windows rows(x.size(2), kernel, stride, padding);
    const Windows columns(x.size(3), kernel, stride, padding);
    return {x.const_data_ptr<T>(),
            logits.const_data_ptr<T>(),
            weight.const_data_ptr<A>(),
            bias.const_data_ptr<A>(),
            A(eps),
            A(gate_scale),
            rows,
            columns,
            Layout(x.size(2) * x.size(3), x.size(1), channels_last()),
            Layout(rows.count * columns.count, x.size(1), channels_last())};
  }
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor> run(Inputs inputs) {
  using A = Accumulator<T>;
  const Problem<T> p = inputs.prepare<T>();
  const int64_t rois = inputs.x.size(0);
  Tensor out = inputs.empty(p.rows.count, p.columns.count);
  Tensor mean = torch::stable::empty({rois, p.in.channels}, kAccumulatorType<T>);
  Tensor rstd = torch::stable::empty({rois, p.in.channels}, kAccumulatorType<T>);
  torch::stable::parallel_for(0, rois, 1, [&](int64_t begin, int64_t end) {
    forward(p, begin, end, out.mutable_data_ptr<T>(), mean.mutable_data_ptr<A>(),
            rstd.mutable_data_ptr<A>());
  });
  return {out, mean, rstd};
}

// Adds the rows of (rois, channels) in their order, whatever the number of threads was.
template <typename A>
Tensor sum_rows(const std::vector<A>& rows, int64_t channels, ScalarType dtype,
                const Tensor& like) {
  Tensor sum = torch::stable::full({channels}, 0, dtype);
  A* to = sum.mutable_data_ptr<A>();
  for (size_t i = 0; i < rows.size(); ++i) to[i % channels] += rows[i];
  return torch::stable::to(sum, like.scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(Inputs inputs, const Tensor& grad,
                                                        const Tensor& mean, const Tensor& rstd) {
  using A = Accumulator<T>;
  const Tensor weight = inputs.weight, bias = inputs.bias;
  const Problem<T> p = inputs.prepare<T>();
  const int64_t rois = inputs.x.size(0);
  const Tensor from = torch::stable::contiguous(grad, inputs.format());
  Tensor grad_x = inputs.empty(p.rows.extent, p.columns.extent);
  Tensor grad_logits = inputs.empty(p.rows.extent, p.columns.extent);
  std::vector<A> grad_weight(rois * p.in.channels), grad_bias(grad_weight.size());
  torch::stable::parallel_for(0, rois, 1, [&](int64_t begin, int64_t end) {
    backward(p, begin, end, from.const_data_ptr<T>(), mean.const_data_ptr<A>(),
             rstd.const_data_ptr<A>(), grad_x.mutable_data_ptr<T>(),
             grad_logits.mutable_data_ptr<T>(), grad_weight.data(), grad_bias.data());
  });
  return {grad_x, grad_logits, sum_rows(grad_weight, p.in.channels, kAccumulatorType<T>, weight),
          sum_rows(grad_bias, p.in.channels, kAccumulatorType<T>, bias)};
}

std::tuple<Tensor, Tensor, Tensor> adaptive_pool(const Tensor& x, const Tensor& logits,
                                                 const Tensor& weight, const Tensor& bias,
                                                 double eps, double gate_scale, int64_t kernel_size,
                                                 int64_t stride, int64_t padding) {
  const Inputs inputs{x, logits, weight, bias, eps, gate_scale, kernel_size, stride, padding};
  return dispatch_floating(x.scalar_type(), "adaptive_pool",
                           [&](auto zero) { return run<decltype(zero)>(inputs); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adaptive_pool_backward(
    const Tensor& grad, const Tensor& x, const Tensor& logits, const Tensor& weight,
    const Tensor& bias, const Tensor& mean, const Tensor& rstd, double gate_scale,
    int64_t kernel_size, int64_t stride, int64_t padding) {
  const Inputs inputs{x, logits, weight, bias, 0, gate_scale, kernel_size, stride, padding};
  return dispatch_floating(x.scalar_type(), "adaptive_pool_backward", [&](auto zero) {
    return run_backward<decltype(zero)>(inputs, grad, mean, rstd);
  });
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CPU, m) {
  m.impl("adaptive_pool", TORCH_BOX(&d2det_ops::adaptive_pool));
  m.impl("adaptive_pool_backward", TORCH_BOX(&d2det_ops::adaptive_pool_backward));
}
