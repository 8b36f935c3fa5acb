// Pools RoIs from channels-last maps: one warp a bin, its lanes along the channels in 16-byte loads,
// all levels in one launch and nothing read back by the host.
#include "cuda/roi_pool_call.cuh"

namespace d2det_ops {
namespace {

constexpr int kWarps = 8;  // of a block

template <typename T, int N, typename A = Sum<T>>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    pool_bins(const __grid_constant__ Pyramid<const T> pyramid, const Rois<A> rois, T* out) {
  const int bins = rois.bins * rois.bins, slices = (bins + kWarps - 1) / kWarps;
  const int64_t roi = blockIdx.x / slices;
  const int bin = static_cast<int>(blockIdx.x % slices) * kWarps + threadIdx.x / kWarpSize;
  if (bin >= bins) return;
  BinCells<A>& cells = BinCells<A>::of_warp(rois.samples);
  cells.find(pyramid, rois, roi, bin / rois.bins, bin % rois.bins);

  const AxisCells<A> x = cells.axes[0], y = cells.axes[1];
  const int64_t channels = pyramid.channels;
  const T* map = cells.map < 0 ? nullptr : pyramid.image(cells.map, cells.image);
  const int width = cells.map < 0 ? 0 : pyramid.maps[cells.map].width;
  const A share = cells.share();
  T* target = out + (roi * bins + bin) * channels;
  for (int64_t c = threadIdx.x % kWarpSize * N; c < channels; c += kWarpSize * N) {
    A sum[N] = {};
    for (int v = 0; v < y.count; ++v) {
      const A weight_y = y.cells[v].weight * share;
      const T* line = map + static_cast<int64_t>(y.cells[v].at) * width * channels + c;
      for (int u = 0; u < x.count; ++u) {
        const auto in = load_pack<N>(line + x.cells[u].at * channels);
        const A weight = weight_y * x.cells[u].weight;
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n] += static_cast<A>(in.values[n]) * weight;
      }
    }
    store_pack(target + c, sum);
  }
}

template <typename T>
void run(const PoolCall<T>& call, const Tensor& out) {
  const auto kernel = call.packs ? pool_bins<T, kPackSize<T>> : pool_bins<T, 1>;
  const int64_t bins = call.rois.bins * call.rois.bins;
  call.launch(kernel, call.count * ceil_div(bins, kWarps), kWarps * kWarpSize,
              kWarps * BinCells<Sum<T>>::bytes(call.rois.samples), call.pyramid, call.rois,
              out.mutable_data_ptr<T>());
}

Tensor deform_roi_pool(const std::vector<Tensor>& features, const Tensor& rois,
                       const Tensor& levels, const std::optional<Tensor>& offsets,
                       const std::vector<double>& scales, int64_t output_size, int64_t samples,
                       double offset_scale, bool align) {
  const PoolRule rule{scales, output_size, samples, offset_scale, align};
  check_pool(features, rois, levels, offsets, rule);
  const Tensor& first = features[0];
  const Tensor out = torch::stable::empty(
      {rois.size(0), first.size(1), output_size, output_size}, first.scalar_type(), std::nullopt,
      first.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (out.numel() == 0) return out;
  dispatch_floating(first.scalar_type(), "deform_roi_pool", [&](auto zero) {
    run(PoolCall<decltype(zero)>(features, rois, levels, offsets, rule), out);
  });
  return out;
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) {
  m.impl("deform_roi_pool", TORCH_BOX(&d2det_ops::deform_roi_pool));
}
