// Boxes and their overlaps, operation by operation as the CPU kernels compute them (cpu/box_grid.h):
// built without contraction to fused multiply-adds, both decide alike, to the last bit.
#pragma once

#include <cmath>

#include "cuda/common.cuh"

namespace d2det_ops {

template <typename T>
struct alignas(4 * sizeof(T)) Box {
  T x1, y1, x2, y2;

  __device__ T area() const { return (x2 - x1) * (y2 - y1); }
};

// As std::min and std::max: of a pair with a NaN, the first.
template <typename T>
__device__ T lower(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
__device__ T higher(T a, T b) {
  return a < b ? b : a;
}

template <typename T>
__device__ T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = higher(T(0), lower(a.x2, b.x2) - higher(a.x1, b.x1));
  const T height = higher(T(0), lower(a.y2, b.y2) - higher(a.y1, b.y1));
  return width * height;
}

// Reads row `index` of an (N, 4) array that need not be aligned for a box.
template <typename T>
__device__ Box<T> load_box(const T* rows, int64_t index) {
  const T* row = rows + index * 4;
  return {row[0], row[1], row[2], row[3]};
}

// The largest T that is no more than `value`: for every T, t > value just when t > that, so kernels
// compare in T what the CPU compares in double.
template <typename T>
T rounded_down(double value) {
  const T near = static_cast<T>(value);
  return near > value ? std::nextafter(near, T(-1)) : near;
}

}  // namespace d2det_ops
