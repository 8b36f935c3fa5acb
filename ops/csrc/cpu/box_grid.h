// A hash grid over boxes that finds those which may overlap a given one by more than a threshold.
//
// Boxes are kept apart by size octave: [2^e, 2^(e+1)) of their longer side, in square cells of side
// 2^e by their centre. Two facts keep a search small when IoU > t is asked for. Sides and
// their maximum differ by at most the factor t, so few octaves matter. On either axis the overlap
// o of lengths a and b has o / (a + b - o) >= IoU > t, and o <= (a + b) / 2 - |distance of
// centres|, so centres are closer than (a + b) (1 - t) / (2 (1 + t)).
// The grid only ever proposes too many: whoever asks computes the overlap itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace d2det_ops {

template <typename T>
struct Box {
  T x1, y1, x2, y2;

  T area() const { return (x2 - x1) * (y2 - y1); }
};

// Intersection of two boxes; the operand order settles what NaN gives, as in torchvision.
template <typename T>
inline T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = std::max(T(0), std::min(a.x2, b.x2) - std::max(a.x1, b.x1));
  const T height = std::max(T(0), std::min(a.y2, b.y2) - std::max(a.y1, b.y1));
  return width * height;
}

// How far a box can be from one it overlaps by more than a threshold, and how different in size.
struct Reach {
  double side_ratio;  // largest ratio of the longer sides
  double distance;    // largest distance of the centres, in units of the sum of the sides

  // The slack covers rounding of the overlap the caller computes in float32.
  static Reach of_iou(double threshold) {
    const double t = std::clamp(threshold, 0.0, 1.0);
    return {(1 + 1e-5) / t, (1 - t) / (2 * (1 + t)) + 1e-5};
  }
  static Reach of_any_overlap() { return {std::numeric_limits<double>::infinity(), 0.5 + 1e-5}; }
};

template <typename T>
class BoxGrid {
 public:
  explicit BoxGrid(int64_t capacity) {
    size_t slots = 64;
    while (slots < 2 * static_cast<size_t>(capacity)) slots *= 2;
    heads_.assign(slots, kNone);
    nodes_.reserve(capacity);
  }

  // Adds a box of `group`; `id` is handed back by `any`. Boxes without area overlap nothing.
  void insert(int64_t id, const Box<T>& box, int64_t group) {
    const Place place = locate(box);
    if (place.kind == Kind::kEmpty) return;
    const auto node = static_cast<int32_t>(nodes_.size());
    int32_t& head = place.kind == Kind::kWild ? wild_ : heads_[slot(place, group)];
    nodes_.push_back({box, box.area(), head, static_cast<int32_t>(id)});
    head = node;
    if (place.kind == Kind::kGridded) ++counts_[place.octave - kLowest];
  }

  // Whether `visit(id, box, area)` is true for some box that may be within `reach` of `box`. Every
  // such box of the group is visited until one is, and possibly others, of other groups, and twice.
  template <typename Visit>
  bool any(const Box<T>& box, int64_t group, const Reach& reach, const Visit& visit) const {
    if (nodes_.empty()) return false;
    const Place place = locate(box);
    if (place.kind == Kind::kEmpty) return false;
    if (place.kind == Kind::kWild) return any_of_all(visit);
    if (any_in_chain(wild_, visit)) return true;
    const auto [first, last] = octaves(place.side, reach.side_ratio);
    // Its own octave comes first: boxes that overlap much are mostly of one size.
    for (int k = first - 1; k <= last; ++k) {
      const int octave = k < first ? place.octave : k;
      if (k == place.octave || counts_[octave - kLowest] == 0) continue;
      const Window window = around(place, octave, reach);
      // A large box among small ones: walking all boxes is cheaper than walking its cells.
      if (window.cells() > static_cast<double>(nodes_.size())) return any_of_all(visit);
      if (any_in_window(window, octave, group, visit)) return true;
    }
    return false;
  }

 private:
  enum class Kind { kGridded, kEmpty, kWild };
  struct Place {
    Kind kind;
    int octave;
    double width, height, side, x, y;  // the longer side, the centre
    int64_t column, row;
  };
  struct Window {
    double left, right, top, bottom;  // cell numbers, inclusive
    double cells() const { return (right - left + 1) * (bottom - top + 1); }
  };
  struct Node {
    Box<T> box;
    T area;
    int32_t next, id;
  };
  static constexpr int32_t kNone = -1;
  static constexpr int kLowest = -40, kHighest = 40;  // octaves that are gridded
  static constexpr double kFarthestCell = 1LL << 40;  // cell numbers stay exact integers

  static double cell_side(int octave) { return std::ldexp(1.0, octave); }

  // Boxes that fit no grid (infinite, NaN, absurdly large or far away) are wild: compared with all.
  static Place locate(const Box<T>& box) {
    const double width = static_cast<double>(box.x2) - box.x1;
    const double height = static_cast<double>(box.y2) - box.y1;
    Place place{Kind::kWild, 0, width, height, std::max(width, height), 0, 0, 0, 0};
    if (width <= 0 || height <= 0) {
      place.kind = Kind::kEmpty;
      return place;
    }
    if (!(place.side >= std::ldexp(1.0, kLowest) && place.side < std::ldexp(1.0, kHighest))) {
      return place;
    }
    place.octave = std::ilogb(place.side);
    place.x = 0.5 * (static_cast<double>(box.x1) + box.x2);
    place.y = 0.5 * (static_cast<double>(box.y1) + box.y2);
    const double scale = 1 / cell_side(place.octave);
    if (!(std::max(std::abs(place.x), std::abs(place.y)) * scale < kFarthestCell)) return place;
    place.column = static_cast<int64_t>(std::floor(place.x * scale));
    place.row = static_cast<int64_t>(std::floor(place.y * scale));
    place.kind = Kind::kGridded;
    return place;
  }

  static std::pair<int, int> octaves(double side, double ratio) {
    const double smallest = std::max(side / ratio, std::ldexp(1.0, kLowest));
    const double largest = std::min(side * ratio, std::ldexp(1.0, kHighest) / 2);
    return {std::ilogb(smallest), std::ilogb(largest)};
  }

  static uint64_t mix(uint64_t value) {
    value ^= value >> 32;
    value *= 0x9e3779b97f4a7c15ULL;
    return value ^ (value >> 29);
  }

  size_t slot(const Place& place, int64_t group) const {
    return slot(place.octave, place.column, place.row, group);
  }

  // Boxes of other cells may share the slot: they are proposed needlessly, and rejected.
  size_t slot(int octave, int64_t column, int64_t row, int64_t group) const {
    const uint64_t cell = static_cast<uint64_t>(column) * 0xd6e8feb86659fd93ULL +
                          static_cast<uint64_t>(row) * 0xa0761d6478bd642fULL;
    const uint64_t layer = static_cast<uint64_t>(group) * 0xe7037ed1a0b428dbULL +
                           static_cast<uint64_t>(octave) * 0x8ebc6af09c88c6e3ULL;
    return mix(cell ^ layer) & (heads_.size() - 1);
  }

  // The cells of `octave` that hold every centre within reach of the box at `place`.
  static Window around(const Place& place, int octave, const Reach& reach) {
    const double cell = cell_side(octave), scale = 1 / cell;
    // A box of this octave is shorter than two cells, and at most side_ratio times this one.
    const double across = place.width + std::min(2 * cell, place.width * reach.side_ratio);
    const double down = place.height + std::min(2 * cell, place.height * reach.side_ratio);
    return {std::floor((place.x - reach.distance * across) * scale),
            std::floor((place.x + reach.distance * across) * scale),
            std::floor((place.y - reach.distance * down) * scale),
            std::floor((place.y + reach.distance * down) * scale)};
  }

  template <typename Visit>
  bool any_in_window(const Window& window, int octave, int64_t group, const Visit& visit) const {
    for (auto row = static_cast<int64_t>(window.top); row <= window.bottom; ++row) {
      for (auto column = static_cast<int64_t>(window.left); column <= window.right; ++column) {
        if (any_in_chain(heads_[slot(octave, column, row, group)], visit)) return true;
      }
    }
    return false;
  }

  template <typename Visit>
  bool any_in_chain(int32_t node, const Visit& visit) const {
    for (; node != kNone; node = nodes_[node].next) {
      if (visit(nodes_[node].id, nodes_[node].box, nodes_[node].area)) return true;
    }
    return false;
  }

  template <typename Visit>
  bool any_of_all(const Visit& visit) const {
    for (const Node& node : nodes_) {
      if (visit(node.id, node.box, node.area)) return true;
    }
    return false;
  }

  std::vector<int32_t> heads_;
  std::vector<Node> nodes_;
  int32_t wild_ = kNone;
  int64_t counts_[kHighest - kLowest] = {};
};

}  // namespace d2det_ops
