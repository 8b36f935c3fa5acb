// What both ways of suppression share: the rule, and the greedy choice within a chunk of boxes.
#pragma once

#include "cuda/boxes.cuh"

namespace d2det_ops {

template <typename T>
struct Rule {
  T threshold;
  bool over_smaller;

  __device__ bool suppresses(const Box<T>& kept, const Box<T>& box) const {
    const T shared = intersection(kept, box);
    if (!(shared > 0)) return false;
    const T kept_area = kept.area(), area = box.area();
    const T whole = over_smaller ? lower(kept_area, area) : kept_area + area - shared;
    return shared / whole > threshold;
  }
};

// Of a chunk of boxes, bit by bit: which later ones a box would suppress, which are suppressed, and
// which are kept.
template <int kChunk>
struct Walk {
  static constexpr int kWords = kChunk / 32;

  unsigned pairs[kChunk][kWords];
  unsigned suppressed[kWords], kept[kWords];

  __device__ bool is_kept(int box) const { return kept[box / 32] >> (box % 32) & 1; }
};

// Greedy choice of at most `room` boxes by one warp; lane w has the bits of word w.
template <int kChunk>
__device__ void choose(Walk<kChunk>& walk, int64_t room) {
  constexpr int kWords = Walk<kChunk>::kWords;
  const int lane = threadIdx.x;
  unsigned suppressed = lane < kWords ? walk.suppressed[lane] : ~0u, kept = 0;
  for (int word = 0; word < kWords; ++word) {
    unsigned left = ~0u;  // bits of this word not walked yet
    while (room > 0) {
      const unsigned open = left & ~__shfl_sync(kAllLanes, suppressed, word);
      if (open == 0) break;
      const int bit = __ffs(static_cast<int>(open)) - 1;
      left = bit == 31 ? 0 : ~0u << (bit + 1);
      if (lane == word) kept |= 1u << bit;
      if (lane < kWords) suppressed |= walk.pairs[word * 32 + bit][lane];
      --room;
    }
  }
  if (lane < kWords) walk.kept[lane] = kept;
}

constexpr int kPickThreads = 256;

static __global__ void __launch_bounds__(kPickThreads)
    pick(const int64_t* values, const int64_t* index, int64_t* to, int64_t count) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kPickThreads + threadIdx.x;
  if (k < count) to[k] = values[index[k]];
}

// values[index], both int64 vectors.
inline Tensor picked(const Launcher& launch, const Tensor& values, const Tensor& index) {
  const int64_t count = index.size(0);
  Tensor result = torch::stable::new_empty(index, {count});
  launch(pick, ceil_div(count, kPickThreads), kPickThreads, 0, values.const_data_ptr<int64_t>(),
         index.const_data_ptr<int64_t>(), result.mutable_data_ptr<int64_t>(), count);
  return result;
}

}  // namespace d2det_ops
