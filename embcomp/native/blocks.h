// Blocks of look-ups that repeat together: the rows that all bags of a feature read, a fixed number for each, and with
// them the chunks of a feature of ids, which stand side by side in the output. Bags that read the same rows are a group.
#pragma once
#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "request.h"

namespace embcomp {

constexpr uint32_t kNone = ~0u;

// One look-up of each bag of a feature: bag b reads row rows[b * stride], and its gradient begins at `column`.
struct Lane {
  const int64_t* rows;
  size_t stride, column;

  uint64_t row(size_t bag) const { return (uint64_t)rows[bag * stride]; }
};

struct Block {
  Vector<Lane> lanes;
  size_t step;                  // columns from a lane to the next
  Vector<uint32_t> group;       // of each bag
  Vector<uint32_t> leaders;     // the first bag of each group
  Vector<uint32_t> rows;        // of each group, one for each lane
  Vector<uint32_t> bags;        // group by group, those of a group in their order
  Vector<uint32_t> starts;      // where the bags of each group begin in `bags`, and where the last end
  Vector<uint32_t> apart_rows;  // rows that others may read too, and their gradients so far
  Vector<float> apart_sums;

  size_t groups() const { return leaders.size(); }
};

// The look-ups of features whose bags all read the same number of rows; the other features are left in `varying`.
inline void find_lanes(const Request& q, Vector<Lane>& lanes, Vector<size_t>& varying) {
  lanes.clear();
  varying.clear();
  for (size_t f = 0; f < q.features; f++) {
    const size_t each = q.batch < kNone ? q.rows_of_each(f) : 0;
    if (!each) varying.push_back(f);
    for (size_t j = 0; j < each; j++)
      lanes.push_back({q.rows + q.offsets[f * q.batch] + j, each, (size_t)q.columns[f]});
  }
}

struct Slot {
  uint32_t row, group;
};

// Numbers the bags' groups by the rows of a lane.
inline void group_bags(const Lane& lane, size_t batch, Block& block, Vector<Slot>& slots) {
  unsigned bits = 4;
  while ((size_t)1 << bits < 2 * batch) bits++;
  slots.assign((size_t)1 << bits, Slot{kNone, kNone});
  block.group.resize(batch);
  block.leaders.resize(batch);
  const size_t mask = slots.size() - 1;
  uint32_t groups = 0;
  for (size_t b = 0; b < batch; b++) {
    const uint32_t row = (uint32_t)lane.row(b);
    size_t place = row * 0x9E3779B97F4A7C15ull >> (64 - bits);
    while ((slots[place].row != row) & (slots[place].row != kNone)) place = (place + 1) & mask;
    // Written whether the row is new or not: about half of the bags' are, and no processor can guess which.
    const bool is_new = slots[place].row == kNone;
    const uint32_t group = is_new ? groups : slots[place].group;
    slots[place] = {row, group};
    block.group[b] = group;
    block.leaders[groups] = (uint32_t)b;
    groups += is_new;
  }
  block.leaders.resize(groups);
}

// Whether one more lane repeats with the groups. Bags that part get a group of their own; where more than one in sixteen
// would, the lane reads other ids, and nothing is changed.
inline bool joins(const Lane& lane, size_t batch, Block& block, Vector<uint32_t>& parting) {
  parting.clear();
  for (size_t b = 0; b < batch; b++)
    if (lane.row(b) != lane.row(block.leaders[block.group[b]])) {
      if (16 * (parting.size() + 1) > batch) return false;
      parting.push_back((uint32_t)b);
    }
  for (uint32_t b : parting) {
    block.group[b] = (uint32_t)block.leaders.size();
    block.leaders.push_back(b);
  }
  return true;
}

// Whether a lane is the next of its block: of the same bags, in the same columns or the next.
inline bool follows(const Block& block, const Lane& lane, size_t dim) {
  const Lane &last = block.lanes.back(), &one = block.lanes.front();
  const size_t step = lane.column - last.column;
  return lane.stride == last.stride && (block.lanes.size() == 1 ? step == 0 || step == dim : step == block.step) &&
         (step || lane.rows == last.rows + 1) && (!step || one.stride == 1);
}

// Lists the bags group by group.
inline void list_bags(Block& block) {
  block.starts.assign(block.groups() + 1, 0);  // at first, each group's stands one further, where its end will be
  uint32_t* ends = block.starts.data() + 1;
  for (uint32_t group : block.group) ends[group]++;
  uint32_t total = 0;
  for (size_t g = 0; g < block.groups(); g++) {
    const uint32_t here = ends[g];
    ends[g] = total;
    total += here;
  }
  block.bags.resize(block.group.size());
  for (size_t b = 0; b < block.group.size(); b++) block.bags[ends[block.group[b]]++] = (uint32_t)b;
}

// Lists the rows of each group.
inline void list_rows(Block& block) {
  const size_t lanes = block.lanes.size();
  block.rows.resize(block.groups() * lanes);
  for (size_t c = 0; c < lanes; c++)
    for (size_t g = 0; g < block.groups(); g++)
      block.rows[g * lanes + c] = (uint32_t)block.lanes[c].row(block.leaders[g]);
}

// Makes a block of the first of these lanes and those that follow it, and returns how many they are.
inline size_t make_block(const Lane* lanes, size_t count, const Request& q, Block& block, Vector<Slot>& slots,
                         Vector<uint32_t>& parting) {
  block.lanes.assign(1, lanes[0]);
  block.step = 0;
  group_bags(lanes[0], q.batch, block, slots);
  size_t used = 1;
  // Where almost no id repeats, every lane would seem to join.
  while (used < count && 8 * block.groups() < 7 * q.batch && follows(block, lanes[used], q.dim) &&
         joins(lanes[used], q.batch, block, parting)) {
    block.step = lanes[used].column - lanes[used - 1].column;
    block.lanes.push_back(lanes[used++]);
  }
  block.apart_rows.clear();
  block.apart_sums.clear();
  list_rows(block);
  list_bags(block);
  return used;
}

}  // namespace embcomp
