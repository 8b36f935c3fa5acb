// Kernels with one fault each, to show that the emulator, plain or under a sanitizer, notices.
#include "cuda/common.cuh"

namespace d2det_ops {
namespace {

constexpr int kThreads = 64;

// `fault` 0: none. Sums 64 values, which the others get wrong or cannot finish.
__global__ void sum_values(const float* values, float* out, int fault) {
  auto* shared = reinterpret_cast<float*>(d2det_shared);
  const int t = threadIdx.x;
  shared[t] = values[t];
  if (fault == 1 && t == 5) return;                    // never reaches the barrier
  if (fault != 2) __syncthreads();                     // 2: reads what others have yet to write
  if (fault == 3) shared[t + kThreads] = 0;            // past the shared memory asked for
  if (fault == 4 && t % 32 < 7) __syncwarp();          // lanes meet in different intrinsics
  if (fault == 5) out[0] += 0;                         // all threads write, none atomically
  float sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += shared[i];
  sum += __shfl_xor_sync(fault == 6 ? 0xffffu : kAllLanes, 0.0f, 1);  // 6: names half a warp
  if (fault == 7) sum += reinterpret_cast<const Pack<float, 4>*>(values + 1)->values[0];
  if (t == 0) out[0] = sum;
}

// The same sum over blocks: 8 shares it without atomics.
__global__ void add_blocks(float* out, int fault) {
  if (threadIdx.x != 0) return;
  if (fault == 8) {
    out[0] += 1;
  } else {
    atomicAdd(out, 1.0f);
  }
}

Tensor run(const Tensor& values, int64_t fault) {
  const Tensor out = torch::stable::new_zeros(values, {1});
  const Launcher launch(values);
  const size_t shared_bytes = kThreads * sizeof(float);
  if (fault == 8 || fault == 9) {
    launch(add_blocks, 4, kThreads, 0, out.mutable_data_ptr<float>(), static_cast<int>(fault));
  } else {
    launch(sum_values, 1, fault == 10 ? 2048 : kThreads, fault == 11 ? 1 << 20 : shared_bytes,
           values.const_data_ptr<float>(), out.mutable_data_ptr<float>(), static_cast<int>(fault));
  }
  return out;
}

}  // namespace
}  // namespace d2det_ops

STABLE_TORCH_LIBRARY_FRAGMENT(d2det_ops, m) { m.def("faulty(Tensor values, int fault) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(d2det_ops, CUDA, m) { m.impl("faulty", TORCH_BOX(&d2det_ops::run)); }
