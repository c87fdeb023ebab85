// Linear layers over 8-bit integers, whose input is quantised token by token; see docs/kernels.md.
//
// This header knows nothing of ONNX Runtime: threads and memory come from the caller.
#ifndef VISION_SIDECAR_KERNELS_LINEAR_H_
#define VISION_SIDECAR_KERNELS_LINEAR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sharing.h"

namespace vision_kernels {

constexpr size_t kMostInputs = 65536;  // a sum of this many products fits into 32 bits

// The bytes of a token with so many numbers: whole groups of four. What fills the last one up is
// multiplied by zero.
constexpr size_t TokenBytes(size_t inputs) { return (inputs + 3) / 4 * 4; }

// A token's numbers are step * byte + lowest, each token with its own. How a byte holds its integer
// is the variant's own affair: what one variant quantised, another must not multiply.
struct TokenScale {
  float step;
  float lowest;
};

enum class Activation {
  kNone,
  kGelu,      // x * (1 + erf(x / sqrt 2)) / 2
  kFastGelu,  // its approximation by tanh
};

struct LinearShape {
  size_t tokens;
  size_t inputs;  // at most kMostInputs
  size_t outputs;
};

struct LinearTensors {
  const uint8_t* integers;    // [tokens, TokenBytes(inputs)]
  const TokenScale* scales;   // [tokens]
  const int8_t* weights;      // [inputs, outputs]
  const float* weight_steps;  // [outputs]
  const float* bias;          // [outputs], or null
  float* result;              // [tokens, outputs]
};

// One way to compute linear layers on this CPU.
struct LinearVariant {
  const char* name;  // the instruction set's, such as "AVX3_ZEN4"

  // Numbers [tokens, inputs], multiplied by factors [inputs] unless null, become `integers` and
  // `scales`. They must be finite; with others the result means nothing.
  void (*quantise)(size_t tokens, size_t inputs, const float* numbers, const float* factors,
                   uint8_t* integers, TokenScale* scales, const Crew& crew);

  // Bytes of scratch memory that `multiply` needs. It may have any alignment and content.
  size_t (*workspace)(const LinearShape& shape, size_t workers);

  // activation(numbers * weights * weight_steps + bias). No task is left running, nothing is kept.
  // Once it is no longer wanted, the result is left unfinished.
  void (*multiply)(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
                   void* workspace, const Crew& crew);

  // Multiplies registers, so many rounds long, and does nothing else: what this CPU can reach at most
  // on one thread. Returns the number of operations, of which a product is two.
  uint64_t (*peak)(uint64_t rounds);
};

// The ways that this CPU can take, the best first. Empty where onnxruntime's own operator is faster.
std::vector<LinearVariant> LinearVariants();

}  // namespace vision_kernels

#endif  // VISION_SIDECAR_KERNELS_LINEAR_H_
