// The gradients of the rows that a batch has read, each row's summed, in the order of memory. Those of an id that repeats
// are summed first, over all of its chunks at once, before anything is sorted; then all that remains is sorted by row.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "rows.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace embcomp {

constexpr uint32_t kNone = ~0u;
constexpr size_t kBagsPerTile = 16;

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
inline thread_local Scratch scratch;

// Radix sort of the pairs by row, least significant digit first; rows then come in memory order.
// Returns the sorted half.
inline uint64_t* sort_by_row(uint64_t* pairs, uint64_t* other, size_t n, uint64_t num_rows) {
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
inline size_t group_bags(const int64_t* rows, size_t batch, uint32_t* group_of) {
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
inline bool joins(const int64_t* rows, size_t batch, const uint32_t* leaders, uint32_t* group_of) {
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
class SummedRows {
 public:
  SummedRows(size_t dim, size_t num_rows, const Request& request) : dim_(dim), num_rows_(num_rows), request_(request) {}

  // `visit(row, sum)` for each row once, with its summed gradient, which it may overwrite; `visit.fetch(row)` some rows
  // before.
  template <class Visit>
  void each(Visit& visit) {
    const size_t lookups = request_.lookups();
    pairs_ = scratch.pairs.at_least(lookups);
    source_ = scratch.source.at_least(lookups);
    bag_ = scratch.bag.at_least(lookups);
    make_blocks();
    sum_groups();
    const uint64_t* pairs = sort_by_row(pairs_, scratch.other.at_least(entries_), entries_, num_rows_);
    scratch.sum.resize(n());
    float* sum = scratch.sum.data();
    for (size_t i = 0; i < entries_;) {
      const uint64_t row = pairs[i] >> 32;
      std::memset(sum, 0, n() * sizeof(float));
      for (; i < entries_ && pairs[i] >> 32 == row; i++) {
        if (i + kAhead < entries_) {
          prefetch_row(source_[(uint32_t)pairs[i + kAhead]], n());
          if (pairs[i + kAhead] >> 32 != pairs[i + kAhead - 1] >> 32) visit.fetch(pairs[i + kAhead] >> 32);
        }
        const uint32_t entry = (uint32_t)pairs[i];
        const float weight = request_.weights ? request_.weights[request_.offsets[0] + bag_[entry]] : 1.0f;
        add_scaled<DIM>(sum, source_[entry], weight, n());
      }
      visit(row, sum);
    }
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

  size_t dim_, num_rows_;
  Request request_;

  uint64_t* pairs_ = nullptr;
  const float** source_ = nullptr;
  uint32_t* bag_ = nullptr;
  uint32_t* group_of_ = nullptr;
  size_t entries_ = 0;
};

}  // namespace embcomp
