// Mask grids straight to COCO run lengths. Work grows with the columns of each box and with the
// pixels near the mask's outline, never with the picture: within a column whole stretches between
// grid rows lie clearly above or below the threshold and are settled without their pixels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/clones.h"

namespace d2det_ops {
namespace {

using torch::stable::Tensor;

// How one pixel of an axis reads the grid, which has a border of zeros before and behind it:
// bordered[cell] * low_weight + bordered[cell + 1] * high_weight, 0 <= cell <= M.
struct Tap {
  int32_t cell;
  float low_weight, high_weight;
};

// The pixels of one axis of the scene that a mask can reach, from `first` on; cells never fall.
struct Axis {
  int64_t first = 0;
  std::vector<Tap> taps;
};

// Pixel centres on the grid of the box [low, high), zero beyond it, as grid_sample does with
// align_corners=False. `size`: pixels of the scene on this axis.
Axis exact_axis(int64_t cells, double low, double high, int64_t size) {
  Axis axis;
  const double scale = static_cast<double>(cells) / (high - low);
  if (!(scale > 0 && std::isfinite(scale))) return axis;
  const double from = std::max(0.0, std::floor(low - 1 / scale));
  const double to = std::min(static_cast<double>(size), std::ceil(high + 1 / scale));
  if (!(from < to)) return axis;
  axis.first = static_cast<int64_t>(from);
  axis.taps.reserve(static_cast<size_t>(to - from));
  for (double pixel = from; pixel < to; ++pixel) {
    const double at = (pixel + 0.5 - low) * scale - 0.5;
    const double below = std::floor(at);
    const auto fraction = static_cast<float>(at - below);
    if (below < -1) {
      axis.taps.push_back({0, 0, 0});
    } else if (below >= static_cast<double>(cells)) {
      axis.taps.push_back({static_cast<int32_t>(cells), 0, 0});
    } else {
      axis.taps.push_back({static_cast<int32_t>(below) + 1, 1 - fraction, fraction});
    }
  }
  return axis;
}

// The official paste: corners truncated to integers, clipped to the scene, and the grid resized to
// that rectangle as cv2.resize does (half-pixel centres in float32, border replicated).
Axis released_axis(int64_t cells, double low, double high, int64_t size) {
  Axis axis;
  if (!(std::isfinite(low) && std::isfinite(high))) return axis;
  const double edge = static_cast<double>(size);
  axis.first = static_cast<int64_t>(std::clamp(std::trunc(low), 0.0, edge));
  const auto last = static_cast<int64_t>(std::clamp(std::trunc(high - 1), -1.0, edge - 1));
  const int64_t count = std::max<int64_t>(last - axis.first + 1, 1);
  const double scale = 1 / (static_cast<double>(count) / static_cast<double>(cells));
  for (int64_t i = 0; i < count && axis.first + i < size; ++i) {
    const auto at = static_cast<float>((static_cast<double>(i) + 0.5) * scale - 0.5);
    const float clamped = std::clamp(at, 0.0f, static_cast<float>(cells - 1));
    const auto below = static_cast<int32_t>(clamped);
    const float fraction = clamped - static_cast<float>(below);
    axis.taps.push_back({below + 1, 1 - fraction, fraction});
  }
  return axis;
}

// COCO's compressed counts, fed with the stretches of set pixels in column-major order.
class RunWriter {
 public:
  // Sets pixels [begin, end), which lie behind all set before.
  void set(int64_t begin, int64_t end) {
    if (begin != end_) {
      flush();
      begin_ = begin;
    }
    end_ = end;
  }

  std::string finish(int64_t pixels) {
    flush();
    if (written_ < pixels) put(pixels - written_);
    return std::move(text_);
  }

 private:
  void flush() {
    if (end_ == begin_) return;
    put(begin_ - written_);
    put(end_ - begin_);
    written_ = end_;
  }

  // One count: its difference to the one two before (from the fourth on), five bits a character,
  // lowest first, bit 5 set when more follow.
  void put(int64_t count) {
    int64_t value = counts_ > 2 ? count - before_[counts_ % 2] : count;
    before_[counts_++ % 2] = count;
    char digits[16];
    int length = 0;
    for (bool more = true; more;) {
      const int digit = static_cast<int>(value & 31);
      value >>= 5;
      more = value != (digit & 16 ? -1 : 0);
      digits[length++] = static_cast<char>((more ? digit | 32 : digit) + 48);
    }
    text_.append(digits, length);
  }

  std::string text_;
  int64_t begin_ = 0, end_ = 0, written_ = 0, counts_ = 0;
  int64_t before_[2] = {0, 0};
};

constexpr int64_t kWord = 32;  // grid rows looked at together, one bit each

// Rounded up, so that loops over grid rows have whole words.
int64_t padded(int64_t rows) { return (rows + kWord - 1) / kWord * kWord; }

struct Threshold {
  float value;
  // Interpolated between rows that are all above, or all at or below, these bounds, a pixel is
  // settled whatever rounding does to it; NaN is neither, so its pixels are looked at.
  float above, below;

  explicit Threshold(double threshold)
      : value(static_cast<float>(threshold)),
        above(value * (1 + 1e-6f) + 1e-30f),
        below(value * (1 - 1e-6f)) {}
};

// Bit r of the words: row r is above, or at or below, what settles a pixel.
struct Settled {
  uint32_t above = 0, below = 0;

  Settled(const float* rows, const Threshold& threshold) {
    for (int64_t r = 0; r < kWord; ++r) {
      above |= static_cast<uint32_t>(rows[r] > threshold.above) << r;
      below |= static_cast<uint32_t>(rows[r] <= threshold.below) << r;
    }
  }
};

// Writes one column, whose grid rows are `rows` (borders included), from scene position `top` on.
// starts[k]: first tap of cell k, for k in 0 .. cells + 1.
void write_column(const float* rows, int64_t cells, const std::vector<Tap>& taps,
                  const std::vector<int64_t>& starts, const Threshold& threshold, int64_t top,
                  RunWriter& writer) {
  // Words overlap by one row: a cell lies between two rows.
  for (int64_t base = 0; base <= cells; base += kWord - 1) {
    const Settled settled(rows + base, threshold);
    const int64_t here = std::min(kWord - 1, cells + 1 - base);
    const uint32_t valid = (uint32_t(1) << here) - 1;
    const uint32_t set = settled.above & (settled.above >> 1) & valid;
    uint32_t open = ~(settled.below & (settled.below >> 1)) & valid;
    while (open != 0) {
      const int bit = std::countr_zero(open);
      const int64_t cell = base + bit;
      const int run = std::countr_one(set >> bit);
      if (run > 0) {
        if (starts[cell] < starts[cell + run]) {
          writer.set(top + starts[cell], top + starts[cell + run]);
        }
        open &= ~uint32_t(0) << (bit + run);
        continue;
      }
      for (int64_t i = starts[cell]; i < starts[cell + 1]; ++i) {
        const float value = rows[cell] * taps[i].low_weight + rows[cell + 1] * taps[i].high_weight;
        if (value > threshold.value) writer.set(top + i, top + i + 1);
      }
      open &= open - 1;
    }
  }
}

// The grid transposed, bordered by zeros and padded: column c is `stride` floats from c * stride.
std::vector<float> bordered_columns(const float* mask, int64_t cells, int64_t stride) {
  std::vector<float> columns((cells + 2) * stride, 0.0f);
  for (int64_t r = 0; r < cells; ++r) {
    for (int64_t c = 0; c < cells; ++c) {
      columns[(c + 1) * stride + r + 1] = mask[r * cells + c];
    }
  }
  return columns;
}

D2DET_CLONES void write_mask(const float* mask, int64_t cells, const Axis& across, const Axis& down,
                             const Threshold& threshold, int64_t height, RunWriter& writer) {
  if (down.taps.empty()) return;
  const int64_t stride = padded(cells + 2 + kWord);
  const std::vector<float> columns = bordered_columns(mask, cells, stride);
  std::vector<int64_t> starts;
  for (int64_t cell = 0, i = 0; cell <= cells + 1; ++cell) {
    while (i < static_cast<int64_t>(down.taps.size()) && down.taps[i].cell < cell) ++i;
    starts.push_back(i);
  }
  std::vector<float> rows(stride);
  for (size_t i = 0; i < across.taps.size(); ++i) {
    const Tap& tap = across.taps[i];
    const float* left = columns.data() + tap.cell * stride;
    for (int64_t r = 0; r < stride; ++r) {
      rows[r] = left[r] * tap.low_weight + left[r + stride] * tap.high_weight;
    }
    const int64_t top = (across.first + static_cast<int64_t>(i)) * height + down.first;
    write_column(rows.data(), cells, down.taps, starts, threshold, top, writer);
  }
}

std::tuple<Tensor, Tensor> joined(const std::vector<std::string>& texts, const Tensor& like) {
  using torch::headeronly::ScalarType;
  const auto count = static_cast<int64_t>(texts.size());
  Tensor offsets = torch::stable::new_empty(like, {count + 1}, ScalarType::Long);
  auto* starts = offsets.mutable_data_ptr<int64_t>();
  starts[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    starts[i + 1] = starts[i] + static_cast<int64_t>(texts[i].size());
  }
  Tensor bytes = torch::stable::new_empty(like, {starts[count]}, ScalarType::Byte);
  auto* out = bytes.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < count; ++i) std::copy(texts[i].begin(), texts[i].end(), out + starts[i]);
  return {bytes, offsets};
}

std::tuple<Tensor, Tensor> masks_to_rle(const Tensor& masks, const Tensor& boxes, int64_t height,
                                        int64_t width, int64_t x, int64_t y, double threshold,
                                        bool released) {
  const Tensor grids = torch::stable::contiguous(masks), rows = torch::stable::contiguous(boxes);
  const int64_t count = grids.size(0), cells = grids.size(1);
  const auto* grid = grids.const_data_ptr<float>();
  const auto* box = rows.const_data_ptr<float>();
  const auto axis = released ? released_axis : exact_axis;
  std::vector<std::string> texts(count);
  torch::stable::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Axis across = axis(cells, double(box[4 * i]) + x, double(box[4 * i + 2]) + x, width);
      const Axis down = axis(cells, double(box[4 * i + 1]) + y, double(box[4 * i + 3]) + y, height);
      RunWriter writer;
      write_mask(grid + i * cells * cells, cells, across, down, Threshold(threshold), height,
                 writer);
      texts[i] = writer.finish(height * width);
    }
  });
  return joined(texts, grids);
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CPU, m) {
  m.impl("masks_to_rle", TORCH_BOX(&d2det_ops::masks_to_rle));
}
