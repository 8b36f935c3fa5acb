// Order of scores as torch.sort(descending=True, stable=True) gives it: NaN first, ties by index.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <numeric>
#include <vector>

namespace d2det_ops {

// An unsigned key that grows as the score falls.
template <typename T>
inline auto falling_key(T score) {
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr Key kSign = Key(1) << (8 * sizeof(T) - 1);
  if (score != score) return Key(0);
  const Key bits = std::bit_cast<Key>(score + T(0));  // -0 becomes 0
  const Key rising = bits & kSign ? Key(~bits) : Key(bits | kSign);
  return Key(~rising);
}

// Least-significant-digit radix sort, stable and O(count).
template <typename T>
std::vector<int32_t> by_falling_score(const T* scores, int64_t count) {
  using Key = decltype(falling_key(T()));
  struct Entry {
    Key key;
    int32_t index;
  };
  constexpr int kBits = 11, kRadix = 1 << kBits;
  std::vector<Entry> entries(count), scratch(count);
  for (int64_t i = 0; i < count; ++i) entries[i] = {falling_key(scores[i]), static_cast<int32_t>(i)};
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Key)); shift += kBits) {
    std::array<int64_t, kRadix + 1> starts{};
    for (const Entry& entry : entries) ++starts[((entry.key >> shift) & (kRadix - 1)) + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (const Entry& entry : entries) scratch[starts[(entry.key >> shift) & (kRadix - 1)]++] = entry;
    entries.swap(scratch);
  }
  std::vector<int32_t> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = entries[i].index;
  return order;
}

}  // namespace d2det_ops
