// Mask grids straight to COCO run lengths. An edge is a pixel that differs from the one before it in
// column-major order; the counts are the distances between edges. A warp has a stretch of a mask's
// columns and finds the edges of 32 pixels with one ballot. Edges are found twice, once to count
// them and once to write them; then every count is measured in characters and written. The sizes
// of both lists are data, so the host waits twice.
#include <array>
#include <optional>
#include <tuple>

#include "cuda/mask_grid.cuh"

namespace d2det_ops {
namespace {

constexpr int kWarps = 8;          // of a block
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kParts = 64;         // warps a mask
constexpr int64_t kMaxCells = 1024;  // a side: a column of the grid fits in shared memory

struct Scene {
  const float* grids;  // (D, cells, cells)
  const float* boxes;  // (D, 4)
  int cells;
  int64_t height, width, x, y;  // of the scene; of the window in it
  float threshold;
  bool released;

  __device__ MaskAxis axis(int64_t mask, int which) const {
    const float* box = boxes + mask * 4 + which;
    const auto shift = static_cast<double>(which == 0 ? x : y);
    return MaskAxis(cells, box[0] + shift, box[2] + shift, which == 0 ? width : height, released);
  }
};

// One mask as a warp walks over it.
struct MaskWalk {
  const Scene& scene;
  const float* grid;
  MaskAxis across, down;
  float* rows;  // (cells,) in shared memory: the grid's rows, interpolated at the column
  bool wraps;   // from the last pixel of a column the walk goes on in the next

  __device__ MaskWalk(const Scene& scene, int64_t mask, float* rows)
      : scene(scene),
        grid(scene.grids + mask * scene.cells * scene.cells),
        across(scene.axis(mask, 0)),
        down(scene.axis(mask, 1)),
        rows(rows),
        wraps(down.first == 0 && down.count == scene.height) {}

  __device__ float row_at(const Tap& column, int row) const {
    const float* cells = grid + row * scene.cells;
    return cells[column.low] * column.low_weight + cells[column.high] * column.high_weight;
  }

  // Whether the last pixel of the column before `column` is set, where it adjoins this one's first.
  __device__ bool set_before(int64_t column) const {
    if (!wraps || column == 0) return false;
    const Tap tap = across.tap(column - 1), last = down.tap(down.count - 1);
    return row_at(tap, last.low) * last.low_weight + row_at(tap, last.high) * last.high_weight >
           scene.threshold;
  }

  // Calls emit(lanes, position) for 32 pixels at a time: the lanes that are at an edge, and this
  // lane's position in the scene.
  template <typename Emit>
  __device__ void edges_of(int64_t column, const Emit& emit) {
    const int lane = threadIdx.x % kWarpSize;
    const Tap tap = across.tap(column);
    __syncwarp();  // the column before has been read
    for (int r = lane; r < scene.cells; r += kWarpSize) rows[r] = row_at(tap, r);
    __syncwarp();
    const int64_t top = (across.first + column) * scene.height + down.first;
    // A run down to the scene's last row goes on in the next column, or ends with the scene.
    const bool closes = top + down.count < scene.height * scene.width &&
                        !(wraps && column + 1 < across.count);
    unsigned before = set_before(column) ? 1 : 0;
    for (int64_t start = 0; start <= down.count; start += kWarpSize) {
      const int64_t row = start + lane;
      bool set = false;
      if (row < down.count) {
        const Tap at = down.tap(row);
        set = rows[at.low] * at.low_weight + rows[at.high] * at.high_weight > scene.threshold;
      }
      const unsigned bits = __ballot_sync(kAllLanes, set);
      const bool differs = (bits ^ (bits << 1 | before)) >> lane & 1;
      const bool exists = row < down.count || (row == down.count && closes);
      emit(__ballot_sync(kAllLanes, differs && exists), top + row);
      before = bits >> 31;
    }
  }

  // The same for all columns of one of the kParts stretches.
  template <typename Emit>
  __device__ void edges_of_part(int64_t part, const Emit& emit) {
    if (down.count <= 0) return;
    const int64_t last = across.count * (part + 1) / kParts;
    for (int64_t c = across.count * part / kParts; c < last; ++c) edges_of(c, emit);
  }
};

__device__ float* rows_of_warp(int cells) {
  return reinterpret_cast<float*>(d2det_shared) + threadIdx.x / kWarpSize * cells;
}

// Number of edges in each part of each mask.
__global__ void __launch_bounds__(kThreads) count_edges(Scene scene, int64_t* counts) {
  const int64_t part = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  MaskWalk walk(scene, part / kParts, rows_of_warp(scene.cells));
  int64_t count = 0;
  walk.edges_of_part(part % kParts, [&](unsigned lanes, int64_t) { count += __popc(lanes); });
  if (threadIdx.x % kWarpSize == 0) counts[part] = count;
}

// The edges themselves, in order; part p's end at ends[p].
__global__ void __launch_bounds__(kThreads)
    write_edges(Scene scene, const int64_t* counts, const int64_t* ends, int64_t* edges) {
  const int64_t part = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (counts[part] == 0) return;
  const int lane = threadIdx.x % kWarpSize;
  MaskWalk walk(scene, part / kParts, rows_of_warp(scene.cells));
  int64_t* next = edges + ends[part] - counts[part];
  walk.edges_of_part(part % kParts, [&](unsigned lanes, int64_t position) {
    if (lanes >> lane & 1) next[__popc(lanes & ((1u << lane) - 1))] = position;
    next += __popc(lanes);
  });
}

// All counts of all masks in one list: a mask has one more than it has edges.
struct Counts {
  const int64_t* edges;
  const int64_t* ends;  // of each part's edges
  int64_t masks, pixels;

  __device__ int64_t first_edge(int64_t mask) const { return mask == 0 ? 0 : ends[mask * kParts - 1]; }
  __device__ int64_t first(int64_t mask) const { return first_edge(mask) + mask; }

  // The mask that entry `k` of the list belongs to.
  __device__ int64_t mask_of(int64_t k) const {
    int64_t low = 0, high = masks;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first(middle) <= k ? low : high) = middle;
    }
    return low;
  }

  // What is written for entry `k`: from a mask's fourth count on, the difference to the one two
  // before.
  __device__ int64_t value(int64_t k, int64_t mask) const {
    const int64_t i = k - first(mask);
    const int64_t count = edge(mask, i) - edge(mask, i - 1);
    return i > 2 ? count - (edge(mask, i - 2) - edge(mask, i - 3)) : count;
  }

 private:
  // Edge `i` of a mask, with the scene's first pixel before the first and its end after the last.
  __device__ int64_t edge(int64_t mask, int64_t i) const {
    if (i < 0) return 0;
    const int64_t at = first_edge(mask) + i;
    return at < first_edge(mask + 1) ? edges[at] : pixels;
  }
};

// Calls put(i, character) for each character of a value: five bits each, lowest first, bit 5 set when
// more follow.
template <typename Put>
__device__ void each_character(int64_t value, const Put& put) {
  bool more = true;
  for (int i = 0; more; ++i) {
    const int digit = static_cast<int>(value & 31);
    value >>= 5;
    more = value != (digit & 16 ? -1 : 0);
    put(i, static_cast<uint8_t>((more ? digit | 32 : digit) + 48));
  }
}

__global__ void __launch_bounds__(kThreads)
    measure_counts(Counts counts, int64_t number, int64_t* lengths) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= number) return;
  int64_t length = 0;
  each_character(counts.value(k, counts.mask_of(k)), [&](int, uint8_t) { ++length; });
  lengths[k] = length;
}

// The text of all masks, and where each mask's ends; entry k's ends at ends[k].
__global__ void __launch_bounds__(kThreads)
    write_counts(Counts counts, int64_t number, const int64_t* lengths, const int64_t* ends,
                 uint8_t* text, int64_t* offsets) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= number) return;
  const int64_t mask = counts.mask_of(k);
  uint8_t* to = text + ends[k] - lengths[k];
  each_character(counts.value(k, mask), [&](int i, uint8_t character) { to[i] = character; });
  if (k == 0) offsets[0] = 0;
  if (k + 1 == counts.first(mask + 1)) offsets[mask + 1] = ends[k];
}

Tensor cumulated(const Tensor& values) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(values),
                                    torch::stable::detail::from(int64_t(0)),
                                    torch::stable::detail::from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

std::tuple<Tensor, Tensor> encode(const Tensor& like, const Scene& scene, int64_t masks) {
  const Launcher launch(like);
  const auto longs = [&](int64_t count) {
    return torch::stable::new_empty(like, {count}, ScalarType::Long);
  };
  const int64_t parts = masks * kParts;
  const size_t shared_bytes = kWarps * scene.cells * sizeof(float);
  const Tensor in_part = longs(parts);
  int64_t* part_counts = in_part.mutable_data_ptr<int64_t>();
  launch(count_edges, parts / kWarps, kThreads, shared_bytes, scene, part_counts);
  const Tensor part_ends = cumulated(in_part);
  const int64_t* ends = part_ends.const_data_ptr<int64_t>();
  const int64_t num_edges = launch.read(ends + parts - 1), number = num_edges + masks;
  const Tensor edges = longs(num_edges);
  launch(write_edges, parts / kWarps, kThreads, shared_bytes, scene, part_counts, ends,
         edges.mutable_data_ptr<int64_t>());

  const Counts counts{edges.const_data_ptr<int64_t>(), ends, masks, scene.height * scene.width};
  const Tensor lengths = longs(number);
  const int64_t blocks = ceil_div(number, kThreads);
  launch(measure_counts, blocks, kThreads, 0, counts, number, lengths.mutable_data_ptr<int64_t>());
  const Tensor text_ends = cumulated(lengths);
  const int64_t* text_end = text_ends.const_data_ptr<int64_t>();
  const Tensor text =
      torch::stable::new_empty(like, {launch.read(text_end + number - 1)}, ScalarType::Byte);
  const Tensor offsets = longs(masks + 1);
  launch(write_counts, blocks, kThreads, 0, counts, number, lengths.const_data_ptr<int64_t>(),
         text_end, text.mutable_data_ptr<uint8_t>(), offsets.mutable_data_ptr<int64_t>());
  return {text, offsets};
}

std::tuple<Tensor, Tensor> masks_to_rle(const Tensor& masks, const Tensor& boxes, int64_t height,
                                        int64_t width, int64_t x, int64_t y, double threshold,
                                        bool released) {
  STD_TORCH_CHECK(masks.dim() == 3 && masks.size(1) == masks.size(2) && masks.size(1) >= 1 &&
                      masks.size(1) <= kMaxCells,
                  "masks_to_rle: masks must be (D, M, M) with M up to ", kMaxCells);
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4,
                  "masks_to_rle: boxes must be (D, 4)");
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT_MAX && width <= INT_MAX,
                  "masks_to_rle: a scene of ", height, " x ", width);
  check_device(masks, boxes, "masks_to_rle", "boxes");
  if (masks.size(0) == 0) {
    return {torch::stable::new_empty(masks, {0}, ScalarType::Byte),
            torch::stable::new_zeros(masks, {1}, ScalarType::Long)};
  }
  const Tensor grids = contiguous_as(masks, ScalarType::Float);
  const Tensor rows = contiguous_as(boxes, ScalarType::Float);
  const Scene scene{grids.const_data_ptr<float>(), rows.const_data_ptr<float>(),
                    static_cast<int>(grids.size(1)), height, width, x, y,
                    static_cast<float>(threshold), released};
  return encode(grids, scene, grids.size(0));
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) {
  m.impl("masks_to_rle", TORCH_BOX(&d2det_ops::masks_to_rle));
}
