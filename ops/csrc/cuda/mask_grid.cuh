// Which pixels of a scene the grid of a mask reaches, and how they read it: operation by operation as
// the CPU kernel (cpu/masks_to_rle.cpp), so that both set the same pixels.
#pragma once

#include <cmath>

#include "cuda/common.cuh"

namespace d2det_ops {

// How one pixel of an axis reads the grid: grid[low] * low_weight + grid[high] * high_weight.
struct Tap {
  int low, high;
  float low_weight, high_weight;
};

template <typename T>
__device__ T clamped(T value, T low, T high) {
  return value < low ? low : (high < value ? high : value);
}

// One axis of one mask: the pixels first .. first + count - 1 of the scene.
struct MaskAxis {
  int64_t first = 0, count = 0;
  double low = 0, scale = 0;  // grid cells a pixel
  int cells = 0;
  bool released = false;

  __device__ MaskAxis(int cells, double low, double high, int64_t size, bool released)
      : low(low), cells(cells), released(released) {
    if (released) {
      place_released(high, size);
    } else {
      place_exact(high, size);
    }
  }

  __device__ Tap tap(int64_t index) const {
    return released ? released_tap(index) : exact_tap(first + index);
  }

 private:
  // Pixel centres on the grid of the box [low, high), zero beyond it.
  __device__ void place_exact(double high, int64_t size) {
    scale = static_cast<double>(cells) / (high - low);
    if (!(scale > 0 && std::isfinite(scale))) return;
    const double margin = 1 / scale;
    const double from = at_least(std::floor(low - margin), 0), to = at_most(std::ceil(high + margin), size);
    if (!(from < to)) return;
    first = static_cast<int64_t>(from);
    count = static_cast<int64_t>(to - from);
  }

  // Corners truncated to integers and clipped to the scene.
  __device__ void place_released(double high, int64_t size) {
    if (!(std::isfinite(low) && std::isfinite(high))) return;
    const double edge = static_cast<double>(size);
    first = static_cast<int64_t>(clamped(std::trunc(low), 0.0, edge));
    const auto last = static_cast<int64_t>(clamped(std::trunc(high - 1), -1.0, edge - 1));
    count = last - first + 1 < 1 ? 1 : last - first + 1;
    scale = 1 / (static_cast<double>(count) / static_cast<double>(cells));
    if (first + count > size) count = size - first;
  }

  static __device__ double at_least(double value, double least) { return least < value ? value : least; }
  static __device__ double at_most(double value, int64_t most) {
    return value < static_cast<double>(most) ? value : static_cast<double>(most);
  }

  __device__ Tap exact_tap(int64_t pixel) const {
    const double at = (static_cast<double>(pixel) + 0.5 - low) * scale - 0.5, whole = std::floor(at);
    const auto fraction = static_cast<float>(at - whole);
    const int last = cells - 1;
    const int cell = static_cast<int>(clamped(whole, -2.0, static_cast<double>(cells)));
    return {clamped(cell, 0, last), clamped(cell + 1, 0, last),
            cell >= 0 && cell <= last ? 1 - fraction : 0.0f,
            cell >= -1 && cell < last ? fraction : 0.0f};
  }

  __device__ Tap released_tap(int64_t index) const {
    const auto at = static_cast<float>((static_cast<double>(index) + 0.5) * scale - 0.5);
    const float inside = clamped(at, 0.0f, static_cast<float>(cells - 1));
    const int cell = static_cast<int>(inside);
    const float fraction = inside - static_cast<float>(cell);
    return {cell, cell + 1 < cells ? cell + 1 : cells - 1, 1 - fraction, fraction};
  }
};

}  // namespace d2det_ops
