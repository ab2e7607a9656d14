// Fused optimizers over tables (embcomp.ops.tables, embcomp.ops.integer_tables), one thread: one step on the rows that a batch has read.
// Rows arrive as in bags.cpp. The gradients of one row are summed first: those of an id that repeats are, over all of its
// chunks at once, before anything is sorted; then all that remains is sorted by row, so that tables are read in memory order.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "rows.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using embcomp::add_scaled;
using embcomp::Grid;
using embcomp::kAhead;
using embcomp::prefetch_row;
using embcomp::Rows;

constexpr uint32_t kNone = ~0u;
constexpr size_t kBagsPerTile = 16;

enum Kind { SGD = 0, ADAGRAD = 1, ROWWISE_ADAGRAD = 2 };

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

// Features whose columns stand side by side and whose bags repeat together: the chunks of one feature of ids.
struct Block {
  size_t first, last;      // features
  size_t leaders, groups;  // where in `leaders` its groups start, and how many there are
  float* sums;             // [groups, chunks * dim]
};

struct Scratch {
  Buffer<uint64_t> pairs;       // row << 32 | entry
  Buffer<uint64_t> other;       // the other half of the sort
  Buffer<const float*> source;  // per entry, its gradient
  Buffer<uint32_t> bag;         // per entry, the look-up whose weight it has
  Buffer<float> sums;           // summed gradients of the groups
  Buffer<uint32_t> group_of;    // per block and bag, its group
  std::vector<uint32_t> leaders;  // per group, its first bag
  std::vector<uint32_t> slots;    // hash table of groups by row
  std::vector<uint32_t> parting;
  std::vector<Block> blocks;
  std::vector<float> sum;  // gradient of one row
  std::vector<float> row;  // its values
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

// What a batch asks of one table.
struct Request {
  const int64_t* rows;
  const int64_t* offsets;
  const float* weights;
  size_t features, batch;
  const float* grad;
  size_t grad_stride;
  const int64_t* columns;

  size_t lookups() const { return (size_t)(offsets[features * batch] - offsets[0]); }
  const float* gradient(size_t feature, size_t bag) const { return grad + bag * grad_stride + columns[feature]; }
  const int64_t* one_each(size_t feature) const { return rows + offsets[feature * batch]; }
  bool one_row_each(size_t feature) const {  // whether each bag holds one row, without a weight
    const int64_t* own = offsets + feature * batch;
    if (weights || batch >= kNone) return false;
    for (size_t b = 0; b < batch; b++)
      if (own[b + 1] != own[b] + 1) return false;
    return true;
  }
};

// Numbers the distinct rows of a feature: group_of[bag], and the first bag of each group at the end of `leaders`.
size_t group_bags(const int64_t* rows, size_t batch, uint32_t* group_of) {
  unsigned bits = 4;
  while ((size_t)1 << bits < 2 * batch) bits++;
  std::vector<uint32_t>& slots = scratch.slots;
  slots.assign((size_t)1 << bits, kNone);
  std::vector<uint32_t>& leaders = scratch.leaders;
  const size_t start = leaders.size(), mask = slots.size() - 1;
  for (size_t b = 0; b < batch; b++) {
    size_t slot = (uint64_t)rows[b] * 0x9E3779B97F4A7C15ull >> (64 - bits);
    while (slots[slot] != kNone && rows[leaders[start + slots[slot]]] != rows[b]) slot = (slot + 1) & mask;
    if (slots[slot] == kNone) {
      slots[slot] = (uint32_t)(leaders.size() - start);
      leaders.push_back((uint32_t)b);
    }
    group_of[b] = slots[slot];
  }
  return leaders.size() - start;
}

// Whether one more feature repeats with the groups. Bags that part leave them; where more than one in sixteen would, the
// feature reads other ids, and nothing is changed.
bool joins(const int64_t* rows, size_t batch, const uint32_t* leaders, uint32_t* group_of) {
  std::vector<uint32_t>& parting = scratch.parting;
  parting.clear();
  for (size_t b = 0; b < batch; b++)
    if (group_of[b] != kNone && rows[b] != rows[leaders[group_of[b]]]) {
      if (16 * (parting.size() + 1) > batch) return false;
      parting.push_back((uint32_t)b);
    }
  for (uint32_t b : parting) group_of[b] = kNone;
  return true;
}

template <size_t DIM>
class Update {
 public:
  Update(const Rows& table, size_t num_rows, const Request& request, double* step_grads, uint32_t seed, int kind,
         void* state, float lr, float eps, float weight_decay)
      : table_(table), num_rows_(num_rows), dim_(table.dim), request_(request), step_grads_(step_grads), seed_(seed),
        kind_((Kind)kind), state_(state), lr_(lr), eps_(eps), weight_decay_(weight_decay) {}

  void run() {
    const size_t lookups = request_.lookups();
    pairs_ = scratch.pairs.at_least(lookups);
    source_ = scratch.source.at_least(lookups);
    bag_ = scratch.bag.at_least(lookups);
    make_blocks();
    sum_groups();
    apply();
  }

 private:
  size_t n() const { return DIM ? DIM : dim_; }
  uint32_t* group_of(size_t block) { return group_of_ + block * request_.batch; }

  // Chunks of an id that repeats become a block; all other look-ups become entries as they are.
  void make_blocks() {
    const Request& q = request_;
    scratch.blocks.clear();
    scratch.leaders.clear();
    group_of_ = scratch.group_of.at_least(q.features * q.batch);
    for (size_t f = 0; f < q.features;) {
      const size_t last = make_block(f);
      if (last == f) {
        for (size_t b = 0; b < q.batch; b++)
          for (int64_t j = q.offsets[f * q.batch + b]; j < q.offsets[f * q.batch + b + 1]; j++)
            add_entry(q.rows[j], q.gradient(f, b), (uint32_t)(j - q.offsets[0]));
        f++;
      } else {
        f = last;
      }
    }
  }

  // The feature after the block that starts with this one; the feature itself where summing would not pay.
  size_t make_block(size_t first) {
    const Request& q = request_;
    const size_t start = scratch.leaders.size();
    uint32_t* group_of = this->group_of(scratch.blocks.size());
    size_t last = first + 1, groups = 0;
    if (may_follow(last) && q.one_row_each(first)) {
      groups = group_bags(q.one_each(first), q.batch, group_of);
      while (8 * groups < 7 * q.batch && may_follow(last) && q.one_row_each(last) &&
             joins(q.one_each(last), q.batch, &scratch.leaders[start], group_of))
        last++;
    }
    if (last == first + 1) {
      scratch.leaders.resize(start);
      return first;
    }
    for (size_t b = 0; b < q.batch; b++)
      if (group_of[b] == kNone)
        for (size_t c = first; c < last; c++) add_entry(q.one_each(c)[b], q.gradient(c, b), 0);
    scratch.blocks.push_back({first, last, start, groups, nullptr});
    return last;
  }

  // Whether a feature's columns follow those of the one before.
  bool may_follow(size_t f) const {
    return f < request_.features && request_.columns[f] == request_.columns[f - 1] + (int64_t)n();
  }

  // A few bags at a time, so that the gradient is read once, in memory order.
  void sum_groups() {
    const Request& q = request_;
    size_t total = 0;
    for (const Block& block : scratch.blocks) total += block.groups * (block.last - block.first) * n();
    float* next = scratch.sums.at_least(total);
    for (Block& block : scratch.blocks) {
      block.sums = next;
      next += block.groups * (block.last - block.first) * n();
    }
    for (size_t start = 0; start < q.batch; start += kBagsPerTile)
      for (size_t i = 0; i < scratch.blocks.size(); i++)
        add_bags(scratch.blocks[i], group_of(i), start, std::min(q.batch, start + kBagsPerTile));
    for (const Block& block : scratch.blocks)
      for (size_t f = block.first; f < block.last; f++) {
        const float* sum = block.sums + (f - block.first) * n();
        for (size_t g = 0; g < block.groups; g++, sum += (block.last - block.first) * n())
          add_entry(q.one_each(f)[scratch.leaders[block.leaders + g]], sum, 0);
      }
  }

  void add_bags(const Block& block, const uint32_t* group_of, size_t start, size_t stop) {
    const size_t width = (block.last - block.first) * n();
    const uint32_t* leaders = &scratch.leaders[block.leaders];
    const size_t next_stop = std::min(request_.batch, stop + kBagsPerTile);
    for (size_t b = stop; b < next_stop; b++)
      if (group_of[b] != kNone && leaders[group_of[b]] < start) prefetch_row(block.sums + group_of[b] * width, width);
    for (size_t b = start; b < stop; b++) {
      if (group_of[b] == kNone) continue;
      float* sum = block.sums + group_of[b] * width;
      if (leaders[group_of[b]] == b)
        std::memcpy(sum, request_.gradient(block.first, b), width * sizeof(float));
      else
        add_scaled<0>(sum, request_.gradient(block.first, b), 1.0f, width);
    }
  }

  void add_entry(int64_t row, const float* gradient, uint32_t bag) {
    pairs_[entries_] = (uint64_t)row << 32 | (uint64_t)entries_;
    source_[entries_] = gradient;
    bag_[entries_] = bag;
    entries_++;
  }

  void apply() {
    const uint64_t* pairs = sort_by_row(pairs_, scratch.other.at_least(entries_), entries_, num_rows_);
    scratch.sum.resize(n());
    scratch.row.resize(n());
    float* sum = scratch.sum.data();
    for (size_t i = 0; i < entries_;) {
      const uint64_t row = pairs[i] >> 32;
      std::memset(sum, 0, n() * sizeof(float));
      for (; i < entries_ && pairs[i] >> 32 == row; i++) {
        if (i + kAhead < entries_) {
          prefetch_row(source_[(uint32_t)pairs[i + kAhead]], n());
          if (pairs[i + kAhead] >> 32 != pairs[i + kAhead - 1] >> 32) fetch(pairs[i + kAhead] >> 32);
        }
        const uint32_t entry = (uint32_t)pairs[i];
        const float weight = request_.weights ? request_.weights[request_.offsets[0] + bag_[entry]] : 1.0f;
        add_scaled<DIM>(sum, source_[entry], weight, n());
      }
      step(row, sum);
    }
  }

  void fetch(uint64_t row) const {
    table_.prefetch(row);
    if (kind_ == ROWWISE_ADAGRAD) __builtin_prefetch(table_.nbytes ? (void*)(halves() + row) : floats() + row);
    if (kind_ == ADAGRAD) prefetch_row(floats() + row * n(), n());
  }

  // One row, with its summed gradient, which is overwritten.
  void step(uint64_t row, float* g) const {
    if (table_.nbytes) return step_integers(row, g);
    const Grid& grid = table_.grid;
    float* w = table_.floats(row);
    if (grid.bits) step_grads_[grid.place(row)] += embcomp::pass_back<DIM>(g, w, grid.step(row), grid.half(), n());
    step_floats(w, g, floats() + (kind_ == ADAGRAD ? row * n() : kind_ == SGD ? 0 : row));
  }

  // What is not finite changes nothing: no integer could say so. The sum of squares is the upper half of a
  // float, rounded at random as the row is; it would else no longer grow once it is some hundred times a square.
  void step_integers(uint64_t row, float* g) const {
    for (size_t d = 0; d < n(); d++)
      if (!std::isfinite(g[d])) return;
    float* w = scratch.row.data();
    table_.unpack<DIM>(row, w);
    float sum = 0.0f;
    if (kind_ != SGD) {
      const uint32_t bits = (uint32_t)halves()[row] << 16;
      std::memcpy(&sum, &bits, sizeof sum);
    }
    step_floats(w, g, &sum);
    for (size_t d = 0; d < n(); d++)
      if (!std::isfinite(w[d])) return;
    if (kind_ != SGD) {
      uint32_t bits;
      std::memcpy(&bits, &sum, sizeof sum);
      halves()[row] = (uint16_t)((bits + (embcomp::random_bits(~seed_, (uint32_t)row) >> 16)) >> 16);
    }
    table_.pack<DIM>(row, w, seed_);
  }

  float* floats() const { return (float*)state_; }
  uint16_t* halves() const { return (uint16_t*)state_; }

  void step_floats(float* w, float* g, float* s) const {
    if (weight_decay_ != 0.0f) add_scaled<DIM>(g, w, weight_decay_, n());
    if (kind_ == SGD) {
      add_scaled<DIM>(w, g, -lr_, n());
    } else if (kind_ == ROWWISE_ADAGRAD) {
      float square = 0.0f;
      for (size_t d = 0; d < n(); d++) square += g[d] * g[d];
      *s += square / (float)n();
      add_scaled<DIM>(w, g, -lr_ / (std::sqrt(*s) + eps_), n());
    } else {
      for (size_t d = 0; d < n(); d++) {
        s[d] += g[d] * g[d];
        w[d] -= lr_ * g[d] / (std::sqrt(s[d]) + eps_);
      }
    }
  }

  Rows table_;
  size_t num_rows_, dim_;
  Request request_;
  double* step_grads_;
  uint32_t seed_;
  Kind kind_;
  void* state_;  // floats; for rows of integers the upper halves of floats
  float lr_, eps_, weight_decay_;

  uint64_t* pairs_ = nullptr;
  const float** source_ = nullptr;
  uint32_t* bag_ = nullptr;
  uint32_t* group_of_ = nullptr;
  size_t entries_ = 0;
};

}  // namespace

// `row_bytes` is 0 for a table of floats; with bits these were read on their grid, and the gradients of its steps are
// added to `step_grads`. Else the rows are integers, written again with random rounding from `seed`: not for ADAGRAD.
extern "C" void bag_update(void* table, size_t row_bytes, size_t num_rows, size_t dim, const float* steps,
                           int64_t shared, int bits, double* step_grads, uint32_t seed, const int64_t* rows,
                           const int64_t* offsets, const float* weights, size_t features, size_t batch,
                           const float* grad, size_t grad_stride, const int64_t* columns, int optimizer, void* state,
                           float lr, float eps, float weight_decay) {
  const Request request{rows, offsets, weights, features, batch, grad, grad_stride, columns};
  const Rows stored{table, dim, row_bytes, Grid{steps, shared, bits}};
#define EMBCOMP_CALL(WIDTH)                                                                                   \
  Update<WIDTH>(stored, num_rows, request, step_grads, seed, optimizer, state, lr, eps, weight_decay).run()
  EMBCOMP_FOR_WIDTH(EMBCOMP_CALL)
#undef EMBCOMP_CALL
}
