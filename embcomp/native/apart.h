// The rows of a table that several groups read, possibly: their gradients are summed apart from those of the others.
#pragma once
#include "blocks.h"

namespace embcomp {

// A set of the rows that were seen twice, with a few others where there are many rows: two bits for each, or for its hash,
// in words side by side, so that a row is one line.
class Twice {
 public:
  Twice() = default;
  Twice(Vector<uint64_t>& room, uint64_t num_rows, size_t seen) {
    while (bits_ < 32 && (uint64_t)1 << bits_ < num_rows && (uint64_t)1 << bits_ < 32 * seen) bits_++;
    exact_ = (uint64_t)1 << bits_ >= num_rows;
    room.assign(2 * ((exact_ ? num_rows : (uint64_t)1 << bits_) / 64 + 1), 0);
    words_ = room.data();
  }

  void see(uint64_t row) {
    uint64_t *once = words_of(row), *twice = once + 1;
    *twice |= *once & bit_of(row);
    *once |= bit_of(row);
  }
  void keep(uint64_t row) { words_of(row)[1] |= bit_of(row); }
  bool has(uint64_t row) const { return words_of(row)[1] & bit_of(row); }
  void fetch(uint64_t row) const { prefetch(words_of(row)); }

 private:
  uint64_t place(uint64_t row) const { return exact_ ? row : row * 0x9E3779B97F4A7C15ull >> (64 - bits_); }
  uint64_t bit_of(uint64_t row) const { return (uint64_t)1 << (place(row) & 63); }
  uint64_t* words_of(uint64_t row) const { return words_ + 2 * (place(row) >> 6); }

  uint64_t* words_ = nullptr;
  unsigned bits_ = 6;
  bool exact_ = false;
};

enum class Apart { kNone, kTwice, kAll };

// Finds which rows of the blocks of a table are to be summed apart: those in `twice`, none, or with `all` all of them.
// Rows are also read by the `varying` features.
inline Apart find_apart(const Request& q, const Vector<Block*>& blocks, const Vector<size_t>& varying, bool all,
                        Vector<uint64_t>& room, Twice& twice) {
  if (all) return Apart::kAll;
  size_t seen = 0, lanes = 0, others = 0;
  for (const Block* block : blocks) {
    seen += block->rows.size();
    lanes += block->lanes.size();
  }
  for (size_t f : varying) others += (size_t)(q.offsets[(f + 1) * q.batch] - q.offsets[f * q.batch]);
  if (lanes == 1 && !others) return Apart::kNone;
  twice = Twice(room, q.num_rows, seen + others);
  for (size_t f : varying)
    for (int64_t j = q.offsets[f * q.batch]; j < q.offsets[(f + 1) * q.batch]; j++) twice.keep((uint64_t)q.rows[j]);
  for (const Block* block : blocks) {
    const Vector<uint32_t>& rows = block->rows;
    for (size_t k = 0; k < rows.size(); k++) {
      twice.fetch(rows[std::min(k + kAhead, rows.size() - 1)]);
      twice.see(rows[k]);
    }
  }
  return Apart::kTwice;
}

}  // namespace embcomp
