// What every kernel file needs: the stream of the tensors' device, checked launches, dispatch over
// floating types, 16-byte packs of values and reductions whose order never changes.
#pragma once

#ifndef USE_CUDA
#define USE_CUDA  // the CUDA half of torch's C interface is declared only then
#endif

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // the headers of torch 2.11 know it by its older name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// The shared memory of a block; how much of it there is, the launch says.
extern __shared__ __align__(32) unsigned char d2det_shared[];

namespace d2det_ops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kMaxSharedBytes = 48 * 1024;  // what every architecture grants without asking

// The type that sums of T are kept in.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr ScalarType scalar_type_of() {
  if constexpr (std::is_same_v<T, double>) return ScalarType::Double;
  else if constexpr (std::is_same_v<T, float>) return ScalarType::Float;
  else if constexpr (std::is_same_v<T, c10::Half>) return ScalarType::Half;
  else return ScalarType::BFloat16;
}

// Calls body(T{}) with the C++ type of `type`.
template <typename Body>
auto dispatch_floating(ScalarType type, const char* op, Body&& body) {
  switch (type) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::Half: return body(c10::Half{});
    case ScalarType::BFloat16: return body(c10::BFloat16{});
    default: STD_TORCH_CHECK(false, op, " takes floating tensors, not ", torch::headeronly::toString(type));
  }
}

// Makes the device of a tensor current and launches on its current stream.
class Launcher {
 public:
  explicit Launcher(const Tensor& on) : guard_(on.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Launches `kernel` on `blocks` blocks (none: does nothing) and checks that it started.
  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t blocks, int threads, size_t shared_bytes,
                  Args&&... args) const {
    if (blocks == 0) return;
    STD_TORCH_CHECK(blocks <= INT_MAX, "a kernel needs ", blocks, " blocks");
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
  }

  // The value at `source` on the device. Waits for the stream: the one host sync there is.
  template <typename T>
  T read(const T* source) const {
    T value{};
    STD_CUDA_CHECK(
        cudaMemcpyAsync(&value, source, sizeof(T), cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return value;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Raises unless all of a call's tensors live on one device: a kernel must not see a host pointer.
inline void check_device(const Tensor& expected, const Tensor& other, const char* op, const char* name) {
  STD_TORCH_CHECK(other.device() == expected.device(), op, ": ", name, " is on another device");
}

inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(torch::stable::to(tensor, type));
}

// N values that travel in one load or store; addresses must be multiples of its size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

template <typename T>
constexpr int kPackSize = 16 / sizeof(T);

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

// Rounds sums to T and stores them in one go.
template <typename T, typename A, int N>
__device__ __forceinline__ void store_pack(T* to, const A (&sums)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < N; ++n) pack.values[n] = static_cast<T>(sums[n]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Whether packs of 16 bytes or less along the channels of a tensor are aligned.
template <typename T>
bool packs_fit(const Tensor& tensor, int64_t channels) {
  return channels % kPackSize<T> == 0 &&
         reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, step);
  }
  return value;
}

}  // namespace d2det_ops
