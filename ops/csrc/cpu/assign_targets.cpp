// Max-IoU assignment: each box asks a grid of the ground truths for those near enough to matter.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <mutex>
#include <tuple>

#include "assign_targets.h"
#include "cpu/box_grid.h"

namespace d2det_ops {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 4096;  // boxes a thread takes at least

template <typename T>
class Assigner {
 public:
  Assigner(const Box<T>* gts, int64_t count, double floor, double tie)
      : count_(count),
        floor_(static_cast<T>(floor)),
        tie_(static_cast<T>(tie)),
        reach_(Reach::of_iou(floor)),
        grid_(count) {
    for (int64_t g = 0; g < count; ++g) grid_.insert(g, gts[g], 0);
  }

  // Writes each box's best IoU and ground truth (the lower index of equals), 0 and -1 below the
  // floor, and returns the best IoU of each ground truth.
  std::vector<T> best(const Box<T>* boxes, int64_t count, T* iou, int64_t* index) const {
    std::vector<T> best_of_gt(count_, T(0));
    std::mutex merging;
    torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<T> best_here(count_, T(0));
      for (int64_t i = begin; i < end; ++i) {
        T highest = 0;
        int64_t winner = -1;
        for_each(boxes[i], [&](int32_t g, T value) {
          best_here[g] = std::max(best_here[g], value);
          if (value < highest || (value == highest && winner != -1 && g > winner)) return;
          highest = value;
          winner = g;
        });
        iou[i] = highest;
        index[i] = winner;
      }
      const std::lock_guard<std::mutex> lock(merging);
      for (int64_t g = 0; g < count_; ++g) best_of_gt[g] = std::max(best_of_gt[g], best_here[g]);
    });
    return best_of_gt;
  }

  // Writes for each box the last ground truth that has no better box and by `tie` a good one, or -1.
  void tied(const Box<T>* boxes, int64_t count, const T* iou, const std::vector<T>& best_of_gt,
            int64_t* last) const {
    torch::stable::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        last[i] = -1;
        if (!(iou[i] >= tie_)) continue;  // nor can any other of its overlaps be
        for_each(boxes[i], [&](int32_t g, T value) {
          if (value >= tie_ && value == best_of_gt[g]) last[i] = std::max<int64_t>(last[i], g);
        });
      }
    });
  }

 private:
  // Calls `visit(g, iou)` for every ground truth that overlaps `box` by at least the floor.
  template <typename Visit>
  void for_each(const Box<T>& box, const Visit& visit) const {
    const T area = box.area();
    grid_.any(box, 0, reach_, [&](int32_t g, const Box<T>& gt, T gt_area) {
      const T shared = intersection(box, gt);
      if (!(shared > 0)) return false;
      const T value = shared / (area + gt_area - shared);
      if (value > 0 && value >= floor_) visit(g, value);
      return false;
    });
  }

  int64_t count_;
  T floor_, tie_;
  Reach reach_;
  BoxGrid<T> grid_;
};

// One picture after the other.
template <typename T>
void run(const Tensor& boxes, const Tensor& gts, double floor, double tie, Overlaps& found) {
  const auto* rows = reinterpret_cast<const Box<T>*>(boxes.const_data_ptr<T>());
  const auto* objects = reinterpret_cast<const Box<T>*>(gts.const_data_ptr<T>());
  T* iou = found.iou.mutable_data_ptr<T>();
  auto *best = found.best.mutable_data_ptr<int64_t>(), *tied = found.tied.mutable_data_ptr<int64_t>();
  const int64_t count = boxes.size(-2), num_gts = gts.size(-2);
  for (int64_t start = 0; start < found.iou.numel(); start += count, objects += num_gts) {
    const Assigner<T> assigner(objects, num_gts, floor, tie);
    const std::vector<T> best_of_gt =
        assigner.best(rows + start, count, iou + start, best + start);
    assigner.tied(rows + start, count, iou + start, best_of_gt, tied + start);
  }
}

std::tuple<Tensor, Tensor, Tensor> assign_targets(const Tensor& boxes, const Tensor& gt_boxes,
                                                  double floor_iou, double tie_iou) {
  Overlaps found = new_overlaps(boxes, gt_boxes);
  const Tensor rows = torch::stable::contiguous(boxes), gts = torch::stable::contiguous(gt_boxes);
  THO_DISPATCH_V2(rows.scalar_type(), "assign_targets",
                  AT_WRAP([&] { run<scalar_t>(rows, gts, floor_iou, tie_iou, found); }),
                  AT_FLOATING_TYPES);
  return {found.iou, found.best, found.tied};
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CPU, m) {
  m.impl("assign_targets", TORCH_BOX(&d2det_ops::assign_targets));
}
