// A stand-in for CUDA's header that runs kernels on the processor, so that what is in
// ops/csrc/cuda/ can be executed, compared and sanitized on a machine without a GPU.
//
// One block runs at a time; each of its threads is a fiber, and fibers change only at barriers and
// warp intrinsics, in an order that $D2DET_EMULATOR_ORDER picks. Barriers that some thread never
// reaches, intrinsics that lanes reach apart, and launches a device would refuse are errors.
// Under -fsanitize=thread barriers order memory as they do on a device, and nothing else does: not
// shuffles, not the order in which blocks happen to run.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulator {

// Of a thread; kernels here are one-dimensional.
struct Place {
  unsigned thread, block, block_size, grid_size;
};
enum class Collective { kNone, kShuffle, kBallot, kSyncWarp };

Place place();  // of the running thread
void sync_block();
// Hands `value` in, waits for all lanes of the warp, and returns what `lane` handed in.
uint64_t exchange(Collective kind, unsigned mask, uint64_t value, int lane);
unsigned ballot(unsigned mask, bool value);
int lane();
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
int compute_major();  // $D2DET_EMULATOR_MAJOR, the compute capability kernels are chosen for

template <typename T>
T shuffle(unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(Collective::kShuffle, mask, bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Adds atomically, by comparing and swapping bits, so that sanitizers see an atomic access.
template <typename T, typename Combine>
T atomically(T* address, Combine combine) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  auto* target = reinterpret_cast<Bits*>(address);
  Bits seen = __atomic_load_n(target, __ATOMIC_RELAXED), wanted;
  T old;
  do {
    std::memcpy(&old, &seen, sizeof(T));
    const T next = combine(old);
    std::memcpy(&wanted, &next, sizeof(T));
  } while (!__atomic_compare_exchange_n(target, &seen, wanted, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  return old;
}

}  // namespace emulator

// Read as numbers, like the members of the built-in variables they stand for.
struct Coordinate {
  unsigned (*read)();
  operator unsigned() const { return read(); }
};
struct Coordinates {
  Coordinate x;
};
inline const Coordinates threadIdx{{[] { return emulator::place().thread; }}};
inline const Coordinates blockIdx{{[] { return emulator::place().block; }}};
inline const Coordinates blockDim{{[] { return emulator::place().block_size; }}};
inline const Coordinates gridDim{{[] { return emulator::place().grid_size; }}};

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::exchange(emulator::Collective::kSyncWarp, mask, 0, 0);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  return emulator::shuffle(mask, value, from & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulator::shuffle(mask, value, (emulator::lane() ^ bits) & 31);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const int from = emulator::lane() - static_cast<int>(by);
  return emulator::shuffle(mask, value, from < 0 ? emulator::lane() : from);
}
inline unsigned __ballot_sync(unsigned mask, int value) { return emulator::ballot(mask, value != 0); }
inline int __any_sync(unsigned mask, int value) { return emulator::ballot(mask, value != 0) != 0; }

inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

template <typename T>
T atomicAdd(T* address, T value) {
  return emulator::atomically(address, [value](T old) { return static_cast<T>(old + value); });
}
inline float4 atomicAdd(float4* address, float4 value) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) __builtin_trap();
  auto* floats = reinterpret_cast<float*>(address);
  return {atomicAdd(floats, value.x), atomicAdd(floats + 1, value.y),
          atomicAdd(floats + 2, value.z), atomicAdd(floats + 3, value.w)};
}
template <typename T>
T atomicMax(T* address, T value) {
  return emulator::atomically(address, [value](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicOr(T* address, T value) {
  return emulator::atomically(address, [value](T old) { return static_cast<T>(old | value); });
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  return [&](Params... params) {
    return emulator::launch(*config, [&] { kernel(params...); });
  }(std::forward<Args>(args)...);
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulator::compute_major();
  return cudaSuccess;
}
