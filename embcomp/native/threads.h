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

// Calls work(i, k) for each of `count` things k, in part i of some, the things of a part one after another.
template <class Work>
void each_in_threads(size_t parts, size_t count, const Work& work) {
  in_threads(parts, [&](size_t i) {
    for (size_t k = first_of(i, parts, count); k < first_of(i + 1, parts, count); k++) work(i, k);
  });
}

}  // namespace embcomp
