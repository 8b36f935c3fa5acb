// Gradients of deform_roi_pool. Offsets: one warp an offset cell sums over its bins and channels in a
// fixed order. Maps: sums are kept in float32 (float64 for doubles), in one of two ways:
//  - atomic adds as the warps meet the bins, as fast as the cache takes them, in no fixed order;
//  - deterministic: every (bin, cell) share is listed, the list sorted by cell, and one warp a cell
//    adds its shares in list order. Memory for kMaxShares shares, whatever the number of RoIs.
#include <tuple>

#include "cuda/roi_pool_call.cuh"
#include "cuda/sort.cuh"

namespace d2det_ops {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int64_t kMaxShares = int64_t(1) << 22;
constexpr int64_t kNoCell = INT64_MAX;

// Float32 (or float64) sums of the maps' gradients.
template <typename A>
struct Gradients {
  A* maps[kMaxLevels];
  int64_t first_cell[kMaxLevels];  // of the numbering of all cells of all levels
  int64_t levels;
};

// Adds N neighbouring sums atomically; in one transaction where the device can.
template <int N, typename A>
__device__ __forceinline__ void add_atomically(A* to, const A (&values)[N]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // elsewhere the wide one is not declared
  if constexpr (N == 4) {
    atomicAdd(reinterpret_cast<float4*>(to), float4{values[0], values[1], values[2], values[3]});
  } else
#endif
  {
#pragma unroll
    for (int n = 0; n < N; ++n) atomicAdd(to + n, values[n]);
  }
}

// One warp an offset cell (a bin, where there are no offsets): the gradient of the cell's two
// offsets, and with kScatter those of the maps. N channels a lane.
template <typename T, int N, bool kScatter, typename A = Sum<T>>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    spread_bins(const __grid_constant__ Pyramid<const T> pyramid, const Rois<A> rois,
                const T* grad, const __grid_constant__ Gradients<A> sums, A* offset_grad) {
  const int parts = rois.parts * rois.parts, slices = (parts + kWarps - 1) / kWarps;
  const int64_t roi = blockIdx.x / slices;
  const int part = static_cast<int>(blockIdx.x % slices) * kWarps + threadIdx.x / kWarpSize;
  if (part >= parts) return;
  BinCells<A>& cells = BinCells<A>::of_warp(rois.samples);
  const int side = rois.bins / rois.parts, lane = threadIdx.x % kWarpSize;
  const int64_t channels = pyramid.channels;
  A moved_x = 0, moved_y = 0;
  for (int b = 0; b < side * side; ++b) {
    const int row = part / rois.parts * side + b / side;
    const int column = part % rois.parts * side + b % side;
    cells.find(pyramid, rois, roi, row, column);
    if (cells.map < 0) break;  // of the RoI: the same for all lanes and bins
    const AxisCells<A> x = cells.axes[0], y = cells.axes[1];
    const T* map = pyramid.image(cells.map, cells.image);
    A* sum = kScatter ? sums.maps[cells.map] + (map - pyramid.maps[cells.map].data) : nullptr;
    const int width = pyramid.maps[cells.map].width;
    const T* above = grad + ((roi * rois.bins + row) * rois.bins + column) * channels;
    const A share = cells.share();
    for (int64_t c = static_cast<int64_t>(lane) * N; c < channels; c += kWarpSize * N) {
      const auto g = load_pack<N>(above + c);
      for (int v = 0; v < y.count; ++v) {
        const A weight_y = y.cells[v].weight * share, slope_y = y.cells[v].slope * share;
        const int64_t line = static_cast<int64_t>(y.cells[v].at) * width;
        for (int u = 0; u < x.count; ++u) {
          const int64_t at = (line + x.cells[u].at) * channels + c;
          if constexpr (kScatter) {
            A values[N];
#pragma unroll
            for (int n = 0; n < N; ++n) {
              values[n] = static_cast<A>(g.values[n]) * (weight_y * x.cells[u].weight);
            }
            add_atomically(sum + at, values);
          }
          if (offset_grad == nullptr) continue;
          const auto in = load_pack<N>(map + at);
          A dot = 0;
#pragma unroll
          for (int n = 0; n < N; ++n) dot += static_cast<A>(g.values[n]) * static_cast<A>(in.values[n]);
          moved_x += dot * (weight_y * x.cells[u].slope);
          moved_y += dot * (slope_y * x.cells[u].weight);
        }
      }
    }
  }
  if (offset_grad == nullptr) return;
  moved_x = warp_sum(moved_x);
  moved_y = warp_sum(moved_y);
  if (lane != 0) return;
  const bool exists = cells.map >= 0;
  A* target = offset_grad + roi * 2 * parts + part;
  target[0] = exists ? moved_x * rois.offset_scale * cells.sizes[0] : A(0);
  target[parts] = exists ? moved_y * rois.offset_scale * cells.sizes[1] : A(0);
}

// Lists each bin's shares: which cell (numbered over all levels) and what weight, one warp a bin.
// `per_bin` places a bin; those left over name no cell.
template <typename T, typename A = Sum<T>>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    list_shares(const __grid_constant__ Pyramid<const T> pyramid, const Rois<A> rois,
                int64_t first_roi, const __grid_constant__ Gradients<A> sums, int64_t* where,
                A* weights) {
  const int bins = rois.bins * rois.bins, slices = (bins + kWarps - 1) / kWarps;
  const int64_t index = blockIdx.x / slices;
  const int bin = static_cast<int>(blockIdx.x % slices) * kWarps + threadIdx.x / kWarpSize;
  if (bin >= bins) return;
  BinCells<A>& cells = BinCells<A>::of_warp(rois.samples);
  cells.find(pyramid, rois, first_roi + index, bin / rois.bins, bin % rois.bins);
  const AxisCells<A> x = cells.axes[0], y = cells.axes[1];
  const int per_bin = 4 * rois.samples * rois.samples, used = x.count * y.count;
  const int64_t first = (index * bins + bin) * per_bin;
  for (int s = threadIdx.x % kWarpSize; s < per_bin; s += kWarpSize) {
    where[first + s] = kNoCell;
    if (s >= used) continue;
    const Cell<A>&row = y.cells[s / x.count], &column = x.cells[s % x.count];
    const Map<const T>& map = pyramid.maps[cells.map];
    const int64_t line = cells.image * map.height + row.at;
    where[first + s] = sums.first_cell[cells.map] + line * map.width + column.at;
    weights[first + s] = row.weight * cells.share() * column.weight;
  }
}

// Adds up the sorted shares: the warp at the first share of a cell walks all of them.
template <typename T, typename A = Sum<T>>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    add_shares(const int64_t* where, const int64_t* order, const A* weights, int64_t count,
               unsigned per_bin, const T* grad, int64_t channels,
               const __grid_constant__ Gradients<A> sums) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (first >= count) return;
  const int64_t cell = where[first];
  if (cell == kNoCell || (first > 0 && where[first - 1] == cell)) return;
  int64_t level = sums.levels - 1;
  while (sums.first_cell[level] > cell) --level;
  A* target = sums.maps[level] + (cell - sums.first_cell[level]) * channels;
  for (int64_t c = threadIdx.x % kWarpSize; c < channels; c += kWarpSize) {
    A sum = target[c];
    for (int64_t s = first; s < count && where[s] == cell; ++s) {
      const auto share = static_cast<unsigned>(order[s]);
      sum += static_cast<A>(grad[share / per_bin * channels + c]) * weights[share];
    }
    target[c] = sum;
  }
}

template <typename T>
class Backward {
 public:
  using A = Sum<T>;

  Backward(const PoolCall<T>& call, const Tensor& grad)
      : call_(call), grad_(torch::stable::contiguous(grad, MemoryFormat::ChannelsLast)) {
    sums_.levels = call.pyramid.levels;
    int64_t cells = 0;
    for (size_t l = 0; l < call.maps.size(); ++l) {
      const Tensor& map = call.maps[l];
      totals_.push_back(torch::stable::empty(map.sizes(), scalar_type_of<A>(), std::nullopt,
                                             map.device(), std::nullopt,
                                             MemoryFormat::ChannelsLast));
      torch::stable::zero_(totals_.back());
      sums_.maps[l] = totals_.back().template mutable_data_ptr<A>();
      sums_.first_cell[l] = cells;
      cells += map.size(0) * map.size(2) * map.size(3);
    }
  }

  // Gradient of the offsets, and with `scatter` those of the maps.
  template <bool kScatter>
  void spread(A* offset_grad) {
    // Four channels a lane only where four sums are one transaction: elsewhere lanes must be
    // neighbours for the cache to merge their adds.
    const bool wide = call_.packs && packs_fit<T>(grad_, call_.pyramid.channels) && add_is_wide();
    if constexpr (std::is_same_v<A, float>) {
      if (wide) return launch_spread(spread_bins<T, 4, kScatter>, offset_grad);
    }
    launch_spread(spread_bins<T, 1, kScatter>, offset_grad);
  }

  void add_in_order() {
    const int per_bin = 4 * call_.rois.samples * call_.rois.samples;
    const int64_t bins = call_.rois.bins * call_.rois.bins, per_roi = bins * per_bin;
    STD_TORCH_CHECK(per_roi <= INT_MAX, "deform_roi_pool_backward: ", per_roi, " shares a RoI");
    const int64_t at_once = per_roi < kMaxShares ? kMaxShares / per_roi : 1;
    for (int64_t first = 0; first < call_.count; first += at_once) {
      const int64_t rois = first + at_once < call_.count ? at_once : call_.count - first;
      add_in_order(first, rois, bins, per_bin);
    }
  }

  // The sums in the type of the maps.
  std::vector<Tensor> result() const {
    std::vector<Tensor> maps;
    for (const Tensor& total : totals_) maps.push_back(torch::stable::to(total, scalar_type_of<T>()));
    return maps;
  }

 private:
  template <typename Kernel>
  void launch_spread(Kernel kernel, A* offset_grad) {
    const int64_t slices = ceil_div(call_.rois.parts * call_.rois.parts, kWarps);
    call_.launch(kernel, call_.count * slices, kWarps * kWarpSize, shared_bytes(), call_.pyramid,
                 call_.rois, grad_.template const_data_ptr<T>(), sums_, offset_grad);
  }

  void add_in_order(int64_t first, int64_t rois, int64_t bins, int per_bin) {
    const int64_t count = rois * bins * per_bin, channels = call_.pyramid.channels;
    const Tensor where = torch::stable::new_empty(grad_, {count}, ScalarType::Long);
    const Tensor weights = torch::stable::new_empty(grad_, {count}, scalar_type_of<A>());
    A* weight = weights.template mutable_data_ptr<A>();
    call_.launch(list_shares<T>, rois * ceil_div(bins, kWarps), kWarps * kWarpSize, shared_bytes(),
                 call_.pyramid, call_.rois, first, sums_, where.mutable_data_ptr<int64_t>(), weight);
    const SortedKeys sorted = sort_stable(where, false);
    call_.launch(add_shares<T>, ceil_div(count, kWarps), kWarps * kWarpSize, 0,
                 sorted.keys.const_data_ptr<int64_t>(), sorted.order.const_data_ptr<int64_t>(), weight, count,
                 per_bin, grad_.template const_data_ptr<T>() + first * bins * channels, channels,
                 sums_);
  }

  size_t shared_bytes() const { return kWarps * BinCells<A>::bytes(call_.rois.samples); }

  bool add_is_wide() const {
    int major = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                          grad_.get_device_index()));
    return major >= 9;
  }

  const PoolCall<T>& call_;
  Tensor grad_;
  std::vector<Tensor> totals_;
  Gradients<A> sums_ = {};
};

std::tuple<std::vector<Tensor>, Tensor> deform_roi_pool_backward(
    const Tensor& grad, const std::vector<Tensor>& features, const Tensor& rois,
    const Tensor& levels, const std::optional<Tensor>& offsets, const std::vector<double>& scales,
    int64_t output_size, int64_t samples, double offset_scale, bool align, bool deterministic) {
  const PoolRule rule{scales, output_size, samples, offset_scale, align};
  check_pool(features, rois, levels, offsets, rule);
  check_device(features[0], grad, "deform_roi_pool_backward", "grad");
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == features[0].scalar_type(),
                  "deform_roi_pool_backward: grad must be (R, C, P, P) of the maps' type");
  return dispatch_floating(features[0].scalar_type(), "deform_roi_pool_backward", [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    const PoolCall<T> call(features, rois, levels, offsets, rule);
    Backward<T> backward(call, grad);
    Tensor moved = torch::stable::new_empty(grad, {0}, scalar_type_of<A>());
    if (offsets.has_value()) moved = torch::stable::new_empty(grad, offsets->sizes(), scalar_type_of<A>());
    A* offset_grad = offsets.has_value() ? moved.mutable_data_ptr<A>() : nullptr;
    if (deterministic) {
      if (offset_grad != nullptr) backward.template spread<false>(offset_grad);
      backward.add_in_order();
    } else {
      backward.template spread<true>(offset_grad);
    }
    if (offsets.has_value()) moved = torch::stable::to(moved, offsets->scalar_type());
    return std::make_tuple(backward.result(), moved);
  });
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) {
  m.impl("deform_roi_pool_backward", TORCH_BOX(&d2det_ops::deform_roi_pool_backward));
}
