// What look-ups and optimizers over rows share.
#pragma once
#include <algorithm>
#include <cmath>
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

// The grid that rows are rounded to (embcomp.ops.grid); without bits there is none.
struct Grid {
  const float* steps;
  int64_t shared;  // rows that share a step; 0 for one step
  int bits;

  size_t place(uint64_t row) const { return shared == 0 ? 0 : shared == 1 ? row : row / (uint64_t)shared; }
  float step(uint64_t row) const { return steps[place(row)]; }
  float half() const { return (float)(1 << (bits - 1)); }
};

// The level of a value in units of the step, k + 1/2. NaN stays NaN.
inline float level(float scaled, float half) {
  return std::min(std::max(std::floor(scaled), -half), half - 1.0f) + 0.5f;
}

// A row as it will be served.
template <size_t DIM>
inline void snap_row(float* __restrict out, const float* __restrict row, float step, float half, size_t dim) {
  const size_t n = DIM ? DIM : dim;
  for (size_t d = 0; d < n; d++) out[d] = level(row[d] / step, half) * step;
}

// The way back through `snap_row`: g becomes the gradient of the row (zero beyond the grid); that of the step returns.
template <size_t DIM>
inline float pass_back(float* __restrict g, const float* __restrict row, float step, float half, size_t dim) {
  const size_t n = DIM ? DIM : dim;
  float sum = 0.0f;
  for (size_t d = 0; d < n; d++) {
    const float scaled = row[d] / step, whole = std::floor(scaled);
    const float kept = (whole >= -half ? 1.0f : 0.0f) * (whole < half ? 1.0f : 0.0f);  // 1 inside the grid
    sum += g[d] * (level(scaled, half) - kept * scaled);
    g[d] *= kept;
  }
  return sum;
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
