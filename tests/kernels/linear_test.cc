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

// Memory for one call of exactly as many bytes as were asked for, so that AddressSanitizer sees one
// byte too many; its content is as bad as can be.
class Scratch {
 public:
  Scratch(size_t bytes, size_t misalignment)
      : memory_(new unsigned char[bytes + misalignment]), begin_(memory_.get() + misalignment) {
    memset(memory_.get(), 0xFF, bytes + misalignment);
  }
  void* begin() const { return begin_; }

 private:
  const std::unique_ptr<unsigned char[]> memory_;
  unsigned char* const begin_;
};

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
  const Scratch scratch(variant.scratch_bytes(shape, threads), misalignment);
  const LinearWeights weights{in.weights.data(), in.weight_scales.data(),
                              bare ? nullptr : in.bias.data()};
  variant.multiply(shape, {quantized.data(), scales.data(), weights, nullptr, result.data()},
                   activation, scratch.begin(), pool);
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

std::vector<int8_t> Bytes(size_t count, Random& random) {
  std::uniform_int_distribution<int> byte(-127, 127);
  std::vector<int8_t> bytes(count);
  for (int8_t& each : bytes) each = static_cast<int8_t>(byte(random));
  return bytes;
}

// One layer's weights, from which LinearWeights can be made.
struct LayerInputs {
  LayerInputs(size_t inputs, size_t outputs, Random& random)
      : weights(Bytes(inputs * outputs, random)),
        scales(outputs, 0.01f),
        bias(Gaussian(outputs, 1, random)) {}
  LinearWeights All() const { return {weights.data(), scales.data(), bias.data()}; }
  std::vector<int8_t> weights;
  std::vector<float> scales, bias;
};

// Few tokens, so that the layers follow each other; and many, so that blocks of tokens do.
const MlpShape kMlpShapes[] = {
    {1, 4, 5, 3}, {13, 130, 66, 7}, {800, 33, 70, 21}, {770, 7, 300, 66}};

// Mlp gives the very numbers of its three steps; a residual is added as a float.
int CheckMlp(const LinearVariant& variant) {
  int failures = 0;
  for (const MlpShape& shape : kMlpShapes) {
    Random random(static_cast<unsigned>(shape.tokens));
    const std::vector<float> numbers = Gaussian(shape.tokens * shape.inputs, 1, random);
    const LayerInputs first(shape.inputs, shape.hidden, random);
    const LayerInputs second(shape.hidden, shape.outputs, random);
    const std::vector<float> factors = Gaussian(shape.hidden, 1, random);
    const std::vector<float> residual = Gaussian(shape.tokens * shape.outputs, 1, random);
    const std::vector<float> nothing(residual.size(), std::numeric_limits<float>::quiet_NaN());
    const auto quantized_by = [&](const ThreadPool& pool, size_t inputs, const float* from,
                                  const float* by, std::vector<TokenScale>& scales) {
      std::vector<uint8_t> bytes(shape.tokens * TokenBytes(inputs));
      variant.quantize(shape.tokens, inputs, from, by, bytes.data(), scales.data(), pool);
      return bytes;
    };
    for (const bool bare : {false, true}) {
      const float* const by = bare ? nullptr : factors.data();
      const ThreadPool pool{3, Backwards, Never};
      std::vector<TokenScale> scales(shape.tokens), hidden_scales(shape.tokens);
      const std::vector<uint8_t> bytes =
          quantized_by(pool, shape.inputs, numbers.data(), nullptr, scales);
      const auto multiply = [&](size_t inputs, size_t outputs, const std::vector<uint8_t>& from,
                                const std::vector<TokenScale>& token_scales,
                                const LayerInputs& layer, Activation activation,
                                const float* added) {
        const LinearShape sizes{shape.tokens, inputs, outputs};
        std::vector<float> result(shape.tokens * outputs);
        const Scratch scratch(variant.scratch_bytes(sizes, pool.threads), 1);
        variant.multiply(sizes,
                         {from.data(), token_scales.data(), layer.All(), added, result.data()},
                         activation, scratch.begin(), pool);
        return result;
      };
      const std::vector<float> hidden =
          multiply(shape.inputs, shape.hidden, bytes, scales, first, Activation::kGelu, nullptr);
      const std::vector<uint8_t> hidden_bytes =
          quantized_by(pool, shape.hidden, hidden.data(), by, hidden_scales);
      std::vector<float> expected = multiply(shape.hidden, shape.outputs, hidden_bytes,
                                             hidden_scales, second, Activation::kNone, nullptr);
      if (!bare) {
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += residual[i];
        if (multiply(shape.hidden, shape.outputs, hidden_bytes, hidden_scales, second,
                     Activation::kNone, residual.data()) != expected) {
          printf("%s: a residual is not added as it is\n", variant.name);
          ++failures;
        }
      }
      for (const size_t threads : {1, 3}) {
        std::vector<float> result = nothing;
        const Scratch scratch(variant.mlp_scratch_bytes(shape, threads), threads);
        variant.multiply_mlp(shape,
                             {bytes.data(), scales.data(), first.All(), by, second.All(),
                              bare ? nullptr : residual.data(), result.data()},
                             Activation::kGelu, scratch.begin(), {threads, Backwards, Never});
        if (result != expected) {
          printf("%s: Mlp [%zu, %zu -> %zu -> %zu] on %zu threads differs from its steps\n",
                 variant.name, shape.tokens, shape.inputs, shape.hidden, shape.outputs, threads);
          ++failures;
        }
      }
    }
  }
  return failures;
}

// Numbers after LayerNorm, multiplied by the unit matrix: within half a step of each token.
int CheckNormalize(const LinearVariant& variant) {
  int failures = 0;
  const struct {
    float size, offset;
  } kinds[] = {{1, 0}, {1e-3f, 100}, {1e10f, 0}, {0, 3}, {0, 0}};
  for (const size_t inputs : {1, 5, 16, 67, 130}) {
    for (const auto& kind : kinds) {
      const LinearShape shape{70, inputs, inputs};
      Random random(static_cast<unsigned>(inputs));
      std::vector<float> numbers = Gaussian(shape.tokens * inputs, kind.size, random);
      for (float& number : numbers) number += kind.offset;
      const std::vector<float> weight = Gaussian(inputs, 1, random);
      const std::vector<float> bias = Gaussian(inputs, 1, random);
      const LayerNorm norm{weight.data(), bias.data(), 1e-6f};
      const ThreadPool pool{2, Backwards, Never};
      std::vector<uint8_t> bytes(shape.tokens * TokenBytes(inputs), 0xAA);
      std::vector<TokenScale> scales(shape.tokens);
      variant.normalize(shape.tokens, inputs, numbers.data(), norm, bytes.data(), scales.data(),
                        pool);
      std::vector<int8_t> unit(inputs * inputs);
      for (size_t i = 0; i < inputs; ++i) unit[i * inputs + i] = 1;
      const std::vector<float> ones(inputs, 1);
      std::vector<float> result(shape.tokens * inputs);
      const Scratch scratch(variant.scratch_bytes(shape, pool.threads), 0);
      variant.multiply(shape,
                       {bytes.data(),
                        scales.data(),
                        {unit.data(), ones.data(), nullptr},
                        nullptr,
                        result.data()},
                       Activation::kNone, scratch.begin(), pool);
      for (size_t token = 0; token < shape.tokens; ++token) {
        const float* const row = numbers.data() + token * inputs;
        double mean = 0, variance = 0, low = 0, high = 0;
        for (size_t i = 0; i < inputs; ++i) mean += row[i] / static_cast<double>(inputs);
        for (size_t i = 0; i < inputs; ++i) {
          variance += (row[i] - mean) * (row[i] - mean) / static_cast<double>(inputs);
        }
        std::vector<double> expected(inputs);
        for (size_t i = 0; i < inputs; ++i) {
          expected[i] = (row[i] - mean) / std::sqrt(variance + norm.epsilon) * weight[i] + bias[i];
          low = std::min(low, expected[i]);
          high = std::max(high, expected[i]);
        }
        // Numbers far from zero have few bits left for how they differ.
        const double rounding = 1e-5 + 4e-7 * std::abs(mean) / std::sqrt(variance + norm.epsilon);
        for (size_t i = 0; i < inputs; ++i) {
          const double allowed = 0.505 * (high - low) / 255 + 4 * rounding;
          if (!(std::abs(result[token * inputs + i] - expected[i]) <= allowed)) {
            printf("%s: LayerNorm of %zu numbers of %g + %g: %g where %g was expected\n",
                   variant.name, inputs, static_cast<double>(kind.size),
                   static_cast<double>(kind.offset),
                   static_cast<double>(result[token * inputs + i]), expected[i]);
            ++failures;
          }
        }
      }
    }
  }
  return failures;
}

int CheckAll(const LinearVariant& variant) {
  return Check(variant) + CheckMlp(variant) + CheckNormalize(variant);
}

}  // namespace

int main(int argc, char** argv) { return CheckVariants(argc, argv, LinearVariants, CheckAll); }
