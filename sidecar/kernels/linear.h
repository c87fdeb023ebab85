// SPDX-License-Identifier: Apache-2.0
// Linear layers with int8 weights and activations quantized per token: the interface.
//
// Nothing here knows ONNX Runtime: threads and memory come from the caller. docs/kernels.md has the
// picture.
#ifndef VISION_SIDECAR_KERNELS_LINEAR_H_
#define VISION_SIDECAR_KERNELS_LINEAR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime.h"

namespace vision_kernels {

constexpr size_t kMaxInputs = 65536;  // a sum of this many products fits into 32 bits

// The bytes of a quantized token: whole groups of four. What pads the last group is multiplied by
// zero.
constexpr size_t TokenBytes(size_t inputs) { return (inputs + 3) / 4 * 4; }

// A token's numbers are scale * byte + offset, each token with its own. How a byte holds its
// integer depends on the variant: what one variant quantized, another must not multiply.
struct TokenScale {
  float scale;
  float offset;
};

enum class Activation : uint8_t {
  kNone,
  kGelu,      // x * (1 + erf(x / sqrt 2)) / 2
  kFastGelu,  // its approximation by tanh
};

struct LinearShape {
  size_t tokens;
  size_t inputs;  // at most kMaxInputs
  size_t outputs;
};

struct LinearWeights {
  const int8_t* weights;  // [inputs, outputs]
  const float* scales;    // [outputs]
  const float* bias;      // [outputs], or null
};

struct LinearTensors {
  const uint8_t* tokens;           // [tokens, TokenBytes(inputs)], quantized
  const TokenScale* token_scales;  // [tokens]
  LinearWeights weights;
  const float* residual;  // [tokens, outputs], added to the result, or null
  float* result;          // [tokens, outputs]
};

// Two linear layers, one after the other: a transformer's MLP.
struct MlpShape {
  size_t tokens;
  size_t inputs;  // at most kMaxInputs
  size_t hidden;  // outputs of the first layer, inputs of the second: at most kMaxInputs
  size_t outputs;
};

struct MlpTensors {
  const uint8_t* tokens;           // [tokens, TokenBytes(inputs)], quantized
  const TokenScale* token_scales;  // [tokens]
  LinearWeights first;             // [inputs, hidden]
  const float* factors;   // [hidden], multiplied with what the second layer is given, or null
  LinearWeights second;   // [hidden, outputs]
  const float* residual;  // [tokens, outputs], added to the result, or null
  float* result;          // [tokens, outputs]
};

// (x - mean) / sqrt(variance + epsilon) * weight + bias, of each token.
struct LayerNorm {
  const float* weight;  // [inputs]
  const float* bias;    // [inputs]
  float epsilon;        // above zero
};

// Linear layers compiled for one instruction set.
struct LinearVariant {
  const char* name;  // the instruction set's, such as "AVX512 and VNNI"

  // Numbers [tokens, inputs], multiplied by factors [inputs] unless null, become `quantized`
  // [tokens, TokenBytes(inputs)] and `scales` [tokens]. They must be finite; with others the result
  // means nothing.
  void (*quantize)(size_t tokens, size_t inputs, const float* numbers, const float* factors,
                   uint8_t* quantized, TokenScale* scales, const ThreadPool& pool);

  // The same of numbers after LayerNorm, in place of factors.
  void (*normalize)(size_t tokens, size_t inputs, const float* numbers, const LayerNorm& norm,
                    uint8_t* quantized, TokenScale* scales, const ThreadPool& pool);

  // Bytes of scratch memory that `multiply` needs. It may have any alignment and content.
  size_t (*scratch_bytes)(const LinearShape& shape, size_t threads);

  // activation(numbers * weights * weight_scales + bias) + residual. No task is left running,
  // nothing is kept. After a cancellation the result is unfinished.
  void (*multiply)(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
                   void* scratch, const ThreadPool& pool);

  // The first layer with its activation, `quantize` with the factors, the second layer with the
  // residual: the same numbers as one after the other.
  size_t (*mlp_scratch_bytes)(const MlpShape& shape, size_t threads);
  void (*multiply_mlp)(const MlpShape& shape, const MlpTensors& tensors, Activation activation,
                       void* scratch, const ThreadPool& pool);
};

// The variants that this CPU can run, the best first. Empty where onnxruntime's own operator is
// faster.
std::vector<LinearVariant> LinearVariants();

}  // namespace vision_kernels

#endif  // VISION_SIDECAR_KERNELS_LINEAR_H_
