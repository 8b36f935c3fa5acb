// Which cells of a pyramid the bins of a RoI read, found by the warp that reads them.
//
// As on the CPU (cpu/roi_sampler.h), a bin is a product of merged rows and columns. Two lanes of the
// warp find them, one each axis, and leave them in the warp's part of shared memory.
#pragma once

#include "cuda/common.cuh"

namespace d2det_ops {

constexpr int kMaxLevels = 8;

template <typename T>
struct Map {
  T* data;  // (images, height, width, channels)
  int height, width;
};

template <typename T>
struct Pyramid {
  Map<T> maps[kMaxLevels];
  Sum<std::remove_const_t<T>> scales[kMaxLevels];
  int64_t levels, images, channels;

  __device__ T* image(int64_t level, int64_t index) const {
    const Map<T>& map = maps[level];
    return map.data + index * map.height * map.width * channels;
  }
};

// The RoIs of a call, and how they are sampled. A is the type of coordinates and sums.
template <typename A>
struct Rois {
  const A* rows;          // (R, 5)
  const int64_t* levels;  // (R,)
  const A* offsets;       // (R, 2, parts, parts), or null
  int bins, samples, parts;
  A offset_scale;
  bool align;
};

template <typename A>
struct Cell {
  int at;    // column or row
  A weight;    // in the sum over samples
  A slope;     // derivative of that weight with respect to the position
};

// The cells one bin reads along one axis, in shared memory.
template <typename A>
struct AxisCells {
  int count, kept;  // cells, and samples that count
  Cell<A>* cells;

  // Samples come at rising positions, so a cell seen before is one of the last two.
  __device__ void add(int at, A weight, A slope) {
    int i = count - 1;
    if (i > 0 && cells[i].at != at) --i;
    if (i < 0 || cells[i].at != at) {
      i = count++;
      cells[i] = {at, 0, 0};
    }
    cells[i].weight += weight;
    cells[i].slope += slope;
  }
};

// Positions follow the CPU kernel operation by operation, and the library is built without
// contraction to fused multiply-adds, so both read the same cells with the same weights.
template <typename A>
struct RoiAxis {
  A start, size;
  int extent;  // cells of the map

  __device__ RoiAxis(A low, A high, A scale, int extent, bool align) : extent(extent) {
    if (align) {
      start = low * scale;
      size = above(high * scale - start, A(0));
    } else {  // official corners are inclusive, and rounded half away from zero
      start = std::round(low) * scale - A(0.5);
      size = above((std::round(high - 1) + 1) * scale - A(0.5) - start, A(0.1));
    }
  }

  // Finds the cells of bin `index`, moved by `shift` RoI sizes.
  __device__ void find(const Rois<A>& rois, int index, A shift, AxisCells<A>& found) const {
    found.count = found.kept = 0;
    const A bin = size / A(rois.bins), count = A(rois.samples);
    if (rois.align) {
      const A first = start + A(index) * bin;
      for (A k = 0; k < count; ++k) add_aligned(first + (k + A(0.5)) * bin / count, found);
    } else {
      const A first = A(index) * bin + start + shift * size, step = bin / count;
      for (A k = 0; k < count; ++k) add_deformed(first + k * step, found);
    }
  }

 private:
  static __device__ A above(A value, A least) { return value < least ? least : value; }

  __device__ A inside(A position) const {
    const A last = A(extent - 1);
    return position < 0 ? A(0) : (position > last ? last : position);
  }

  // The comparisons leave out NaN. A position clamped to the border, or on a cell, has slope 0 as
  // in the official kernel: both neighbours are that cell.
  __device__ void add_deformed(A position, AxisCells<A>& found) const {
    if (!(position >= A(-0.5) && position <= A(extent) - A(0.5)) || extent == 0) return;
    position = inside(position);
    const A low = std::floor(position), part = position - low;
    found.add(static_cast<int>(low), 1 - part, -1);
    found.add(static_cast<int>(std::ceil(position)), part, 1);
    ++found.kept;
  }

  __device__ void add_aligned(A position, AxisCells<A>& found) const {
    ++found.kept;  // outside reads as 0, and counts
    if (!(position >= A(-1) && position <= A(extent)) || extent == 0) return;
    position = inside(position);
    const int low = static_cast<int>(position);
    const int high = low + 1 < extent ? low + 1 : low;
    const A part = position - A(low);
    found.add(low, 1 - part, 0);
    found.add(high, part, 0);
  }
};

// One bin: its columns, its rows, and where its map lies. Lives in shared memory, one a warp.
template <typename A>
struct BinCells {
  AxisCells<A> axes[2];  // x, y
  A sizes[2];            // of the RoI, in cells
  int64_t map, image;    // -1 where the RoI names a level or an image that does not exist

  // Bytes of shared memory for one warp.
  static __host__ __device__ size_t bytes(int samples) {
    return sizeof(BinCells<A>) + 4 * samples * sizeof(Cell<A>);
  }

  static __device__ BinCells<A>& of_warp(int samples) {
    unsigned char* start = d2det_shared + threadIdx.x / kWarpSize * bytes(samples);
    return *reinterpret_cast<BinCells<A>*>(start);
  }

  __device__ A share() const {
    const int kept = axes[0].kept * axes[1].kept;
    return A(1) / A(kept < 1 ? 1 : kept);
  }

  // Fills the bin; every lane of the warp calls it, and may read the bin afterwards.
  template <typename T>
  __device__ void find(const Pyramid<T>& pyramid, const Rois<A>& rois, int64_t roi, int row,
                       int column) {
    __syncwarp();  // the bin before has been read
    const int lane = threadIdx.x % kWarpSize;
    if (lane < 2) find_axis(pyramid, rois, roi, lane == 0 ? column : row, part(rois, row, column), lane);
    __syncwarp();
  }

 private:
  static __device__ int part(const Rois<A>& rois, int row, int column) {
    return row * rois.parts / rois.bins * rois.parts + column * rois.parts / rois.bins;
  }

  template <typename T>
  __device__ void find_axis(const Pyramid<T>& pyramid, const Rois<A>& rois, int64_t roi,
                            int index, int part, int axis) {
    AxisCells<A>& found = axes[axis];
    found.cells = reinterpret_cast<Cell<A>*>(this + 1) + axis * 2 * rois.samples;
    found.count = found.kept = 0;
    const A* corners = rois.rows + roi * 5;
    const int64_t level = rois.levels[roi];
    const bool exists = level >= 0 && level < pyramid.levels && corners[0] >= 0 &&
                        corners[0] < A(pyramid.images);
    if (axis == 0) {
      map = exists ? level : -1;
      image = exists ? static_cast<int64_t>(corners[0]) : -1;
    }
    if (!exists) return;
    const Map<T>& in = pyramid.maps[level];
    const RoiAxis<A> line(corners[1 + axis], corners[3 + axis], pyramid.scales[level],
                          axis == 0 ? in.width : in.height, rois.align);
    sizes[axis] = line.size;
    A shift = 0;
    if (rois.offsets != nullptr) {
      const int64_t parts = rois.parts * rois.parts;
      shift = rois.offsets[(roi * 2 + axis) * parts + part] * rois.offset_scale;
    }
    line.find(rois, index, shift, found);
  }
};

}  // namespace d2det_ops
