// Look-ups in bit-packed maps, the fast form of embcomp.ops.packing: entry i is bits [i * bits, (i + 1) * bits) of a
// little-endian stream of 32-bit words, with two spare words behind the last.
#include <cstddef>
#include <cstdint>
#include <cstring>

// Entries are numbered below 2^32, so that the product is one of 32-bit factors.
static inline int64_t entry(const unsigned char* bytes, uint32_t bits, uint32_t i) {
  const uint64_t at = (uint64_t)i * bits;
  uint64_t window;  // the entry and what surrounds it, from the byte where it starts
  std::memcpy(&window, bytes + (at >> 3), sizeof window);
  return (int64_t)((window >> (at & 7)) & (((uint64_t)1 << bits) - 1));
}

extern "C" {

// out[i * width + j] = entry ids[i] * width + j.
void unpack(const unsigned char* words, size_t bits, const int64_t* ids, size_t n, size_t width, int64_t* out) {
  if (width == 1) {
    for (size_t i = 0; i < n; i++) out[i] = entry(words, (uint32_t)bits, (uint32_t)ids[i]);
    return;
  }
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < width; j++)
      out[i * width + j] = entry(words, (uint32_t)bits, (uint32_t)(ids[i] * (int64_t)width) + (uint32_t)j);
}

// out[i] = entry ids[i], or -1 where there is none (ids[i] >= entries) or it is no value (>= values).
void unpack_known(const unsigned char* words, size_t bits, const int64_t* ids, size_t n, int64_t entries, int64_t values,
                  int64_t* out) {
  for (size_t i = 0; i < n; i++) {
    const bool there = ids[i] < entries;
    const int64_t value = entry(words, (uint32_t)bits, (uint32_t)(there ? ids[i] : 0));
    out[i] = there && value < values ? value : -1;
  }
}

}  // extern "C"
