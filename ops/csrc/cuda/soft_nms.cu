// Soft suppression, one block a class: every round picks the best score that is left and lowers
// those it overlaps, while the next best is sought in the same walk. O(candidates^2) a class, the
// classes side by side; results do not depend on the order in which threads meet.
#include "cuda/boxes.cuh"

namespace d2det_ops {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

template <typename T>
struct Rule {
  bool gaussian;
  T iou_threshold, sigma, min_score;

  // The factor by which a box lowers another; 1 where it does not.
  __device__ T decay(const Box<T>& picked, const Box<T>& other) const {
    const T shared = intersection(picked, other);
    if (!(shared > 0)) return 1;
    const T iou = shared / (picked.area() + other.area() - shared);
    if (gaussian) return iou > 0 ? std::exp(-(iou * iou) / sigma) : T(1);
    return iou > iou_threshold ? 1 - iou : T(1);
  }
};

// A candidate: its score, its box, and its place in the class's list.
template <typename T>
struct Best {
  T score;
  int index, place;

  __device__ bool operator<(const Best& other) const {
    return score != other.score ? score < other.score : index > other.index;
  }
};

template <typename T>
struct Round {
  Best<T> of_warp[kWarps];
  int count;
};

// The best of the block's candidates, in all threads; score 0 when there is none.
template <typename T>
__device__ Best<T> best_of_block(Best<T> best, Round<T>& round) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const Best<T> other{__shfl_xor_sync(kAllLanes, best.score, step),
                        __shfl_xor_sync(kAllLanes, best.index, step),
                        __shfl_xor_sync(kAllLanes, best.place, step)};
    if (best < other) best = other;
  }
  if (lane == 0) round.of_warp[warp] = best;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    if (best < round.of_warp[w]) best = round.of_warp[w];
  }
  __syncthreads();  // all have read before the next round writes
  return best;
}

// scores: (C, D), rescored in place. left, names: (C, D) scratch, the scores and box numbers of the
// candidates of each class; a score of 0 is no longer in play.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    rescore(const T* boxes, T* scores, T* left, int* names, int64_t count, Rule<T> rule) {
  auto& round = *reinterpret_cast<Round<T>*>(d2det_shared);
  scores += blockIdx.x * count;
  left += blockIdx.x * count;
  names += blockIdx.x * count;
  if (threadIdx.x == 0) round.count = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const T score = scores[i];
    scores[i] = 0;
    if (!(score > rule.min_score)) continue;
    const int place = atomicAdd(&round.count, 1);
    left[place] = score;
    names[place] = static_cast<int>(i);
  }
  __syncthreads();
  const int candidates = round.count;
  Best<T> best{0, INT_MAX, 0};
  for (int k = threadIdx.x; k < candidates; k += kThreads) {
    const Best<T> one{left[k], names[k], k};
    if (best < one) best = one;
  }
  for (best = best_of_block(best, round); best.score > 0; best = best_of_block(best, round)) {
    const Box<T> picked = load_box(boxes, best.index);
    const Best<T> pick = best;
    best = {0, INT_MAX, 0};
    for (int k = threadIdx.x; k < candidates; k += kThreads) {
      T score = left[k];
      if (score == 0) continue;
      if (k == pick.place) {
        scores[pick.index] = score;
        left[k] = 0;
        continue;
      }
      const T decay = rule.decay(picked, load_box(boxes, names[k]));
      if (decay < 1) {
        const T lowered = score * decay;
        left[k] = score = lowered > rule.min_score ? lowered : T(0);
      }
      const Best<T> one{score, names[k], k};
      if (score > 0 && best < one) best = one;
    }
  }
}

template <typename T>
void run(const Tensor& boxes, const Tensor& columns, bool gaussian, double iou_threshold,
         double sigma, double min_score) {
  const Launcher launch(boxes);
  const int64_t classes = columns.size(0), count = columns.size(1);
  const Tensor left = torch::stable::new_empty(columns, {classes, count});
  const Tensor names = torch::stable::new_empty(columns, {classes, count}, ScalarType::Int);
  const Rule<T> rule{gaussian, rounded_down<T>(iou_threshold), static_cast<T>(sigma),
                     rounded_down<T>(min_score)};
  launch(rescore<T>, classes, kThreads, sizeof(Round<T>), boxes.const_data_ptr<T>(),
         columns.mutable_data_ptr<T>(), left.mutable_data_ptr<T>(),
         names.mutable_data_ptr<int32_t>(), count, rule);
}

Tensor soft_nms(const Tensor& boxes, const Tensor& scores, bool gaussian, double iou_threshold,
                double sigma, double min_score) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 2 &&
                      scores.size(0) == boxes.size(0) && boxes.size(0) < INT_MAX,
                  "soft_nms: boxes must be (D, 4) and scores (D, C)");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(),
                  "soft_nms: boxes and scores differ in dtype");
  check_device(boxes, scores, "soft_nms", "scores");
  const Tensor rows = torch::stable::contiguous(boxes);
  // (C, D): a class is then one stretch of memory. clone() keeps strides, so copy into a fresh one.
  Tensor columns = torch::stable::new_empty(scores, {scores.size(1), scores.size(0)});
  torch::stable::copy_(columns, torch::stable::transpose(scores, 0, 1));
  if (columns.numel() > 0) {
    if (boxes.scalar_type() == ScalarType::Double) {
      run<double>(rows, columns, gaussian, iou_threshold, sigma, min_score);
    } else {
      STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float,
                      "soft_nms takes float32 or float64 boxes");
      run<float>(rows, columns, gaussian, iou_threshold, sigma, min_score);
    }
  }
  return torch::stable::contiguous(torch::stable::transpose(columns, 0, 1));
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) { m.impl("soft_nms", TORCH_BOX(&d2det_ops::soft_nms)); }
