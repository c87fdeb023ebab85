// Times every variant of attention that this machine has, in ms of one CPU, interleaved.
//
//   attention_time [tokens [heads [width [rounds]]]]
//
// One thread, and its own time: what other programs take from this machine is not counted.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "attention.h"
#include "hwy/targets.h"

int main(int argc, char** argv) {
  const auto argument = [&](int i, size_t fallback) {
    return argc > i ? static_cast<size_t>(atol(argv[i])) : fallback;
  };
  const size_t tokens = argument(1, 4096), heads = argument(2, 16), width = argument(3, 72);
  const size_t rounds = argument(4, 7);
  const vision_kernels::AttentionShape shape{1, tokens, heads, width, 0.118f};

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> inputs[3], result(tokens * heads * width);
  for (auto& input : inputs) {
    input.resize(result.size());
    for (float& number : input) number = normal(random);
  }
  const auto serial = [](size_t count, const std::function<void(size_t)>& task) {
    for (size_t i = 0; i < count; ++i) task(i);
  };

  std::map<std::string, std::vector<double>> times;
  for (size_t round = 0; round < rounds; ++round) {
    for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
      hwy::GetChosenTarget().Update(rest & -rest);
      for (const auto& variant : vision_kernels::AttentionVariants()) {
        std::vector<char> workspace(variant.workspace(shape, 1));
        const clock_t begin = clock();
        variant.run(shape, {inputs[0].data(), inputs[1].data(), inputs[2].data(), result.data()},
                    workspace.data(), 1, serial, [] { return true; });
        times[variant.name].push_back(1e3 * static_cast<double>(clock() - begin) / CLOCKS_PER_SEC);
      }
    }
  }
  printf("[1, %zu, %zu x %zu], %zu rounds: median ms of CPU time (fastest to slowest)\n", tokens, heads,
         width, rounds);
  for (auto& [name, ms] : times) {
    std::sort(ms.begin(), ms.end());
    printf("%-36s %8.1f (%.1f to %.1f)\n", name.c_str(), ms[ms.size() / 2], ms.front(), ms.back());
  }
}
