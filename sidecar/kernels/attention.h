// SPDX-License-Identifier: Apache-2.0
// Multi-head attention over float tensors, computed in 8-bit integers: the interface.
//
// Nothing here knows ONNX Runtime: threads and memory come from the caller. docs/kernels.md has the
// picture.
#ifndef VISION_SIDECAR_KERNELS_ATTENTION_H_
#define VISION_SIDECAR_KERNELS_ATTENTION_H_

#include <cstddef>
#include <vector>

#include "runtime.h"

namespace vision_kernels {

// Queries, keys, values and the result are all [batch, tokens, heads * width], row-major.
struct AttentionShape {
  size_t batch;
  size_t tokens;
  size_t heads;
  size_t width;  // of one head; at most kMaxHeadWidth
  float scale;   // of the scores, before the softmax; above zero
};

constexpr size_t kMaxHeadWidth = 65536;  // a sum of this many products fits into 32 bits

struct AttentionTensors {
  const float* queries;
  const float* keys;
  const float* values;
  float* result;
};

// Attention compiled for one instruction set.
struct AttentionVariant {
  const char* name;  // the instruction set's, such as "AVX512 and VNNI"

  // Bytes of scratch memory that `run` needs on at most `threads` threads.
  size_t (*scratch_bytes)(const AttentionShape& shape, size_t threads);

  // softmax(queries * keysᵀ * scale) * values, for each head of each image. The inputs must be
  // finite; with others the result means nothing, but nothing is read or written out of bounds.
  // The scratch memory may have any alignment and content. No task is left running, nothing is
  // kept. After a cancellation the result is unfinished.
  void (*run)(const AttentionShape& shape, const AttentionTensors& tensors, void* scratch,
              const ThreadPool& pool);
};

// The variants that this CPU can run, the best first. Empty where onnxruntime's own operator is
// faster.
std::vector<AttentionVariant> AttentionVariants();

}  // namespace vision_kernels

#endif  // VISION_SIDECAR_KERNELS_ATTENTION_H_
