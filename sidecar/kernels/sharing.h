// What all operators here share: how work is dealt out to threads, and memory to arrays.
//
// Threads and memory themselves come from the caller; nothing here knows ONNX Runtime or SIMD.
#ifndef VISION_SIDECAR_KERNELS_SHARING_H_
#define VISION_SIDECAR_KERNELS_SHARING_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace vision_kernels {

// Calls task(0) … task(count - 1), several at a time if it can, and returns when all have.
using Parallel = std::function<void(size_t count, const std::function<void(size_t)>& task)>;

// Whether the result is still wanted; asked before each task, from any thread.
using Wanted = std::function<bool()>;

// The threads that a call may use, and whether its result is still wanted.
struct Crew {
  size_t workers;  // at a time
  const Parallel& parallel;
  const Wanted& wanted;

  // Calls task(number, worker) for each number below `tasks`. Each worker takes the next one until
  // none is left, so that a slow core holds nobody up.
  template <class Task>
  void Share(size_t tasks, const Task& task) const {
    std::atomic<size_t> next{0};
    parallel(std::min(workers, tasks), [&](size_t worker) {
      for (size_t i = next++; i < tasks && wanted(); i = next++) task(i, worker);
    });
  }
};

constexpr size_t kCacheLine = 64;

// Deals out consecutive, aligned parts of one piece of memory; from null, just adds them up.
class Carver {
 public:
  explicit Carver(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}

  template <class T>
  T* Take(size_t count) {
    next_ = (next_ + kCacheLine - 1) / kCacheLine * kCacheLine;
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += count * sizeof(T);
    return taken;
  }

 private:
  uintptr_t next_;
};

}  // namespace vision_kernels

#endif  // VISION_SIDECAR_KERNELS_SHARING_H_
