// SPDX-License-Identifier: Apache-2.0
// The int8 operations a second that this CPU can reach at most: the kernels' own dot product on
// registers alone, on several threads.
//
//   peak [threads]
//
// Prints the instruction set and the best of five measurements; nothing where the kernels do not
// serve this CPU.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "peak.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set, up to HWY_ONCE
#include "hwy/highway.h"
#include "microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

const char* DotName() {
#if VK_SERVED
  if (HasDot()) return NameOf<Dot>();
#endif
  return "";
}

// Returns the number of operations, of which a product is two.
uint64_t RunDots(uint64_t rounds) {
#if VK_SERVED
  constexpr size_t kSums = 12;  // enough for each to be ready when its turn comes again
  const Int lhs = hn::Set(Ints(), 0x01020304), rhs = hn::Set(Ints(), 0x04030201);
  Int sums[kSums];
  for (Int& sum : sums) sum = hn::Zero(Ints());
  for (uint64_t round = 0; round < rounds; ++round) {
    VK_UNROLL
    for (size_t i = 0; i < kSums; ++i) sums[i] = Dot::DotAdd(sums[i], lhs, rhs);
  }
  volatile int32_t used = 0;
  for (const Int& sum : sums) used = hn::GetLane(sum);
  static_cast<void>(used);
  return rounds * kSums * kLanes * kGroup * 2;
#else
  return rounds * 0;
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vision_kernels {
HWY_EXPORT(DotName);
HWY_EXPORT(RunDots);

const char* Name() { return HWY_DYNAMIC_DISPATCH(DotName)(); }
uint64_t Run(uint64_t rounds) { return HWY_DYNAMIC_DISPATCH(RunDots)(rounds); }

}  // namespace vision_kernels

int main(int argc, char** argv) {
  const size_t threads = argc > 1 ? strtoul(argv[1], nullptr, 10) : 1;
  if (*vision_kernels::Name() == 0) return 0;
  double best = 0;
  for (int measurement = 0; measurement < 5; ++measurement) {
    std::vector<uint64_t> operations(threads);
    std::vector<std::thread> running;
    running.reserve(threads);
    const auto begin = std::chrono::steady_clock::now();
    for (uint64_t& count : operations) {
      running.emplace_back([&count] { count = vision_kernels::Run(30'000'000); });
    }
    for (std::thread& thread : running) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    uint64_t total = 0;
    for (const uint64_t count : operations) total += count;
    best = std::max(best, static_cast<double>(total) / seconds.count());
  }
  printf("%s: %.4g operations a second on %zu threads\n", vision_kernels::Name(), best, threads);
}
#endif
