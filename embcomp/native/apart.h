// The rows of a table that several groups read, possibly: their gradients are summed apart from those of the others.
#pragma once
#include "blocks.h"

namespace embcomp {

// A set of the rows that were seen twice, with a few others where there are many rows: two bits for each, or for its hash,
// in words side by side, so that a row is one line.
class Twice {
 public:
  Twice(Vector<uint64_t>& room, uint64_t num_rows, size_t seen) {
    while (bits_ < 32 && (uint64_t)1 << bits_ < num_rows && (uint64_t)1 << bits_ < 32 * seen) bits_++;
    exact_ = (uint64_t)1 << bits_ >= num_rows;
    room.assign((size_t)2 << (bits_ - 6), 0);
    words_ = room.data();
  }

  void see(uint64_t row) {
    uint64_t *once = words_of(row), *twice = once + 1;
    *twice |= *once & bit_of(row);
    *once |= bit_of(row);
  }
  void keep(uint64_t row) { words_of(row)[1] |= bit_of(row); }
  bool has(uint64_t row) const { return words_of(row)[1] & bit_of(row); }

 private:
  uint64_t place(uint64_t row) const { return exact_ ? row : row * 0x9E3779B97F4A7C15ull >> (64 - bits_); }
  uint64_t bit_of(uint64_t row) const { return (uint64_t)1 << (place(row) & 63); }
  uint64_t* words_of(uint64_t row) const { return words_ + 2 * (place(row) >> 6); }

  uint64_t* words_;
  unsigned bits_ = 6;
  bool exact_;
};

template <class Visit>
inline void each_row(Block* blocks, size_t count, const Visit& visit) {
  for (size_t i = 0; i < count; i++)
    for (size_t c = 0; c < blocks[i].lanes.size(); c++)
      for (size_t g = 0; g < blocks[i].leaders.size(); g++)
        visit(blocks[i], g * blocks[i].lanes.size() + c, (uint64_t)blocks[i].lanes[c].row(blocks[i].leaders[g]));
}

// Fills `apart` of the blocks of a table, whose other rows are read by the `varying` features; with `all`, for all rows.
inline void set_apart(const Request& q, Block* blocks, size_t count, const Vector<size_t>& varying, bool all,
                      Vector<uint64_t>& room) {
  size_t seen = 0, lanes = 0;
  for (size_t i = 0; i < count; i++) {
    seen += blocks[i].leaders.size() * blocks[i].lanes.size();
    lanes += blocks[i].lanes.size();
  }
  size_t others = 0;
  for (size_t f : varying) others += (size_t)(q.offsets[(f + 1) * q.batch] - q.offsets[f * q.batch]);
  if (!all && lanes == 1 && !others) return;
  for (size_t i = 0; i < count; i++) blocks[i].apart.assign(blocks[i].leaders.size() * blocks[i].lanes.size(), all);
  if (all) return;
  Twice twice(room, q.num_rows, seen + others);
  for (size_t f : varying)
    for (int64_t j = q.offsets[f * q.batch]; j < q.offsets[(f + 1) * q.batch]; j++) twice.keep((uint64_t)q.rows[j]);
  each_row(blocks, count, [&](Block&, size_t, uint64_t row) { twice.see(row); });
  each_row(blocks, count, [&](Block& block, size_t place, uint64_t row) { block.apart[place] = twice.has(row); });
}

}  // namespace embcomp
