// Pooled look-ups over tables, and their dense gradients (embcomp.ops.tables).
#include <algorithm>
#include <cstring>

#include "memory.h"
#include "request.h"
#include "stream.h"
#include "threads.h"

namespace {

using embcomp::add_scaled;
using embcomp::Request;
using embcomp::Rows;

constexpr size_t kBagsPerTile = 64;                // at most; output of a tile stays in the second-level cache
constexpr size_t kTileBytes = (size_t)8 << 10;     // of rows: fewer would not keep memory busy, more leave the first cache
constexpr size_t kStrip = 64;                      // floats of a strip of the output
constexpr size_t kStreamBytes = (size_t)32 << 20;  // an output of this size leaves the cache before anybody reads it

struct Output {
  float* data;
  size_t stride;
  bool large;

  bool streams(size_t column, size_t n) const { return large && embcomp::can_stream(data + column, n, stride); }
};

inline void write_row(float* out, const float* row, size_t n, bool stream) {
  if (stream)
    embcomp::stream(out, row, n);
  else
    std::memcpy(out, row, n * sizeof(float));
}

// The bags of one feature between two.
struct Tile {
  const int64_t *rows, *offsets;
  const float* weights;
  size_t count;

  Tile(const Request& q, size_t feature, size_t start, size_t stop)
      : rows(q.rows), offsets(q.offsets + feature * q.batch + start), weights(q.weights), count(stop - start) {}
};

template <size_t DIM>
void pool_tile(const Rows& table, const Tile& tile, float* out, size_t stride, bool stream, float* room) {
  const size_t n = DIM ? DIM : table.dim;
  float known[DIM ? DIM : 1];  // stays in registers
  float* sum = DIM ? known : room + n;
  for (size_t b = 0; b < tile.count; b++, out += stride) {
    const int64_t lo = tile.offsets[b], hi = tile.offsets[b + 1];
    if (hi == lo + 1 && !tile.weights) {
      write_row(out, table.read<DIM>(tile.rows[lo], room), n, stream);
      continue;
    }
    std::memset(sum, 0, n * sizeof(float));
    for (int64_t j = lo; j < hi; j++)
      add_scaled<DIM>(sum, table.read<DIM>(tile.rows[j], room), tile.weights ? tile.weights[j] : 1.0f, n);
    write_row(out, sum, n, stream);
  }
}

template <size_t DIM>
void fetch_tile(const Rows& table, const Tile& tile) {
  for (int64_t j = tile.offsets[0]; j < tile.offsets[tile.count]; j++)
    table.prefetch<false, DIM>((uint64_t)tile.rows[j]);
}

// What is done with the tiles of a table.
struct OfTiles {
  void (*pool)(const Rows&, const Tile&, float*, size_t, bool, float*);
  void (*fetch)(const Rows&, const Tile&);
};

OfTiles of_width(size_t dim) {
#define EMBCOMP_CALL(WIDTH) return {pool_tile<WIDTH>, fetch_tile<WIDTH>}
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

// One feature of one table.
struct Feature {
  const Request* request;
  size_t number;
  Rows table;
  OfTiles work;
  size_t column;
  bool stream;

  Tile tile(size_t start, size_t stop) const { return {*request, number, start, stop}; }

  // How many bags' rows are so many bytes, if all bags are alike.
  size_t bags_of(size_t bytes) const {
    const size_t each = table.nbytes ? table.nbytes : table.dim * sizeof(float);
    const size_t bags = request->features * request->batch;
    return bytes * bags / std::max<size_t>(1, each * std::max(request->lookups(), bags));
  }
};

// A strip of features that stand side by side, for bags [first, last).
void pool_strip(const Feature* features, size_t count, const Output& out, size_t first, size_t last, float* room) {
  size_t tile = kBagsPerTile;
  for (size_t f = 0; f < count; f++) tile = std::max<size_t>(1, std::min(tile, features[f].bags_of(kTileBytes)));
  for (size_t start = first; start < last; start += tile) {
    const size_t stop = std::min(last, start + tile);
    for (size_t f = 0; f < count; f++) {
      // One feature further, so that its rows travel while this one is summed.
      const bool wraps = f + 1 == count;
      const Feature &own = features[f], &next = features[wraps ? 0 : f + 1];
      const size_t ahead = wraps ? stop : start;
      if (ahead < last) next.work.fetch(next.table, next.tile(ahead, std::min(last, ahead + tile)));
      own.work.pool(own.table, own.tile(start, stop), out.data + start * out.stride + own.column, out.stride, own.stream,
                    room);
    }
  }
  embcomp::end_streams();
}

void pool_bags(const embcomp::Vector<Feature>& features, const Output& out, size_t first, size_t last, size_t widest) {
  embcomp::Vector<float> room(2 * widest);
  for (size_t f = 0; f < features.size();) {
    size_t count = 0, width = 0;
    while (f + count < features.size() && width < kStrip) width += features[f + count++].table.dim;
    pool_strip(&features[f], count, out, first, last, room.data());
    f += count;
  }
}

// Adds the gradient of each bag to the rows that it has read.
template <size_t DIM>
void backward(float* table_grad, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
              size_t features, size_t batch, const float* grad, size_t grad_stride, const int64_t* columns) {
  const size_t n = DIM ? DIM : dim;
  for (size_t start = 0; start < batch; start += kBagsPerTile) {
    const size_t stop = std::min(batch, start + kBagsPerTile);
    for (size_t f = 0; f < features; f++)
      for (size_t b = start; b < stop; b++)
        for (int64_t j = offsets[f * batch + b]; j < offsets[f * batch + b + 1]; j++)
          add_scaled<DIM>(table_grad + rows[j] * (int64_t)n, grad + b * grad_stride + columns[f],
                          weights ? weights[j] : 1.0f, n);
  }
}

}  // namespace

extern "C" {

// The sums of the bags of several tables, whose features stand side by side in `out`. Returns the memory that is
// missing.
size_t pool_tables(const Request* requests, size_t tables, float* out, size_t out_stride, size_t threads) {
  return embcomp::missing_memory([&] {
    const size_t batch = requests[0].batch;
    const Output output{out, out_stride, batch * out_stride * sizeof(float) >= kStreamBytes};
    embcomp::Vector<Feature> features;
    size_t widest = 0;
    for (const Request* q = requests; q < requests + tables; q++) {
      widest = std::max(widest, (size_t)q->dim);
      for (size_t f = 0; f < q->features; f++)
        features.push_back({q, f, q->stored(), of_width(q->dim), (size_t)q->columns[f],
                            output.streams((size_t)q->columns[f], q->dim)});
    }
    embcomp::in_threads(threads, [&](size_t i) {
      pool_bags(features, output, embcomp::first_of(i, threads, batch), embcomp::first_of(i + 1, threads, batch), widest);
    });
  });
}

void bag_backward(float* table_grad, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
                  size_t features, size_t batch, const float* grad, size_t grad_stride, const int64_t* columns) {
#define EMBCOMP_CALL(WIDTH) \
  backward<WIDTH>(table_grad, dim, rows, offsets, weights, features, batch, grad, grad_stride, columns)
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

}  // extern "C"
