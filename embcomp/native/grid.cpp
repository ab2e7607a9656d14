// Rounding to a grid in one pass, the fast form of embcomp.ops.grid.snap; and look-ups in packed rows on a grid, that of
// embcomp.ops.grid_rows: value j of row i is
// step * (code + 1/2 - 2^(bits-1)), its code the bits from (i * dim + j) * bits of the little-endian stream.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rows.h"

namespace {

using embcomp::Grid;

constexpr int64_t kAhead = 32;  // rows fetched ahead

typedef uint32_t Words __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

// Eight values, in units of the step, from the BITS bytes that hold them.
template <uint32_t BITS>
inline Floats eight(uint64_t bytes) {
  constexpr uint32_t mask = (1u << BITS) - 1;
  Words words, shifts;
  if constexpr (BITS <= 4) {
    const uint32_t all = (uint32_t)bytes;
    words = Words{all, all, all, all, all, all, all, all};
    shifts = Words{0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS};
  } else {
    const uint32_t low = (uint32_t)bytes, high = (uint32_t)(bytes >> 4 * BITS);
    words = Words{low, low, low, low, high, high, high, high};
    shifts = Words{0, BITS, 2 * BITS, 3 * BITS, 0, BITS, 2 * BITS, 3 * BITS};
  }
  const Words codes = (words >> shifts) & mask;
  return __builtin_convertvector((Whole)codes, Floats) - ((float)(1u << (BITS - 1)) - 0.5f);
}

struct Table {
  const uint8_t* packed;
  size_t nbytes, dim, row_bits;
  const float* steps;
  int64_t shared;  // rows that share a step; 0 for one step

  float step(int64_t row) const { return steps[shared == 0 ? 0 : shared == 1 ? row : row / shared]; }
  const uint8_t* byte(int64_t row) const { return packed + ((size_t)row * row_bits >> 3); }
};

// Eight values from bit `at` of the stream on; what lies behind its end reads as zero.
template <uint32_t BITS>
inline Floats group(const Table& table, size_t at) {
  const size_t first = at >> 3;
  uint64_t bytes = 0;
  if (first + 8 <= table.nbytes)
    std::memcpy(&bytes, table.packed + first, 8);
  else
    std::memcpy(&bytes, table.packed + first, table.nbytes - first);
  return eight<BITS>(BITS == 8 ? bytes : bytes >> (at & 7));  // rows of whole bytes start with one
}

template <uint32_t BITS>
void bags(const Table& table, const int64_t* rows, const int64_t* offsets, size_t count, const float* weights,
          bool mean, float* out) {
  const size_t groups = table.dim / 8, left = table.dim % 8, row_bytes = (table.row_bits + 7) / 8;
  const int64_t end = offsets ? offsets[count] : (int64_t)count;
  for (size_t b = 0; b < count; b++, out += table.dim) {
    const int64_t lo = offsets ? offsets[b] : (int64_t)b, hi = offsets ? offsets[b + 1] : lo + 1;
    for (int64_t j = lo; j < hi && j + kAhead < end; j++) {
      const uint8_t* ahead = table.byte(rows[j + kAhead]);
      for (size_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(ahead + at);
    }
    const float share = mean && hi > lo ? 1.0f / (float)(hi - lo) : 1.0f;
    for (size_t g = 0; g < groups + (left > 0); g++) {
      Floats sum = {};
      for (int64_t j = lo; j < hi; j++) {
        const float step = table.step(rows[j]), scale = weights ? step * weights[j] : step;
        const Floats values = group<BITS>(table, (size_t)rows[j] * table.row_bits + g * 8 * BITS) * scale;
        sum = hi == lo + 1 ? values : sum + values;
      }
      if (mean) sum = sum * share;
      std::memcpy(out + g * 8, &sum, g < groups ? sizeof sum : left * sizeof(float));
    }
  }
}

}  // namespace

extern "C" {

// Rows [count, dim] on their grid; `shared` is 0 for one step, 1 for a step for each row.
void grid_snap(const float* values, size_t count, size_t dim, const float* steps, int64_t shared, int bits, float* out) {
  const Grid grid{steps, shared, bits};
  for (size_t row = 0; row < count; row++)
    embcomp::snap_row<0>(out + row * dim, values + row * dim, grid.step(row), grid.half(), dim);
}

// The way back: `grad`, of the rounded rows, becomes that of the rows; those of the steps are added to `step_grads`.
void grid_snap_back(const float* values, size_t count, size_t dim, const float* steps, int64_t shared, int bits,
                    float* grad, double* step_grads) {
  const Grid grid{steps, shared, bits};
  for (size_t row = 0; row < count; row++)
    step_grads[grid.place(row)] +=
        embcomp::pass_back<0>(grad + row * dim, values + row * dim, grid.step(row), grid.half(), dim);
}

// Sums of bags: bag b reads rows[offsets[b] .. offsets[b + 1]), or rows[b] alone without offsets -> out [count, dim].
void grid_bags(const uint8_t* packed, size_t nbytes, size_t dim, size_t bits, const float* steps, int64_t shared,
               const int64_t* rows, const int64_t* offsets, size_t count, const float* weights, int mean, float* out) {
  const Table table = {packed, nbytes, dim, dim * bits, steps, shared};
  switch (bits) {
#define EMBCOMP_CASE(BITS) \
  case BITS: bags<BITS>(table, rows, offsets, count, weights, mean != 0, out); break;
    EMBCOMP_CASE(1) EMBCOMP_CASE(2) EMBCOMP_CASE(3) EMBCOMP_CASE(4)
    EMBCOMP_CASE(5) EMBCOMP_CASE(6) EMBCOMP_CASE(7) EMBCOMP_CASE(8)
#undef EMBCOMP_CASE
  }
}

}  // extern "C"
