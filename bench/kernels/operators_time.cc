// SPDX-License-Identifier: Apache-2.0
// Times every variant of attention and of the linear layers that this machine has, interleaved.
//
//   operators_time [tokens [rounds]]
//
// One thread, and its own time: what other programs take from this machine is not counted. The
// sizes are those of MedGemma's vision tower.

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
#include "linear.h"

namespace {

using namespace vision_kernels;

constexpr size_t kHeads = 16, kWidth = 72, kHidden = kHeads * kWidth, kWide = 4304;

std::map<std::string, std::vector<double>> times;  // seconds, by what was done
std::map<std::string, double> operations;          // a product counts two

template <class Task>
void Time(const std::string& name, double products, const Task& task) {
  const clock_t begin = clock();
  task();
  times[name].push_back(static_cast<double>(clock() - begin) / CLOCKS_PER_SEC);
  operations[name] = 2 * products;
}

void Serial(size_t count, const std::function<void(size_t)>& task) {
  for (size_t i = 0; i < count; ++i) task(i);
}

bool Never() { return false; }

void TimeAttention(size_t tokens, const std::vector<float>& numbers, std::vector<float>& result) {
  const AttentionShape shape{1, tokens, kHeads, kWidth, 0.118f};
  const float* const from = numbers.data();
  const size_t size = tokens * kHidden;  // three tensors, as in the model
  for (const AttentionVariant& variant : AttentionVariants()) {
    std::vector<char> scratch(variant.scratch_bytes(shape, 1));
    const AttentionTensors tensors{from, from + size, from + 2 * size, result.data()};
    const double products = 2.0 * static_cast<double>(tokens * tokens) * kHidden;
    Time("attention, " + std::string(variant.name), products,
         [&] { variant.run(shape, tensors, scratch.data(), {1, Serial, Never}); });
  }
}

void TimeLinear(size_t tokens, const std::vector<float>& numbers, std::vector<float>& result) {
  const struct {
    const char* name;
    size_t inputs, outputs;
    Activation activation;
  } layers[] = {{"q, k, v or out", kHidden, kHidden, Activation::kNone},
                {"fc1 with GELU", kHidden, kWide, Activation::kFastGelu},
                {"fc2", kWide, kHidden, Activation::kNone}};
  std::vector<int8_t> weights(kHidden * kWide);
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = static_cast<int8_t>(i * 7919 % 255 - 127);
  const std::vector<float> steps(kWide, 0.001f);
  const LinearWeights layer_weights{weights.data(), steps.data(), steps.data()};
  std::vector<uint8_t> quantized(tokens * kWide);
  std::vector<TokenScale> scales(tokens);
  const ThreadPool pool{1, Serial, Never};
  for (const LinearVariant& variant : LinearVariants()) {
    const auto in_quantized = [&](size_t inputs) {
      variant.quantize(tokens, inputs, numbers.data(), nullptr, quantized.data(), scales.data(),
                       pool);
    };
    const auto products = [&](size_t weights_of_all) {
      return static_cast<double>(tokens) * static_cast<double>(weights_of_all);
    };
    for (const auto& layer : layers) {
      const std::string name = std::string(layer.name) + ", " + variant.name;
      const LinearShape shape{tokens, layer.inputs, layer.outputs};
      Time("bytes for " + name, 0, [&] { in_quantized(layer.inputs); });
      std::vector<char> scratch(variant.scratch_bytes(shape, 1));
      Time(name, products(layer.inputs * layer.outputs), [&] {
        variant.multiply(shape,
                         {quantized.data(), scales.data(), layer_weights, nullptr, result.data()},
                         layer.activation, scratch.data(), pool);
      });
    }
    const std::string of_variant = std::string(", ") + variant.name;
    Time("LayerNorm and bytes" + of_variant, 0, [&] {
      variant.normalize(tokens, kHidden, numbers.data(), {steps.data(), steps.data(), 1e-6f},
                        quantized.data(), scales.data(), pool);
    });
    in_quantized(kHidden);
    const MlpShape shape{tokens, kHidden, kWide, kHidden};
    std::vector<char> scratch(variant.mlp_scratch_bytes(shape, 1));
    Time("fc1, GELU, bytes and fc2" + of_variant, products(2 * kHidden * kWide), [&] {
      variant.multiply_mlp(shape,
                           {quantized.data(), scales.data(), layer_weights, nullptr, layer_weights,
                            nullptr, result.data()},
                           Activation::kFastGelu, scratch.data(), pool);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, size_t fallback) {
    return argc > i ? static_cast<size_t>(strtoul(argv[i], nullptr, 10)) : fallback;
  };
  const size_t tokens = argument(1, 4096), rounds = argument(2, 7);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(tokens * kWide), result(tokens * kWide);
  for (float& number : numbers) number = normal(random);

  for (size_t round = 0; round < rounds; ++round) {
    for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
      hwy::GetChosenTarget().Update(rest & -rest);
      TimeAttention(tokens, numbers, result);
      TimeLinear(tokens, numbers, result);
    }
  }
  printf(
      "%zu tokens, %zu rounds: median ms of CPU time (fastest to slowest), operations a second\n",
      tokens, rounds);
  for (auto& [name, seconds] : times) {
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2];
    printf("%-40s %8.1f (%.1f to %.1f) %6.2f T\n", name.c_str(), 1e3 * median,
           1e3 * seconds.front(), 1e3 * seconds.back(), operations[name] / median / 1e12);
  }
}
