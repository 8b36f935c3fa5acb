// Max-IoU assignment, the pictures of a batch side by side. One thread a box; the ground truths of
// its picture pass through shared memory. Overlaps are computed twice rather than kept: the best box
// of a ground truth is known only when all have been seen. Nothing is read back.
#include <tuple>

#include "cuda/boxes.cuh"  // before others that include torch, as it declares the CUDA half
#include "assign_targets.h"

namespace d2det_ops {
namespace {

constexpr int kThreads = 256;  // of a block, and ground truths that it holds at a time

template <typename T>
struct Batch {
  int64_t num_boxes, num_gts;  // A and G of each picture
  const T* boxes;              // (N, A, 4)
  const T* gts;                // (N, G, 4)
  T floor, tie;
  T* best_of_gt;  // (N, G)
  T* iou;         // (N, A), as the two below
  int64_t* best;
  int64_t* tied;

  __host__ __device__ int64_t blocks_of_picture() const {
    return (num_boxes + kThreads - 1) / kThreads;
  }
};

// Raises a value that is not negative: such numbers are ordered as their bits are.
__device__ void raise(float* to, float value) {
  atomicMax(reinterpret_cast<int*>(to), __float_as_int(value));
}

__device__ void raise(double* to, double value) {
  atomicMax(reinterpret_cast<long long*>(to), __double_as_longlong(value));
}

// Where a thread stands.
template <typename T>
struct Place {
  int64_t picture, row;
  bool is_box;  // and not beyond the last
  Box<T> box;

  __device__ explicit Place(const Batch<T>& batch)
      : picture(blockIdx.x / batch.blocks_of_picture()),
        row(blockIdx.x % batch.blocks_of_picture() * kThreads + threadIdx.x),
        is_box(row < batch.num_boxes),
        box(is_box ? load_box(batch.boxes, index(batch)) : Box<T>{}) {}

  __device__ int64_t index(const Batch<T>& batch) const { return picture * batch.num_boxes + row; }
};

// Calls `visit(g, iou)`, g rising, for every ground truth of the picture that overlaps the box by at
// least the floor; only in threads that are `active`, but all threads of the block must come here.
template <typename T, typename Visit>
__device__ void for_each(const Batch<T>& batch, const Place<T>& place, bool active,
                         const Visit& visit) {
  auto* gts = reinterpret_cast<Box<T>*>(d2det_shared);
  const T area = place.box.area();
  for (int64_t start = 0; start < batch.num_gts; start += kThreads) {
    const int64_t left = batch.num_gts - start;
    const int count = left < kThreads ? static_cast<int>(left) : kThreads;
    const int mine = threadIdx.x;
    if (mine < count) gts[mine] = load_box(batch.gts, place.picture * batch.num_gts + start + mine);
    __syncthreads();
    for (int g = 0; active && g < count; ++g) {
      const T shared = intersection(place.box, gts[g]);
      if (!(shared > 0)) continue;
      const T iou = shared / (area + gts[g].area() - shared);
      if (iou > 0 && iou >= batch.floor) visit(start + g, iou);
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) find_best(Batch<T> batch) {
  const Place<T> place(batch);
  T highest = 0;
  int64_t winner = -1;
  for_each(batch, place, place.is_box, [&](int64_t g, T iou) {
    raise(batch.best_of_gt + place.picture * batch.num_gts + g, iou);
    if (!(iou > highest)) return;
    highest = iou;
    winner = g;
  });
  if (!place.is_box) return;
  batch.iou[place.index(batch)] = highest;
  batch.best[place.index(batch)] = winner;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) find_tied(Batch<T> batch) {
  const Place<T> place(batch);
  // Where the best overlap is too small for a tie, all are.
  const bool active = place.is_box && batch.iou[place.index(batch)] >= batch.tie;
  int64_t last = -1;
  for_each(batch, place, active, [&](int64_t g, T iou) {
    if (iou >= batch.tie && iou == batch.best_of_gt[place.picture * batch.num_gts + g]) last = g;
  });
  if (place.is_box) batch.tied[place.index(batch)] = last;
}

template <typename T>
void run(const Tensor& boxes, const Tensor& gts, double floor, double tie, Overlaps& found) {
  const Launcher launch(boxes);
  const int64_t num_boxes = boxes.size(-2);
  Tensor best_of_gt = torch::stable::new_zeros(gts, {gts.numel() / 4});
  const Batch<T> batch{num_boxes,
                       gts.size(-2),
                       boxes.const_data_ptr<T>(),
                       gts.const_data_ptr<T>(),
                       static_cast<T>(floor),
                       static_cast<T>(tie),
                       best_of_gt.mutable_data_ptr<T>(),
                       found.iou.mutable_data_ptr<T>(),
                       found.best.mutable_data_ptr<int64_t>(),
                       found.tied.mutable_data_ptr<int64_t>()};
  const int64_t pictures = num_boxes == 0 ? 0 : found.iou.numel() / num_boxes;
  const int64_t blocks = pictures * batch.blocks_of_picture();
  launch(find_best<T>, blocks, kThreads, kThreads * sizeof(Box<T>), batch);
  launch(find_tied<T>, blocks, kThreads, kThreads * sizeof(Box<T>), batch);
}

std::tuple<Tensor, Tensor, Tensor> assign_targets(const Tensor& boxes, const Tensor& gt_boxes,
                                                  double floor_iou, double tie_iou) {
  check_device(boxes, gt_boxes, "assign_targets", "gt_boxes");
  Overlaps found = new_overlaps(boxes, gt_boxes);
  const Tensor rows = torch::stable::contiguous(boxes), gts = torch::stable::contiguous(gt_boxes);
  if (rows.scalar_type() == ScalarType::Double) {
    run<double>(rows, gts, floor_iou, tie_iou, found);
  } else {
    STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Float,
                    "assign_targets takes float32 or float64 boxes");
    run<float>(rows, gts, floor_iou, tie_iou, found);
  }
  return {found.iou, found.best, found.tied};
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) {
  m.impl("assign_targets", TORCH_BOX(&d2det_ops::assign_targets));
}
