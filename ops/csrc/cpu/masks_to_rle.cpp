// Mask grids straight to COCO run lengths. Work grows with the columns of each box and with the
// pixels near the mask's outline, never with the picture: of a column, whole stretches between two
// grid rows lie clearly above or below the threshold and are settled without looking at pixels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/clones.h"

namespace d2det_ops {
namespace {

using torch::stable::Tensor;

// Where one pixel of an axis reads the grid: value = grid[low] * low_weight + grid[high] * ...
struct Tap {
  int32_t low, high;
  float low_weight, high_weight;
};

// The pixels [first, first + taps.size()) of one axis that a mask can reach.
struct Axis {
  int64_t first;
  std::vector<Tap> taps;
};

// Pixel centres in the box's grid, zero outside: grid_sample(align_corners=False, zeros).
Axis exact_axis(int64_t cells, float low, float high, int64_t begin, int64_t end) {
  const double start = low, scale = cells / (static_cast<double>(high) - low);
  Axis axis{begin, {}};
  if (!(scale > 0 && std::isfinite(scale))) return axis;
  const double margin = 1 / scale;
  const double from = std::max<double>(begin, std::floor(start - margin));
  const double to = std::min<double>(end, std::ceil(high + margin));
  axis.first = static_cast<int64_t>(from);
  for (double pixel = from; pixel < to; ++pixel) {
    const double at = (pixel + 0.5 - start) * scale - 0.5;
    const double cell = std::floor(at);
    const auto fraction = static_cast<float>(at - cell);
    const auto index = static_cast<int64_t>(std::clamp<double>(cell, -2, cells));
    const bool has_low = index >= 0 && index < cells, has_high = index >= -1 && index < cells - 1;
    axis.taps.push_back({static_cast<int32_t>(std::clamp<int64_t>(index, 0, cells - 1)),
                         static_cast<int32_t>(std::clamp<int64_t>(index + 1, 0, cells - 1)),
                         has_low ? 1 - fraction : 0.0f, has_high ? fraction : 0.0f});
  }
  return axis;
}

// The official paste: the inclusive box truncated to integers and clipped, resized as cv2 does.
Axis released_axis(int64_t cells, float low, float high, int64_t begin, int64_t end) {
  const auto whole = [&](double value) {
    return static_cast<int64_t>(std::trunc(std::clamp<double>(value, begin - 1.0, end + 1.0)));
  };
  const int64_t first = std::max(whole(low), begin);
  const int64_t last = std::min(whole(static_cast<double>(high) - 1), end - 1);
  const int64_t count = std::max<int64_t>(last - first + 1, 1);
  Axis axis{first, {}};
  for (int64_t i = 0; i < count && first + i < end; ++i) {
    const auto at = static_cast<float>((i + 0.5) * (static_cast<double>(cells) / count) - 0.5);
    const float clamped = std::clamp(at, 0.0f, static_cast<float>(cells - 1));
    const auto index = static_cast<int32_t>(clamped);
    const float fraction = clamped - static_cast<float>(index);
    axis.taps.push_back({index, std::min<int32_t>(index + 1, cells - 1), 1 - fraction, fraction});
  }
  return axis;
}
