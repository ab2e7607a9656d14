// The gradients of the rows that a batch has read, each row's summed. Those of bags that read the same rows are summed as
// the gradient is passed over once, a few bags of all tables at a time, and a row that no other bags read is visited with
// the last of its bags. What remains (rows that several groups read, bags of varying length, weights) is sorted by row.
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

constexpr size_t kBagsPerTile = 64;

// What is kept between calls for one table.
struct TableScratch {
  Vector<Lane> lanes;
  Vector<size_t> varying;
  Vector<Block> blocks;
  size_t num_blocks;
};

// What is kept between calls for one thread.
struct ThreadScratch {
  Vector<Slot> slots;
  Vector<uint32_t> parting;
  Vector<uint64_t> twice;
  Buffer<uint64_t> pairs, other;  // row << 32 | entry, and the other half of the sort
  Buffer<const float*> source;    // per entry, its gradient
  Buffer<float> weight;           // per entry
  Vector<size_t> count;
};

struct Scratch {
  Vector<TableScratch> tables;
  Vector<std::unique_ptr<ThreadScratch>> threads;
  Buffer<float> sums;

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
// each row, from several threads, and may overwrite the sum.
class Sums {
 public:
  virtual ~Sums() = default;
  virtual void add(Block& block, size_t start, size_t stop) = 0;
  virtual void fetch(const Block& block, size_t start, size_t stop) = 0;
  virtual void finish(ThreadScratch& room) = 0;

  TableScratch* own = nullptr;
  bool in_order = false;  // whether rows must be visited in the order of memory

  // Groups the bags, which needs no gradient.
  void prepare(const Request& q, TableScratch& table, ThreadScratch& room) {
    own = &table;
    own->num_blocks = 0;
    find_lanes(q, own->lanes, own->varying);
    for (size_t i = 0; i < own->lanes.size();) {
      if (own->blocks.size() == own->num_blocks) own->blocks.emplace_back();
      i += make_block(&own->lanes[i], own->lanes.size() - i, q, own->blocks[own->num_blocks++], room.slots, room.parting);
    }
    set_apart(q, own->blocks.data(), own->num_blocks, own->varying, in_order, room.twice);
  }
};

template <size_t DIM, class Visitor>
class SumsOf : public Sums {
 public:
  SumsOf(const Request& request, const Gradient& grad, Visitor visitor)
      : q_(request), grad_(grad), visitor_(std::move(visitor)) {}

  Visitor& visitor() { return visitor_; }
  uint64_t num_rows() const { return q_.num_rows; }

  void fetch(const Block& block, size_t start, size_t stop) override {
    for (size_t b = start; b < stop; b++) {
      const uint32_t code = block.code[b];
      prefetch_row(grad_.at(b, block.lanes[0].column), block.width);
      if (!(code & kFirst)) prefetch_row(block.sum(code), block.width);
      if (code & kLast)
        for (const Lane& lane : block.lanes) visitor_.fetch((uint64_t)lane.row(b));
    }
  }

  void add(Block& block, size_t start, size_t stop) override {
    for (size_t b = start; b < stop; b++) {
      const uint32_t code = block.code[b];
      const float* sum = grad_.at(b, block.lanes[0].column);
      if ((code & kFirst) == 0 || (code & kLast) == 0) {
        float* whole = block.sum(code);
        if (code & kFirst)
          std::memcpy(whole, sum, block.width * sizeof(float));
        else
          add_scaled<0>(whole, sum, 1.0f, block.width);
        sum = whole;
      }
      if (code & kLast) end(block, code & kGroup, b, sum);
    }
  }

  void finish(ThreadScratch& room) override {
    size_t entries = 0;
    for (size_t f : own->varying) entries += (size_t)(q_.offsets[(f + 1) * q_.batch] - q_.offsets[f * q_.batch]);
    for (size_t i = 0; i < own->num_blocks; i++) entries += own->blocks[i].apart_rows.size();
    pairs_ = room.pairs.at_least(entries), source_ = room.source.at_least(entries);
    weight_ = room.weight.at_least(entries), entries_ = 0;
    for (size_t f : own->varying)
      for (size_t b = 0; b < q_.batch; b++)
        for (int64_t j = q_.offsets[f * q_.batch + b]; j < q_.offsets[f * q_.batch + b + 1]; j++)
          add_entry(q_.rows[j], grad_.at(b, (size_t)q_.columns[f]), q_.weights ? q_.weights[j] : 1.0f);
    for (size_t i = 0; i < own->num_blocks; i++) {
      const Block& block = own->blocks[i];
      for (size_t k = 0; k < block.apart_rows.size(); k++)
        add_entry(block.apart_rows[k], &block.apart_sums[k * n()], 1.0f);
    }
    visit_sorted(sort_by_row(pairs_, room.other.at_least(entries), entries, q_.num_rows, room.count));
  }

 private:
  size_t n() const { return DIM ? DIM : q_.dim; }

  // All bags of the group are summed.
  void end(Block& block, size_t group, size_t bag, const float* sum) {
    const size_t lanes = block.lanes.size();
    float* one = room_for(n());
    for (size_t c = 0; c < lanes; c++, sum += block.step) {
      const uint64_t row = (uint64_t)block.lanes[c].row(bag);
      if (!block.apart.empty() && block.apart[group * lanes + c]) {
        block.apart_rows.push_back((uint32_t)row);
        block.apart_sums.insert(block.apart_sums.end(), sum, sum + n());
      } else {
        std::memcpy(one, sum, n() * sizeof(float));
        visitor_.visit(row, one);
      }
    }
  }

  void visit_sorted(const uint64_t* pairs) {
    float* sum = room_for(n());
    for (size_t i = 0; i < entries_;) {
      const uint64_t row = pairs[i] >> 32;
      std::memset(sum, 0, n() * sizeof(float));
      for (; i < entries_ && pairs[i] >> 32 == row; i++) {
        if (i + kAhead < entries_) {
          prefetch_row(source_[(uint32_t)pairs[i + kAhead]], n());
          if (pairs[i + kAhead] >> 32 != pairs[i + kAhead - 1] >> 32) visitor_.fetch(pairs[i + kAhead] >> 32);
        }
        const uint32_t entry = (uint32_t)pairs[i];
        add_scaled<DIM>(sum, source_[entry], weight_[entry], n());
      }
      visitor_.visit(row, sum);
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

// Sums and visits blocks, in the order of the gradient. Each is fetched while the one before it is summed.
inline void add_blocks(const std::pair<Sums*, Block*>* blocks, size_t count, size_t batch) {
  const size_t tiles = (batch + kBagsPerTile - 1) / kBagsPerTile;
  for (size_t at = 0; at < tiles * count; at++) {
    if (at + 1 < tiles * count) {
      const auto& [sums, block] = blocks[(at + 1) % count];
      const size_t start = (at + 1) / count * kBagsPerTile;
      sums->fetch(*block, start, std::min(batch, start + kBagsPerTile));
    }
    const auto& [sums, block] = blocks[at % count];
    const size_t start = at / count * kBagsPerTile;
    sums->add(*block, start, std::min(batch, start + kBagsPerTile));
  }
}

// Visits the rows of all tables. The results do not depend on the number of threads.
inline void sum_all(const Request* requests, Vector<std::unique_ptr<Sums>>& sums, size_t threads) {
  const size_t tables = sums.size();
  Scratch& kept = scratch;
  kept.reserve(tables, threads);
  in_threads(threads, [&](size_t i) {
    for (size_t t = first_of(i, threads, tables); t < first_of(i + 1, threads, tables); t++)
      sums[t]->prepare(requests[t], kept.tables[t], *kept.threads[i]);
  });
  Vector<std::pair<Sums*, Block*>> blocks;
  size_t total = 0;
  for (auto& each : sums)
    for (size_t k = 0; k < each->own->num_blocks; k++) {
      blocks.emplace_back(each.get(), &each->own->blocks[k]);
      total += blocks.back().second->num_sums * blocks.back().second->width;
    }
  float* next = kept.sums.at_least(total);
  for (auto& each : blocks) {
    each.second->sums = next;
    next += each.second->num_sums * each.second->width;
  }
  in_threads(threads, [&](size_t i) {
    const size_t first = first_of(i, threads, blocks.size()), last = first_of(i + 1, threads, blocks.size());
    add_blocks(blocks.data() + first, last - first, requests[0].batch);
  });
  in_threads(threads, [&](size_t i) {
    for (size_t t = first_of(i, threads, tables); t < first_of(i + 1, threads, tables); t++)
      sums[t]->finish(*kept.threads[i]);
  });
}

}  // namespace embcomp
