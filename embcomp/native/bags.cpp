// Pooled look-ups over plain float32 tables and their dense gradients (embcomp.ops.tables), one thread.
// Rows arrive feature by feature, as in a KeyedJaggedTensor: bag (f, b) reads rows[offsets[f * B + b] .. offsets[f * B + b + 1]).
#include <algorithm>
#include <cstring>
#include <vector>

#include "rows.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

using embcomp::add_scaled;
using embcomp::Grid;
using embcomp::Rows;

constexpr size_t kBagsPerBlock = 16;           // output of a block stays in the second-level cache
constexpr size_t kStreamBytes = (size_t)32 << 20;  // an output of this size leaves the cache before anybody reads it

// Whether rows may be written past the cache, four floats at a time: a line that is written whole need not be read first.
bool can_stream(size_t n, size_t batch, const float* out, size_t out_stride, const int64_t* columns, size_t features) {
#ifdef __SSE2__
  if (batch * out_stride * sizeof(float) < kStreamBytes || n % 4 || out_stride % 4 || (uintptr_t)out % 16) return false;
  for (size_t f = 0; f < features; f++)
    if (columns[f] % 4) return false;
  return true;
#else
  return false;
#endif
}

inline void copy_row(float* out, const float* row, size_t n, bool stream) {
#ifdef __SSE2__
  if (stream) {
    for (size_t d = 0; d < n; d += 4) _mm_stream_ps(out + d, _mm_loadu_ps(row + d));
    return;
  }
#endif
  std::memcpy(out, row, n * sizeof(float));
}

template <size_t DIM>
void forward(const Rows& table, const int64_t* rows, const int64_t* offsets, const float* weights, size_t features,
             size_t batch, float* out, size_t out_stride, const int64_t* columns) {
  const size_t n = DIM ? DIM : table.dim;
  std::vector<float> room(n);
  const bool stream = can_stream(n, batch, out, out_stride, columns, features);
  for (size_t start = 0; start < batch; start += kBagsPerBlock) {
    const size_t stop = std::min(batch, start + kBagsPerBlock);
    for (size_t f = 0; f < features; f++) {
      // One feature further, so that its rows travel while this one is summed.
      const size_t next = f + 1 < features ? f + 1 : 0;
      const size_t next_start = f + 1 < features ? start : stop;
      const size_t next_stop = std::min(batch, next_start + kBagsPerBlock);
      if (next_start < next_stop)
        for (int64_t j = offsets[next * batch + next_start]; j < offsets[next * batch + next_stop]; j++)
          table.prefetch(rows[j]);
      for (size_t b = start; b < stop; b++) {
        float* bag = out + b * out_stride + columns[f];
        const int64_t lo = offsets[f * batch + b], hi = offsets[f * batch + b + 1];
        if (hi == lo + 1 && !weights) {
          copy_row(bag, table.read<DIM>(rows[lo], room.data()), n, stream);
          continue;
        }
        std::memset(bag, 0, n * sizeof(float));
        for (int64_t j = lo; j < hi; j++)
          add_scaled<DIM>(bag, table.read<DIM>(rows[j], room.data()), weights ? weights[j] : 1.0f, n);
      }
    }
  }
#ifdef __SSE2__
  if (stream) _mm_sfence();
#endif
}

// Adds the gradient of each bag to the rows that it has read.
template <size_t DIM>
void backward(float* table_grad, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
              size_t features, size_t batch, const float* grad, size_t grad_stride, const int64_t* columns) {
  const size_t n = DIM ? DIM : dim;
  for (size_t start = 0; start < batch; start += kBagsPerBlock) {
    const size_t stop = std::min(batch, start + kBagsPerBlock);
    for (size_t f = 0; f < features; f++)
      for (size_t b = start; b < stop; b++)
        for (int64_t j = offsets[f * batch + b]; j < offsets[f * batch + b + 1]; j++)
          add_scaled<DIM>(table_grad + rows[j] * (int64_t)n, grad + b * grad_stride + columns[f],
                          weights ? weights[j] : 1.0f, n);
  }
}

}  // namespace

extern "C" {

// `row_bytes` is 0 for a table of floats, which with bits is read on its grid; else the rows are integers.
void bag_forward(void* table, size_t row_bytes, size_t dim, const float* steps, int64_t shared, int bits,
                 const int64_t* rows, const int64_t* offsets, const float* weights, size_t features, size_t batch,
                 float* out, size_t out_stride, const int64_t* columns) {
  const Rows stored{table, dim, row_bytes, Grid{steps, shared, bits}};
#define EMBCOMP_CALL(WIDTH) \
  forward<WIDTH>(stored, rows, offsets, weights, features, batch, out, out_stride, columns)
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

void bag_backward(float* table_grad, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
                  size_t features, size_t batch, const float* grad, size_t grad_stride, const int64_t* columns) {
#define EMBCOMP_CALL(WIDTH) \
  backward<WIDTH>(table_grad, dim, rows, offsets, weights, features, batch, grad, grad_stride, columns)
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

}  // extern "C"

