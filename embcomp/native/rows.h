// What look-ups and optimizers over rows share.
#pragma once
#include <cstddef>
#include <cstdint>

namespace embcomp {

constexpr size_t kAhead = 32;  // rows fetched ahead

inline void prefetch_row(const float* row, size_t dim) {
  for (size_t d = 0; d < dim; d += 16) __builtin_prefetch(row + d);
}

// out += scale * row. DIM is the width where it is known when compiling, else 0.
template <size_t DIM>
inline void add_scaled(float* __restrict out, const float* __restrict row, float scale, size_t dim) {
  const size_t n = DIM ? DIM : dim;
  for (size_t d = 0; d < n; d++) out[d] += scale * row[d];
}

}  // namespace embcomp

// Widths that are known when compiling keep a row in registers.
#define EMBCOMP_FOR_WIDTH(CALL) \
  switch (dim) {                \
    case 8: CALL(8); break;     \
    case 16: CALL(16); break;   \
    case 32: CALL(32); break;   \
    case 64: CALL(64); break;   \
    case 128: CALL(128); break; \
    default: CALL(0);           \
  }
