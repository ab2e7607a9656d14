// A group of packed codes on a grid at once: values in units of the step, from the bits that hold them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace embcomp {

template <uint32_t BITS, typename = void>
struct Group {
  static constexpr size_t lanes = 8;
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef int32_t Whole __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));

  Floats operator()(uint64_t bits) const {
    constexpr uint32_t mask = (1u << BITS) - 1;
    Words words, shifts;
    if constexpr (BITS <= 4) {
      const uint32_t all = (uint32_t)bits;
      words = Words{all, all, all, all, all, all, all, all};
      shifts = Words{0, BITS, 2 * BITS, 3 * BITS, 4 * BITS, 5 * BITS, 6 * BITS, 7 * BITS};
    } else {
      const uint32_t low = (uint32_t)bits, high = (uint32_t)(bits >> 4 * BITS);
      words = Words{low, low, low, low, high, high, high, high};
      shifts = Words{0, BITS, 2 * BITS, 3 * BITS, 0, BITS, 2 * BITS, 3 * BITS};
    }
    const Words codes = (words >> shifts) & mask;
    return __builtin_convertvector((Whole)codes, Floats) - ((float)(1u << (BITS - 1)) - 0.5f);
  }
};

#ifdef __AVX512F__
// One permutation looks sixteen values up; it reads the low four bits of an index, so the table repeats itself.
template <uint32_t BITS>
struct Group<BITS, std::enable_if_t<(BITS <= 4)>> {
  static constexpr size_t lanes = 16;
  typedef uint32_t Words __attribute__((vector_size(64)));
  typedef int32_t Whole __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  Floats values;

  Group() {
    for (uint32_t i = 0; i < 16; i++) values[i] = (float)(i % (1u << BITS)) + 0.5f - (float)(1u << (BITS - 1));
  }

  Floats operator()(uint64_t bits) const {
    constexpr uint32_t B = BITS;
    const uint32_t l = (uint32_t)bits, h = (uint32_t)(bits >> 8 * BITS);
    Words words, shifts = {0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B, 0, B, 2 * B, 3 * B, 4 * B, 5 * B, 6 * B, 7 * B};
    if constexpr (BITS <= 2) {  // all in one word
      words = Words{} + l;
      shifts += Words{0, 0, 0, 0, 0, 0, 0, 0, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B, 8 * B};
    } else {
      words = Words{l, l, l, l, l, l, l, l, h, h, h, h, h, h, h, h};
    }
    return __builtin_shuffle(values, (Whole)(words >> shifts));
  }
};
#endif

}  // namespace embcomp
