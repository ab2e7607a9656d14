// Histories summed up by bucket (embcomp.ops.buckets), one thread. History b holds rows offsets[b] .. offsets[b + 1];
// its buckets are a table [groups, width, dim], and codes[t * groups + g] < width is the bucket of row t in group g.
#include <algorithm>
#include <cstring>

#include "rows.h"

namespace {

using embcomp::add_scaled;

constexpr int64_t kBlock = 32;  // rows that stay in the first-level cache while the groups take turns

template <size_t DIM>
void scatter(const float* values, size_t dim, const int64_t* codes, const bool* mask, const int64_t* offsets,
             size_t batch, size_t groups, size_t width, float* sums, float* counts) {
  const size_t n = DIM ? DIM : dim;
  for (size_t b = 0; b < batch; b++) {
    float* table = sums + b * groups * width * n;
    float* held = counts + b * groups * width;
    for (int64_t start = offsets[b]; start < offsets[b + 1]; start += kBlock) {
      const int64_t stop = std::min(offsets[b + 1], start + kBlock);
      for (size_t g = 0; g < groups; g++)
        for (int64_t t = start; t < stop; t++) {
          if (mask && !mask[t]) continue;
          const size_t bucket = g * width + (size_t)codes[t * groups + g];
          add_scaled<DIM>(table + bucket * n, values + t * n, 1.0f, n);
          held[bucket] += 1.0f;
        }
    }
  }
}

typedef float Lane __attribute__((vector_size(32), aligned(4), may_alias));
constexpr size_t kFloats = sizeof(Lane) / sizeof(float);

// The sum of LANES lanes of one row in each group, kept in registers; zeros where masked.
template <size_t LANES>
inline void gather_lanes(const float* table, size_t n, const int64_t* codes, size_t groups, size_t width, bool counts,
                         float* out) {
  Lane sum[LANES] = {};
  for (size_t g = 0; counts && g < groups; g++) {
    const float* row = table + (g * width + (size_t)codes[g]) * n;
#pragma GCC unroll 8
    for (size_t l = 0; l < LANES; l++) sum[l] += *(const Lane*)(row + l * kFloats);
  }
#pragma GCC unroll 8
  for (size_t l = 0; l < LANES; l++) *(Lane*)(out + l * kFloats) = sum[l];
}

// A few columns for all rows, then the next few: so narrow, the buckets of a history fit the first-level cache.
template <size_t LANES>
void gather(const float* sums, size_t n, const int64_t* codes, const bool* mask, const int64_t* offsets, size_t batch,
            size_t groups, size_t width, float* out) {
  for (size_t b = 0; b < batch; b++)
    for (size_t d = 0; d < n; d += LANES * kFloats)
      for (int64_t t = offsets[b]; t < offsets[b + 1]; t++)
        gather_lanes<LANES>(sums + b * groups * width * n + d, n, codes + t * groups, groups, width, !mask || mask[t],
                            out + t * n + d);
}

// Any width.
template <>
void gather<0>(const float* sums, size_t n, const int64_t* codes, const bool* mask, const int64_t* offsets, size_t batch,
               size_t groups, size_t width, float* out) {
  for (size_t b = 0; b < batch; b++)
    for (int64_t t = offsets[b]; t < offsets[b + 1]; t++) {
      std::memset(out + t * n, 0, n * sizeof(float));
      for (size_t g = 0; g < groups && (!mask || mask[t]); g++)
        add_scaled<0>(out + t * n, sums + ((b * groups + g) * width + (size_t)codes[t * groups + g]) * n, 1.0f, n);
    }
}

template <size_t BITS>
void to_codes(const float* x, size_t n, size_t bits, int64_t* codes) {
  const size_t m = BITS ? BITS : bits;
  for (size_t i = 0; i < n; i++) {
    int64_t code = 0;
    for (size_t j = 0; j < m; j++) code |= (int64_t)(x[i * m + j] > 0.0f) << j;
    codes[i] = code;
  }
}

}  // namespace

extern "C" {

// codes[i] = the bits x[i * hash_width + j] > 0, the first of them the lowest.
void sign_codes(const float* x, size_t n, size_t hash_width, int64_t* codes) {
  switch (hash_width) {
    case 1: return to_codes<1>(x, n, 1, codes);
    case 2: return to_codes<2>(x, n, 2, codes);
    case 3: return to_codes<3>(x, n, 3, codes);
    case 4: return to_codes<4>(x, n, 4, codes);
    default: return to_codes<0>(x, n, hash_width, codes);
  }
}

// sums and counts begin as zeros.
void bucket_scatter(const float* values, size_t dim, const int64_t* codes, const bool* mask, const int64_t* offsets,
                    size_t batch, size_t groups, size_t width, float* sums, float* counts) {
#define EMBCOMP_CALL(WIDTH) scatter<WIDTH>(values, dim, codes, mask, offsets, batch, groups, width, sums, counts)
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

// out[t] = the sum of the buckets of row t, one in each group; zeros where masked.
void bucket_gather(const float* sums, size_t dim, const int64_t* codes, const bool* mask, const int64_t* offsets,
                   size_t batch, size_t groups, size_t width, float* out) {
  const size_t lanes = dim % 64 == 0 ? 8 : dim % 32 == 0 ? 4 : dim % 8 == 0 ? 1 : 0;
  const auto call = lanes == 8 ? gather<8> : lanes == 4 ? gather<4> : lanes == 1 ? gather<1> : gather<0>;
  call(sums, dim, codes, mask, offsets, batch, groups, width, out);
}

}  // extern "C"
