// Look-ups in packed rows on a grid, the fast form of embcomp.ops.grid_rows: value j of row i is
// step * (code + 1/2 - 2^(bits-1)), its code the bits from (i * dim + j) * bits of the little-endian stream.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "astray.h"
#include "code_sums.h"
#include "grid_group.h"

namespace {

using embcomp::Group;

constexpr size_t kAhead = 96;  // rows fetched ahead: as many as the processor keeps in flight, in lines of one row

struct Table {
  const uint8_t* packed;
  size_t nbytes, dim, row_bits;
  const float* steps;
  int64_t shared;  // rows that share a step; 0 for one step

  float step(int64_t row) const { return steps[shared == 0 ? 0 : shared == 1 ? row : row / shared]; }

  void fetch(int64_t row) const {
    const uint8_t* first = packed + ((size_t)row * row_bits >> 3);
    for (size_t at = 0; at < (row_bits + 7) / 8; at += 64) __builtin_prefetch(first + at);
  }

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

// The look-ups of a call; without offsets each row is a bag.
struct Reads {
  const int64_t *rows, *offsets;
  size_t bags;
  const float* weights;
  bool mean;

  int64_t lo(size_t bag) const { return offsets ? offsets[bag] : (int64_t)bag; }
  int64_t end() const { return lo(bags); }
  float share(int64_t lo, int64_t hi) const { return mean && hi > lo ? 1.0f / (float)(hi - lo) : 1.0f; }
};

// COUNT groups of rows from the first one on -> out; of each the first `values` lanes.
template <uint32_t BITS, size_t COUNT, bool ALIGNED>
inline void tile(const Table& table, const Group<BITS>& group, const Reads& reads, int64_t lo, int64_t hi, size_t first,
                 size_t values, float* out) {
  typedef Group<BITS> G;
  typename G::Floats sums[COUNT] = {};
  for (int64_t j = lo; j < hi; j++) {
    const size_t at = (size_t)reads.rows[j] * table.row_bits + first * G::lanes * BITS;
    const float step = table.step(reads.rows[j]), scale = reads.weights ? step * reads.weights[j] : step;
#pragma GCC unroll 8
    for (size_t g = 0; g < COUNT; g++) sums[g] += group(table.bits<ALIGNED>(at + g * G::lanes * BITS)) * scale;
  }
  const float share = reads.share(lo, hi);
#pragma GCC unroll 8
  for (size_t g = 0; g < COUNT; g++) {
    const typename G::Floats sum = sums[g] * share;
    if (COUNT > 1 || values == G::lanes)
      std::memcpy(out + g * G::lanes, &sum, sizeof sum);
    else
      std::memcpy(out, &sum, values * sizeof(float));
  }
}

template <uint32_t BITS, bool ALIGNED>
void bags(const Table& table, const Reads& reads, float* out) {
  constexpr size_t lanes = Group<BITS>::lanes;
  const Group<BITS> group;
  const size_t whole = table.dim / lanes, left = table.dim % lanes;
  const int64_t end = reads.end();
  for (size_t b = 0; b < reads.bags; b++, out += table.dim) {
    const int64_t lo = reads.lo(b), hi = reads.lo(b + 1);
    for (int64_t j = lo; j < hi && j + (int64_t)kAhead < end; j++) table.fetch(reads.rows[j + kAhead]);
    size_t g = 0;
    for (; g + 8 <= whole; g += 8) tile<BITS, 8, ALIGNED>(table, group, reads, lo, hi, g, lanes, out + g * lanes);
    for (; g + 4 <= whole; g += 4) tile<BITS, 4, ALIGNED>(table, group, reads, lo, hi, g, lanes, out + g * lanes);
    for (; g + 2 <= whole; g += 2) tile<BITS, 2, ALIGNED>(table, group, reads, lo, hi, g, lanes, out + g * lanes);
    for (; g < whole; g++) tile<BITS, 1, ALIGNED>(table, group, reads, lo, hi, g, lanes, out + g * lanes);
    if (left) tile<BITS, 1, ALIGNED>(table, group, reads, lo, hi, g, left, out + g * lanes);
  }
}

// Rows of COUNT groups that end at whole bytes, one by one: nothing is summed.
template <uint32_t BITS, size_t COUNT>
void rows_alone(const Table& table, const Reads& reads, float* out) {
  typedef Group<BITS> G;
  const G group;
  for (size_t b = 0; b < reads.bags; b++, out += COUNT * G::lanes) {
    if (b + kAhead < reads.bags) table.fetch(reads.rows[b + kAhead]);
    const int64_t row = reads.rows[b];
    const size_t at = (size_t)row * table.row_bits;
    const float scale = reads.weights ? table.step(row) * reads.weights[b] : table.step(row);
#pragma GCC unroll 16
    for (size_t g = 0; g < COUNT; g++) {
      const typename G::Floats values = group(table.bits<true>(at + g * G::lanes * BITS)) * scale;
      std::memcpy(out + g * G::lanes, &values, sizeof values);
    }
  }
}

// Bags of rows of one step, unweighted, that end at whole bytes: the codes are summed before they become values.
template <uint32_t BITS>
void bags_of_codes(const Table& table, const Reads& reads, float* out) {
  const float middle = (float)(1u << (BITS - 1)) - 0.5f;
  const int64_t end = reads.end();
  for (size_t b = 0; b < reads.bags; b++, out += table.dim) {
    const int64_t lo = reads.lo(b), hi = reads.lo(b + 1);
    for (int64_t j = lo; j < hi && j + (int64_t)kAhead < end; j++) table.fetch(reads.rows[j + kAhead]);
    const embcomp::CodeSums<BITS> sums(table.packed, table.row_bits / 8, reads.rows, lo, hi);
    sums.write(middle * (float)(hi - lo), table.steps[0] * reads.share(lo, hi), out);
  }
}

template <uint32_t BITS>
void look_up(const Table& table, const Reads& reads, float* out) {
  constexpr size_t lanes = Group<BITS>::lanes;
  if (table.row_bits % 8) return bags<BITS, false>(table, reads, out);
  if (!reads.offsets && table.dim % lanes == 0) switch (table.dim / lanes) {
#define EMBCOMP_CASE(COUNT) \
  case COUNT: return rows_alone<BITS, COUNT>(table, reads, out);
      EMBCOMP_CASE(1) EMBCOMP_CASE(2) EMBCOMP_CASE(4) EMBCOMP_CASE(8)
#undef EMBCOMP_CASE
    }
  if constexpr (BITS == 1 || BITS == 2 || BITS == 4)
    if (reads.offsets && !reads.weights && table.shared == 0) return bags_of_codes<BITS>(table, reads, out);
  bags<BITS, true>(table, reads, out);
}

}  // namespace

extern "C" {

// Sums of bags: bag b reads rows[offsets[b] .. offsets[b + 1]), or rows[b] alone without offsets -> out [bags, dim].
// 1, and nothing written, unless all `total` rows lie in [0, held) and the offsets rise within them.
int grid_bags(const uint8_t* packed, size_t nbytes, size_t dim, size_t bits, const float* steps, int64_t shared,
              const int64_t* rows, size_t total, size_t held, const int64_t* offsets, size_t count,
              const float* weights, int mean, float* out) {
  if (embcomp::any_outside(rows, total, held)) return 1;
  if (offsets && embcomp::offsets_astray(offsets, count + 1, (int64_t)total)) return 1;
  const Table table = {packed, nbytes, dim, dim * bits, steps, shared};
  const Reads reads = {rows, offsets, count, weights, mean != 0};
  switch (bits) {
#define EMBCOMP_CASE(BITS) \
  case BITS: look_up<BITS>(table, reads, out); break;
    EMBCOMP_CASE(1) EMBCOMP_CASE(2) EMBCOMP_CASE(3) EMBCOMP_CASE(4)
    EMBCOMP_CASE(5) EMBCOMP_CASE(6) EMBCOMP_CASE(7) EMBCOMP_CASE(8)
#undef EMBCOMP_CASE
  }
  return 0;
}

}  // extern "C"
