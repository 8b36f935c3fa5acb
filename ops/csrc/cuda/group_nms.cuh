// Exact greedy suppression of many small groups side by side: a block takes one group, and its boxes
// by falling score in chunks, as nms.cu takes all boxes. Sorted, all groups take two launches; what
// is read back is how large they are, and how many boxes are kept.
#pragma once

#include "cuda/nms.cuh"
#include "cuda/sort.cuh"

namespace d2det_ops {

constexpr int kGroupChunk = 256;             // boxes a block looks at together, and its threads
constexpr int64_t kMaxGroupBoxes = 1 << 13;  // above, one block alone would be too slow

struct GroupSizes {
  unsigned long long count, longest;
};

// Boxes sorted by group, and by falling score within one.
template <typename T>
struct GroupRows {
  int64_t count;
  const int64_t* groups;    // (N,) ascending
  const int64_t* by_group;  // (N,) places in the order of scores
  Box<T>* boxes;            // (N,)
  bool* suppressed;         // (N,)
  int64_t* starts;          // (N,) first rows of the groups, filled from the front
  int64_t* ends;            // (N,) behind the last rows, likewise
  bool* kept;               // (N,) the result, in the order of scores
  GroupSizes* sizes;
};

// The first row at or behind `from` whose group is not that of `from`.
template <typename T>
__device__ int64_t end_of_group(const GroupRows<T>& rows, int64_t from) {
  int64_t inside = from, outside = rows.count;
  while (outside - inside > 1) {
    const int64_t middle = inside + (outside - inside) / 2;
    (rows.groups[middle] == rows.groups[from] ? inside : outside) = middle;
  }
  return outside;
}

// One thread a row. Groups are listed as threads come: each is then suppressed for itself.
template <typename T>
__global__ void __launch_bounds__(kGroupChunk)
    list_groups(GroupRows<T> rows, const T* boxes, const int64_t* by_score) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGroupChunk + threadIdx.x;
  if (i >= rows.count) return;
  rows.boxes[i] = load_box(boxes, by_score[rows.by_group[i]]);
  rows.suppressed[i] = false;
  if (i > 0 && rows.groups[i] == rows.groups[i - 1]) return;
  const int64_t end = end_of_group(rows, i);
  const auto place = atomicAdd(&rows.sizes->count, 1ull);
  rows.starts[place] = i;
  rows.ends[place] = end;
  atomicMax(&rows.sizes->longest, static_cast<unsigned long long>(end - i));
}

// What a block keeps at hand of the chunk it is at.
template <typename T>
struct GroupChunk {
  Box<T> boxes[kGroupChunk];
  Walk<kGroupChunk> walk;
};

// Fills in which boxes of the chunk at `first` are suppressed, and which would suppress which.
template <typename T>
__device__ void compare(GroupChunk<T>& chunk, const GroupRows<T>& rows, const Rule<T>& rule,
                        int64_t first, int64_t end) {
  const int mine = threadIdx.x;
  const int64_t i = first + mine;
  const bool out = i >= end || rows.suppressed[i];
  chunk.boxes[mine] = i < end ? rows.boxes[i] : Box<T>{};
  const unsigned outs = __ballot_sync(kAllLanes, out);
  if (mine % kWarpSize == 0) chunk.walk.suppressed[mine / kWarpSize] = outs;
  __syncthreads();
  const int count = end - first < kGroupChunk ? static_cast<int>(end - first) : kGroupChunk;
  for (int word = 0; word < Walk<kGroupChunk>::kWords; ++word) {
    unsigned bits = 0;
    for (int bit = 0; bit < 32; ++bit) {
      const int other = word * 32 + bit;
      if (out || other <= mine || other >= count) continue;
      bits |= static_cast<unsigned>(rule.suppresses(chunk.boxes[mine], chunk.boxes[other])) << bit;
    }
    chunk.walk.pairs[mine][word] = bits;
  }
  __syncthreads();
}

// Whether a kept box of the chunk suppresses `box`.
template <typename T>
__device__ bool is_suppressed_by(const GroupChunk<T>& chunk, const Rule<T>& rule, const Box<T>& box) {
  for (int word = 0; word < Walk<kGroupChunk>::kWords; ++word) {
    for (unsigned left = chunk.walk.kept[word]; left != 0; left &= left - 1) {
      const int kept = word * 32 + __ffs(static_cast<int>(left)) - 1;
      if (rule.suppresses(chunk.boxes[kept], box)) return true;
    }
  }
  return false;
}

template <typename T>
__global__ void __launch_bounds__(kGroupChunk) suppress_groups(GroupRows<T> rows, Rule<T> rule) {
  auto& chunk = *reinterpret_cast<GroupChunk<T>*>(d2det_shared);
  const int64_t end = rows.ends[blockIdx.x];
  for (int64_t first = rows.starts[blockIdx.x]; first < end; first += kGroupChunk) {
    compare(chunk, rows, rule, first, end);
    if (threadIdx.x < kWarpSize) choose(chunk.walk, kGroupChunk);
    __syncthreads();
    const int64_t i = first + threadIdx.x;
    if (i < end) rows.kept[rows.by_group[i]] = chunk.walk.is_kept(threadIdx.x);
    for (int64_t later = i + kGroupChunk; later < end; later += kGroupChunk) {
      if (!rows.suppressed[later] && is_suppressed_by(chunk, rule, rows.boxes[later])) {
        rows.suppressed[later] = true;
      }
    }
    __syncthreads();
  }
}

template <typename T>
class GroupedBoxes {
 public:
  // boxes: (N, 4), groups: (N,) int64, by_score: (N,) boxes by falling score; contiguous.
  GroupedBoxes(const Launcher& launch, const Tensor& boxes, const Tensor& groups,
               const Tensor& by_score)
      : launch_(launch),
        by_score_(by_score),
        by_group_(sort_stable(picked(launch, groups, by_score), false)),
        boxes_(bytes(boxes.size(0) * sizeof(Box<T>))),
        flags_(bytes(boxes.size(0))),
        kept_(torch::stable::new_empty(boxes, {boxes.size(0)}, ScalarType::Bool)),
        bounds_(torch::stable::new_empty(by_score, {2 * boxes.size(0)})),
        sizes_(torch::stable::new_zeros(by_score, {2})),
        rows_{boxes.size(0),
              by_group_.keys.template const_data_ptr<int64_t>(),
              by_group_.order.template const_data_ptr<int64_t>(),
              static_cast<Box<T>*>(boxes_.mutable_data_ptr()),
              static_cast<bool*>(flags_.mutable_data_ptr()),
              bounds_.template mutable_data_ptr<int64_t>(),
              bounds_.template mutable_data_ptr<int64_t>() + boxes.size(0),
              kept_.template mutable_data_ptr<bool>(),
              static_cast<GroupSizes*>(sizes_.mutable_data_ptr())} {
    launch(list_groups<T>, ceil_div(rows_.count, kGroupChunk), kGroupChunk, 0, rows_,
           boxes.const_data_ptr<T>(), by_score.const_data_ptr<int64_t>());
    read_ = launch.read(rows_.sizes);
  }

  bool are_small() const { return read_.longest <= kMaxGroupBoxes; }

  // The kept boxes by falling score, at most `max_keep`.
  Tensor suppress(const Rule<T>& rule, int64_t max_keep) const {
    launch_(suppress_groups<T>, static_cast<int64_t>(read_.count), kGroupChunk,
            sizeof(GroupChunk<T>), rows_, rule);
    Tensor places = places_of(kept_);
    const int64_t count = places.size(0) < max_keep ? places.size(0) : max_keep;
    return picked(launch_, by_score_, torch::stable::narrow(places, 0, 0, count));
  }

 private:
  Tensor bytes(int64_t count) const {
    return torch::stable::new_empty(by_score_, {count}, ScalarType::Byte);
  }

  // Where a vector of bool is true, ascending; torch's own, which has no wrapper yet.
  static Tensor places_of(const Tensor& flags) {
    std::array<StableIValue, 1> stack{torch::stable::detail::from(flags)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::nonzero", "", stack.data(), TORCH_ABI_VERSION));
    const Tensor column = torch::stable::detail::to<Tensor>(stack[0]);  // (K, 1)
    return torch::stable::flatten(column, 0, 1);
  }

  const Launcher& launch_;
  Tensor by_score_;
  SortedKeys by_group_;
  Tensor boxes_, flags_, kept_, bounds_, sizes_;
  GroupRows<T> rows_;
  GroupSizes read_{};
};

}  // namespace d2det_ops
