// The nearest code of each part of a vector, the fast form of embcomp.ops.product_codes: all codes of a book at a time.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(32)));
constexpr size_t kLanes = 8;

inline Floats load(const float* at) {
  Floats values;
  std::memcpy(&values, at, sizeof values);
  return values;
}

// The number of the nearest of the first `codes` codes; of equal distances the lower one. A plane holds one value of
// each code, whole groups of lanes, filled up with infinities; that of the next value lies `plane` further.
int64_t nearest(const float* vector, size_t width, const float* planes, size_t plane, size_t codes) {
  const Whole first = {0, 1, 2, 3, 4, 5, 6, 7}, most = Whole{} + (int32_t)codes;
  Floats least = Floats{} + std::numeric_limits<float>::infinity();
  Whole found = {};
  for (size_t start = 0; start < codes; start += kLanes) {
    Floats away = vector[0] - load(planes + start), squares = away * away;
    for (size_t place = 1; place < width; place++) {
      away = vector[place] - load(planes + place * plane + start);
      squares = squares + away * away;
    }
    const Whole numbers = first + (int32_t)start, closer = (squares < least) & (numbers < most);
    least = closer ? squares : least;
    found = closer ? numbers : found;
  }
  size_t best = 0;
  for (size_t lane = 1; lane < kLanes; lane++)
    if (least[lane] < least[best] || (least[lane] == least[best] && found[lane] < found[best])) best = lane;
  return found[best];
}

}  // namespace

extern "C" {

// Vectors [count, parts * width] and planes [width, parts, stride] -> codes [count, parts], each below `codes`, and for
// vector i below allowed[i] where that is given.
void nearest_codes(const float* values, size_t count, size_t parts, size_t width, const float* planes, size_t stride,
                   size_t codes, const int64_t* allowed, int64_t* out) {
  for (size_t i = 0; i < count; i++, values += parts * width, out += parts) {
    const size_t most = allowed && (uint64_t)allowed[i] < codes ? (size_t)allowed[i] : codes;
    for (size_t part = 0; part < parts; part++)
      out[part] = nearest(values + part * width, width, planes + part * stride, parts * stride, most);
  }
}

}  // extern "C"
