// The rows of packed codes with the largest products, the fast form of embcomp.ops.code_search. The product of row i and
// query q is scale[i] * sum_j q[j] * (code[i][j] - (levels[j] - 1) / 2).
//
// Queries are rounded to 8 bits, and blocks of codes unpacked once for all queries; products of integers then say which
// rows may be among the k best, within a bound of what the rounding changes. Those alone are computed in full.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__BMI2__)
#include <immintrin.h>
#endif

#include "memory.h"

namespace {

constexpr size_t kTile = 64;     // rows whose products are in registers
constexpr size_t kBlock = 256;   // rows that are unpacked at once: 64 columns of them stay in the first-level cache
constexpr size_t kChunk = 64;    // columns whose products fit 16 bits, see `Queries`
constexpr float kLargest = 32767.0f;

// Columns of one width: bits [(row * columns + j) * bits, ...) of a little-endian stream.
struct Group {
  const uint8_t* packed;
  size_t nbytes, columns, bits;

  // The codes of a row, a byte each; up to 7 bytes behind them are written, too.
  void read(size_t row, uint8_t* out) const {
    size_t at = row * columns * bits;
    for (size_t j = 0; j < columns; j += 8, at += 8 * bits) {
      const size_t byte = at >> 3;
      uint64_t window = 0;
      if (byte + 8 <= nbytes)
        std::memcpy(&window, packed + byte, 8);
      else
        std::memcpy(&window, packed + byte, nbytes - byte);
      window >>= at & 7;
#ifdef __BMI2__
      const uint64_t eight = _pdep_u64(window, 0x0101010101010101u * ((1u << bits) - 1));
#else
      uint64_t eight = 0;
      for (size_t k = 0; k < 8; k++) eight |= (window >> k * bits & ((1u << bits) - 1)) << 8 * k;
#endif
      std::memcpy(out + j, &eight, 8);
    }
  }
};

struct Codes {
  embcomp::Vector<Group> groups;
  const float* scales;  // null where all are 1
  size_t rows, columns;

  // All codes of a row, a byte each.
  void read(size_t row, uint8_t* out) const {
    for (const Group& group : groups) group.read(row, out), out += group.columns;
  }

  float scale(size_t row) const { return scales ? scales[row] : 1.0f; }

  // Codes of wide columns are two planes of 4 bits, the lower half first: `planes` of `padded` columns each.
  size_t planes() const {
    for (const Group& group : groups)
      if (group.bits > 4) return 2;
    return 1;
  }
  size_t padded() const { return (columns + 1) / 2 * 2; }
};

// Rows [first, first + count) as pairs of columns: bytes[plane][column / 2][row][column % 2], zero behind the last one.
// Returns the largest length of a row of centred codes.
float unpack(const Codes& codes, const embcomp::Vector<float>& middles, size_t first, size_t count, size_t planes,
             embcomp::Vector<uint8_t>& bytes) {
  const size_t padded = codes.padded(), columns = codes.columns;
  embcomp::Vector<uint8_t> row(padded + 8), lower(padded + 8);
  float largest = 0.0f;
  for (size_t i = 0; i < count; i++) {
    codes.read(first + i, row.data());
    float squares = 0.0f;
    for (size_t j = 0; j < columns; j++) squares += ((float)row[j] - middles[j]) * ((float)row[j] - middles[j]);
    largest = std::max(largest, squares);
    std::fill(row.begin() + (ptrdiff_t)columns, row.end(), (uint8_t)0);
    for (size_t plane = 0; plane < planes; plane++) {
      for (size_t j = 0; j < padded; j++) lower[j] = (uint8_t)(planes == 1 ? row[j] : row[j] >> 4 * plane & 15);
      uint8_t* out = bytes.data() + (plane * padded * kBlock + 2 * i);
      for (size_t j = 0; j < padded; j += 2) std::memcpy(out + j * kBlock, lower.data() + j, 2);
    }
  }
  return std::sqrt(largest);
}

// Queries as integers: of each chunk of columns the products with codes of 4 bits sum to less than 2^15.
struct Queries {
  embcomp::Vector<int8_t> values;    // [queries][padded]
  embcomp::Vector<float> step;       // what an integer stands for
  embcomp::Vector<float> middle;     // the product with the middle of the codes, to be taken off, in steps
  embcomp::Vector<float> lost;       // the length of what rounding took away, in steps
};

Queries rounded(const Codes& codes, const float* queries, size_t count) {
  const size_t padded = codes.padded(), width = codes.columns;
  embcomp::Vector<float> levels;
  for (const Group& group : codes.groups) levels.insert(levels.end(), group.columns, (float)((1u << group.bits) - 1));
  Queries found{embcomp::Vector<int8_t>(count * padded), embcomp::Vector<float>(count), embcomp::Vector<float>(count),
                embcomp::Vector<float>(count)};
  for (size_t q = 0; q < count; q++) {
    const float* query = queries + q * width;
    float step = 0.0f;
    for (size_t lo = 0; lo < width; lo += kChunk) {
      const size_t hi = std::min(width, lo + kChunk);
      float sum = 0.0f, largest = 0.0f, most = 0.0f;
      for (size_t j = lo; j < hi; j++) {
        const float reach = std::min(levels[j], 15.0f);
        sum += std::fabs(query[j]) * reach;
        most += reach * 0.5f;  // rounding up
        largest = std::max(largest, std::fabs(query[j]));
      }
      step = std::max(step, std::max(largest / 127.0f, sum / (kLargest - most)));
    }
    if (!(step > 1e-30f)) step = 1e-30f;
    double middle = 0.0, lost = 0.0;
    for (size_t j = 0; j < width; j++) {
      const float whole = std::min(std::max(std::nearbyint(query[j] / step), -127.0f), 127.0f);
      found.values[q * padded + j] = (int8_t)whole;
      middle += (double)whole * levels[j] * 0.5;
      lost += ((double)query[j] / step - whole) * ((double)query[j] / step - whole);
    }
    found.step[q] = step, found.middle[q] = (float)middle, found.lost[q] = (float)std::sqrt(lost);
  }
  return found;
}

// The k best so far of one query: a heap with the worst of them first.
struct Best {
  float* scores;
  int64_t* rows;
  size_t k, held = 0;

  static bool before(float a, int64_t i, float b, int64_t j) { return a > b || (a == b && i < j); }
  float least() const { return held < k ? -INFINITY : scores[0]; }

  void push(float score, int64_t row) {
    size_t at;
    if (held < k) {
      at = held++;
      for (; at && before(scores[(at - 1) / 2], rows[(at - 1) / 2], score, row); at = (at - 1) / 2) move((at - 1) / 2, at);
    } else {
      if (!before(score, row, scores[0], rows[0])) return;
      at = sink(0, k, score, row);
    }
    scores[at] = score, rows[at] = row;
  }

  void sort() {
    for (size_t end = held; end > 1; end--) {
      const float score = scores[end - 1];
      const int64_t row = rows[end - 1];
      move(0, end - 1);
      const size_t at = sink(0, end - 1, score, row);
      scores[at] = score, rows[at] = row;
    }
  }

 private:
  void move(size_t from, size_t to) { scores[to] = scores[from], rows[to] = rows[from]; }

  size_t sink(size_t at, size_t end, float score, int64_t row) {
    for (size_t child; (child = 2 * at + 1) < end; at = child) {
      if (child + 1 < end && before(scores[child], rows[child], scores[child + 1], rows[child + 1])) child++;
      if (!before(score, row, scores[child], rows[child])) break;
      move(child, at);
    }
    return at;
  }
};

// The product in full; `room` holds a row.
float product(const Codes& codes, const embcomp::Vector<float>& middles, const float* query, size_t row, uint8_t* room) {
  codes.read(row, room);
  double sum = 0.0;
  for (size_t j = 0; j < codes.columns; j++) sum += (double)query[j] * (double)((float)room[j] - middles[j]);
  return (float)(sum * codes.scale(row));
}

struct Pair {
  const int8_t* values[2];
  float middle[2];
};

#ifdef __AVX2__
// sums[query][row] of a tile, in steps, the middle taken off.
inline void products(const uint8_t* tile, size_t planes, size_t padded, const Pair& pair, float sums[2][kTile]) {
  constexpr size_t parts = kTile / 16;
  for (size_t plane = 0; plane < planes; plane++)
    for (size_t lo = 0; lo < padded; lo += kChunk) {
      __m256i total[2][parts];
      for (auto& each : total)
        for (auto& part : each) part = _mm256_setzero_si256();
      const uint8_t* bytes = tile + (plane * padded + lo) * kBlock;
      for (size_t j = lo; j < std::min(padded, lo + kChunk); j += 2, bytes += 2 * kBlock) {
        int16_t both[2];
        std::memcpy(&both[0], pair.values[0] + j, 2);
        std::memcpy(&both[1], pair.values[1] + j, 2);
        const __m256i one = _mm256_set1_epi16(both[0]), two = _mm256_set1_epi16(both[1]);
#pragma GCC unroll 4
        for (size_t part = 0; part < parts; part++) {
          const __m256i codes = _mm256_loadu_si256((const __m256i*)(bytes + 32 * part));
          total[0][part] = _mm256_add_epi16(total[0][part], _mm256_maddubs_epi16(codes, one));
          total[1][part] = _mm256_add_epi16(total[1][part], _mm256_maddubs_epi16(codes, two));
        }
      }
      const __m256 factor = _mm256_set1_ps(plane ? 16.0f : 1.0f);
      const bool first = plane == 0 && lo == 0;
      for (size_t q = 0; q < 2; q++) {
        const __m256 less = _mm256_set1_ps(-pair.middle[q]);
        for (size_t half = 0; half < 2 * parts; half++) {
          const __m256i whole = total[q][half / 2];
          const __m128i words = half % 2 ? _mm256_extracti128_si256(whole, 1) : _mm256_castsi256_si128(whole);
          const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
          const __m256 before = first ? less : _mm256_loadu_ps(sums[q] + 8 * half);
          _mm256_storeu_ps(sums[q] + 8 * half, _mm256_add_ps(before, _mm256_mul_ps(values, factor)));
        }
      }
    }
}

// One bit for each row of a tile whose (sum + slack) * scale is not below `least`.
inline uint64_t reached(const float* sums, const float* scales, float slack, float least) {
  uint64_t found = 0;
  const __m256 more = _mm256_set1_ps(slack), bar = _mm256_set1_ps(least);
  for (size_t i = 0; i < kTile; i += 8) {
    const __m256 upper = _mm256_mul_ps(_mm256_add_ps(_mm256_loadu_ps(sums + i), more), _mm256_loadu_ps(scales + i));
    found |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(upper, bar, _CMP_NLT_UQ)) << i;
  }
  return found;
}
#else
inline void products(const uint8_t* tile, size_t planes, size_t padded, const Pair& pair, float sums[2][kTile]) {
  for (size_t q = 0; q < 2; q++) {
    int32_t total[2][kTile] = {};
    for (size_t plane = 0; plane < planes; plane++)
      for (size_t j = 0; j < padded; j++) {
        const uint8_t* bytes = tile + (plane * padded + j / 2 * 2) * kBlock + j % 2;
        const int32_t value = pair.values[q][j];
        for (size_t i = 0; i < kTile; i++) total[plane][i] += value * bytes[2 * i];
      }
    for (size_t i = 0; i < kTile; i++) sums[q][i] = (float)(total[0][i] + 16 * total[1][i]) - pair.middle[q];
  }
}

inline uint64_t reached(const float* sums, const float* scales, float slack, float least) {
  uint64_t found = 0;
  for (size_t i = 0; i < kTile; i++) found |= (uint64_t)!((sums[i] + slack) * scales[i] < least) << i;
  return found;
}
#endif

}  // namespace

extern "C" {

// The k rows of largest product for each query, best first, of equal ones the first; `out_scores` and `out_rows` are
// [count, k], and k is at most `rows`. Group g lies at packed + starts[g], `columns[g]` columns of `bits[g]` bits.
// Scales are positive. Returns the memory that is missing.
size_t code_search(const uint8_t* packed, const int64_t* starts, const int64_t* ends, const int64_t* columns,
                   const int64_t* bits, size_t groups, const float* scales, size_t rows, const float* queries,
                   size_t count, size_t k, float* out_scores, int64_t* out_rows) {
  return embcomp::missing_memory([&] {
    Codes codes{{}, scales, rows, 0};
    for (size_t g = 0; g < groups; g++) {
      codes.groups.push_back({packed + starts[g], (size_t)(ends[g] - starts[g]), (size_t)columns[g], (size_t)bits[g]});
      codes.columns += (size_t)columns[g];
    }
    const size_t planes = codes.planes(), padded = codes.padded();
    embcomp::Vector<float> middles;
    for (const Group& group : codes.groups)
      middles.insert(middles.end(), group.columns, (float)((1u << group.bits) - 1) * 0.5f);
    const Queries integers = rounded(codes, queries, count);
    embcomp::Vector<Best> best;
    for (size_t q = 0; q < count; q++) best.push_back({out_scores + q * k, out_rows + q * k, k});
    embcomp::Vector<uint8_t> bytes(planes * padded * kBlock), room(padded + 8);
    embcomp::Vector<float> of_block(kBlock);
    float sums[2][kTile];
    for (size_t first = 0; first < rows; first += kBlock) {
      const size_t here = std::min(kBlock, rows - first);
      const float length = unpack(codes, middles, first, here, planes, bytes);
      for (size_t i = 0; i < kBlock; i++) of_block[i] = i < here ? codes.scale(first + i) : 0.0f;
      for (size_t q = 0; q < count; q += 2) {
        const size_t other = std::min(q + 1, count - 1);
        const Pair pair = {{integers.values.data() + q * padded, integers.values.data() + other * padded},
                           {integers.middle[q], integers.middle[other]}};
        for (size_t t = 0; t < here; t += kTile) {
          products(bytes.data() + 2 * t, planes, padded, pair, sums);
          for (size_t each = q; each < std::min(q + 2, count); each++) {
            const float slack = integers.lost[each] * length * 1.0001f + std::fabs(integers.middle[each]) * 1e-5f +
                                (planes == 2 ? 0.2f : 0.01f);  // what floats round
            const float least = best[each].least() / integers.step[each];
            uint64_t found = reached(sums[each - q], of_block.data() + t, slack, least);
            if (here - t < kTile) found &= ((uint64_t)1 << (here - t)) - 1;
            for (; found; found &= found - 1) {
              const size_t row = first + t + (size_t)__builtin_ctzll(found);
              const float* query = queries + each * codes.columns;
              best[each].push(product(codes, middles, query, row, room.data()), (int64_t)row);
            }
          }
        }
      }
    }
    for (Best& each : best) each.sort();
  });
}

}  // extern "C"
