// Pools RoIs from channels-last maps: the inner loop runs over the channels of one bin with the
// sums in registers, so it reads and writes whole cache lines wherever the cells lie.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/clones.h"
#include "cpu/dispatch.h"
#include "cpu/huge_pages.h"
#include "cpu/roi_sampler.h"
#include "cpu/vec.h"

namespace d2det_ops {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSlice = 64;  // channels one task of the backward works on

// The arguments both directions share.
struct Arguments {
  const std::vector<Tensor>& features;
  const Tensor &rois, &levels;
  const std::optional<Tensor>& offsets;
  const std::vector<double>& scales;
  int64_t output_size, samples;
  double offset_scale;
  bool align;

  ScalarType dtype() const { return features[0].scalar_type(); }

  const Arguments& checked() const {
    STD_TORCH_CHECK(
        !features.empty() && scales.size() == features.size() && output_size > 0 && samples > 0,
        "deform_roi_pool: maps, a scale for each, positive output_size and samples");
    for (const Tensor& f : features) {
      STD_TORCH_CHECK(f.dim() == 4 && f.size(0) == features[0].size(0) &&
                          f.size(1) == features[0].size(1) && f.scalar_type() == dtype(),
                      "deform_roi_pool: maps must be (N, C, H, W) of one N, C and dtype");
    }
    STD_TORCH_CHECK(
        rois.dim() == 2 && rois.size(1) == 5 && levels.dim() == 1 && levels.size(0) == rois.size(0),
        "deform_roi_pool: rois must be (R, 5) and levels (R,)");
    STD_TORCH_CHECK(!offsets || (offsets->dim() == 4 && offsets->size(0) == rois.size(0) &&
                                 offsets->size(1) == 2 && offsets->size(2) == offsets->size(3) &&
                                 offsets->size(3) > 0 && output_size % offsets->size(3) == 0),
                    "deform_roi_pool: offsets must be (R, 2, Q, Q), Q a divisor of output_size");
    return *this;
  }
};

// One level: (N, H, W, C) elements, and cells per pixel.
template <typename T>
struct Level {
  const T* data;
  int64_t height, width;
  Accumulator<T> scale;
};

// The RoIs of one picture and one level, as a range of Pooling::order.
struct Visit {
  int64_t level, image, begin, end;
};

// Everything the kernels read. RoIs are visited level by level, picture by picture and downwards,
// which finds neighbouring cells in the cache.
template <typename T>
struct Pooling {
  using A = Accumulator<T>;

  std::vector<Tensor> kept;  // owners of what follows, hence first
  std::vector<Level<T>> maps;
  const A* rois;     // (R, 5): picture, x1, y1, x2, y2
  const A* offsets;  // (R, 2, parts, parts), or null
  Sampling<A> rule;
  int64_t channels;
  std::vector<int64_t> order;
  std::vector<Visit> visits;

  explicit Pooling(const Arguments& a)
      : rois(keep<A>(widened(a.rois))),
        offsets(a.offsets ? keep<A>(widened(*a.offsets)) : nullptr),
        rule{a.output_size, a.samples, a.offsets ? a.offsets->size(3) : 0, A(a.offset_scale),
             a.align},
        channels(a.features[0].size(1)) {
    for (size_t l = 0; l < a.features.size(); ++l) {
      const Tensor map = torch::stable::contiguous(a.features[l], MemoryFormat::ChannelsLast);
      maps.push_back({keep<T>(map), map.size(2), map.size(3), A(a.scales[l])});
    }
    const Tensor levels = torch::stable::contiguous(a.levels);
    plan(levels.const_data_ptr<int64_t>(), a.rois.size(0), a.features[0].size(0));
  }

  const A* offset(int64_t r) const {
    return offsets ? offsets + r * 2 * rule.parts * rule.parts : nullptr;
  }
  int64_t picture(const Visit& v) const {  // elements from the start of the level
    return v.image * maps[v.level].height * maps[v.level].width * channels;
  }
  RoiAxis<A> x_axis(int64_t r, const Level<T>& map) const {
    return {rule, rois[r * 5 + 1], rois[r * 5 + 3], map.scale, map.width, channels};
  }
  RoiAxis<A> y_axis(int64_t r, const Level<T>& map) const {
    return {rule, rois[r * 5 + 2], rois[r * 5 + 4], map.scale, map.height, map.width * channels};
  }

 private:
  static Tensor widened(const Tensor& tensor) {
    return torch::stable::contiguous(torch::stable::to(tensor, kAccumulatorType<T>));
  }

  template <typename V>
  const V* keep(const Tensor& tensor) {
    return kept.emplace_back(tensor).const_data_ptr<V>();
  }

  // Fills order and visits; throws where a RoI names a level or a picture that is not there.
  void plan(const int64_t* levels, int64_t count, int64_t images) {
    struct Key {
      int64_t level, image;
      A middle;
      int64_t roi;
      auto tie() const { return std::tie(level, image, middle, roi); }
    };
    std::vector<Key> keys(count);
    for (int64_t r = 0; r < count; ++r) {
      const A* roi = rois + r * 5;
      STD_TORCH_CHECK(levels[r] >= 0 && levels[r] < int64_t(maps.size()), "deform_roi_pool: RoI ",
                      r, " names level ", levels[r], " of ", maps.size());
      STD_TORCH_CHECK(roi[0] >= 0 && roi[0] < images, "deform_roi_pool: RoI ", r, " names picture ",
                      roi[0], " of ", images);
      const A middle = roi[2] + roi[4];
      keys[r] = {levels[r], int64_t(roi[0]), middle == middle ? middle : 0, r};  // NaN: no order
    }
    std::sort(keys.begin(), keys.end(),
              [](const Key& a, const Key& b) { return a.tie() < b.tie(); });
    for (int64_t o = 0; o < count; ++o) {
      const Key& key = keys[o];
      if (o == 0 || visits.back().level != key.level || visits.back().image != key.image) {
        visits.push_back({key.level, key.image, o, o});
      }
      visits.back().end = o + 1;
      order.push_back(key.roi);
    }
  }
};

// Calls f(width, channel, count) for blocks of `width` vectors, then single ones, then, with width
// 0, for what is left.
template <typename A, int kWidth, typename F>
D2DET_INLINE void each_block(int64_t begin, int64_t end, F f) {
  constexpr int64_t kBlock = kWidth * kLanes<A>;
  for (; begin + kBlock <= end; begin += kBlock) f(std::integral_constant<int, kWidth>{}, begin, 0);
  for (; begin + kLanes<A> <= end; begin += kLanes<A>)
    f(std::integral_constant<int, 1>{}, begin, 0);
  if (begin < end) f(std::integral_constant<int, 0>{}, begin, int(end - begin));
}

// Writes the weighted sum of cells for a block of channels (see each_block).
template <typename T, int kWidth>
D2DET_INLINE void gather(const T* map, const BinTaps<Accumulator<T>>& taps, int left, T* out) {
  using A = Accumulator<T>;
  constexpr int kVectors = kWidth ? kWidth : 1;
  Vec<A> sum[kVectors] = {};
  for (int t = 0; t < taps.cells; ++t) {
    const T* cell = map + taps.at[t];
    for (int k = 0; k < kVectors; ++k) {
      sum[k] += (kWidth ? load(cell + k * kLanes<A>) : load(cell, left)) * taps.weight[t];
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    kWidth ? store(out + k * kLanes<A>, sum[k]) : store(out, sum[k], left);
  }
}

// Adds a bin's gradient to the gradients of its cells, for a block of channels, and returns
// (d / dx, d / dy) of the bin in slope_x, slope_y, summed over these channels.
template <typename T, int kWidth, bool kSlopes>
D2DET_INLINE void scatter(const T* map, const BinTaps<Accumulator<T>>& taps, int left,
                          const T* grad, Accumulator<T>* grad_map, Vec<Accumulator<T>>& slope_x,
                          Vec<Accumulator<T>>& slope_y) {
  using A = Accumulator<T>;
  constexpr int kVectors = kWidth ? kWidth : 1;
  Vec<A> g[kVectors], x[kVectors] = {}, y[kVectors] = {};
  for (int k = 0; k < kVectors; ++k) g[k] = kWidth ? load(grad + k * kLanes<A>) : load(grad, left);
  for (int t = 0; t < taps.cells; ++t) {
    A* to = grad_map + taps.at[t];
    for (int k = 0; k < kVectors; ++k, to += kLanes<A>) {
      const Vec<A> share = g[k] * taps.weight[t];
      kWidth ? store(to, load(to) + share) : store(to, load(to, left) + share, left);
      if constexpr (kSlopes) {
        const T* cell = map + taps.at[t] + k * kLanes<A>;
        const Vec<A> value = kWidth ? load(cell) : load(cell, left);
        x[k] += value * taps.slope_x[t];
        y[k] += value * taps.slope_y[t];
      }
    }
  }
  for (int k = 0; k < kVectors; ++k) slope_x += x[k] * g[k], slope_y += y[k] * g[k];
}

// Pools the RoIs order[begin..end) of one visit into out (R, P, P, C).
template <typename T>
D2DET_CLONES void pool(const Pooling<T>& p, const Visit& visit, int64_t begin, int64_t end,
                       T* out) {
  using A = Accumulator<T>;
  const Level<T>& map = p.maps[visit.level];
  const T* picture = map.data + p.picture(visit);
  RoiSampler<A> sampler(p.rule);
  for (int64_t o = begin; o < end; ++o) {
    const int64_t r = p.order[o];
    T* roi_out = out + r * p.rule.bins * p.rule.bins * p.channels;
    sampler.each_bin(p.x_axis(r, map), p.y_axis(r, map), p.offset(r),
                     [&](int64_t bin, int64_t, const BinTaps<A>& taps) {
                       T* to = roi_out + bin * p.channels;
                       each_block<A, 4>(0, p.channels, [&](auto width, int64_t c, int left) {
                         gather<T, width.value>(picture + c, taps, left, to + c);
                       });
                     });
  }
}

// Adds the gradients of one visit's RoIs, channels of slices [first, last) only, to grad_map (the
// picture's), and writes each slice's part of the offset gradient to grad_offsets, (slices, R, 2,
// parts, parts). Every channel is summed in the order of RoIs, whoever owns the slice.
template <typename T, bool kSlopes>
D2DET_CLONES void pool_backward(const Pooling<T>& p, const Visit& visit, int64_t first,
                                int64_t last, const T* grad, Accumulator<T>* grad_map,
                                Accumulator<T>* grad_offsets) {
  using A = Accumulator<T>;
  const Level<T>& map = p.maps[visit.level];
  const T* picture = map.data + p.picture(visit);
  const int64_t area = p.rule.parts * p.rule.parts, rois = p.order.size();
  RoiSampler<A> sampler(p.rule);
  for (int64_t o = visit.begin; o < visit.end; ++o) {
    const int64_t r = p.order[o];
    const RoiAxis<A> x = p.x_axis(r, map), y = p.y_axis(r, map);
    sampler.each_bin(x, y, p.offset(r), [&](int64_t bin, int64_t part, const BinTaps<A>& taps) {
      const T* from = grad + (r * p.rule.bins * p.rule.bins + bin) * p.channels;
      for (int64_t s = first; s < last; ++s) {
        Vec<A> slope_x = {}, slope_y = {};
        const int64_t end = std::min((s + 1) * kSlice, p.channels);
        each_block<A, 2>(s * kSlice, end, [&](auto width, int64_t c, int left) {
          scatter<T, width.value, kSlopes>(picture + c, taps, left, from + c, grad_map + c, slope_x,
                                           slope_y);
        });
        if constexpr (kSlopes) {
          A* to = grad_offsets + (s * rois + r) * 2 * area + part;
          to[0] += horizontal_sum<A>(slope_x) * (p.rule.offset_scale * x.size);
          to[area] += horizontal_sum<A>(slope_y) * (p.rule.offset_scale * y.size);
        }
      }
    });
  }
}

Tensor channels_last(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType dtype) {
  Tensor result = torch::stable::empty({n, c, h, w}, dtype, std::nullopt, std::nullopt,
                                       std::nullopt, MemoryFormat::ChannelsLast);
  prefer_huge_pages(result);
  return result;
}

template <typename T>
Tensor run(const Arguments& arguments) {
  const Pooling<T> p(arguments);
  const int64_t count = p.order.size();
  Tensor out = channels_last(count, p.channels, p.rule.bins, p.rule.bins, arguments.dtype());
  T* to = out.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (const Visit& visit : p.visits) {
      const int64_t first = std::max(begin, visit.begin), last = std::min(end, visit.end);
      if (first < last) pool(p, visit, first, last, to);
    }
  });
  return out;
}

template <typename T>
std::tuple<std::vector<Tensor>, Tensor> run_backward(const Arguments& arguments,
                                                     const Tensor& grad) {
  using A = Accumulator<T>;
  const Pooling<T> p(arguments);
  const Tensor from = torch::stable::contiguous(grad, MemoryFormat::ChannelsLast);
  const T* grads = from.const_data_ptr<T>();
  std::vector<Tensor> maps;
  std::vector<A*> targets;
  for (const Tensor& f : arguments.features) {
    maps.push_back(channels_last(f.size(0), f.size(1), f.size(2), f.size(3), kAccumulatorType<T>));
    torch::stable::zero_(maps.back());
    targets.push_back(maps.back().mutable_data_ptr<A>());
  }
  const int64_t slices = (p.channels + kSlice - 1) / kSlice, visits = p.visits.size();
  const int64_t offsets = arguments.offsets ? arguments.offsets->numel() : 0;
  std::vector<A> partial(slices * offsets);
  // Task t is slice t / visits of visit t % visits; a thread does its slices of a visit together.
  torch::stable::parallel_for(0, slices * visits, 1, [&](int64_t begin, int64_t end) {
    for (int64_t v = 0; v < visits; ++v) {
      const int64_t first = (begin - v + visits - 1) / visits;
      const int64_t last = (end - v + visits - 1) / visits;
      if (first >= last) continue;
      const Visit& visit = p.visits[v];
      A* map = targets[visit.level] + p.picture(visit);
      const auto step = p.offsets ? pool_backward<T, true> : pool_backward<T, false>;
      step(p, visit, first, last, grads, map, partial.data());
    }
  });
  for (Tensor& map : maps) map = torch::stable::to(map, arguments.dtype());
  if (!arguments.offsets) return {maps, torch::stable::empty({0}, kAccumulatorType<T>)};
  Tensor moved = torch::stable::full(arguments.offsets->sizes(), 0, kAccumulatorType<T>);
  A* sum = moved.mutable_data_ptr<A>();
  for (size_t i = 0; i < partial.size(); ++i) sum[i % offsets] += partial[i];
  return {maps, torch::stable::to(moved, arguments.offsets->scalar_type())};
}

Tensor deform_roi_pool(const std::vector<Tensor>& features, const Tensor& rois,
                       const Tensor& levels, const std::optional<Tensor>& offsets,
                       const std::vector<double>& scales, int64_t output_size, int64_t samples,
                       double offset_scale, bool align) {
  const Arguments arguments{features,    rois,    levels,       offsets, scales,
                            output_size, samples, offset_scale, align};
  return dispatch_floating(arguments.checked().dtype(), "deform_roi_pool",
                           [&](auto zero) { return run<decltype(zero)>(arguments); });
}

// Always deterministic, so the last argument, which the CUDA kernel needs, changes nothing.
std::tuple<std::vector<Tensor>, Tensor> deform_roi_pool_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& rois,
    const Tensor& levels, const std::optional<Tensor>& offsets, const std::vector<double>& scales,
    int64_t output_size, int64_t samples, double offset_scale, bool align, bool) {
  const Arguments arguments{features,    rois,    levels,       offsets, scales,
                            output_size, samples, offset_scale, align};
  return dispatch_floating(arguments.checked().dtype(), "deform_roi_pool_backward", [&](auto zero) {
    return run_backward<decltype(zero)>(arguments, grad);
  });
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CPU, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&d2det_ops::deform_roi_pool));
  m.impl("deform_roi_pool_backward", TORCH_BOX(&d2det_ops::deform_roi_pool_backward));
}
