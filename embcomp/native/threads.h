// Work that is shared among threads, which end with it: nothing of them is left for a process that forks.
#pragma once
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace embcomp {

// Calls work(0), ..., work(parts - 1), each in a thread of its own. What one of them throws is thrown when all have ended.
template <class Work>
void in_threads(size_t parts, const Work& work) {
  std::vector<std::exception_ptr> thrown(parts);
  const auto part = [&](size_t i) {
    try {
      work(i);
    } catch (...) {
      thrown[i] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(parts);
  for (size_t i = 1; i < parts; i++) {
    try {
      others.emplace_back(part, i);
    } catch (const std::exception&) {  // no more threads are allowed, or there is no memory for one
      part(i);
    }
  }
  part(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& each : thrown)
    if (each) std::rethrow_exception(each);
}

// The first of `count` things that part i of `parts` works on; part i ends where the next begins.
inline size_t first_of(size_t i, size_t parts, size_t count) { return i * count / parts; }

}  // namespace embcomp
