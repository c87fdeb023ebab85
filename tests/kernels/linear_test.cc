// SPDX-License-Identifier: Apache-2.0
// Linear layers against a float64 reference, with every instruction set of this machine.
//
// Prints a line per variant and a sentence per failure.

#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "testing.h"

namespace {

using namespace vision_kernels;

struct Inputs {
  std::vector<float> numbers;  // [tokens, inputs]
  std::vector<float> factors;  // [inputs]
  std::vector<int8_t> weights;
  std::vector<float> weight_scales;
  std::vector<float> bias;
};

double Activate(Activation activation, double x) {
  if (activation == Activation::kGelu) return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
  if (activation == Activation::kFastGelu) {
    const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
    return x * (1 + std::tanh(u)) / 2;
  }
  return x;
}

// As exact as can be; and by how much 8 bits may be off, half a step of each token's numbers times
// the sizes of the weights that they meet.
struct Expected {
  std::vector<double> result, tolerance;
};

Expected Reference(const LinearShape& shape, const Inputs& in, Activation activation, bool bare) {
  Expected expected;
  for (size_t token = 0; token < shape.tokens; ++token) {
    std::vector<double> row(shape.inputs);
    double low = 0, high = 0;
    for (size_t i = 0; i < shape.inputs; ++i) {
      row[i] = in.numbers[token * shape.inputs + i] * (bare ? 1.0 : in.factors[i]);
      low = std::min(low, row[i]);
      high = std::max(high, row[i]);
    }
    for (size_t output = 0; output < shape.outputs; ++output) {
      double sum = 0, sizes = 0, magnitude = 0;
      for (size_t i = 0; i < shape.inputs; ++i) {
        const double weight = in.weights[i * shape.outputs + output];
        sum += row[i] * weight;
        sizes += std::abs(weight);
        magnitude += std::max(high, -low) * std::abs(weight);
      }
      const double step = in.weight_scales[output];
      const double bias = bare ? 0.0 : in.bias[output];
      expected.result.push_back(Activate(activation, sum * step + bias));
      const double rounding = 1e-5 * (magnitude * step + std::abs(bias));
      // No activation here is steeper than 1.13.
      expected.tolerance.push_back(1.2 * (0.505 * (high - low) / 255 * sizes * step + rounding) +
                                   1e-30);
    }
  }
  return expected;
}

// `bare` leaves out factors and bias.
std::vector<float> Compute(const LinearVariant& variant, const LinearShape& shape, const Inputs& in,
                           Activation activation, bool bare, size_t threads, size_t misalignment) {
  const ThreadPool pool{threads, Backwards, Never};
  // Exactly as large as need be, so that AddressSanitizer sees one byte too many.
  std::vector<uint8_t> quantized(shape.tokens * TokenBytes(shape.inputs), 0xAA);
  std::vector<TokenScale> scales(shape.tokens);
  variant.quantize(shape.tokens, shape.inputs, in.numbers.data(),
                   bare ? nullptr : in.factors.data(), quantized.data(), scales.data(), pool);
  std::vector<float> result(shape.tokens * shape.outputs, std::numeric_limits<float>::quiet_NaN());
  const size_t bytes = variant.scratch_bytes(shape, threads) + misalignment;
  const std::unique_ptr<unsigned char[]> scratch(new unsigned char[bytes]);
  memset(scratch.get(), 0xFF, bytes);
  variant.multiply(shape,
                   {quantized.data(), scales.data(), in.weights.data(), in.weight_scales.data(),
                    bare ? nullptr : in.bias.data(), result.data()},
                   activation, scratch.get() + misalignment, pool);
  return result;
}

struct Case {
  const char* name;
  void (*change)(const LinearShape& shape, Inputs& in, Random& random);
};

const Case kCases[] = {
    {"gaussian numbers", [](const LinearShape&, Inputs&, Random&) {}},
    {"huge numbers",
     [](const LinearShape&, Inputs& in, Random&) {
       for (float& number : in.numbers) number *= 1e30f;
     }},
    {"tiny numbers",
     [](const LinearShape&, Inputs& in, Random&) {
       for (float& number : in.numbers) number *= 1e-30f;
     }},
    {"denormal numbers",
     [](const LinearShape&, Inputs& in, Random&) {
       for (float& number : in.numbers) number *= 1e-40f;
     }},
    {"all zeros", [](const LinearShape&, Inputs& in,
                     Random&) { std::fill(in.numbers.begin(), in.numbers.end(), 0.0f); }},
    {"constant tokens",
     [](const LinearShape& shape, Inputs& in, Random&) {
       for (size_t i = 0; i < in.numbers.size(); ++i) {
         const size_t token = i / shape.inputs;
         in.numbers[i] = static_cast<float>(token) - 2.5f;
       }
     }},
    {"numbers above zero only",
     [](const LinearShape&, Inputs& in, Random&) {
       for (float& number : in.numbers) number = std::abs(number) + 1.0f;
     }},
    {"one number stands out",
     [](const LinearShape&, Inputs& in, Random&) { in.numbers[in.numbers.size() / 2] = -1e6f; }},
    {"the largest weights everywhere",
     [](const LinearShape&, Inputs& in, Random&) {
       for (float& number : in.numbers) number = std::abs(number);
       std::fill(in.weights.begin(), in.weights.end(), int8_t{-128});
     }},
    {"some tokens a thousand times the others",
     [](const LinearShape& shape, Inputs& in, Random&) {
       for (size_t i = 0; i < in.numbers.size(); ++i) {
         if (i / shape.inputs % 3 == 0) in.numbers[i] *= 1000.0f;
       }
     }},
};

// Tokens and outputs: tiles of 6 rows and panels of 64 columns met exactly, and missed by one on
// both sides. The last two have several panels a task, and one of them several blocks of tokens
// too.
const LinearShape kShapes[] = {
    {1, 1, 1},    {1, 4, 16},     {2, 3, 5},     {5, 7, 17},    {6, 64, 64},
    {7, 65, 63},  {12, 72, 65},   {13, 130, 66}, {257, 96, 96}, {600, 33, 80},
    {300, 96, 6}, {24, 4304, 40}, {6, 5000, 3},  {9, 5, 1100},  {520, 5, 530},
};

const struct {
  const char* name;
  Activation activation;
} kActivations[] = {{"no activation", Activation::kNone},
                    {"Gelu", Activation::kGelu},
                    {"FastGelu", Activation::kFastGelu}};

int Check(const LinearVariant& variant) {
  int failures = 0;
  double worst = 0;
  for (const LinearShape& shape : kShapes) {
    for (const Case& test : kCases) {
      Random random(static_cast<unsigned>(shape.tokens * 1000 + shape.inputs));
      std::uniform_int_distribution<int> byte(-127, 127);
      Inputs in{Gaussian(shape.tokens * shape.inputs, 1, random), Gaussian(shape.inputs, 1, random),
                std::vector<int8_t>(shape.inputs * shape.outputs),
                Gaussian(shape.outputs, 0.01f, random), Gaussian(shape.outputs, 1, random)};
      for (int8_t& weight : in.weights) weight = static_cast<int8_t>(byte(random));
      for (float& step : in.weight_scales) step = std::abs(step);
      test.change(shape, in, random);
      for (const auto& [title, activation] : kActivations) {
        for (const bool bare : {false, true}) {
          const Expected expected = Reference(shape, in, activation, bare);
          const std::vector<float> result = Compute(variant, shape, in, activation, bare, 3, 0);
          double share = 0;
          for (size_t i = 0; i < result.size(); ++i) {
            const double off = std::abs(result[i] - expected.result[i]) / expected.tolerance[i];
            share = off <= share ? share : off;  // and a NaN stays
          }
          if (!(share <= 1)) {
            printf("%s: %s, %s, %s [%zu, %zu -> %zu]: off by %.2f of what 8 bits allow\n",
                   variant.name, test.name, title, bare ? "bare" : "with factors and bias",
                   shape.tokens, shape.inputs, shape.outputs, share);
            ++failures;
          }
          worst = std::max(worst, share);
          if (Compute(variant, shape, in, activation, bare, 1, 1) != result) {
            printf("%s: %s: another alignment or number of threads changes the result\n",
                   variant.name, test.name);
            ++failures;
          }
        }
      }
    }
    // Nothing is promised for these but to come back.
    Random random(1);
    Inputs in{Gaussian(shape.tokens * shape.inputs, 1, random), Gaussian(shape.inputs, 1, random),
              std::vector<int8_t>(shape.inputs * shape.outputs), Gaussian(shape.outputs, 1, random),
              Gaussian(shape.outputs, 1, random)};
    in.numbers[0] = std::numeric_limits<float>::quiet_NaN();
    in.numbers[in.numbers.size() - 1] = -std::numeric_limits<float>::infinity();
    Compute(variant, shape, in, Activation::kGelu, false, 2, 0);
  }
  printf("%-36s off by %.4f of what 8 bits allow at most\n", variant.name, worst);
  return failures;
}

}  // namespace

int main(int argc, char** argv) { return CheckVariants(argc, argv, LinearVariants, Check); }
