// Sums of packed codes over the rows of a bag, as whole numbers: many values to an instruction.
//
// A byte holds E = 8 / BITS values. It becomes a word of E bytes, each of which takes one of its values, so that the values
// lie in their order; the bytes are added up, for as many rows as they have room for.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace embcomp {

template <uint32_t BITS>
struct WordOfCodes;
template <>
struct WordOfCodes<4> { typedef uint16_t type; };
template <>
struct WordOfCodes<2> { typedef uint32_t type; };
template <>
struct WordOfCodes<1> { typedef uint64_t type; };

template <uint32_t BITS>
class CodeSums {
 public:
  CodeSums(const uint8_t* packed, size_t row_bytes, const int64_t* rows, int64_t lo, int64_t hi)
      : packed_(packed), row_bytes_(row_bytes), rows_(rows), lo_(lo), hi_(hi) {}

  // (sum of the codes - shift) * scale -> out, a float for each value of a row.
  void write(float shift, float scale, float* out) const {
    size_t first = 0;
    for (; first + 64 / kEach <= row_bytes_; first += 64 / kEach) block<64>(first, shift, scale, out + first * kEach);
    for (; first + 32 / kEach <= row_bytes_; first += 32 / kEach) block<32>(first, shift, scale, out + first * kEach);
    for (; first + 16 / kEach <= row_bytes_; first += 16 / kEach) block<16>(first, shift, scale, out + first * kEach);
    for (; first < row_bytes_; first++) byte(first, shift, scale, out + first * kEach);
  }

 private:
  static constexpr size_t kEach = 8 / BITS;
  static constexpr int64_t kRows = 255 / ((1 << BITS) - 1);
  typedef typename WordOfCodes<BITS>::type Word;

  const uint8_t* at(int64_t j, size_t first) const { return packed_ + (size_t)rows_[j] * row_bytes_ + first; }

  template <typename To, typename From>
  static To converted(From from) {
    return __builtin_convertvector(from, To);
  }

  // The bytes as words, doubled step by step: GCC has no vector instruction for more at once.
  template <typename Bytes, typename Words, size_t BYTES>
  static Words words(Bytes bytes) {
    typedef uint16_t Halves __attribute__((vector_size(2 * BYTES)));
    typedef uint32_t Fours __attribute__((vector_size(4 * BYTES)));
    if constexpr (kEach == 2)
      return converted<Words>(bytes);
    else if constexpr (kEach == 4)
      return converted<Words>(converted<Halves>(bytes));
    else
      return converted<Words>(converted<Fours>(converted<Halves>(bytes)));
  }

  template <size_t VALUES>
  void block(size_t first, float shift, float scale, float* out) const {
    constexpr size_t kBytes = VALUES / kEach, kPieces = VALUES / 16;
    typedef uint8_t Bytes __attribute__((vector_size(kBytes)));
    typedef Word Words __attribute__((vector_size(VALUES)));
    typedef uint8_t Piece __attribute__((vector_size(16)));
    typedef uint16_t Halves __attribute__((vector_size(32)));
    typedef int32_t Whole __attribute__((vector_size(64)));
    typedef float Floats __attribute__((vector_size(64)));
    constexpr Word mask = (Word)(((1u << BITS) - 1) * (Word)0x0101010101010101ull);
    Floats totals[kPieces] = {};
    for (int64_t j = lo_; j < hi_;) {
      Words sums = {};
      for (const int64_t stop = hi_ - j < kRows ? hi_ : j + kRows; j < stop; j++) {
        Bytes bytes;
        std::memcpy(&bytes, at(j, first), kBytes);
            const Words word = words<Bytes, Words, kBytes>(bytes);
        Words spread = word;  // value i of a byte lies at bit 8 * i, of BITS bits
#pragma GCC unroll 8
        for (size_t i = 1; i < kEach; i++) spread |= word << (Word)(i * (8 - BITS));
        sums += spread & mask;  // no byte runs over into the next one
      }
#pragma GCC unroll 4
      for (size_t p = 0; p < kPieces; p++) {
        Piece piece;
        std::memcpy(&piece, (const uint8_t*)&sums + p * sizeof piece, sizeof piece);
        totals[p] += converted<Floats>(converted<Whole>(converted<Halves>(piece)));
      }
    }
#pragma GCC unroll 4
    for (size_t p = 0; p < kPieces; p++) {
      const Floats values = (totals[p] - shift) * scale;
      std::memcpy(out + 16 * p, &values, sizeof values);
    }
  }

  void byte(size_t first, float shift, float scale, float* out) const {
    int64_t sums[kEach] = {};
    for (int64_t j = lo_; j < hi_; j++)
      for (size_t i = 0; i < kEach; i++) sums[i] += (*at(j, first) >> (i * BITS)) & ((1 << BITS) - 1);
    for (size_t i = 0; i < kEach; i++) out[i] = ((float)sums[i] - shift) * scale;
  }

  const uint8_t* packed_;
  const size_t row_bytes_;
  const int64_t* rows_;
  const int64_t lo_, hi_;
};

}  // namespace embcomp
