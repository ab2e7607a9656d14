// Writes past the cache, for outputs that leave it before anybody reads them: a line that is written whole need not be
// read first. A line of 64 bytes in one instruction is three times as fast as in four.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace embcomp {

#if defined(__AVX512F__)
constexpr size_t kLane = 16;  // floats that are written at once; 0 where nothing is
inline void stream_lane(float* out, const float* row) { _mm512_stream_ps(out, _mm512_loadu_ps(row)); }
#elif defined(__AVX__)
constexpr size_t kLane = 8;
inline void stream_lane(float* out, const float* row) { _mm256_stream_ps(out, _mm256_loadu_ps(row)); }
#elif defined(__SSE2__)
constexpr size_t kLane = 4;
inline void stream_lane(float* out, const float* row) { _mm_stream_ps(out, _mm_loadu_ps(row)); }
#else
constexpr size_t kLane = 0;
inline void stream_lane(float*, const float*) {}
#endif

// Whether rows of n floats may be written so, the first here and others a multiple of `stride` floats further.
inline bool can_stream(const float* out, size_t n, size_t stride) {
  constexpr size_t lane = kLane ? kLane : 1;
  return kLane && n % lane == 0 && stride % lane == 0 && (uintptr_t)out % (lane * sizeof(float)) == 0;
}

inline void stream(float* out, const float* row, size_t n) {
  for (size_t d = 0; d < n; d += kLane ? kLane : n) stream_lane(out + d, row + d);
}

// Makes what was written so visible before what is written later.
inline void end_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

}  // namespace embcomp
