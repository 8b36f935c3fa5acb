// 64 byte vectors of the accumulation type, for kernels that keep sums in registers: the compiler
// lowers them to whatever the target of the enclosing function has (see clones.h).
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

// Everything is inlined into its caller, so no vector ever crosses a call.
#pragma GCC diagnostic ignored "-Wpsabi"
#define D2DET_INLINE inline __attribute__((always_inline))

namespace d2det_ops {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The type sums of T are kept in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;
template <typename T>
constexpr auto kAccumulatorType = std::is_same_v<T, double> ? torch::headeronly::ScalarType::Double
                                                            : torch::headeronly::ScalarType::Float;

template <typename A>
struct VecOf {
  typedef A type __attribute__((vector_size(64)));
};
template <typename A>
using Vec = typename VecOf<A>::type;
template <typename A>
constexpr int kLanes = 64 / sizeof(A);

namespace detail {
typedef uint16_t Bits16 __attribute__((vector_size(32)));
typedef uint32_t Bits32 __attribute__((vector_size(64)));

// 16 halves as floats: the exponent is rebiased by a multiplication, which is exact and turns half
// denormals into normal floats; infinities and NaN then get the largest exponent back.
D2DET_INLINE Vec<float> half_to_float(Bits16 bits) {
  const Bits32 wide = __builtin_convertvector(bits, Bits32);
  const Vec<float> scaled = (Vec<float>)((wide & 0x7fffu) << 13) * 0x1p112f;
  const Bits32 special = (Bits32)(scaled >= 65536.f) & 0x7f800000u;
  return (Vec<float>)((Bits32)scaled | special | ((wide & 0x8000u) << 16));
}

// Rounds to nearest even; NaN stays NaN.
D2DET_INLINE Bits16 float_to_bfloat16(Vec<float> v) {
  const Bits32 bits = (Bits32)v;
  const Bits32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits32 is_nan = (Bits32)(v != v);
  return __builtin_convertvector((rounded & ~is_nan) | (0x7fc0u & is_nan), Bits16);
}

// Rounds to nearest even by adding a power of two that pushes the surplus bits out of the mantissa
// (also right for half denormals); overflow gives infinity, NaN stays NaN.
D2DET_INLINE Bits16 float_to_half(Vec<float> v) {
  const Bits32 bits = (Bits32)v, doubled = bits + bits;
  const Vec<float> magnitude = (Vec<float>)(bits & 0x7fffffffu);
  Bits32 bias = doubled & 0xff000000u;
  bias = bias < 0x71000000u ? Bits32{} + 0x71000000u : bias;
  const Vec<float> pushed =
      (Vec<float>)((bias >> 1) + 0x07800000u) + (magnitude * 0x1p112f) * 0x1p-110f;
  const Bits32 p = (Bits32)pushed;
  const Bits32 finite = ((p >> 13) & 0x7c00u) + (p & 0xfffu);
  const Bits32 is_nan = (Bits32)(v != v);
  return __builtin_convertvector(((bits >> 16) & 0x8000u) | (finite & ~is_nan) | (0x7e00u & is_nan),
                                 Bits16);
}
}  // namespace detail

template <typename T>
D2DET_INLINE Vec<Accumulator<T>> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    detail::Bits16 bits;
    std::memcpy(&bits, from, sizeof(bits));
    if constexpr (std::is_same_v<T, Half>) return detail::half_to_float(bits);
    return (Vec<float>)(__builtin_convertvector(bits, detail::Bits32) << 16);
  } else {
    Vec<T> v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
}

template <typename T>
D2DET_INLINE void store(T* to, Vec<Accumulator<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const detail::Bits16 bits =
        std::is_same_v<T, Half> ? detail::float_to_half(v) : detail::float_to_bfloat16(v);
    std::memcpy(to, &bits, sizeof(bits));
  } else {
    std::memcpy(to, &v, sizeof(v));
  }
}

// The first `count` lanes only, the others as 0.
template <typename T>
D2DET_INLINE Vec<Accumulator<T>> load(const T* from, int count) {
  T padded[kLanes<Accumulator<T>>] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

template <typename T>
D2DET_INLINE void store(T* to, Vec<Accumulator<T>> v, int count) {
  T padded[kLanes<Accumulator<T>>];
  store(padded, v);
  std::memcpy(to, padded, count * sizeof(T));
}

// The sum of all lanes, halves first.
template <typename A>
D2DET_INLINE A horizontal_sum(Vec<A> v) {
  A lanes[kLanes<A>];
  store(lanes, v);
  for (int half = kLanes<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// A fixed array of vectors, at first 0. (std::vector forgets the alignment of such types.)
template <typename A>
class VecArray {
 public:
  explicit VecArray(size_t size)
      : size_(size), data_(static_cast<Vec<A>*>(::operator new(bytes(), kAlignment))) {
    clear();
  }
  VecArray(const VecArray&) = delete;
  VecArray& operator=(const VecArray&) = delete;
  ~VecArray() { ::operator delete(data_, kAlignment); }

  void clear() { std::memset(static_cast<void*>(data_), 0, bytes()); }
  size_t size() const { return size_; }
  Vec<A>* data() { return data_; }
  Vec<A>* begin() { return data_; }
  Vec<A>* end() { return data_ + size_; }
  const Vec<A>* begin() const { return data_; }
  const Vec<A>* end() const { return data_ + size_; }
  Vec<A>& operator[](size_t i) { return data_[i]; }
  const Vec<A>& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  size_t bytes() const { return size_ * sizeof(Vec<A>); }

  size_t size_;
  Vec<A>* data_;
};
}  // namespace d2det_ops
