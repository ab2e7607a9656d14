// Look-ups in bit-packed maps, the fast form of embcomp.ops.packing: entry i is bits [i * bits, (i + 1) * bits) of a
// little-endian stream of 32-bit words, with two spare words behind the last.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "astray.h"

// Entries are numbered below 2^32, so that the product is one of 32-bit factors.
static inline int64_t entry(const unsigned char* bytes, uint32_t bits, uint32_t i) {
  const uint64_t at = (uint64_t)i * bits;
  uint64_t window;  // the entry and what surrounds it, from the byte where it starts
  std::memcpy(&window, bytes + (at >> 3), sizeof window);
  return (int64_t)((window >> (at & 7)) & (((uint64_t)1 << bits) - 1));
}

constexpr size_t kBlock = 1024;  // ids that stay in the first-level cache between a look at them and their use

extern "C" {

// out[i * width + j] = entry ids[i] * width + j. 1, and `out` written in part, when some id lies outside [0, limit).
int unpack(const unsigned char* words, size_t bits, const int64_t* ids, size_t n, size_t width, int64_t limit,
           int64_t* out) {
  for (size_t start = 0; start < n; start += kBlock) {
    const size_t stop = n - start < kBlock ? n : start + kBlock;
    if (embcomp::any_outside(ids + start, stop - start, (uint64_t)limit)) return 1;
    if (width == 1) {
      for (size_t i = start; i < stop; i++) out[i] = entry(words, (uint32_t)bits, (uint32_t)ids[i]);
      continue;
    }
    for (size_t i = start; i < stop; i++)
      for (size_t j = 0; j < width; j++)
        out[i * width + j] = entry(words, (uint32_t)bits, (uint32_t)((uint64_t)ids[i] * width) + (uint32_t)j);
  }
  return 0;
}

// out[i] = entry ids[i], or -1 where there is none (ids[i] >= entries) or it is no value (>= values). 1 when some id is
// negative.
int unpack_known(const unsigned char* words, size_t bits, const int64_t* ids, size_t n, int64_t entries, int64_t values,
                 int64_t* out) {
  uint64_t negative = 0;
  for (size_t i = 0; i < n; i++) {
    const bool there = (uint64_t)ids[i] < (uint64_t)entries;
    const int64_t value = entry(words, (uint32_t)bits, (uint32_t)(there ? ids[i] : 0));
    out[i] = there && value < values ? value : -1;
    negative |= (uint64_t)ids[i] >> 63;
  }
  return negative != 0;
}

}  // extern "C"
