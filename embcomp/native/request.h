// One table, and what the bags of a batch ask of it, as embcomp.ops.requests lays it out. Bag (f, b) of feature f reads
// rows[offsets[f * batch + b] .. offsets[f * batch + b + 1]).
#pragma once
#include "rows.h"

namespace embcomp {

struct Request {
  void* table;
  uint64_t row_bytes;  // 0 for a table of floats, which with bits is read on its grid; else the rows are integers
  uint64_t num_rows, dim;
  const float* steps;
  int64_t shared, bits;
  const int64_t *rows, *offsets;
  uint64_t total;  // of rows, and of weights if there are any
  const float* weights;
  uint64_t features, batch;
  const int64_t* columns;  // the first of each feature in the output

  Rows stored() const { return {table, dim, row_bytes, {steps, shared, (int)bits}}; }
  size_t lookups() const { return (size_t)(offsets[features * batch] - offsets[0]); }

  // How many rows every bag of a feature reads, without weights; 0 where that varies.
  size_t rows_of_each(size_t feature) const {
    if (!batch || weights) return 0;
    const int64_t* own = offsets + feature * batch;
    const int64_t number = own[1] - own[0];
    uint64_t other = 0;
    for (size_t b = 0; b < batch; b++) other |= (uint64_t)((own[b + 1] - own[b]) ^ number);
    return other ? 0 : (size_t)number;
  }
};

// The gradients of bags, row-major.
struct Gradient {
  const float* data;
  size_t stride;

  const float* at(size_t bag, size_t column) const { return data + bag * stride + column; }
};

}  // namespace embcomp
