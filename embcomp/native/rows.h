// What look-ups and optimizers over rows share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace embcomp {

#define EMBCOMP_NOINLINE __attribute__((noinline))

constexpr size_t kAhead = 32;  // rows fetched ahead

// Fetches a line to read it, or to write it, for which no other core may keep it.
template <bool WRITE = false>
inline void prefetch(const void* place) {
  __builtin_prefetch(place, WRITE);
  __asm__ volatile("");  // else GCC leaves out calls of functions that do nothing but this
}

template <bool WRITE = false, size_t DIM = 0>
inline void prefetch_row(const float* row, size_t dim) {
  const size_t n = DIM ? DIM : dim;
  for (size_t d = 0; d < n; d += 16) prefetch<WRITE>(row + d);
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

// 32 random bits for a place, from a seed (the finaliser of MurmurHash3).
inline uint32_t random_bits(uint32_t seed, uint32_t place) {
  uint32_t x = place * 0x9E3779B1u ^ seed;
  x = (x ^ x >> 16) * 0x85EBCA6Bu;
  x = (x ^ x >> 13) * 0xC2B2AE35u;
  return x ^ x >> 16;
}

// Rows of a table: floats as they are, floats that are read on a grid, or integers of 8 or 4 bits in whole bytes, behind
// which a byte says which of the 256 steps of the grid the row has (embcomp.ops.integer_tables).
struct Rows {
  void* data;
  size_t dim, nbytes;  // of a row of integers; 0 for floats
  Grid grid;

  uint8_t* packed(uint64_t row) const { return (uint8_t*)data + row * nbytes; }
  float* floats(uint64_t row) const { return (float*)data + row * dim; }

  template <bool WRITE = false, size_t DIM = 0>
  void prefetch(uint64_t row) const {
    if (!nbytes) return prefetch_row<WRITE, DIM>(floats(row), dim);
    for (size_t at = 0; at < nbytes; at += 64) embcomp::prefetch<WRITE>(packed(row) + at);
  }

  template <size_t DIM>
  void unpack(uint64_t row, float* __restrict out) const {
    const size_t n = DIM ? DIM : dim;
    const uint8_t* bytes = packed(row);
    const float step = grid.steps[bytes[nbytes - 1]], middle = grid.half() - 0.5f;
    if (grid.bits == 8)
      for (size_t d = 0; d < n; d++) out[d] = ((float)bytes[d] - middle) * step;
    else
      for (size_t d = 0; d < n; d++) out[d] = ((float)(bytes[d / 2] >> 4 * (d % 2) & 15) - middle) * step;
  }

  // The step of a row that is to hold a value of this size: the one it has, where that is neither too small nor much too
  // large; else the second smallest that reaches it, so that it lasts.
  size_t fitting(size_t now, float largest) const {
    size_t least = 0;
    if (now > kSlack && largest >= grid.half() * grid.steps[now - kSlack - 1]) least = now - kSlack;
    while (least < 256 && largest >= grid.half() * grid.steps[least]) least++;
    return least > now || least + kSlack < now ? std::min<size_t>(least + 1, 255) : now;
  }

  // Writes a row, each value rounded up or down at random.
  template <size_t DIM>
  void pack(uint64_t row, const float* values, uint32_t seed) const {
    const size_t n = DIM ? DIM : dim;
    uint8_t* bytes = packed(row);
    float largest = 0.0f;
    for (size_t d = 0; d < n; d++) largest = std::max(largest, std::fabs(values[d]));
    bytes[nbytes - 1] = (uint8_t)fitting(bytes[nbytes - 1], largest);
    const float step = grid.steps[bytes[nbytes - 1]], half = grid.half();
    for (size_t d = 0; d < n; d++) {
      const float random = (float)(random_bits(seed, (uint32_t)(row * n + d)) >> 8) * 0x1p-24f;
      const float whole = std::floor(values[d] / step - 0.5f + random);
      const uint8_t code = (uint8_t)(std::min(std::max(whole, -half), half - 1.0f) + half);
      if (grid.bits == 8)
        bytes[d] = code;
      else
        bytes[d / 2] = d % 2 ? (uint8_t)(bytes[d / 2] | code << 4) : code;
    }
  }

  // The row as it is read; `room` holds it where it is not stored so.
  template <size_t DIM>
  const float* read(uint64_t row, float* room) const {
    if (nbytes)
      unpack<DIM>(row, room);
    else if (grid.bits)
      snap_row<DIM>(room, floats(row), grid.step(row), grid.half(), dim);
    else
      return floats(row);
    return room;
  }

  static constexpr size_t kSlack = 16;  // steps that a row may be too large
};

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
