// Memory kept between calls, in huge pages where the system gives them: fresh pages, and page walks while sorting, cost
// more than the arithmetic.
#pragma once
#include <cstdlib>

#include "memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace embcomp {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* at_least(size_t count) {
    if (count > capacity_) {
      std::free(data_);
      capacity_ = 0;  // should there be no memory
      const size_t bytes = (count * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
      data_ = static_cast<T*>(std::aligned_alloc(kHugePage, bytes));
      if (!data_) throw NoMemory(bytes);
#ifdef MADV_HUGEPAGE
      madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      capacity_ = bytes / sizeof(T);
    }
    return data_;
  }

 private:
  static constexpr size_t kHugePage = (size_t)1 << 21;
  T* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace embcomp
