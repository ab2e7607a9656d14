// Row hashing, the fast form of embcomp.ops.hashing (specified in docs/hashing.md).
#include <cstddef>
#include <cstdint>

#include "astray.h"

static inline uint64_t mix(uint64_t z) {  // the splitmix64 finaliser
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

static inline int64_t to_row(uint64_t id, uint64_t key, uint64_t rows) {
  return (int64_t)(((mix(id ^ key) >> 32) * rows) >> 32);
}

extern "C" {

// out[j * n + i] = row of ids[i] under keys[j].
void hash_rows_by_key(const int64_t* ids, size_t n, const int64_t* keys, size_t num_keys, int64_t rows, int64_t* out) {
  for (size_t j = 0; j < num_keys; j++) {
    const uint64_t key = (uint64_t)keys[j];
    for (size_t i = 0; i < n; i++) out[j * n + i] = to_row((uint64_t)ids[i], key, (uint64_t)rows);
  }
}

// out[i * num_keys + j] = row of ids[i] under keys[j]; blocks stay in the first-level cache between the passes.
void hash_rows(const int64_t* ids, size_t n, const int64_t* keys, size_t num_keys, int64_t rows, int64_t* out) {
  if (num_keys == 1) return hash_rows_by_key(ids, n, keys, 1, rows, out);
  enum { BLOCK = 512 };
  int64_t block[BLOCK];
  for (size_t start = 0; start < n; start += BLOCK) {
    const size_t len = n - start < BLOCK ? n - start : BLOCK;
    for (size_t j = 0; j < num_keys; j++) {
      const uint64_t key = (uint64_t)keys[j];
      for (size_t i = 0; i < len; i++) block[i] = to_row((uint64_t)ids[start + i], key, (uint64_t)rows);
      for (size_t i = 0; i < len; i++) out[(start + i) * num_keys + j] = block[i];
    }
  }
}

}  // extern "C"

namespace {

// How the ids of one feature are hashed, as embcomp.ops.hashed_features lays it out.
struct Hashes {
  const int64_t* ids;
  uint64_t count, limit;
  const int64_t* keys;
  uint64_t num_keys;
  int64_t rows, by_key, balanced, low_bits, high, scale, shift;
  int64_t* out;
};

}  // namespace

extern "C" {

// out[j * n + i] = row of ids[i] under the 8 numbers keys[8 * j ..] (embcomp.ops.balanced; `Domain` names the rest).
void balanced_rows(const int64_t* ids, size_t n, const int64_t* keys, size_t num_keys, int64_t* out, int64_t low_bits,
                   int64_t domain_high, int64_t scale, int64_t shift) {
  const uint64_t bits = (uint64_t)low_bits, size = (uint64_t)domain_high, mask = (1ULL << bits) - 1;
  for (size_t j = 0; j < num_keys; j++) {
    uint64_t k[8];
    for (int i = 0; i < 8; i++) k[i] = (uint64_t)keys[8 * j + i];
    for (size_t i = 0; i < n; i++) {
      uint64_t high = (uint64_t)ids[i] >> bits, low = (uint64_t)ids[i] & mask;
      for (int r = 0; r < 8; r += 4) {
        low ^= (high * k[r] + k[r + 1]) >> 32 >> (32 - bits);
        high += (((low * k[r + 2] + k[r + 3]) >> 32) * size) >> 32;
        high -= high >= size ? size : 0;
      }
      out[j * n + i] = (int64_t)((((high << bits) + low) * (uint64_t)scale) >> shift);
    }
  }
}

// Writes the rows of features one by one, until one has an id outside of [0, limit). Returns how many were written.
size_t hash_features(const Hashes* features, size_t number) {
  for (size_t f = 0; f < number; f++) {
    const Hashes& own = features[f];
    if (embcomp::any_outside(own.ids, own.count, own.limit)) return f;
    if (own.balanced && own.by_key)
      balanced_rows(own.ids, own.count, own.keys, own.num_keys, own.out, own.low_bits, own.high, own.scale, own.shift);
    else if (own.by_key)
      hash_rows_by_key(own.ids, own.count, own.keys, own.num_keys, own.rows, own.out);
    else
      hash_rows(own.ids, own.count, own.keys, own.num_keys, own.rows, own.out);
  }
  return number;
}

}  // extern "C"
