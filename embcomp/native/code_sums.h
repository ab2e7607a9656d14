// Sums of packed codes over the rows of a bag, as whole numbers: many values to an instruction.
//
// A byte holds E = 8 / BITS values. A row is read in blocks of bytes; the i-th value of each byte is added to the i-th sum,
// whose bytes hold the codes of 255 / (2^BITS - 1) rows before they could overflow.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace embcomp {

template <uint32_t BITS>
class CodeSums {
 public:
  CodeSums(const uint8_t* packed, size_t row_bytes, const int64_t* rows, int64_t lo, int64_t hi)
      : packed_(packed), row_bytes_(row_bytes), rows_(rows), lo_(lo), hi_(hi) {}

  // The sums of the codes -> out, a float for each value of a row.
  void add(float* out) const {
    size_t first = 0;
    for (; first + 32 <= row_bytes_; first += 32) block<32>(first, out + first * kEach);
    for (; first + 8 <= row_bytes_; first += 8) block<8>(first, out + first * kEach);
    for (; first < row_bytes_; first++) block<1>(first, out + first * kEach);
  }

 private:
  static constexpr size_t kEach = 8 / BITS;
  static constexpr int64_t kRows = 255 / ((1 << BITS) - 1);

  template <size_t BYTES>
  void block(size_t first, float* out) const {
    typedef uint8_t Bytes __attribute__((vector_size(BYTES)));
    for (size_t v = 0; v < BYTES * kEach; v++) out[v] = 0.0f;
    for (int64_t j = lo_; j < hi_;) {
      Bytes sums[kEach] = {};
      for (const int64_t stop = hi_ - j < kRows ? hi_ : j + kRows; j < stop; j++) {
        Bytes bytes;
        std::memcpy(&bytes, packed_ + (size_t)rows_[j] * row_bytes_ + first, BYTES);
#pragma GCC unroll 8
        for (size_t i = 0; i < kEach; i++) sums[i] += (bytes >> (uint8_t)(i * BITS)) & (uint8_t)((1 << BITS) - 1);
      }
      uint8_t values[BYTES * kEach];  // in the order of the row
      for (size_t k = 0; k < BYTES; k++)
        for (size_t i = 0; i < kEach; i++) values[k * kEach + i] = sums[i][k];
      for (size_t v = 0; v < BYTES * kEach; v++) out[v] += (float)values[v];
    }
  }

  const uint8_t* packed_;
  const size_t row_bytes_;
  const int64_t* rows_;
  const int64_t lo_, hi_;
};

}  // namespace embcomp
