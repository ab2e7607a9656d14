// Pooled look-ups and fused optimizers over plain float32 tables (embcomp.ops.tables), one thread.
// Rows arrive feature by feature, as in a KeyedJaggedTensor: bag (f, b) reads rows[offsets[f * B + b] .. offsets[f * B + b + 1]).
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

constexpr size_t kBagsPerBlock = 16;  // output of a block stays in the second-level cache
constexpr size_t kAhead = 32;         // rows fetched ahead

inline void prefetch_row(const float* row, size_t dim) {
  for (size_t d = 0; d < dim; d += 16) __builtin_prefetch(row + d);
}

template <size_t DIM>
inline void add_scaled(float* __restrict out, const float* __restrict row, float scale, size_t dim) {
  const size_t n = DIM ? DIM : dim;
  for (size_t d = 0; d < n; d++) out[d] += scale * row[d];
}

template <size_t DIM>
void forward(const float* table, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
             size_t features, size_t batch, float* out, size_t out_stride, const int64_t* columns) {
  const size_t n = DIM ? DIM : dim;
  for (size_t start = 0; start < batch; start += kBagsPerBlock) {
    const size_t stop = std::min(batch, start + kBagsPerBlock);
    for (size_t f = 0; f < features; f++) {
      // One feature further, so that its rows travel while this one is summed.
      const size_t next = f + 1 < features ? f + 1 : 0;
      const size_t next_start = f + 1 < features ? start : stop;
      const size_t next_stop = std::min(batch, next_start + kBagsPerBlock);
      if (next_start < next_stop)
        for (int64_t j = offsets[next * batch + next_start]; j < offsets[next * batch + next_stop]; j++)
          prefetch_row(table + rows[j] * (int64_t)n, n);
      for (size_t b = start; b < stop; b++) {
        float* bag = out + b * out_stride + columns[f];
        const int64_t lo = offsets[f * batch + b], hi = offsets[f * batch + b + 1];
        if (hi == lo + 1 && !weights) {
          std::memcpy(bag, table + rows[lo] * (int64_t)n, n * sizeof(float));
          continue;
        }
        std::memset(bag, 0, n * sizeof(float));
        for (int64_t j = lo; j < hi; j++)
          add_scaled<DIM>(bag, table + rows[j] * (int64_t)n, weights ? weights[j] : 1.0f, n);
      }
    }
  }
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

// Memory kept between calls, in huge pages where the system gives them: fresh pages, and page walks while sorting, cost
// more than the arithmetic.
template <class T>
class Buffer {
 public:
  T* at_least(size_t count) {
    if (count > capacity_) {
      std::free(data_);
      const size_t bytes = (count * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
      data_ = static_cast<T*>(std::aligned_alloc(kHugePage, bytes));
      if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
      madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      capacity_ = bytes / sizeof(T);
    }
    return data_;
  }
  ~Buffer() { std::free(data_); }

 private:
  static constexpr size_t kHugePage = (size_t)1 << 21;
  T* data_ = nullptr;
  size_t capacity_ = 0;
};

struct Scratch {
  Buffer<uint64_t> pairs;       // row << 32 | entry
  Buffer<uint64_t> other;       // the other half of the sort
  Buffer<const float*> source;  // per entry, its gradient
  Buffer<uint32_t> bag;         // per entry, the look-up whose weight it has
  Buffer<float> sums;           // gradients of ids that repeat, summed
  Buffer<uint64_t> order;       // bags of one feature by row
  Buffer<uint64_t> other_order;
  std::vector<uint32_t> runs;   // where the bags of one id start in `order`
  std::vector<uint32_t> split;
  std::vector<float> sum;       // gradient of one row
};
thread_local Scratch scratch;

// Radix sort of the pairs by row, least significant digit first; rows then come in memory order.
// Returns the sorted half.
uint64_t* sort_by_row(uint64_t* pairs, uint64_t* other, size_t n, uint64_t num_rows) {
  unsigned bits = 1;
  while (bits < 32 && (num_rows - 1) >> bits) bits++;
  const unsigned passes = (bits + 11) / 12, digit = (bits + passes - 1) / passes;
  const uint64_t mask = (1u << digit) - 1;
  std::vector<size_t> count(mask + 1);
  for (unsigned shift = 32; shift < 32 + bits; shift += digit) {
    std::fill(count.begin(), count.end(), 0);
    for (size_t i = 0; i < n; i++) count[(pairs[i] >> shift) & mask]++;
    size_t total = 0;
    for (size_t& c : count) {
      const size_t here = c;
      c = total;
      total += here;
    }
    for (size_t i = 0; i < n; i++) other[count[(pairs[i] >> shift) & mask]++] = pairs[i];
    std::swap(pairs, other);
  }
  return pairs;
}

// Whether each bag of a feature holds one row.
inline bool one_hot(const int64_t* offsets, size_t batch) {
  for (size_t b = 0; b < batch; b++)
    if (offsets[b + 1] != offsets[b] + 1) return false;
  return true;
}

// Splits the runs of equal rows so that the rows of one more feature are equal within each run too. False, and nothing is
// changed, where more than one bag in sixteen would part: the feature reads other ids.
bool refine_runs(const int64_t* rows, uint64_t* order, size_t batch) {
  std::vector<uint32_t>& runs = scratch.runs;
  size_t parting = 0;
  for (size_t r = 0; r + 1 < runs.size(); r++)
    for (uint32_t i = runs[r] + 1; i < runs[r + 1]; i++)
      parting += rows[(uint32_t)order[i]] != rows[(uint32_t)order[runs[r]]];
  if (parting * 16 > batch) return false;
  if (!parting) return true;
  scratch.split.clear();
  for (size_t r = 0; r + 1 < runs.size(); r++) {
    std::stable_sort(order + runs[r], order + runs[r + 1],
                     [&](uint64_t x, uint64_t y) { return rows[(uint32_t)x] < rows[(uint32_t)y]; });
    for (uint32_t i = runs[r]; i < runs[r + 1]; i++)
      if (i == runs[r] || rows[(uint32_t)order[i]] != rows[(uint32_t)order[i - 1]]) scratch.split.push_back(i);
  }
  scratch.split.push_back((uint32_t)batch);
  runs.swap(scratch.split);
  return true;
}

// What a batch asks of a table: entries of (row, gradient). An id that repeats within a feature reads the same row in each of
// its chunks: its gradients are summed over all chunks at once, which are contiguous, before anything is sorted globally.
template <size_t DIM>
size_t gather_entries(size_t num_rows, size_t dim, const int64_t* rows, const int64_t* offsets, bool weighted,
                      size_t features, size_t batch, const float* grad, size_t grad_stride, const int64_t* columns) {
  const size_t n = DIM ? DIM : dim;
  const int64_t first = offsets[0];
  const size_t lookups = (size_t)(offsets[features * batch] - first);
  uint64_t* pairs = scratch.pairs.at_least(lookups);
  const float** source = scratch.source.at_least(lookups);
  uint32_t* bag = scratch.bag.at_least(lookups);
  float* sums = scratch.sums.at_least(lookups * n);
  size_t entries = 0, used = 0;
  for (size_t f = 0; f < features;) {
    const int64_t* own = offsets + f * batch;
    size_t last = f + 1;
    if (!weighted && batch > 1 && last < features && columns[last] == columns[f] + (int64_t)n && one_hot(own, batch)) {
      const int64_t* feature_rows = rows + own[0];
      uint64_t* order = scratch.order.at_least(batch);
      for (size_t b = 0; b < batch; b++) order[b] = (uint64_t)feature_rows[b] << 32 | (uint64_t)b;
      order = sort_by_row(order, scratch.other_order.at_least(batch), batch, num_rows);
      std::vector<uint32_t>& runs = scratch.runs;
      runs.clear();
      for (size_t i = 0; i < batch; i++)
        if (i == 0 || order[i] >> 32 != order[i - 1] >> 32) runs.push_back((uint32_t)i);
      const bool repeats = runs.size() < batch - batch / 8;
      runs.push_back((uint32_t)batch);
      while (repeats && last < features && columns[last] == columns[last - 1] + (int64_t)n &&
             one_hot(offsets + last * batch, batch) && refine_runs(rows + offsets[last * batch], order, batch))
        last++;
      if (last > f + 1) {
        const size_t width = (last - f) * n;
        for (size_t r = 0; r + 1 < runs.size(); r++) {
          float* sum = sums + used;
          const uint32_t any = (uint32_t)order[runs[r]];
          std::memcpy(sum, grad + any * grad_stride + columns[f], width * sizeof(float));
          for (uint32_t i = runs[r]; i < runs[r + 1]; i++) {
            if (i + kAhead < batch) prefetch_row(grad + (uint32_t)order[i + kAhead] * grad_stride + columns[f], width);
            if (i > runs[r]) add_scaled<0>(sum, grad + (uint32_t)order[i] * grad_stride + columns[f], 1.0f, width);
          }
          for (size_t chunk = f; chunk < last; chunk++, entries++) {
            pairs[entries] = (uint64_t)rows[offsets[chunk * batch] + any] << 32 | (uint64_t)entries;
            source[entries] = sum + (chunk - f) * n;
          }
          used += width;
        }
        f = last;
        continue;
      }
    }
    for (size_t b = 0; b < batch; b++)
      for (int64_t j = own[b]; j < own[b + 1]; j++, entries++) {
        pairs[entries] = (uint64_t)rows[j] << 32 | (uint64_t)entries;
        source[entries] = grad + b * grad_stride + columns[f];
        bag[entries] = (uint32_t)(j - first);
      }
    f++;
  }
  return entries;
}

enum Optimizer { SGD = 0, ADAGRAD = 1, ROWWISE_ADAGRAD = 2 };

template <size_t DIM>
void update(float* table, size_t num_rows, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
            size_t features, size_t batch, const float* grad, size_t grad_stride, const int64_t* columns, int optimizer,
            float* state, float lr, float eps, float weight_decay) {
  const size_t n = DIM ? DIM : dim;
  const size_t entries = gather_entries<DIM>(num_rows, dim, rows, offsets, weights != nullptr, features, batch, grad,
                                             grad_stride, columns);
  const uint64_t* pairs =
      sort_by_row(scratch.pairs.at_least(entries), scratch.other.at_least(entries), entries, num_rows);
  const float* const* source = scratch.source.at_least(entries);
  const uint32_t* bag = scratch.bag.at_least(entries);
  scratch.sum.resize(n);
  float* g = scratch.sum.data();
  for (size_t i = 0; i < entries;) {
    const uint64_t row = pairs[i] >> 32;
    std::memset(g, 0, n * sizeof(float));
    for (; i < entries && pairs[i] >> 32 == row; i++) {
      if (i + kAhead < entries) {
        const uint64_t ahead = pairs[i + kAhead];
        prefetch_row(source[(uint32_t)ahead], n);
        if (ahead >> 32 != pairs[i + kAhead - 1] >> 32) {
          prefetch_row(table + (ahead >> 32) * n, n);
          if (optimizer == ROWWISE_ADAGRAD) __builtin_prefetch(state + (ahead >> 32));
          if (optimizer == ADAGRAD) prefetch_row(state + (ahead >> 32) * n, n);
        }
      }
      const uint32_t entry = (uint32_t)pairs[i];
      add_scaled<DIM>(g, source[entry], weights ? weights[offsets[0] + bag[entry]] : 1.0f, n);
    }
    float* w = table + row * n;
    if (weight_decay != 0.0f) add_scaled<DIM>(g, w, weight_decay, n);
    if (optimizer == SGD) {
      add_scaled<DIM>(w, g, -lr, n);
    } else if (optimizer == ROWWISE_ADAGRAD) {
      float square = 0.0f;
      for (size_t d = 0; d < n; d++) square += g[d] * g[d];
      state[row] += square / (float)n;
      add_scaled<DIM>(w, g, -lr / (std::sqrt(state[row]) + eps), n);
    } else {
      float* s = state + row * n;
      for (size_t d = 0; d < n; d++) {
        s[d] += g[d] * g[d];
        w[d] -= lr * g[d] / (std::sqrt(s[d]) + eps);
      }
    }
  }
}

// Widths that are known when compiling keep a row in registers.
#define EMBCOMP_FOR_WIDTH(CALL) \
  switch (dim) {                \
    case 8: CALL(8); break;     \
    case 16: CALL(16); break;   \
    case 32: CALL(32); break;   \
    case 64: CALL(64); break;   \
    case 128: CALL(128); break; \
    default: CALL(0);           \
  }

}  // namespace

extern "C" {

void bag_forward(const float* table, size_t dim, const int64_t* rows, const int64_t* offsets, const float* weights,
                 size_t features, size_t batch, float* out, size_t out_stride, const int64_t* columns) {
#define EMBCOMP_CALL(WIDTH) forward<WIDTH>(table, dim, rows, offsets, weights, features, batch, out, out_stride, columns)
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

void bag_update(float* table, size_t num_rows, size_t dim, const int64_t* rows, const int64_t* offsets,
                const float* weights, size_t features, size_t batch, const float* grad, size_t grad_stride,
                const int64_t* columns, int optimizer, float* state, float lr, float eps, float weight_decay) {
#define EMBCOMP_CALL(WIDTH)                                                                                           \
  update<WIDTH>(table, num_rows, dim, rows, offsets, weights, features, batch, grad, grad_stride, columns, optimizer, \
                state, lr, eps, weight_decay)
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}

}  // extern "C"
