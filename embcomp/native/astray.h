// What may be wrong with places that other functions read: one pass over each, nothing is written.
#pragma once
#include <cstddef>
#include <cstdint>

namespace embcomp {

// Whether some id lies outside [0, limit); a negative id is a huge unsigned one.
inline bool any_outside(const int64_t* ids, size_t n, uint64_t limit) {
  uint64_t bad = 0;
  for (size_t i = 0; i < n; i++) bad |= (uint64_t)((uint64_t)ids[i] >= limit);
  return bad != 0;
}

// Whether not 0 <= offsets[0] <= offsets[1] <= ... <= offsets[n - 1] <= end.
inline bool offsets_astray(const int64_t* offsets, size_t n, int64_t end) {
  uint64_t bad = (uint64_t)(offsets[0] < 0) | (uint64_t)(offsets[n - 1] > end);
  for (size_t i = 1; i < n; i++) bad |= (uint64_t)(offsets[i] < offsets[i - 1]);
  return bad != 0;
}

}  // namespace embcomp
