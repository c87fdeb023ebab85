// SPDX-License-Identifier: Apache-2.0
// Attention against a float64 reference, with every instruction set and format of this machine.
//
// Prints a line per variant and a sentence per failure.

#include "attention.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "testing.h"

namespace {

using vision_kernels::AttentionShape;
using vision_kernels::AttentionVariant;

struct Inputs {
  std::vector<float> queries, keys, values;
};

size_t Count(const AttentionShape& shape) {
  return shape.batch * shape.tokens * shape.heads * shape.width;
}

std::vector<double> Reference(const AttentionShape& shape, const Inputs& in) {
  const size_t row = shape.heads * shape.width;
  std::vector<double> result(Count(shape));
  std::vector<double> scores(shape.tokens);
  for (size_t head = 0; head < shape.batch * shape.heads; ++head) {
    const size_t base = head / shape.heads * shape.tokens * row + head % shape.heads * shape.width;
    for (size_t q = 0; q < shape.tokens; ++q) {
      for (size_t k = 0; k < shape.tokens; ++k) {
        double sum = 0;
        for (size_t i = 0; i < shape.width; ++i) {
          sum += static_cast<double>(in.queries[base + q * row + i]) * in.keys[base + k * row + i];
        }
        scores[k] = sum * shape.scale;
      }
      const double highest = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (double& score : scores) total += score = std::exp(score - highest);
      for (size_t k = 0; k < shape.tokens; ++k) {
        for (size_t i = 0; i < shape.width; ++i) {
          result[base + q * row + i] += scores[k] / total * in.values[base + k * row + i];
        }
      }
    }
  }
  return result;
}

std::vector<float> Compute(const AttentionVariant& variant, const AttentionShape& shape,
                           const Inputs& in, size_t threads, size_t misalignment) {
  std::vector<float> result(Count(shape), std::numeric_limits<float>::quiet_NaN());
  const size_t bytes = variant.scratch_bytes(shape, threads);
  // Exactly as large as asked for, so that AddressSanitizer sees one byte too many.
  const std::unique_ptr<unsigned char[]> scratch(new unsigned char[bytes + misalignment]);
  memset(scratch.get(), 0xFF, bytes + misalignment);  // as floats: NaN
  variant.run(shape, {in.queries.data(), in.keys.data(), in.values.data(), result.data()},
              scratch.get() + misalignment, {threads, Backwards, Never});
  return result;
}

// What each channel of a head could be off by at most: the span of its values.
double WorstShare(const AttentionShape& shape, const Inputs& in, const std::vector<float>& result) {
  const std::vector<double> reference = Reference(shape, in);
  const size_t row = shape.heads * shape.width;
  double worst = 0;
  for (size_t image = 0; image < shape.batch; ++image) {
    for (size_t channel = 0; channel < row; ++channel) {
      const size_t base = image * shape.tokens * row + channel;
      double low = DBL_MAX, high = -DBL_MAX, error = 0;
      for (size_t token = 0; token < shape.tokens; ++token) {
        const size_t at = base + token * row;
        low = std::min<double>(low, in.values[at]);
        high = std::max<double>(high, in.values[at]);
        const double difference = std::abs(result[at] - reference[at]);
        error = difference <= error ? error : difference;  // and a NaN stays
      }
      // Constant channels: a relative error instead. Sums in float are exact to about six digits.
      const double span = std::max(high - low, 1e-2 * std::max(std::abs(high), std::abs(low)));
      const double share = error / std::max(span, 1e-30);
      worst = share <= worst ? worst : share;
    }
  }
  return worst;
}

struct Case {
  const char* name;
  double tolerance;  // of the span of the values
  Inputs (*make)(const AttentionShape& shape, Random& random);
};

Inputs Scaled(const AttentionShape& shape, float queries, float keys, float values,
              Random& random) {
  return {Gaussian(Count(shape), queries, random), Gaussian(Count(shape), keys, random),
          Gaussian(Count(shape), values, random)};
}

// Values alone matter where all keys weigh the same; int8 values are then off by 1/254 at most.
const Case kCases[] = {
    {"gaussian numbers", 0.02,
     [](const AttentionShape& shape, Random& random) { return Scaled(shape, 1, 1, 1, random); }},
    {"peaked softmax", 0.12,
     [](const AttentionShape& shape, Random& random) { return Scaled(shape, 3, 3, 1, random); }},
    {"tiny numbers", 0.006,
     [](const AttentionShape& shape, Random& random) {
       return Scaled(shape, 1e-15f, 1e-15f, 1e-15f, random);
     }},
    {"denormal queries, keys and values", 0.006,
     [](const AttentionShape& shape, Random& random) {
       return Scaled(shape, 1e-40f, 1e-40f, 1e-40f, random);
     }},
    {"huge keys and tiny queries", 0.02,
     [](const AttentionShape& shape, Random& random) {
       return Scaled(shape, 1e-15f, 1e15f, 1, random);
     }},
    {"huge values", 0.02,
     [](const AttentionShape& shape, Random& random) {
       return Scaled(shape, 1, 1, 1e30f, random);
     }},
    {"all zeros", 1e-6,
     [](const AttentionShape& shape, Random& random) { return Scaled(shape, 0, 0, 0, random); }},
    {"one key for all tokens", 0.006,
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 5, 5, 1, random);
       const size_t row = shape.heads * shape.width;
       for (size_t i = 0; i < in.keys.size(); ++i) {
         in.keys[i] = in.keys[i / (shape.tokens * row) * shape.tokens * row + i % row];
       }
       return in;
     }},
    {"keys far from zero", 0.02,
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 1, 1, 1, random);
       const size_t row = shape.heads * shape.width;
       for (size_t i = 0; i < in.keys.size(); ++i) in.keys[i] += i % row % 3 == 0 ? 300 : -100;
       return in;
     }},
    {"values far from zero", 0.02,
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 1, 1, 1, random);
       for (float& value : in.values) value += 40.0f;
       return in;
     }},
    {"constant values", 0.5,  // of a hundredth of the value
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 1, 1, 1, random);
       std::fill(in.values.begin(), in.values.end(), -7.25f);
       return in;
     }},
    {"one key dominates every query", 0.006,
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 0.1f, 0.1f, 1, random);
       const size_t row = shape.heads * shape.width;
       for (float& query : in.queries) query += 4.0f;
       for (size_t image = 0; image < shape.batch; ++image) {
         const size_t token = (image * 31 + 7) % shape.tokens;
         for (size_t i = 0; i < row; ++i) {
           in.keys[(image * shape.tokens + token) * row + i] += 100.0f;
         }
       }
       return in;
     }},
    {"many keys weigh little beside one, and together much", 0.02,
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 0, 0, 0.1f, random);
       std::fill(in.queries.begin(), in.queries.end(), 1.0f);
       const size_t row = shape.heads * shape.width;
       for (size_t i = 0; i < Count(shape); ++i) {
         const bool heavy = i / row % shape.tokens == 0;
         // A thousand times the others' weight.
         if (heavy)
           in.keys[i] = std::log(1000.0f) / (shape.scale * static_cast<float>(shape.width));
         in.values[i] += heavy ? -2.0f : 2.0f;
       }
       return in;
     }},
    {"one value stands out", 0.006,
     [](const AttentionShape& shape, Random& random) {
       Inputs in = Scaled(shape, 0.01f, 0.01f, 1, random);
       in.values[Count(shape) / 2] = 1e6f;
       return in;
     }},
};

// [batch, tokens, heads, width]: one of each, blocks of 64 keys and 120 queries met exactly, missed
// by one on both sides, and heads narrower than a register, as wide, and with a rest.
const AttentionShape kShapes[] = {
    {1, 1, 1, 1, 1.0f},      {1, 2, 1, 3, 0.7f},        {2, 5, 3, 8, 0.35f},
    {1, 63, 2, 17, 0.25f},   {1, 64, 1, 16, 0.25f},     {1, 65, 2, 64, 0.125f},
    {3, 7, 2, 72, 0.118f},   {1, 119, 1, 33, 0.174f},   {1, 120, 1, 80, 0.11f},
    {1, 121, 2, 72, 0.118f}, {2, 128, 1, 4, 0.5f},      {1, 257, 2, 72, 0.118f},
    {1, 300, 1, 130, 0.09f}, {1, 130, 1, 256, 0.0625f}, {1, 20, 1, 2048, 0.022f},
};

int Check(const AttentionVariant& variant) {
  int failures = 0;
  double worst_of_all = 0;
  for (const AttentionShape& shape : kShapes) {
    for (const Case& test : kCases) {
      Random random(static_cast<unsigned>(shape.tokens * 1000 + shape.width));
      const Inputs in = test.make(shape, random);
      const std::vector<float> result = Compute(variant, shape, in, 3, 0);
      const double worst = WorstShare(shape, in, result);
      if (!(worst <= test.tolerance)) {
        printf("%s: %s [%zu, %zu, %zu x %zu]: off by %.4f of the values' span, expected %.4f\n",
               variant.name, test.name, shape.batch, shape.tokens, shape.heads, shape.width, worst,
               test.tolerance);
        ++failures;
      }
      if (test.name == kCases[0].name) worst_of_all = std::max(worst_of_all, worst);
      if (Compute(variant, shape, in, 1, 1) != result) {
        printf("%s: %s: another alignment or number of threads changes the result\n", variant.name,
               test.name);
        ++failures;
      }
    }
    // Nothing is promised for these but to come back.
    Random random(1);
    Inputs in = Scaled(shape, 1, 1, 1, random);
    in.queries[Count(shape) / 2] = std::numeric_limits<float>::quiet_NaN();
    in.keys[0] = std::numeric_limits<float>::infinity();
    in.values[Count(shape) - 1] = -std::numeric_limits<float>::infinity();
    Compute(variant, shape, in, 2, 0);
  }
  printf("%-36s gaussian numbers off by %.4f of the values' span at most\n", variant.name,
         worst_of_all);
  return failures;
}

}  // namespace

int main(int argc, char** argv) {
  return CheckVariants(argc, argv, vision_kernels::AttentionVariants, Check);
}
