// Rounding to a grid in one pass, the fast form of embcomp.ops.grid.snap; and look-ups in packed rows on a grid, that of
// embcomp.ops.grid_rows: value j of row i is
// step * (code + 1/2 - 2^(bits-1)), its code the bits from (i * dim + j) * bits of the little-endian stream.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "code_sums.h"
#include "rows.h"

namespace {

using embcomp::Grid;

constexpr int64_t kAhead = 32;  // rows fetched ahead

// Values that are decoded at once, in units of the step, from the bits that hold them.
template <uint32_t BITS, typename = void>
struct Group {
  static constexpr size_t lanes = 8;
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef int32_t Whole __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));

  Floats operator()(uint64_t bits) const {
    constexpr uint32_t mask = (1u << BITS) - 1;
    Words words, shifts;
    if constexpr (BITS <= 4) {
      const uint32_t all = (uint32_t)bits;
      words = Words{all, all, all, all, all, all, all, all};
      shifts = Words{0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS};
    } else {
      const uint32_t low = (uint32_t)bits, high = (uint32_t)(bits >> 4 * BITS);
      words = Words{low, low, low, low, high, high, high, high};
      shifts = Words{0, BITS, 2 * BITS, 3 * BITS, 0, BITS, 2 * BITS, 3 * BITS};
    }
    const Words codes = (words >> shifts) & mask;
    return __builtin_convertvector((Whole)codes, Floats) - ((float)(1u << (BITS - 1)) - 0.5f);
  }
};

#ifdef __AVX512F__
// One permutation looks sixteen values up; it reads the low four bits of an index, so the table repeats itself.
template <uint32_t BITS>
struct Group<BITS, std::enable_if_t<(BITS <= 4)>> {
  static constexpr size_t lanes = 16;
  typedef uint32_t Words __attribute__((vector_size(64)));
  typedef int32_t Whole __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  Floats values;

  Group() {
    for (uint32_t i = 0; i < 16; i++) values[i] = (float)(i % (1u << BITS)) + 0.5f - (float)(1u << (BITS - 1));
  }

  Floats operator()(uint64_t bits) const {
    constexpr uint32_t B = BITS;
    const uint32_t l = (uint32_t)bits, h = (uint32_t)(bits >> 8 * BITS);
    Words words, shifts = {0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B, 0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B};
    if constexpr (BITS <= 2) {  // all in one word
      words = Words{} + l;
      shifts += Words{0, 0, 0, 0, 0, 0, 0, 0, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B};
    } else {
      words = Words{l, l, l, l, l, l, l, l, h, h, h, h, h, h, h, h};
    }
    return __builtin_shuffle(values, (Whole)(words >> shifts));
  }
};
#endif

struct Table {
  const uint8_t* packed;
  size_t nbytes, dim, row_bits;
  const float* steps;
  int64_t shared;  // rows that share a step; 0 for one step

  float step(int64_t row) const { return steps[shared == 0 ? 0 : shared == 1 ? row : row / shared]; }
  const uint8_t* byte(int64_t row) const { return packed + ((size_t)row * row_bits >> 3); }

  // 64 bits of the stream from bit `at` on, which starts a byte where ALIGNED; what lies behind its end is zero.
  template <bool ALIGNED>
  uint64_t bits(size_t at) const {
    const size_t first = at >> 3, shift = at & 7;
    uint64_t low = 0;
    if (first + 9 <= nbytes) {
      std::memcpy(&low, packed + first, 8);
      if (ALIGNED || shift == 0) return low;
      return low >> shift | (uint64_t)packed[first + 8] << (64 - shift);
    }
    std::memcpy(&low, packed + first, std::min<size_t>(8, nbytes - first));  // the last bytes of the table
    return low >> shift;
  }
};

inline void fetch(const uint8_t* row, size_t nbytes) {
  for (size_t at = 0; at < nbytes; at += 64) __builtin_prefetch(row + at);
}

struct Reads {
  const int64_t* rows;
  int64_t lo, hi;
  const float* weights;
  float share;  // of each row in the bag
};

// COUNT groups of a bag from the first one on -> out; the last of them may be cut to `values` of its lanes.
template <uint32_t BITS, size_t COUNT, bool ALIGNED>
inline void tile(const Table& table, const Group<BITS>& group, const Reads& reads, size_t first, size_t values,
                 float* out) {
  typedef Group<BITS> G;
  typename G::Floats sums[COUNT] = {};
  for (int64_t j = reads.lo; j < reads.hi; j++) {
    const size_t at = (size_t)reads.rows[j] * table.row_bits + first * G::lanes * BITS;
    const float step = table.step(reads.rows[j]), scale = reads.weights ? step * reads.weights[j] : step;
#pragma GCC unroll 8
    for (size_t g = 0; g < COUNT; g++) sums[g] += group(table.bits<ALIGNED>(at + g * G::lanes * BITS)) * scale;
  }
#pragma GCC unroll 8
  for (size_t g = 0; g < COUNT; g++) {
    const typename G::Floats sum = sums[g] * reads.share;
    if (COUNT > 1 || values == G::lanes)
      std::memcpy(out + g * G::lanes, &sum, sizeof sum);
    else
      std::memcpy(out, &sum, values * sizeof(float));
  }
}

// Bags of rows of one step, unweighted, that end at whole bytes: the codes are summed before they become values.
template <uint32_t BITS>
void bags_of_codes(const Table& table, const int64_t* rows, const int64_t* offsets, size_t count, bool mean, float* out) {
  const size_t row_bytes = table.row_bits / 8;
  const float middle = (float)(1u << (BITS - 1)) - 0.5f;
  for (size_t b = 0; b < count; b++, out += table.dim) {
    const int64_t lo = offsets[b], hi = offsets[b + 1];
    for (int64_t j = lo; j < hi && j + kAhead < offsets[count]; j++) fetch(table.byte(rows[j + kAhead]), row_bytes);
    embcomp::CodeSums<BITS>(table.packed, row_bytes, rows, lo, hi).add(out);
    const float scale = table.steps[0] * (mean && hi > lo ? 1.0f / (float)(hi - lo) : 1.0f);
    const float shift = middle * (float)(hi - lo);
    for (size_t d = 0; d < table.dim; d++) out[d] = (out[d] - shift) * scale;
  }
}

template <uint32_t BITS, bool ALIGNED>
void bags(const Table& table, const int64_t* rows, const int64_t* offsets, size_t count, const float* weights,
          bool mean, float* out) {
  constexpr size_t lanes = Group<BITS>::lanes;
  const Group<BITS> group;
  const size_t whole = table.dim / lanes, left = table.dim % lanes, row_bytes = (table.row_bits + 7) / 8;
  const int64_t end = offsets ? offsets[count] : (int64_t)count;
  for (size_t b = 0; b < count; b++, out += table.dim) {
    const int64_t lo = offsets ? offsets[b] : (int64_t)b, hi = offsets ? offsets[b + 1] : lo + 1;
    for (int64_t j = lo; j < hi && j + kAhead < end; j++) fetch(table.byte(rows[j + kAhead]), row_bytes);
    const Reads reads = {rows, lo, hi, weights, mean && hi > lo ? 1.0f / (float)(hi - lo) : 1.0f};
    size_t g = 0;
    for (; g + 8 <= whole; g += 8) tile<BITS, 8, ALIGNED>(table, group, reads, g, lanes, out + g * lanes);
    for (; g + 4 <= whole; g += 4) tile<BITS, 4, ALIGNED>(table, group, reads, g, lanes, out + g * lanes);
    for (; g + 2 <= whole; g += 2) tile<BITS, 2, ALIGNED>(table, group, reads, g, lanes, out + g * lanes);
    for (; g < whole; g++) tile<BITS, 1, ALIGNED>(table, group, reads, g, lanes, out + g * lanes);
    if (left) tile<BITS, 1, ALIGNED>(table, group, reads, g, left, out + g * lanes);
  }
}

template <uint32_t BITS>
void bags(const Table& table, const int64_t* rows, const int64_t* offsets, size_t count, const float* weights,
          bool mean, float* out) {
  if constexpr (BITS == 1 || BITS == 2 || BITS == 4)
    if (offsets && !weights && table.shared == 0 && table.row_bits % 8 == 0)
      return bags_of_codes<BITS>(table, rows, offsets, count, mean, out);
  if (table.row_bits % 8 == 0)
    bags<BITS, true>(table, rows, offsets, count, weights, mean, out);
  else
    bags<BITS, false>(table, rows, offsets, count, weights, mean, out);
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
