// The gradients of the rows that a batch has read, each row's summed. Bags that read the same rows are a group: their
// gradients are summed as they are read, and a row that no other group reads is visited with the sum. What remains (rows
// that several groups read, bags of varying length, weights) is sorted by row.
#pragma once
#include <cstring>
#include <memory>
#include <utility>

#include "apart.h"
#include "blocks.h"
#include "request.h"
#include "scratch.h"
#include "threads.h"

namespace embcomp {

constexpr size_t kGroupsAhead = 8;   // groups whose rows are fetched ahead
constexpr size_t kLanesPerPart = 16;  // lanes that a thread makes blocks of, whatever the number of threads

// What is kept between calls for one table.
struct TableScratch {
  Vector<Lane> lanes;
  Vector<size_t> varying;
  Vector<Block> blocks;  // each stands where its first lane does
  Vector<Block*> used;
  Vector<uint64_t> twice_words;
  Twice twice;
};

// What is kept between calls for one thread.
struct ThreadScratch {
  Vector<Slot> slots;
  Vector<uint32_t> parting;
  Buffer<uint64_t> pairs, other;  // row << 32 | entry, and the other half of the sort
  Buffer<const float*> source;    // per entry, its gradient
  Buffer<float> weight;           // per entry
  Vector<size_t> count;
};

struct Scratch {
  Vector<TableScratch> tables;
  Vector<std::unique_ptr<ThreadScratch>> threads;

  void reserve(size_t num_tables, size_t num_threads) {
    if (tables.size() < num_tables) tables.resize(num_tables);
    while (threads.size() < num_threads) threads.push_back(std::make_unique<ThreadScratch>());
  }
};
inline thread_local Scratch scratch;

// Radix sort of the pairs by row, least significant digit first; rows then come in memory order. Returns the sorted half.
inline uint64_t* sort_by_row(uint64_t* pairs, uint64_t* other, size_t n, uint64_t num_rows, Vector<size_t>& count) {
  unsigned bits = 1;
  while (bits < 32 && (num_rows - 1) >> bits) bits++;
  const unsigned passes = (bits + 11) / 12, digit = (bits + passes - 1) / passes;
  const uint64_t mask = (1u << digit) - 1;
  for (unsigned shift = 32; shift < 32 + bits; shift += digit) {
    count.assign(mask + 1, 0);
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

// The sums of one table. `Visitor` has `fetch(row)`, called some rows before `visit(row, sum)`, which is called once for
// each row, from several threads; and `with_plain(work)`, which calls `work` with what does the same in fewest steps.
class Sums {
 public:
  virtual ~Sums() = default;
  virtual void add(Block& block) = 0;
  virtual void finish(ThreadScratch& room) = 0;

  TableScratch* own = nullptr;
  bool in_order = false;  // whether rows must be visited in the order of memory
  Apart apart = Apart::kNone;

  // Groups the bags, which needs no gradient: first the lanes, then the blocks of each part of them, then what is apart.
  void begin(const Request& q, TableScratch& table) {
    own = &table;
    find_lanes(q, own->lanes, own->varying);
    if (own->blocks.size() < own->lanes.size()) own->blocks.resize(own->lanes.size());
    for (Block& block : own->blocks) block.lanes.clear();
  }

  void make_blocks(const Request& q, size_t first, ThreadScratch& room) {
    const size_t last = std::min(first + kLanesPerPart, own->lanes.size());
    for (size_t i = first; i < last;)
      i += make_block(&own->lanes[i], last - i, q, own->blocks[i], room.slots, room.parting);
  }

  void end(const Request& q) {
    own->used.clear();
    for (Block& block : own->blocks)
      if (!block.lanes.empty()) own->used.push_back(&block);
    apart = find_apart(q, own->used, own->varying, in_order, own->twice_words, own->twice);
  }
};

template <size_t DIM, class Visitor>
class SumsOf : public Sums {
 public:
  SumsOf(const Request& request, const Gradient& grad, Visitor visitor)
      : q_(request), grad_(grad), visitor_(std::move(visitor)) {}

  Visitor& visitor() { return visitor_; }
  uint64_t num_rows() const { return q_.num_rows; }

  void add(Block& block) override {
    visitor_.with_plain([&](const auto& visitor) {
      if (apart == Apart::kNone)
        add<false>(block, visitor);
      else
        add<true>(block, visitor);
    });
  }

  void finish(ThreadScratch& room) override {
    size_t entries = 0;
    for (size_t f : own->varying) entries += (size_t)(q_.offsets[(f + 1) * q_.batch] - q_.offsets[f * q_.batch]);
    for (const Block* block : own->used) entries += block->apart_rows.size();
    pairs_ = room.pairs.at_least(entries), source_ = room.source.at_least(entries);
    weight_ = room.weight.at_least(entries), entries_ = 0;
    for (size_t f : own->varying)
      for (size_t b = 0; b < q_.batch; b++)
        for (int64_t j = q_.offsets[f * q_.batch + b]; j < q_.offsets[f * q_.batch + b + 1]; j++)
          add_entry(q_.rows[j], grad_.at(b, (size_t)q_.columns[f]), q_.weights ? q_.weights[j] : 1.0f);
    for (const Block* block : own->used)
      for (size_t k = 0; k < block->apart_rows.size(); k++)
        add_entry(block->apart_rows[k], &block->apart_sums[k * n()], 1.0f);
    const uint64_t* sorted = sort_by_row(pairs_, room.other.at_least(entries), entries, q_.num_rows, room.count);
    visitor_.with_plain([&](const auto& visitor) { visit_sorted(sorted, visitor); });
  }

 private:
  size_t n() const { return DIM ? DIM : q_.dim; }

  // Sums each group, and visits its rows. What some groups further need travels meanwhile.
  template <bool SOME_APART, class Plain>
  void add(Block& block, Plain visitor) {
    const size_t lanes = block.lanes.size(), ahead = kGroupsAhead * lanes;
    const uint32_t *bags = block.bags.data(), *rows = block.rows.data(), *starts = block.starts.data();
    const size_t last_bag = block.bags.size() - 1, last_row = block.rows.size() - 1, groups = block.groups();
    const Gradient grad{grad_.at(0, block.lanes[0].column), grad_.stride};
    const Twice twice = own->twice;
    const bool all = apart == Apart::kAll;
    const auto fetch = [&](uint64_t row) {
      if (SOME_APART && !all) twice.fetch(row);
      visitor.fetch(row);
    };
    float known[DIM ? DIM : 1];
    float* total = DIM ? known : room_for(n());
    for (size_t at = 0; at <= std::min(last_row, ahead); at++) fetch(rows[at]);
    for (size_t g = 0, at = 0; g < groups; g++) {
      const size_t first = starts[g], count = starts[g + 1] - first;
      for (size_t c = 0; c < lanes; c++, at++) {
        fetch(rows[std::min(at + ahead, last_row)]);
        if (c == 0 || block.step) sum_bags(grad, bags, first, count, last_bag, c * block.step, total);
        if (SOME_APART && (all || twice.has(rows[at])))
          set_apart(block, rows[at], total);
        else
          visitor.visit(rows[at], total);
      }
    }
  }

  void sum_bags(const Gradient& grad, const uint32_t* bags, size_t first, size_t count, size_t last_bag, size_t column,
                float* sum) const {
    float known[DIM ? DIM : 1];  // stays in registers, as `sum` would not
    float* total = DIM ? known : sum;
    prefetch_row<false, DIM>(grad.at(bags[std::min(first + kAhead, last_bag)], column), n());
    std::memcpy(total, grad.at(bags[first], column), n() * sizeof(float));
    for (size_t i = first + 1; i < first + count; i++) {
      prefetch_row<false, DIM>(grad.at(bags[std::min(i + kAhead, last_bag)], column), n());
      add_scaled<DIM>(total, grad.at(bags[i], column), 1.0f, n());
    }
    if (DIM) std::memcpy(sum, total, n() * sizeof(float));
  }

  EMBCOMP_NOINLINE void set_apart(Block& block, uint64_t row, const float* sum) {
    block.apart_rows.push_back((uint32_t)row);
    block.apart_sums.insert(block.apart_sums.end(), sum, sum + n());
  }

  template <class Plain>
  void visit_sorted(const uint64_t* pairs, Plain visitor) {
    float* sum = room_for(n());
    for (size_t i = 0; i < entries_;) {
      const uint64_t row = pairs[i] >> 32;
      std::memset(sum, 0, n() * sizeof(float));
      for (; i < entries_ && pairs[i] >> 32 == row; i++) {
        if (i + kAhead < entries_) {
          prefetch_row(source_[(uint32_t)pairs[i + kAhead]], n());
          if (pairs[i + kAhead] >> 32 != pairs[i + kAhead - 1] >> 32) visitor.fetch(pairs[i + kAhead] >> 32);
        }
        const uint32_t entry = (uint32_t)pairs[i];
        add_scaled<DIM>(sum, source_[entry], weight_[entry], n());
      }
      visitor.visit(row, sum);
    }
  }

  void add_entry(int64_t row, const float* gradient, float weight) {
    pairs_[entries_] = (uint64_t)row << 32 | (uint64_t)entries_;
    source_[entries_] = gradient;
    weight_[entries_++] = weight;
  }

  static float* room_for(size_t n) {
    static thread_local Vector<float> room;
    if (room.size() < n) room.resize(n);
    return room.data();
  }

  Request q_;
  Gradient grad_;
  Visitor visitor_;
  uint64_t* pairs_ = nullptr;
  const float** source_ = nullptr;
  float* weight_ = nullptr;
  size_t entries_ = 0;
};

// Groups the bags of all tables, in as few starts of threads as may be: where there are few tables, each with several.
inline void prepare_all(const Request* requests, Vector<std::unique_ptr<Sums>>& sums, size_t threads, Scratch& kept) {
  const size_t tables = sums.size();
  const auto lanes_of = [&](size_t t) { return kept.tables[t].lanes.size(); };
  if (tables >= threads)
    return each_in_threads(threads, tables, [&](size_t i, size_t t) {
      sums[t]->begin(requests[t], kept.tables[t]);
      for (size_t first = 0; first < lanes_of(t); first += kLanesPerPart)
        sums[t]->make_blocks(requests[t], first, *kept.threads[i]);
      sums[t]->end(requests[t]);
    });
  for (size_t t = 0; t < tables; t++) sums[t]->begin(requests[t], kept.tables[t]);
  Vector<std::pair<size_t, size_t>> parts;  // each a table, and the first of some of its lanes
  for (size_t t = 0; t < tables; t++)
    for (size_t first = 0; first < lanes_of(t); first += kLanesPerPart) parts.emplace_back(t, first);
  each_in_threads(threads, parts.size(), [&](size_t i, size_t k) {
    const auto& [t, first] = parts[k];
    sums[t]->make_blocks(requests[t], first, *kept.threads[i]);
  });
  for (size_t t = 0; t < tables; t++) sums[t]->end(requests[t]);
}

// Visits the rows of all tables. The results do not depend on the number of threads.
inline void sum_all(const Request* requests, Vector<std::unique_ptr<Sums>>& sums, size_t threads) {
  Scratch& kept = scratch;
  kept.reserve(sums.size(), threads);
  prepare_all(requests, sums, threads, kept);
  Vector<std::pair<Sums*, Block*>> blocks;
  for (auto& each : sums)
    for (Block* block : each->own->used) blocks.emplace_back(each.get(), block);
  each_in_threads(threads, blocks.size(), [&](size_t, size_t k) { blocks[k].first->add(*blocks[k].second); });
  const size_t few = std::min(threads, sums.size());
  each_in_threads(few, sums.size(), [&](size_t i, size_t t) { sums[t]->finish(*kept.threads[i]); });
}

}  // namespace embcomp
