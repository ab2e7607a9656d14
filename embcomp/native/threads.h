// Work that is shared among threads, which end with it: nothing of them is left for a process that forks.
#pragma once
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace embcomp {

// Calls work(0), ..., work(parts - 1), each in a thread of its own.
template <class Work>
void in_threads(size_t parts, const Work& work) {
  std::vector<std::thread> others;
  for (size_t i = 1; i < parts; i++) {
    try {
      others.emplace_back(work, i);
    } catch (const std::system_error&) {  // no more threads are allowed
      work(i);
    }
  }
  work(0);
  for (std::thread& other : others) other.join();
}

// The first of `count` things that part i of `parts` works on; part i ends where the next begins.
inline size_t first_of(size_t i, size_t parts, size_t count) { return i * count / parts; }

}  // namespace embcomp
