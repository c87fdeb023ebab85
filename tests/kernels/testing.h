// SPDX-License-Identifier: Apache-2.0
// What the tests of the operators share: random numbers, threads out of order, and a check of each
// variant that this machine has.
#ifndef VISION_SIDECAR_TESTS_KERNELS_TESTING_H_
#define VISION_SIDECAR_TESTS_KERNELS_TESTING_H_

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "hwy/targets.h"

using Random = std::mt19937;

inline std::vector<float> Gaussian(size_t count, float deviation, Random& random) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random);
  return numbers;
}

// Tasks out of order, so that none can rely on an earlier one's.
inline void Backwards(size_t count, const std::function<void(size_t)>& task) {
  for (size_t i = count; i-- > 0;) task(i);
}

inline bool Never() { return false; }

// Calls check(variant), which returns the number of failures, for each; what `main` returns. With
// an argument, only instruction sets of that name are checked, and having none of it is a failure.
template <class Variant>
int CheckVariants(int argc, char** argv, std::vector<Variant> (*variants)(),
                  int (*check)(const Variant&)) {
  const char* const wanted = argc > 1 ? argv[1] : nullptr;
  int failures = 0;
  std::set<std::string> checked;
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    if (wanted != nullptr && strcmp(wanted, hwy::TargetName(target)) != 0) continue;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    for (const Variant& variant : variants()) {
      // Sets that are not compiled for fall back to one that is.
      if (checked.insert(variant.name).second) failures += check(variant);
    }
  }
  if (wanted != nullptr && checked.empty()) {
    printf("no variant for %s on this machine\n", wanted);
    return 1;
  }
  return failures != 0 ? 1 : 0;
}

#endif  // VISION_SIDECAR_TESTS_KERNELS_TESTING_H_
