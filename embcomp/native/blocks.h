// Blocks of look-ups that repeat together: the rows that all bags of a feature read, a fixed number for each, and with
// them the chunks of a feature of ids, which stand side by side in the output. Bags that read the same rows are a group.
#pragma once
#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "request.h"

namespace embcomp {

constexpr uint32_t kNone = ~0u;
constexpr uint32_t kFirst = 1u << 31, kLast = 1u << 30, kGroup = kLast - 1;

// One look-up of each bag of a feature: bag b reads row rows[b * stride], and its gradient begins at `column`.
struct Lane {
  const int64_t* rows;
  size_t stride, column;

  int64_t row(size_t bag) const { return rows[bag * stride]; }
};

struct Block {
  Vector<Lane> lanes;
  size_t step;                     // columns from a lane to the next
  size_t width;                    // floats of the gradient of a bag
  Vector<uint32_t> code;      // per bag, its group, and whether it is the first and the last of it
  Vector<uint32_t> leaders;   // per group, its first bag
  Vector<uint32_t> sum_of;    // per group of several bags, the number of its sum
  Vector<uint8_t> apart;      // per group and lane, whether others may read the row too; empty if none may
  size_t num_sums;
  float* sums;
  Vector<uint32_t> apart_rows;  // rows that others may read too, and their gradients so far
  Vector<float> apart_sums;

  float* sum(uint32_t code) const { return sums + sum_of[code & kGroup] * width; }
};

// The look-ups of features whose bags all read the same number of rows; the other features are left in `varying`.
inline void find_lanes(const Request& q, Vector<Lane>& lanes, Vector<size_t>& varying) {
  lanes.clear();
  varying.clear();
  for (size_t f = 0; f < q.features; f++) {
    const size_t each = q.batch < kGroup ? q.rows_of_each(f) : 0;
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
  block.code.resize(batch);
  block.leaders.clear();
  const size_t mask = slots.size() - 1;
  for (size_t b = 0; b < batch; b++) {
    const uint32_t row = (uint32_t)lane.row(b);
    size_t slot = row * 0x9E3779B97F4A7C15ull >> (64 - bits);
    while (slots[slot].row != row && slots[slot].row != kNone) slot = (slot + 1) & mask;
    if (slots[slot].row == kNone) {
      slots[slot] = {row, (uint32_t)block.leaders.size()};
      block.leaders.push_back((uint32_t)b);
    }
    block.code[b] = slots[slot].group;
  }
}

// Whether one more lane repeats with the groups. Bags that part get a group of their own; where more than one in sixteen
// would, the lane reads other ids, and nothing is changed.
inline bool joins(const Lane& lane, size_t batch, Block& block, Vector<uint32_t>& parting) {
  parting.clear();
  for (size_t b = 0; b < batch; b++)
    if (lane.row(b) != lane.row(block.leaders[block.code[b]])) {
      if (16 * (parting.size() + 1) > batch) return false;
      parting.push_back((uint32_t)b);
    }
  for (uint32_t b : parting) {
    block.code[b] = (uint32_t)block.leaders.size();
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

// Marks the first and the last bag of each group, and numbers the sums of groups of several.
inline void mark_ends(Block& block) {
  block.sum_of.assign(block.leaders.size(), kNone);  // at first, the last bag of each group
  for (size_t b = 0; b < block.code.size(); b++) block.sum_of[block.code[b]] = (uint32_t)b;
  block.num_sums = 0;
  for (size_t g = 0; g < block.leaders.size(); g++) {
    const uint32_t first = block.leaders[g], last = block.sum_of[g];
    block.code[first] |= kFirst;
    block.code[last] |= kLast;
    if (first != last) block.sum_of[g] = (uint32_t)block.num_sums++;
  }
}

// Makes a block of the first of these lanes and those that follow it, and returns how many they are.
inline size_t make_block(const Lane* lanes, size_t count, const Request& q, Block& block, Vector<Slot>& slots,
                         Vector<uint32_t>& parting) {
  block.lanes.assign(1, lanes[0]);
  block.step = 0;
  group_bags(lanes[0], q.batch, block, slots);
  size_t used = 1;
  // Where almost no id repeats, every lane would seem to join.
  while (used < count && 8 * block.leaders.size() < 7 * q.batch && follows(block, lanes[used], q.dim) &&
         joins(lanes[used], q.batch, block, parting)) {
    block.step = lanes[used].column - lanes[used - 1].column;
    block.lanes.push_back(lanes[used++]);
  }
  block.width = block.step ? used * q.dim : q.dim;
  block.apart.clear();
  block.apart_rows.clear();
  block.apart_sums.clear();
  mark_ends(block);
  return used;
}

}  // namespace embcomp
