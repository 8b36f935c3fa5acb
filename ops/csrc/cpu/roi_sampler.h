// Which cells of a map a RoI's bins read, and with what weights.
//
// The samples of a bin share two offsets, so they form a product of rows and columns, and so do
// those that are skipped. A bin is then a weighted sum over (its rows) x (its columns), in which
// samples on the same row or column are merged: fewer cells to read for the same sum.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace d2det_ops {

// How RoIs are sampled; A is the type of coordinates and sums.
template <typename A>
struct Sampling {
  int64_t bins;     // output bins a side
  int64_t samples;  // samples a side of a bin
  int64_t parts;    // offsets a side; 0: none
  A offset_scale;
  bool align;
};

// The cells one bin reads along one axis.
template <typename A>
struct AxisTaps {
  std::vector<int64_t> at;  // elements from the start of the row or column
  std::vector<A> weight;    // in the sum over samples
  std::vector<A> slope;     // derivative of that weight with respect to the position
  int cells = 0;
  int kept = 0;  // samples that count

  explicit AxisTaps(int64_t samples) : at(2 * samples), weight(2 * samples), slope(2 * samples) {}

  void clear() { cells = kept = 0; }

  // Samples come at rising positions, so a cell seen before is one of the last two.
  void add(int64_t where, A w, A s) {
    int i = cells - 1;
    if (i > 0 && at[i] != where) --i;
    if (i < 0 || at[i] != where) {
      i = cells++;
      at[i] = where, weight[i] = 0, slope[i] = 0;
    }
    weight[i] += w, slope[i] += s;
  }
};

// One axis of one RoI, measured in cells of its map.
template <typename A>
struct RoiAxis {
  const Sampling<A>& rule;
  int64_t extent, stride;  // cells of the map, and elements from one to the next
  A start, size;

  RoiAxis(const Sampling<A>& rule, A low, A high, A scale, int64_t extent, int64_t stride)
      : rule(rule), extent(extent), stride(stride) {
    if (rule.align) {
      start = low * scale;
      size = std::max(high * scale - start, A(0));
    } else {  // official corners are inclusive, and rounded half away from zero
      start = std::round(low) * scale - A(0.5);
      size = std::max((std::round(high - 1) + 1) * scale - A(0.5) - start, A(0.1));
    }
  }

  // Finds the cells of bin `index`, moved by `shift` RoI sizes.
  void find(int64_t index, A shift, AxisTaps<A>& taps) const {
    taps.clear();
    const A bin = size / A(rule.bins), count = A(rule.samples);
    if (rule.align) {
      const A first = start + A(index) * bin;
      for (A k = 0; k < count; ++k) add_aligned(first + (k + A(0.5)) * bin / count, taps);
    } else {
      const A first = A(index) * bin + start + shift * size, step = bin / count;
      for (A k = 0; k < count; ++k) add_deformed(first + k * step, taps);
    }
  }

 private:
  // The comparisons leave out NaN. A position clamped to the border, or on a cell, has slope 0 as
  // in the official kernel: both neighbours are that cell.
  void add_deformed(A position, AxisTaps<A>& taps) const {
    if (!(position >= A(-0.5) && position <= A(extent) - A(0.5)) || extent == 0) return;
    position = std::clamp(position, A(0), A(extent - 1));
    const A low = std::floor(position), part = position - low;
    taps.add(int64_t(low) * stride, 1 - part, -1);
    taps.add(int64_t(std::ceil(position)) * stride, part, 1);
    ++taps.kept;
  }

  void add_aligned(A position, AxisTaps<A>& taps) const {
    ++taps.kept;  // outside reads as 0, and counts
    if (!(position >= A(-1) && position <= A(extent)) || extent == 0) return;
    position = std::clamp(position, A(0), A(extent - 1));
    const int64_t low = int64_t(position), high = std::min(low + 1, extent - 1);
    const A part = position - A(low);
    taps.add(low * stride, 1 - part, 0);
    taps.add(high * stride, part, 0);
  }
};

// The cells one bin reads, with their shares of its mean.
template <typename A>
struct BinTaps {
  std::vector<int64_t> at;          // elements from the start of the picture's map
  std::vector<A> weight;            // d mean / d cell
  std::vector<A> slope_x, slope_y;  // d weight / d position
  int cells = 0;

  explicit BinTaps(int64_t samples)
      : at(4 * samples * samples), weight(at.size()), slope_x(at.size()), slope_y(at.size()) {}

  void combine(const AxisTaps<A>& x, const AxisTaps<A>& y) {
    cells = 0;
    const A share = A(1) / A(std::max(x.kept * y.kept, 1));
    for (int v = 0; v < y.cells; ++v) {
      const A weight_y = y.weight[v] * share, slope = y.slope[v] * share;
      for (int u = 0; u < x.cells; ++u, ++cells) {
        at[cells] = y.at[v] + x.at[u];
        weight[cells] = weight_y * x.weight[u];
        slope_x[cells] = weight_y * x.slope[u];
        slope_y[cells] = slope * x.weight[u];
      }
    }
  }
};

// Walks the bins of one RoI after the other.
template <typename A>
class RoiSampler {
 public:
  explicit RoiSampler(const Sampling<A>& rule)
      : rule_(rule), x_(rule.samples), y_(rule.samples), taps_(rule.samples) {}

  // Calls visit(bin, part, taps) for each bin, row by row; part is the offset cell of the bin.
  // `offsets`: (2, parts, parts) of this RoI, or null.
  template <typename F>
  void each_bin(const RoiAxis<A>& x, const RoiAxis<A>& y, const A* offsets, F visit) {
    const int64_t parts = rule_.parts, bins = rule_.bins;
    for (int64_t bin = 0; bin < bins * bins; ++bin) {
      const int64_t i = bin / bins, j = bin % bins;
      const int64_t part = i * parts / bins * parts + j * parts / bins;
      x.find(j, offsets ? offsets[part] * rule_.offset_scale : A(0), x_);
      y.find(i, offsets ? offsets[part + parts * parts] * rule_.offset_scale : A(0), y_);
      taps_.combine(x_, y_);
      visit(bin, part, taps_);
    }
  }

 private:
  const Sampling<A>& rule_;
  AxisTaps<A> x_, y_;
  BinTaps<A> taps_;
};
}  // namespace d2det_ops
