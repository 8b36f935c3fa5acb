// Soft suppression: which boxes lower which is found once, then every class picks on its own.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/box_grid.h"

namespace d2det_ops {
namespace {

using torch::stable::Tensor;

struct Rule {
  bool gaussian;
  double iou_threshold, sigma, min_score;

  Reach reach() const { return gaussian ? Reach::of_iou(0) : Reach::of_iou(iou_threshold); }

  // The factor by which a box lowers another; 1 where it does not.
  template <typename T>
  T decay(T shared, T area, T other_area) const {
    if (!(shared > 0)) return 1;
    const T iou = shared / (area + other_area - shared);
    if (gaussian) return iou > 0 ? std::exp(-(iou * iou) / static_cast<T>(sigma)) : T(1);
    return iou > static_cast<T>(iou_threshold) ? 1 - iou : T(1);
  }
};

// For every box those it lowers. Kept as lists while they fit, else found anew at each visit, so
// memory stays bounded when ten thousand boxes lie on one spot.
template <typename T>
class Neighbours {
 public:
  Neighbours(const Box<T>* boxes, int64_t count, const Rule& rule)
      : boxes_(boxes), count_(count), rule_(rule), reach_(rule.reach()), grid_(count) {
    for (int64_t i = 0; i < count; ++i) grid_.insert(i, boxes[i], 0);
    std::vector<int32_t> seen(count, -1);
    starts_.reserve(count + 1);
    for (int64_t i = 0; i < count && listed_; ++i) {
      starts_.push_back(links_.size());
      search(i, seen, [&](int32_t id, T decay) { links_.push_back({id, decay}); });
      listed_ = links_.size() <= kMostLinks;
    }
    starts_.push_back(links_.size());
    if (!listed_) links_ = {};
  }

  // Calls `lower(id, decay)` once for every box that box `i` lowers. `seen`: scratch of this class,
  // -1 at first.
  template <typename Lower>
  void visit(int64_t i, std::vector<int32_t>& seen, const Lower& lower) const {
    if (!listed_) return search(i, seen, lower);
    for (size_t k = starts_[i]; k < starts_[i + 1]; ++k) lower(links_[k].id, links_[k].decay);
  }

 private:
  struct Link {
    int32_t id;
    T decay;
  };
  static constexpr size_t kMostLinks = size_t(1) << 24;  // 128 MiB of float32 links

  template <typename Lower>
  void search(int64_t i, std::vector<int32_t>& seen, const Lower& lower) const {
    const Box<T> box = boxes_[i];
    const T area = box.area();
    seen[i] = static_cast<int32_t>(i);
    grid_.any(box, 0, reach_, [&](int32_t id, const Box<T>& other, T other_area) {
      if (seen[id] == i) return false;
      seen[id] = static_cast<int32_t>(i);
      const T decay = rule_.decay(intersection(box, other), area, other_area);
      if (decay < 1) lower(id, decay);
      return false;
    });
  }

  const Box<T>* boxes_;
  int64_t count_;
  Rule rule_;
  Reach reach_;
  BoxGrid<T> grid_;
  bool listed_ = true;
  std::vector<size_t> starts_;
  std::vector<Link> links_;
};

// A score and its index as one integer: greater for a higher score, and for a lower index among
// equals. Sorting then compares once, without a branch on ties.
template <typename T>
struct Candidate {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  using Key = std::conditional_t<sizeof(T) == 4, uint64_t, unsigned __int128>;
  Key key;

  static Candidate of(T score, int64_t index) {
    const Bits bits = std::bit_cast<Bits>(score), sign = Bits(1) << (8 * sizeof(T) - 1);
    return {Key(bits & sign ? ~bits : bits | sign) << 32 | uint32_t(~uint32_t(index))};
  }
  int32_t index() const { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }
  bool operator<(const Candidate& other) const { return key < other.key; }
};

// Rescores one class in place. Candidates are upper bounds, since scores only fall: one that is out
// of date when its turn comes waits in a heap with the score it then has.
template <typename T>
void rescore(T* scores, int64_t count, const Neighbours<T>& neighbours, T min_score) {
  // The present scores of those not picked yet, 0 for all others: a pick then lowers whatever lies
  // near without asking which is which, a branch no processor could foretell.
  std::vector<T> waiting(count, 0);
  std::vector<Candidate<T>> sorted, lowered;
  sorted.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] > min_score) {
      waiting[i] = scores[i];
      sorted.push_back(Candidate<T>::of(scores[i], i));
    }
    scores[i] = 0;
  }
  if (sorted.empty()) return;
  std::sort(sorted.begin(), sorted.end());
  std::vector<int32_t> seen(count, -1);
  while (!sorted.empty() || !lowered.empty()) {
    Candidate<T> best;
    if (lowered.empty() || (!sorted.empty() && lowered.front() < sorted.back())) {
      best = sorted.back();
      sorted.pop_back();
    } else {
      best = lowered.front();
      std::pop_heap(lowered.begin(), lowered.end());
      lowered.pop_back();
    }
    const int32_t i = best.index();
    if (waiting[i] == 0) continue;
    const Candidate<T> present = Candidate<T>::of(waiting[i], i);
    if (present < best) {
      lowered.push_back(present);
      std::push_heap(lowered.begin(), lowered.end());
      continue;
    }
    scores[i] = std::exchange(waiting[i], T(0));
    neighbours.visit(i, seen, [&](int32_t id, T decay) {
      const T score = waiting[id] * decay;
      waiting[id] = score > min_score ? score : T(0);
    });
  }
}

template <typename T>
void run(const Tensor& boxes, Tensor& columns, const Rule& rule) {
  const int64_t count = boxes.size(0), classes = columns.size(0);
  const auto* rows = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  const Neighbours<T> neighbours(rows, count, rule);
  T* scores = columns.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, classes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      rescore(scores + c * count, count, neighbours, static_cast<T>(rule.min_score));
    }
  });
}

Tensor soft_nms(const Tensor& boxes, const Tensor& scores, bool gaussian, double iou_threshold,
                double sigma, double min_score) {
  STD_TORCH_CHECK(boxes.size(0) < std::numeric_limits<int32_t>::max(), "soft_nms: too many boxes");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(),
                  "soft_nms: boxes and scores differ in dtype");
  const Tensor rows = torch::stable::contiguous(boxes);
  // (C, D): a class is then one stretch of memory. clone() keeps strides, so copy into a fresh one.
  Tensor columns = torch::stable::new_empty(scores, {scores.size(1), scores.size(0)});
  torch::stable::copy_(columns, torch::stable::transpose(scores, 0, 1));
  const Rule rule{gaussian, iou_threshold, sigma, min_score};
  THO_DISPATCH_V2(rows.scalar_type(), "soft_nms", AT_WRAP([&] { run<scalar_t>(rows, columns, rule); }),
                  AT_FLOATING_TYPES);
  return torch::stable::contiguous(torch::stable::transpose(columns, 0, 1));
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CPU, m) { m.impl("soft_nms", TORCH_BOX(&d2det_ops::soft_nms)); }
