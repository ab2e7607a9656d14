// What may be wrong with arrays that other functions read, for embcomp.ops.checks: nothing is written.
#include <cstddef>
#include <cstdint>

#include "astray.h"
#include "request.h"

extern "C" {

// 1 when some id lies outside [0, limit).
int any_outside(const int64_t* ids, size_t n, int64_t limit) { return embcomp::any_outside(ids, n, (uint64_t)limit); }

// 1 unless 0 <= offsets[0] <= offsets[1] <= ... <= offsets[n - 1] <= end.
int offsets_astray(const int64_t* offsets, size_t n, int64_t end) { return embcomp::offsets_astray(offsets, n, end); }

// 1 unless the offsets rise within the `total` rows, those between the first and the last lie in [0, limit), and the
// first columns of the features in [0, last_column].
int bags_astray(const int64_t* rows, size_t total, const int64_t* offsets, size_t n, int64_t limit,
                const int64_t* columns, size_t features, int64_t last_column) {
  if (offsets_astray(offsets, n, (int64_t)total)) return 1;
  return any_outside(rows + offsets[0], (size_t)(offsets[n - 1] - offsets[0]), limit) ||
         any_outside(columns, features, last_column + 1);
}

// 1 unless all requests may be read into columns below `width`, or from them.
int requests_astray(const embcomp::Request* requests, size_t tables, size_t width) {
  for (const embcomp::Request* q = requests; q < requests + tables; q++)
    if (bags_astray(q->rows, q->total, q->offsets, q->features * q->batch + 1, (int64_t)q->num_rows, q->columns,
                    q->features, (int64_t)width - (int64_t)q->dim))
      return 1;
  return 0;
}

// 1 unless the lengths [keys, stride] are not negative and add up, key by key, to the sizes [keys]. None is above its
// size, so that sums do not overflow.
int lengths_astray(const int64_t* lengths, size_t keys, size_t stride, const int64_t* sizes) {
  uint64_t bad = 0;
  for (size_t k = 0; k < keys; k++) {
    const uint64_t size = (uint64_t)sizes[k];
    uint64_t total = 0;
    for (size_t b = 0; b < stride; b++) {
      const uint64_t length = (uint64_t)lengths[k * stride + b];
      bad |= (uint64_t)(length > size);
      total += length;
    }
    bad |= (uint64_t)(total != size);
  }
  return bad != 0;
}

}  // extern "C"
