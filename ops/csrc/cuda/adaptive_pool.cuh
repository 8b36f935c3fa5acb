// What the two kernels of adaptive_pool share: how a block sees its maps, its gates and its sums.
//
// A block has one RoI and 32 channels: lanes are channels, warps stride over pixels. Maps are read
// through their strides: channels-last is fast, other layouts are merely right.
#pragma once

#include "cuda/common.cuh"

namespace d2det_ops {

constexpr int kGateWarps = 8;  // of a block

// Windows of any size.
struct Windows {
  int height, width, out_height, out_width;  // of the map and of its pooled grid
  int kernel, stride, padding;

  __host__ __device__ int pixels() const { return height * width; }
  __host__ __device__ int outputs() const { return out_height * out_width; }
};

// The paper's: from 14 x 14 to 7 x 7. Known to the compiler, they cost it no division and no loop.
struct PaperWindows {
  static constexpr int height = 14, width = 14, out_height = 7, out_width = 7;
  static constexpr int kernel = 3, stride = 2, padding = 1;

  __host__ __device__ static constexpr int pixels() { return height * width; }
  __host__ __device__ static constexpr int outputs() { return out_height * out_width; }

  static bool are(const Windows& w) {
    return w.height == height && w.width == width && w.kernel == kernel && w.stride == stride &&
           w.padding == padding;
  }
};

// Calls body(row, column) for the pixels of the window `output`, in order.
template <typename W, typename Body>
__device__ __forceinline__ void each_pixel(const W& windows, int output, Body&& body) {
  const int top = output / windows.out_width * windows.stride - windows.padding;
  const int left = output % windows.out_width * windows.stride - windows.padding;
#pragma unroll
  for (int row = top; row < top + windows.kernel; ++row) {
    if (row < 0 || row >= windows.height) continue;
#pragma unroll
    for (int column = left; column < left + windows.kernel; ++column) {
      if (column >= 0 && column < windows.width) body(row, column);
    }
  }
}

// Calls body(output) for the windows that hold `pixel`, in order.
template <typename W, typename Body>
__device__ __forceinline__ void each_window(const W& windows, int pixel, Body&& body) {
  const int most = (windows.kernel + windows.stride - 1) / windows.stride;  // along an axis
  const auto first = [&](int at) {
    const int low = at + windows.padding - windows.kernel + 1;
    return low <= 0 ? 0 : (low + windows.stride - 1) / windows.stride;
  };
  const int y = pixel / windows.width, x = pixel % windows.width, top = first(y), left = first(x);
#pragma unroll
  for (int row = top; row < top + most; ++row) {
    if (row >= windows.out_height || row * windows.stride > y + windows.padding) continue;
#pragma unroll
    for (int column = left; column < left + most; ++column) {
      if (column < windows.out_width && column * windows.stride <= x + windows.padding) {
        body(row * windows.out_width + column);
      }
    }
  }
}

// Calls use(pixel, load(pixel)) for the pixels of this warp. Several loads are under way at once:
// a store between them, which might be to the same memory, would make each wait for the one before.
template <typename Load, typename Use>
__device__ __forceinline__ void each_of_warp(int pixels, Load&& load, Use&& use) {
  constexpr int kAtOnce = 5;
  for (int first = threadIdx.x / kWarpSize; first < pixels; first += kAtOnce * kGateWarps) {
    decltype(load(0)) values[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (first + n * kGateWarps < pixels) values[n] = load(first + n * kGateWarps);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (first + n * kGateWarps < pixels) use(first + n * kGateWarps, values[n]);
    }
  }
}

// A map (R, C, height, width) with any strides.
template <typename T>
struct StridedMap {
  T* data;
  int64_t roi, channel, row, column;

  // The pixels of one channel of one RoI.
  __device__ StridedMap at(int64_t r, int64_t c) const {
    return {data + r * roi + c * channel, roi, channel, row, column};
  }
  __device__ T& operator()(int y, int x) const { return data[y * row + x * column]; }
};

// The affine instance norm of one channel, and the gate on top of it.
template <typename A>
struct Gate {
  A mean, rstd, weight, bias, scale;

  __device__ A normal(A logit) const { return (logit - mean) * rstd; }
  // 1 - sigmoid, which stays exact where the gate is open.
  __device__ A closed(A normal) const { return A(1) / (A(1) + std::exp(normal * weight + bias)); }
  // exp(scale * sigmoid) over exp(scale): the factor cancels in the quotient and keeps sums small.
  __device__ A operator()(A logit) const { return std::exp(-scale * closed(normal(logit))); }
};

// Sums a value over the block's warps, lane by lane, in the order of the warps; all get the sum.
template <typename A>
__device__ A sum_over_warps(A value, A* scratch) {
  const int lane = threadIdx.x % kWarpSize;
  scratch[threadIdx.x] = value;
  __syncthreads();
  A sum = 0;
  for (int warp = 0; warp < kGateWarps; ++warp) sum += scratch[warp * kWarpSize + lane];
  __syncthreads();
  return sum;
}

// Where a block keeps `values` numbers a lane: in shared memory behind the sums' scratch, or, for
// maps too large for it, in `spill`.
template <typename A>
__device__ A* gate_memory(A* spill, int64_t values) {
  if (spill != nullptr) return spill + blockIdx.x * values * kWarpSize;
  return reinterpret_cast<A*>(d2det_shared) + kGateWarps * kWarpSize;
}

// The memory of a launch: what to ask of shared memory, and the spill where that is not enough.
template <typename A>
struct GateMemory {
  size_t shared_bytes = kGateWarps * kWarpSize * sizeof(A);
  Tensor spilled;
  A* spill = nullptr;

  GateMemory(const Tensor& like, int64_t blocks, int64_t values) {
    const size_t wanted = values * kWarpSize * sizeof(A);
    if (shared_bytes + wanted <= kMaxSharedBytes) {
      shared_bytes += wanted;
      return;
    }
    spilled = torch::stable::new_empty(like, {blocks * values * kWarpSize}, scalar_type_of<A>());
    spill = spilled.template mutable_data_ptr<A>();
  }
};

template <typename T>
StridedMap<T> strided_map(const Tensor& tensor, T* data) {
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// A new map (R, C, height, width) in the memory format of `like`.
inline Tensor empty_map(const Tensor& like, int64_t height, int64_t width) {
  return torch::stable::empty(
      {like.size(0), like.size(1), height, width}, like.scalar_type(), std::nullopt, like.device(),
      std::nullopt, like.stride(1) == 1 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Checks a call's tensors and returns its windows.
inline Windows check_gate(const Tensor& x, const Tensor& logits, const Tensor& weight,
                          const Tensor& bias, int64_t kernel_size, int64_t stride, int64_t padding) {
  STD_TORCH_CHECK(x.dim() == 4 && logits.dim() == 4 && logits.scalar_type() == x.scalar_type(),
                  "adaptive_pool: x and logits must be (R, C, H, W) of one type");
  for (int64_t axis = 0; axis < 4; ++axis) {
    STD_TORCH_CHECK(x.size(axis) == logits.size(axis), "adaptive_pool: x and logits differ in shape");
  }
  STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(1) && bias.dim() == 1 &&
                      bias.size(0) == x.size(1),
                  "adaptive_pool: weight and bias must be (C,)");
  STD_TORCH_CHECK(kernel_size >= 1 && stride >= 1 && padding >= 0 && 2 * padding <= kernel_size,
                  "adaptive_pool: kernel ", kernel_size, ", stride ", stride, ", padding ", padding);
  STD_TORCH_CHECK(x.size(2) + 2 * padding >= kernel_size && x.size(3) + 2 * padding >= kernel_size &&
                      x.size(2) * x.size(3) < (1 << 24),
                  "adaptive_pool: a map of ", x.size(2), " x ", x.size(3));
  for (const Tensor* other : {&logits, &weight, &bias}) {
    check_device(x, *other, "adaptive_pool", "a tensor");
  }
  const auto pooled = [&](int64_t size) { return (size + 2 * padding - kernel_size) / stride + 1; };
  return {static_cast<int>(x.size(2)), static_cast<int>(x.size(3)),
          static_cast<int>(pooled(x.size(2))), static_cast<int>(pooled(x.size(3))),
          static_cast<int>(kernel_size), static_cast<int>(stride), static_cast<int>(padding)};
}

}  // namespace d2det_ops
