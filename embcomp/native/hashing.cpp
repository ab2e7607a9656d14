// Row hashing, the fast form of embcomp.ops.hashing (specified in docs/hashing.md).
#include <cstddef>
#include <cstdint>

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

// 1 when some id lies outside [0, limit); a negative id is a huge unsigned one.
int any_outside(const int64_t* ids, size_t n, int64_t limit) {
  uint64_t bad = 0;
  for (size_t i = 0; i < n; i++) bad |= (uint64_t)((uint64_t)ids[i] >= (uint64_t)limit);
  return bad != 0;
}

}  // extern "C"
