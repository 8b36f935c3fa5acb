// e^x on vectors. float: a polynomial the processor evaluates for 16 lanes at once, relative error
// below 1.2e-7 wherever the result is a normal number; double: the library's, lane by lane.
#pragma once

#include <cmath>

#include "cpu/vec.h"

namespace d2det_ops {

// Arguments are clamped to [-87, 88], so results lie in [1.6e-38, 1.7e38]; NaN stays NaN.
D2DET_INLINE Vec<float> exponential(Vec<float> x) {
  const Vec<float> zero = {};
  x = x > 88.f ? zero + 88.f : x;
  x = x < -87.f ? zero - 87.f : x;
  // x = n ln2 + r with |r| <= ln2 / 2; n is rounded by the addition, which leaves it in the low
  // bits.
  const float kShift = 0x1.8p23f;
  const Vec<float> shifted = x * 0x1.715476p0f + kShift, n = shifted - kShift;
  const Vec<float> r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  // Minimax polynomial of e^r over that interval, model error 3e-9.
  Vec<float> p = r * 0.0013814540579915047f + 0.00836874544620514f;
  p = p * r + 0.04166838899254799f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  p = p * (r * r) + r + 1.f;
  return (Vec<float>)((detail::Bits32)p + ((detail::Bits32)shifted << 23));
}

D2DET_INLINE Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}
}  // namespace d2det_ops
