// Exact greedy suppression without an N x N mask. Boxes by falling score are taken in chunks, three
// launches each: compare the boxes of a chunk with one another, walk the chunk in order, and let
// what was kept suppress the boxes of all later chunks. Memory is O(N), comparisons are at most
// N * kept, and nothing is read back but the number of kept boxes, at the end. Many small groups go
// side by side instead: see group_nms.cuh.
#include <optional>

#include "cuda/group_nms.cuh"
#include "cuda/nms.cuh"
#include "cuda/sort.cuh"

namespace d2det_ops {
namespace {

constexpr int kChunk = 512;  // its pairs, one bit each, fill 32 KiB of shared memory
constexpr int kWords = Walk<kChunk>::kWords;
constexpr int kThreads = 256;

// All boxes by falling score; what a kernel of one chunk reads and writes.
template <typename T>
struct Candidates {
  int64_t count;
  Box<T>* boxes;         // (N,) sorted
  int64_t* groups;       // (N,)
  const int64_t* order;  // (N,) indices into the caller's boxes
  bool* suppressed;      // (N,)
  int64_t* kept;         // (N,) the result, filled from the front
  int64_t* num_kept;     // how far
  int64_t* chunk_kept;   // how many of them are of the chunk walked last
  unsigned* pairs;       // (kChunk, kWords): which later ones of its chunk a box would suppress
  int64_t max_keep;

  __device__ bool full() const { return *num_kept >= max_keep; }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sort_boxes(Candidates<T> all, const T* rows, const int64_t* groups) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i == 0) *all.num_kept = 0;
  if (i >= all.count) return;
  all.boxes[i] = load_box(rows, all.order[i]);
  all.groups[i] = groups == nullptr ? 0 : groups[all.order[i]];
  all.suppressed[i] = false;
}

// One thread a row and word of `pairs`.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    compare_in_chunk(Candidates<T> all, Rule<T> rule, int64_t start) {
  if (all.full()) return;
  const int index = blockIdx.x * kThreads + threadIdx.x, row = index % kChunk, word = index / kChunk;
  const int64_t i = start + row;
  unsigned bits = 0;
  if (i < all.count && !all.suppressed[i]) {
    const Box<T> box = all.boxes[i];
    const int64_t group = all.groups[i];
    for (int bit = 0; bit < 32; ++bit) {
      const int64_t j = start + word * 32 + bit;
      if (j <= i || j >= all.count) continue;
      bits |= static_cast<unsigned>(group == all.groups[j] && rule.suppresses(box, all.boxes[j])) << bit;
    }
  }
  all.pairs[row * kWords + word] = bits;
}

// One block: takes the chunk's boxes in order and appends what is kept to the result.
template <typename T>
__global__ void __launch_bounds__(kChunk) walk_chunk(Candidates<T> all, int64_t start) {
  auto& walk = *reinterpret_cast<Walk<kChunk>*>(d2det_shared);
  const int64_t before = *all.num_kept, i = start + threadIdx.x;
  if (before >= all.max_keep) return;
  for (int w = threadIdx.x; w < kChunk * kWords; w += kChunk) (&walk.pairs[0][0])[w] = all.pairs[w];
  const bool out = i >= all.count || all.suppressed[i];
  const unsigned bits = __ballot_sync(kAllLanes, out);
  if (threadIdx.x % kWarpSize == 0) walk.suppressed[threadIdx.x / kWarpSize] = bits;
  __syncthreads();
  if (threadIdx.x < kWarpSize) choose(walk, all.max_keep - before);
  __syncthreads();
  const int word = threadIdx.x / 32, bit = threadIdx.x % 32;
  int place = 0, total = 0;
  for (int w = 0; w < kWords; ++w) {
    if (w < word) place += __popc(walk.kept[w]);
    total += __popc(walk.kept[w]);
  }
  place += __popc(walk.kept[word] & ((1u << bit) - 1));
  if (walk.is_kept(threadIdx.x)) all.kept[before + place] = i;  // sorted numbers, for now
  if (threadIdx.x != 0) return;
  *all.num_kept = before + total;
  *all.chunk_kept = total;
}

template <typename T>
struct KeptBox {
  Box<T> box;
  int64_t group;
};

// Marks the boxes of later chunks that what the chunk kept suppresses; one thread a box.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    suppress_later(Candidates<T> all, Rule<T> rule, int64_t first) {
  if (all.full()) return;
  auto* kept = reinterpret_cast<KeptBox<T>*>(d2det_shared);
  const int count = static_cast<int>(*all.chunk_kept);
  const int64_t* of_chunk = all.kept + *all.num_kept - count;
  for (int k = threadIdx.x; k < count; k += kThreads) {
    kept[k] = {all.boxes[of_chunk[k]], all.groups[of_chunk[k]]};
  }
  __syncthreads();
  const int64_t j = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= all.count || all.suppressed[j]) return;
  const Box<T> box = all.boxes[j];
  const int64_t group = all.groups[j];
  for (int k = 0; k < count; ++k) {
    if (kept[k].group != group || !rule.suppresses(kept[k].box, box)) continue;
    all.suppressed[j] = true;
    return;
  }
}

template <typename T>
Tensor run(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
           double threshold, bool over_smaller, int64_t max_keep) {
  const Launcher launch(boxes);
  const int64_t count = boxes.size(0);
  const auto scratch = [&](int64_t bytes) {
    return torch::stable::new_empty(boxes, {bytes}, ScalarType::Byte);
  };
  const Rule<T> rule{rounded_down<T>(threshold), over_smaller};
  const SortedKeys by_score = sort_stable(scores, true);
  if (groups.has_value()) {
    const GroupedBoxes<T> grouped(launch, boxes, *groups, by_score.order);
    if (grouped.are_small()) return grouped.suppress(rule, max_keep < 0 ? count : max_keep);
  }
  const Tensor rows = scratch(count * sizeof(Box<T>)), suppressed = scratch(count);
  const Tensor pairs = scratch(sizeof(Walk<kChunk>::pairs));
  const Tensor group = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  const Tensor counters = torch::stable::new_empty(boxes, {2}, ScalarType::Long);
  Tensor kept = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  int64_t* counter = counters.mutable_data_ptr<int64_t>();
  const Candidates<T> all{count, static_cast<Box<T>*>(rows.mutable_data_ptr()),
                          group.mutable_data_ptr<int64_t>(),
                          by_score.order.const_data_ptr<int64_t>(),
                          static_cast<bool*>(suppressed.mutable_data_ptr()),
                          kept.mutable_data_ptr<int64_t>(), counter, counter + 1,
                          static_cast<unsigned*>(pairs.mutable_data_ptr()),
                          max_keep < 0 ? count : max_keep};
  launch(sort_boxes<T>, ceil_div(count, kThreads), kThreads, 0, all, boxes.const_data_ptr<T>(),
         groups.has_value() ? groups->const_data_ptr<int64_t>() : nullptr);
  for (int64_t start = 0; start < count; start += kChunk) {
    launch(compare_in_chunk<T>, kChunk * kWords / kThreads, kThreads, 0, all, rule, start);
    launch(walk_chunk<T>, 1, kChunk, sizeof(Walk<kChunk>), all, start);
    const int64_t later = count - start - kChunk;
    if (later <= 0) break;
    launch(suppress_later<T>, ceil_div(later, kThreads), kThreads, kChunk * sizeof(KeptBox<T>), all,
           rule, start + kChunk);
  }
  const int64_t num_kept = launch.read(all.num_kept);
  return picked(launch, by_score.order, torch::stable::narrow(kept, 0, 0, num_kept));
}

Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups,
           double threshold, bool over_smaller, int64_t max_keep) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 1 &&
                      scores.size(0) == boxes.size(0),
                  "nms: boxes must be (N, 4) and scores (N,)");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(), "nms: boxes and scores differ in dtype");
  check_device(boxes, scores, "nms", "scores");
  std::optional<Tensor> group;
  if (groups.has_value()) {
    STD_TORCH_CHECK(groups->dim() == 1 && groups->size(0) == boxes.size(0), "nms: groups must be (N,)");
    check_device(boxes, *groups, "nms", "groups");
    group = contiguous_as(*groups, ScalarType::Long);
  }
  if (boxes.size(0) == 0) return torch::stable::new_empty(boxes, {0}, ScalarType::Long);
  const Tensor rows = torch::stable::contiguous(boxes), values = torch::stable::contiguous(scores);
  if (boxes.scalar_type() == ScalarType::Double) {
    return run<double>(rows, values, group, threshold, over_smaller, max_keep);
  }
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float, "nms takes float32 or float64 boxes");
  return run<float>(rows, values, group, threshold, over_smaller, max_keep);
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) { m.impl("nms", TORCH_BOX(&d2det_ops::nms)); }
