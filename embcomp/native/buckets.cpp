// Histories summed up by bucket (embcomp.ops.buckets), one thread. Event t of history b, offsets[b] <= t <
// offsets[b + 1], is row places[t] of `values`, or row t where places is null; words[row] is its signature, which names
// a bucket in each group, and masked events do not count. A history's buckets are a table [groups, width, dim], width =
// 2^bits. Functions that need memory return what is missing.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "memory.h"
#include "rows.h"

namespace {

typedef float Wide __attribute__((vector_size(64), aligned(4), may_alias));
typedef float Half __attribute__((vector_size(32), aligned(4), may_alias));
constexpr size_t kWide = sizeof(Wide) / sizeof(float);

// Templates are told the bytes of a lane: as an argument of a template a type loses its attributes, and callers' memory
// is not aligned to more than a float (views, arrays of NumPy).
template <size_t BYTES> struct LaneOf { typedef float type; };
template <> struct LaneOf<sizeof(Half)> { typedef Half type; };
template <> struct LaneOf<sizeof(Wide)> { typedef Wide type; };

struct Events {
  size_t dim;
  const int64_t* places;
  const int64_t* words;
  const bool* mask;
  const int64_t* offsets;
  size_t batch;

  bool counts(int64_t t) const { return !mask || mask[t]; }
  size_t row(int64_t t) const { return places ? (size_t)places[t] : (size_t)t; }

  // Fetches BYTES of the row of a later event.
  template <size_t BYTES>
  void prefetch(const float* rows, int64_t t, int64_t end) const {
    constexpr int64_t ahead = embcomp::kAhead;
    if (t + ahead >= end) return;
    for (size_t byte = 0; byte < BYTES; byte += 64)
      __builtin_prefetch((const char*)(rows + row(t + ahead) * dim) + byte);
  }
};

struct Groups {
  size_t number, bits;

  size_t width() const { return (size_t)1 << bits; }
  size_t each() const { return 63 / bits; }  // of a word
  size_t words() const { return (number + each() - 1) / each(); }

  // Calls use(g * width + code) for each group.
  template <class Use>
  inline void each_bucket(const int64_t* signature, Use use) const {
    for (size_t g = 0; g < number;) {
      uint64_t word = (uint64_t)*signature++;
      for (const size_t stop = std::min(number, g + each()); g < stop; g++, word >>= bits)
        use((g << bits) + (word & (width() - 1)));
    }
  }
};

// --- signatures ---

#ifdef __AVX512F__
constexpr size_t kRows = 8;  // sums of 8 rows and 3 wide columns fill the registers
#else
constexpr size_t kRows = 2;
#endif

template <size_t COLUMNS>
inline void project_columns(const float* x, size_t dim, const float* matrix, size_t stride, float* out) {
  Wide sum[kRows][COLUMNS] = {};
  for (size_t d = 0; d < dim; d++) {
    __builtin_prefetch(x + kRows * (dim + d));  // the next block
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; r++)
#pragma GCC unroll 3
      for (size_t c = 0; c < COLUMNS; c++)
        sum[r][c] += x[r * dim + d] * *(const Wide*)(matrix + d * stride + c * kWide);
  }
  for (size_t r = 0; r < kRows; r++)
    for (size_t c = 0; c < COLUMNS; c++) *(Wide*)(out + r * stride + c * kWide) = sum[r][c];
}

// out [kRows, stride] = x [kRows, dim] times the matrix [dim, stride]; stride is a multiple of kWide.
void project(const float* x, size_t dim, const float* matrix, size_t stride, float* out) {
  size_t column = 0;
  for (; column + 3 * kWide <= stride; column += 3 * kWide)
    project_columns<3>(x, dim, matrix + column, stride, out + column);
  if (column + 2 * kWide <= stride) {
    project_columns<2>(x, dim, matrix + column, stride, out + column);
    column += 2 * kWide;
  }
  if (column < stride) project_columns<1>(x, dim, matrix + column, stride, out + column);
}

void pack_signs(const float* projected, size_t number, size_t word_bits, int64_t* words) {
  for (size_t start = 0; start < number; start += word_bits) {
    const size_t size = std::min(word_bits, number - start);
    uint64_t word = 0;
    for (size_t j = 0; j < size; j++) word |= (uint64_t)(projected[start + j] > 0.0f) << j;
    *words++ = (int64_t)word;
  }
}

// --- sums ---

// A few columns for all events, then the next few: so narrow, the buckets of a history fit the first-level cache.
template <size_t BYTES, size_t LANES>
void scatter(const float* values, const Events& e, const Groups& groups, float* sums) {
  typedef typename LaneOf<BYTES>::type Lane;
  const size_t n = e.dim, table = groups.number * groups.width() * n;
  for (size_t b = 0; b < e.batch; b++)
    for (size_t d = 0; d < n; d += LANES * BYTES / sizeof(float))
      for (int64_t t = e.offsets[b]; t < e.offsets[b + 1]; t++) {
        e.prefetch<LANES * BYTES>(values + d, t, e.offsets[b + 1]);
        if (!e.counts(t)) continue;
        const Lane* from = (const Lane*)(values + e.row(t) * n + d);
        Lane held[LANES];
        for (size_t l = 0; l < LANES; l++) held[l] = from[l];
        float* to = sums + b * table + d;
        groups.each_bucket(e.words + e.row(t) * groups.words(), [&](size_t bucket) {
          Lane* lanes = (Lane*)(to + bucket * n);
#pragma GCC unroll 4
          for (size_t l = 0; l < LANES; l++) lanes[l] += held[l];
        });
      }
}

// out[row] = (or +=, where several events may share a row) the sum of the event's buckets.
template <size_t BYTES, size_t LANES>
void gather(const float* sums, const Events& e, const Groups& groups, float* out) {
  typedef typename LaneOf<BYTES>::type Lane;
  const size_t n = e.dim, buckets = groups.number * groups.width();
  for (size_t b = 0; b < e.batch; b++)
    for (size_t d = 0; d < n; d += LANES * BYTES / sizeof(float))
      for (int64_t t = e.offsets[b]; t < e.offsets[b + 1]; t++) {
        e.prefetch<LANES * BYTES>(out + d, t, e.offsets[b + 1]);
        Lane sum[LANES] = {};
        const float* table = sums + b * buckets * n + d;
        if (e.counts(t))
          groups.each_bucket(e.words + e.row(t) * groups.words(), [&](size_t bucket) {
#pragma GCC unroll 4
            for (size_t l = 0; l < LANES; l++) sum[l] += ((const Lane*)(table + bucket * n))[l];
          });
        Lane* to = (Lane*)(out + e.row(t) * n + d);
        for (size_t l = 0; l < LANES; l++) to[l] = e.places ? to[l] + sum[l] : sum[l];
      }
}

// In each group every bucket becomes the sum of all, each times the weight [batch, bits + 1] of how many bits of the two
// differ.
template <size_t BYTES, size_t LANES>
void mix(const float* sums, size_t batch, size_t dim, const Groups& groups, const float* weights, float* out) {
  typedef typename LaneOf<BYTES>::type Lane;
  const size_t width = groups.width();
  for (size_t b = 0; b < batch; b++, weights += groups.bits + 1)
    for (size_t g = 0; g < groups.number; g++, sums += width * dim, out += width * dim)
      for (size_t d = 0; d < dim; d += LANES * BYTES / sizeof(float))
        for (size_t to = 0; to < width; to++) {
          Lane sum[LANES] = {};
          for (size_t from = 0; from < width; from++) {
            const float weight = weights[__builtin_popcountll(to ^ from)];
#pragma GCC unroll 4
            for (size_t l = 0; l < LANES; l++) sum[l] += weight * ((const Lane*)(sums + from * dim + d))[l];
          }
          for (size_t l = 0; l < LANES; l++) ((Lane*)(out + to * dim + d))[l] = sum[l];
        }
}

// --- pairs of candidate and event ---

// Calls use(g) for each group in which two signatures agree.
struct Agreement {
  Groups groups;
  embcomp::Vector<uint64_t> lowest;  // of each word: the lowest bit of each group
  uint8_t group_of[64];

  explicit Agreement(const Groups& given) : groups(given), lowest(given.words()) {
    for (size_t g = 0; g < groups.number; g++)
      lowest[g / groups.each()] |= (uint64_t)1 << (g % groups.each() * groups.bits);
    for (size_t bit = 0; bit < 64; bit++) group_of[bit] = (uint8_t)(bit / groups.bits);
  }

  template <class Use>
  inline void each_group(const int64_t* one, const int64_t* other, Use use) const {
    for (size_t w = 0; w < lowest.size(); w++) {
      const uint64_t differ = (uint64_t)(one[w] ^ other[w]);
      uint64_t any = differ;
      for (size_t k = 1; k < groups.bits; k++) any |= differ >> k;
      for (uint64_t same = ~any & lowest[w]; same; same &= same - 1)
        use(w * groups.each() + group_of[__builtin_ctzll(same)]);
    }
  }
};

// Calls use(row of `rows`, place) for each event, candidate and group in which the two agree; place = candidate * number
// + group.
template <size_t DIM, class Value, class Use>
inline void each_pair(Value* rows, const Events& e, const int64_t* asked, size_t candidates, const Groups& groups,
                      Use use) {
  const Agreement agreement(groups);
  const size_t n = DIM ? DIM : e.dim, words = groups.words();
  for (size_t b = 0; b < e.batch; b++)
    for (int64_t t = e.offsets[b]; t < e.offsets[b + 1]; t++) {
      if (t + (int64_t)embcomp::kAhead < e.offsets[b + 1])
        embcomp::prefetch_row(rows + e.row(t + embcomp::kAhead) * n, n);
      if (!e.counts(t)) continue;
      Value* row = rows + e.row(t) * n;
      for (size_t c = b * candidates; c < (b + 1) * candidates; c++)
        agreement.each_group(asked + c * words, e.words + e.row(t) * words,
                             [&](size_t g) { use(row, c * groups.number + g); });
    }
}

template <size_t DIM>
void collide(const float* values, const Events& e, const int64_t* asked, size_t candidates, const Groups& groups,
             float* sums, float* counts) {
  const size_t n = DIM ? DIM : e.dim;
  each_pair<DIM>(values, e, asked, candidates, groups, [&](const float* row, size_t place) {
    embcomp::add_scaled<DIM>(sums + place * n, row, 1.0f, n);
    counts[place] += 1.0f;
  });
}

// The gradient of collide, added to the rows of `out`.
template <size_t DIM>
void spread(const float* sums, const Events& e, const int64_t* asked, size_t candidates, const Groups& groups,
            float* out) {
  const size_t n = DIM ? DIM : e.dim;
  each_pair<DIM>(out, e, asked, candidates, groups,
                 [&](float* row, size_t place) { embcomp::add_scaled<DIM>(row, sums + place * n, 1.0f, n); });
}

}  // namespace

#define EMBCOMP_EVENTS                                                                                    \
  size_t dim, const int64_t *places, const int64_t *words, const bool *mask, const int64_t *offsets,      \
      size_t batch, size_t number, size_t bits
#define EMBCOMP_FOR_LANES(CALL)                    \
  do {                                             \
    if (dim % 64 == 0) CALL(64, 4);                \
    else if (dim % 32 == 0) CALL(64, 2);           \
    else if (dim % 16 == 0) CALL(64, 1);           \
    else if (dim % 8 == 0) CALL(32, 1);            \
    else CALL(4, 1);                               \
  } while (0)

extern "C" {

// The signs of x [n, dim] times the matrix [dim, number], or of x itself where matrix is null, `word_bits` to a word, the
// first the lowest bit. A row's are the same whatever the others: each is summed up in the same order.
size_t sign_words(const float* x, size_t n, size_t dim, const float* matrix, size_t number, size_t word_bits,
                  int64_t* words) {
  return embcomp::missing_memory([&] {
    const size_t stride = (number + kWide - 1) / kWide * kWide, count = (number + word_bits - 1) / word_bits;
    embcomp::Vector<float> padded, projected(kRows * stride), last(kRows * dim);
    for (size_t i = 0; !matrix && i < n; i++) pack_signs(x + i * dim, number, word_bits, words + i * count);
    if (!matrix) return;
    if (stride != number) {
      padded.resize(dim * stride);
      for (size_t d = 0; d < dim; d++) std::copy_n(matrix + d * number, number, &padded[d * stride]);
      matrix = padded.data();
    }
    for (size_t i = 0; i < n; i += kRows) {
      const size_t rows = std::min(kRows, n - i);
      const float* block = x + i * dim;
      if (rows < kRows) block = std::copy_n(block, rows * dim, last.data()) - rows * dim;
      project(block, dim, matrix, stride, projected.data());
      for (size_t r = 0; r < rows; r++) pack_signs(&projected[r * stride], number, word_bits, words + (i + r) * count);
    }
  });
}

// sums and counts begin as zeros.
void bucket_scatter(const float* values, EMBCOMP_EVENTS, float* sums, float* counts) {
  const Events e{dim, places, words, mask, offsets, batch};
  const Groups groups{number, bits};
#define EMBCOMP_CALL(BYTES, LANES) scatter<BYTES, LANES>(values, e, groups, sums)
  EMBCOMP_FOR_LANES(EMBCOMP_CALL);
#undef EMBCOMP_CALL
  if (!counts) return;
  for (size_t b = 0; b < batch; b++)
    for (int64_t t = offsets[b]; t < offsets[b + 1]; t++)
      if (e.counts(t))
        groups.each_bucket(words + e.row(t) * groups.words(),
                           [&](size_t bucket) { counts[b * (number << bits) + bucket] += 1.0f; });
}

// The sum of each event's buckets, one of each group; zeros where masked. Where places are given it is added to
// out[places[t]].
void bucket_gather(const float* sums, EMBCOMP_EVENTS, float* out) {
  const Events e{dim, places, words, mask, offsets, batch};
  const Groups groups{number, bits};
#define EMBCOMP_CALL(BYTES, LANES) gather<BYTES, LANES>(sums, e, groups, out)
  EMBCOMP_FOR_LANES(EMBCOMP_CALL);
#undef EMBCOMP_CALL
}

// out[i] = rows[i] * scales[i] with scales[i] = scale / |rows[i]|, and zero for zeros.
void unit_rows(const float* rows, size_t n, size_t dim, float scale, float* scales, float* out) {
  for (size_t i = 0; i < n; i++) {
    float square = 0.0f;
    for (size_t d = 0; d < dim; d++) square += rows[i * dim + d] * rows[i * dim + d];
    scales[i] = square > 0.0f ? scale / std::sqrt(square) : 0.0f;
    for (size_t d = 0; d < dim; d++) out[i * dim + d] = rows[i * dim + d] * scales[i];
  }
}

// What candidates [batch, candidates, dim] read, without gradients: their signatures are `known` or, where that is null,
// those of sign_words; unit > 0 divides each bucket by its length first, times unit; weights, where given, mix those of a
// group first; counts, where given, divide the sums by the events in them.
size_t bucket_query(const float* asked, const int64_t* known, size_t batch, size_t candidates, size_t dim,
                    const float* matrix, size_t number, size_t bits, const float* sums, const float* counts, float unit,
                    const float* weights, float* out) {
  return embcomp::missing_memory([&] {
    const Groups groups{number, bits};
    const size_t total = batch * candidates, buckets = batch * number * groups.width();
    embcomp::Vector<int64_t> words, offsets(batch + 1);
    for (size_t b = 0; b <= batch; b++) offsets[b] = (int64_t)(b * candidates);
    if (!known) {
      words.resize(total * groups.words());
      const size_t each = groups.each() * bits;
      const size_t missing = sign_words(asked, total, dim, matrix, number * bits, each, words.data());
      if (missing) throw embcomp::NoMemory(missing);
      known = words.data();
    }
    embcomp::Vector<float> table, scales;
    if (unit > 0.0f || weights) table.resize(buckets * dim);
    if (unit > 0.0f) {
      scales.resize(buckets);
      unit_rows(sums, buckets, dim, unit, scales.data(), table.data());
    } else if (weights) {
#define EMBCOMP_CALL(BYTES, LANES) mix<BYTES, LANES>(sums, batch, dim, groups, weights, table.data())
      EMBCOMP_FOR_LANES(EMBCOMP_CALL);
#undef EMBCOMP_CALL
    }
    if (!table.empty()) sums = table.data();
    bucket_gather(sums, dim, nullptr, known, nullptr, offsets.data(), batch, number, bits, out);
    if (!counts) return;
    embcomp::Vector<float> held(total);
    bucket_gather(counts, 1, nullptr, known, nullptr, offsets.data(), batch, number, bits, held.data());
    for (size_t t = 0; t < total; t++)
      for (size_t d = 0; d < dim; d++) out[t * dim + d] /= held[t] > 0.0f ? held[t] : 1.0f;
  });
}

// From the gradient of out[i] to that of rows[i], in place.
void unit_rows_backward(const float* rows, const float* scales, size_t n, size_t dim, float scale, float* grad) {
  for (size_t i = 0; i < n; i++) {
    const float* row = rows + i * dim;
    float along = 0.0f;
    for (size_t d = 0; d < dim; d++) along += grad[i * dim + d] * row[d];
    const float inverse = scales[i] / scale;
    along *= inverse * inverse;
    for (size_t d = 0; d < dim; d++) grad[i * dim + d] = scales[i] * (grad[i * dim + d] - along * row[d]);
  }
}

// The events that agree with each candidate, by group: sums [batch, candidates, number, dim] and their counts, which
// begin as zeros; asked holds the candidates' signatures.
size_t bucket_collide(const float* values, EMBCOMP_EVENTS, const int64_t* asked, size_t candidates, float* sums,
                      float* counts) {
  return embcomp::missing_memory([&] {
    const Events e{dim, places, words, mask, offsets, batch};
#define EMBCOMP_CALL(WIDTH) collide<WIDTH>(values, e, asked, candidates, Groups{number, bits}, sums, counts)
    EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
  });
}

// The gradient of bucket_collide, added to out.
size_t bucket_collide_backward(const float* sums, EMBCOMP_EVENTS, const int64_t* asked, size_t candidates, float* out) {
  return embcomp::missing_memory([&] {
    const Events e{dim, places, words, mask, offsets, batch};
#define EMBCOMP_CALL(WIDTH) spread<WIDTH>(sums, e, asked, candidates, Groups{number, bits}, out)
    EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
  });
}

}  // extern "C"
