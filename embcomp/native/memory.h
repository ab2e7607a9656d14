// Memory that cannot be had: compiled functions return how much was missing, instead of ending the process.
#pragma once
#include <cstddef>
#include <exception>
#include <new>
#include <vector>

namespace embcomp {

struct NoMemory : std::bad_alloc {
  explicit NoMemory(size_t asked) : bytes(asked) {}
  size_t bytes;
};

// An allocator that says how much was asked for.
template <class T>
struct Asking {
  using value_type = T;
  Asking() = default;
  template <class Other>
  Asking(const Asking<Other>&) {}

  T* allocate(size_t count) {
    void* memory = ::operator new(count * sizeof(T), std::nothrow);
    if (!memory) throw NoMemory(count * sizeof(T));
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { ::operator delete(memory); }

  bool operator==(const Asking&) const { return true; }
  bool operator!=(const Asking&) const { return false; }
};

template <class T>
using Vector = std::vector<T, Asking<T>>;

// Does the work of an exported function. Returns 0, or the bytes that could not be had; 1 where their number is unknown.
template <class Work>
size_t missing_memory(const Work& work) {
  try {
    work();
    return 0;
  } catch (const NoMemory& error) {
    return error.bytes;
  } catch (const std::exception&) {  // nothing else is thrown than by containers that cannot grow
    return 1;
  }
}

}  // namespace embcomp
