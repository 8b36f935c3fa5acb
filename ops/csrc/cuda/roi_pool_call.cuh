// What the forward and the backward call of deform_roi_pool do alike before they launch: check the
// tensors, bring them into the layout and the type the kernels read, and fill the kernels' structs.
#pragma once

#include <optional>
#include <vector>

#include "cuda/roi_cells.cuh"

namespace d2det_ops {

struct PoolRule {
  const std::vector<double>& scales;
  int64_t output_size, samples;
  double offset_scale;
  bool align;
};

constexpr int64_t kMaxSamples = 32;  // a side of a bin; keeps a block's cells in shared memory

inline void check_pool(const std::vector<Tensor>& features, const Tensor& rois,
                       const Tensor& levels, const std::optional<Tensor>& offsets,
                       const PoolRule& rule) {
  STD_TORCH_CHECK(!features.empty() && features.size() <= kMaxLevels,
                  "deform_roi_pool takes 1 to ", kMaxLevels, " maps, not ", features.size());
  STD_TORCH_CHECK(rule.scales.size() == features.size(), "deform_roi_pool: one scale a map");
  STD_TORCH_CHECK(rule.samples >= 1 && rule.samples <= kMaxSamples,
                  "deform_roi_pool takes 1 to ", kMaxSamples, " samples, not ", rule.samples);
  STD_TORCH_CHECK(rule.output_size >= 1 && rule.output_size <= 1024, "deform_roi_pool: ",
                  rule.output_size, " bins a side");
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, "deform_roi_pool: rois must be (R, 5)");
  STD_TORCH_CHECK(levels.dim() == 1 && levels.size(0) == rois.size(0),
                  "deform_roi_pool: levels must be (R,)");
  for (const Tensor& feature : features) {
    STD_TORCH_CHECK(feature.dim() == 4 && feature.scalar_type() == features[0].scalar_type() &&
                        feature.size(0) == features[0].size(0) &&
                        feature.size(1) == features[0].size(1) && feature.size(2) < INT_MAX &&
                        feature.size(3) < INT_MAX,
                    "deform_roi_pool: maps must share type, pictures and channels");
    check_device(features[0], feature, "deform_roi_pool", "a map");
  }
  check_device(features[0], rois, "deform_roi_pool", "rois");
  check_device(features[0], levels, "deform_roi_pool", "levels");
  if (!offsets.has_value()) return;
  check_device(features[0], *offsets, "deform_roi_pool", "offsets");
  STD_TORCH_CHECK(offsets->dim() == 4 && offsets->size(0) == rois.size(0) &&
                      offsets->size(1) == 2 && offsets->size(2) == offsets->size(3) &&
                      offsets->size(2) >= 1 && rule.output_size % offsets->size(2) == 0,
                  "deform_roi_pool: offsets must be (R, 2, Q, Q) with Q dividing the output size");
}

// The tensors of one call as the kernels read them. Maps that are not channels-last are copied.
template <typename T>
struct PoolCall {
  using A = Sum<T>;

  Launcher launch;
  std::vector<Tensor> maps;
  Tensor rows, level_of, shifts;
  Pyramid<const T> pyramid = {};
  Rois<A> rois = {};
  int64_t count;
  bool packs = true;  // whether channels can be read 16 bytes at a time

  PoolCall(const std::vector<Tensor>& features, const Tensor& boxes, const Tensor& levels,
           const std::optional<Tensor>& offsets, const PoolRule& rule)
      : launch(boxes),
        rows(contiguous_as(boxes, scalar_type_of<A>())),
        level_of(contiguous_as(levels, ScalarType::Long)),
        count(boxes.size(0)) {
    pyramid.levels = static_cast<int64_t>(features.size());
    pyramid.images = features[0].size(0);
    pyramid.channels = features[0].size(1);
    for (size_t l = 0; l < features.size(); ++l) {
      maps.push_back(torch::stable::contiguous(features[l], MemoryFormat::ChannelsLast));
      pyramid.maps[l] = {maps[l].template const_data_ptr<T>(), static_cast<int>(maps[l].size(2)),
                         static_cast<int>(maps[l].size(3))};
      pyramid.scales[l] = static_cast<A>(rule.scales[l]);
      packs = packs && packs_fit<T>(maps[l], pyramid.channels);
    }
    rois.rows = rows.template const_data_ptr<A>();
    rois.levels = level_of.template const_data_ptr<int64_t>();
    rois.bins = static_cast<int>(rule.output_size);
    rois.samples = static_cast<int>(rule.samples);
    rois.parts = rois.bins;
    rois.offset_scale = static_cast<A>(rule.offset_scale);
    rois.align = rule.align;
    if (!offsets.has_value()) return;
    shifts = contiguous_as(*offsets, scalar_type_of<A>());
    rois.offsets = shifts.template const_data_ptr<A>();
    rois.parts = static_cast<int>(offsets->size(2));
  }
};

}  // namespace d2det_ops
