// Attention over float tensors, computed in 8-bit integers; see docs/kernels.md for the picture.
//
// This header knows nothing of ONNX Runtime: threads and memory come from the caller.
#ifndef VISION_SIDECAR_KERNELS_ATTENTION_H_
#define VISION_SIDECAR_KERNELS_ATTENTION_H_

#include <cstddef>
#include <vector>

#include "sharing.h"

namespace vision_kernels {

// Queries, keys, values and the result are all [batch, tokens, heads * width], row-major.
struct AttentionShape {
  size_t batch;
  size_t tokens;
  size_t heads;
  size_t width;  // of one head; at most kWidestHead
  float scale;   // of the products of queries with keys, before the softmax; above zero
};

constexpr size_t kWidestHead = 65536;  // a sum of this many products fits into 32 bits

struct AttentionTensors {
  const float* queries;
  const float* keys;
  const float* values;
  float* result;
};

// One way to compute attention on this CPU.
struct AttentionVariant {
  const char* name;  // the instruction set's, such as "AVX3_ZEN4"

  // Bytes of scratch memory that `run` needs for at most `workers` tasks at a time.
  size_t (*workspace)(const AttentionShape& shape, size_t workers);

  // softmax(queries * keysᵀ * scale) * values, for each head of each image. The inputs must be
  // finite; with others the result means nothing, but nothing is read or written out of bounds.
  // The workspace may have any alignment and content. No task is left running, nothing is kept.
  // Once it is no longer wanted, the result is left unfinished.
  void (*run)(const AttentionShape& shape, const AttentionTensors& tensors, void* workspace,
              const Crew& crew);
};

// The ways that this CPU can take, the best first. Empty where onnxruntime's own operator is faster.
std::vector<AttentionVariant> AttentionVariants();

}  // namespace vision_kernels

#endif  // VISION_SIDECAR_KERNELS_ATTENTION_H_
