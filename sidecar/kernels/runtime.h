// SPDX-License-Identifier: Apache-2.0
// Threads and memory as the kernels see them. Nothing here knows ONNX Runtime or SIMD.
#ifndef VISION_SIDECAR_KERNELS_RUNTIME_H_
#define VISION_SIDECAR_KERNELS_RUNTIME_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace vision_kernels {

// Calls task(0) … task(count - 1), on several threads if it can, and returns when all are done.
using Executor = std::function<void(size_t count, const std::function<void(size_t)>& task)>;

// The threads that a call may use. They belong to the caller.
struct ThreadPool {
  size_t threads;
  const Executor& execute;
  const std::function<bool()>& cancelled;  // asked before each task, from any thread

  // Calls task(index, thread) for each index below `tasks`; `thread` is below `threads`, and no two
  // tasks with the same one run at the same time. Each thread takes the next task until none is
  // left, so a slow core delays nobody. Once cancelled, no further task starts.
  template <class Task>
  void ParallelFor(size_t tasks, const Task& task) const {
    std::atomic<size_t> next{0};
    execute(std::min(threads, tasks), [&](size_t thread) {
      for (size_t i = next++; i < tasks && !cancelled(); i = next++) task(i, thread);
    });
  }
};

constexpr size_t kCacheLine = 64;

// Memory that will be needed soon, fetched into the L2 cache a few cache lines at a time.
struct Ahead {
  // The next `lines` of them, or null if no so many are left.
  const int8_t* Next(size_t lines) {
    const size_t bytes = lines * kCacheLine;
    if (static_cast<size_t>(end - begin) < bytes) return nullptr;
    const int8_t* const next = begin;
    begin += bytes;
    return next;
  }
  void Fetch(size_t lines) {
    const int8_t* const next = Next(lines);
    if (next == nullptr) return;
    for (size_t line = 0; line < lines; ++line) {
      __builtin_prefetch(next + line * kCacheLine, 0, 2);
    }
  }
  const int8_t* begin;
  const int8_t* end;
};

// Allocates arrays one after the other, aligned to cache lines, from one piece of memory. With
// null, it only adds up their sizes.
class Arena {
 public:
  explicit Arena(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}

  template <class T>
  T* Allocate(size_t count) {
    next_ = (next_ + kCacheLine - 1) / kCacheLine * kCacheLine;
    T* const array = reinterpret_cast<T*>(next_);
    next_ += count * sizeof(T);
    return array;
  }

  // The bytes from null to the end of the last array, rounded up to a cache line.
  size_t used() const { return (next_ + kCacheLine - 1) / kCacheLine * kCacheLine; }

 private:
  uintptr_t next_;
};

}  // namespace vision_kernels

#endif  // VISION_SIDECAR_KERNELS_RUNTIME_H_
