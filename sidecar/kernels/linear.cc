// SPDX-License-Identifier: Apache-2.0
// Linear layers over 8-bit integers: a strip of the weights is laid out for the CPU, then meets one
// row tile of tokens after another.
//
// docs/kernels.md explains the scales. This file knows how the layer is blocked; microkernel-inl.h
// knows how numbers are multiplied; neither knows ONNX Runtime.

#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear.cc"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set, up to HWY_ONCE
#include "hwy/highway.h"
#include "microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

#if VK_SERVED

constexpr size_t kTokensAtOnce = 64;   // of one task that quantises
constexpr size_t kFewestTokens = 256;  // that are worth laying a strip of weights out for
constexpr size_t kTasksPerWorker = 8;  // so that no core waits long for the last task

template <class Product>
void QuantizeToken(size_t inputs, const float* numbers, const float* factors, uint8_t* to,
                   TokenScale& scale) {
  const Floats floats;
  const auto load = [&](size_t i) HWY_ATTR {
    const Float number = LoadUpTo(numbers + i, inputs - i);
    return factors == nullptr ? number : hn::Mul(number, LoadUpTo(factors + i, inputs - i));
  };
  // What is loaded beyond the end is zero. So zero always counts as one of the numbers.
  Float low = hn::Zero(floats), high = low;
  for (size_t i = 0; i < inputs; i += kLanes) {
    const Float number = load(i);
    low = hn::Min(low, number);
    high = hn::Max(high, number);
  }
  const float lowest = hn::ReduceMin(floats, low);
  const Quantizer quantizer(hn::ReduceMax(floats, high) - lowest, 255.0f);
  scale.scale = quantizer.scale;
  scale.offset = lowest - quantizer.scale * Product::kLhsMin;
  const Float offset = hn::Set(floats, lowest);
  const Float inverse = hn::Set(floats, quantizer.inverse);
  const Int first = hn::Set(Ints(), Product::kLhsMin);
  const auto bytes = [&](size_t i) HWY_ATTR {
    const Int integers = Nearest(hn::Mul(hn::Sub(load(i), offset), inverse));
    return ToBytes<uint8_t>(hn::Add(integers, first));
  };
  const hn::Rebind<uint8_t, Ints> lanes;
  const size_t end = TokenBytes(inputs);
  for (size_t i = 0; i < end; i += kLanes) {
    if (i + kLanes <= end) {
      hn::StoreU(bytes(i), lanes, to + i);
    } else {
      hn::StoreN(bytes(i), lanes, to + i, end - i);
    }
  }
}

template <class Product>
void Quantize(size_t tokens, size_t inputs, const float* numbers, const float* factors,
              uint8_t* integers, TokenScale* scales, const ThreadPool& pool) {
  pool.ParallelFor(hwy::DivCeil(tokens, kTokensAtOnce), [&](size_t task, size_t) {
    const size_t end = std::min(tokens, (task + 1) * kTokensAtOnce);
    for (size_t token = task * kTokensAtOnce; token < end; ++token) {
      QuantizeToken<Product>(inputs, numbers + token * inputs, factors,
                             integers + token * TokenBytes(inputs), scales[token]);
    }
  });
}

// A guess of the CPU's, and one of Newton's scales. A division takes as long as a dozen products.
static HWY_INLINE Float Reciprocal(Float x) {
  const Float guess = hn::ApproximateReciprocal(x);
  return hn::Mul(guess, hn::NegMulAdd(x, guess, hn::Set(Floats(), 2.0f)));
}

// To one part in four million.
static HWY_INLINE Float Gelu(Float x) {
  // Abramowitz and Stegun 7.1.26: erf of a number that is not negative, to 1.5e-7.
  const Floats floats;
  const Float z = hn::Mul(hn::Abs(x), hn::Set(floats, 0.70710678f));
  const Float one = hn::Set(floats, 1.0f);
  const Float t = hn::Div(one, hn::MulAdd(z, hn::Set(floats, 0.3275911f), one));
  Float sum = hn::Set(floats, 1.061405429f);
  for (const float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    sum = hn::MulAdd(sum, t, hn::Set(floats, coefficient));
  }
  const Float log2_e = hn::Set(floats, -1.44269504f);
  const Float rest = hn::Mul(hn::Mul(sum, t), FineExp2(hn::Mul(hn::Mul(z, z), log2_e)));
  // x * (1 + erf) / 2 with erf = 1 - rest above zero, rest - 1 below it.
  const Float half = hn::Mul(x, hn::Set(floats, 0.5f));
  return hn::Add(hn::Max(x, hn::Zero(floats)), hn::Neg(hn::Mul(hn::Abs(half), rest)));
}

static HWY_INLINE Float FastGelu(Float x) {
  // x * (1 + tanh u) / 2 = x / (1 + exp(-2 u)), where u = sqrt(2 / pi) * (x + 0.044715 x^3)
  const Floats floats;
  const Float square = hn::Mul(x, x);
  const Float inner = hn::MulAdd(square, hn::Set(floats, 0.044715f), hn::Set(floats, 1.0f));
  const Float exponent = hn::Mul(hn::Mul(x, inner), hn::Set(floats, -2.30220820f));
  const Float power = FineExp2(hn::Min(exponent, hn::Set(floats, 100.0f)));
  return hn::Mul(x, Reciprocal(hn::Add(power, hn::Set(floats, 1.0f))));
}

template <class Product>
class Layer {
  using Lhs = typename Product::Lhs;

 public:
  Layer(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
        void* scratch_memory, size_t threads)
      : shape_(shape),
        tensors_(tensors),
        activation_(activation),
        groups_(TokenBytes(shape.inputs) / kGroup),
        vectors_(hwy::DivCeil(shape.outputs, kLanes)),
        scratches_(Arena(scratch_memory).Allocate<uint8_t>(0)) {
    const size_t most = hwy::DivCeil(shape.tokens, kFewestTokens);
    const size_t wanted = hwy::DivCeil(kTasksPerWorker * threads, panels());
    token_blocks_ = std::max<size_t>(1, std::min(most, wanted));
  }

  size_t scratch_bytes(size_t threads) const { return threads * ScratchBytes() + kCacheLine; }

  // Each panel of outputs meets each token_block of tokens.
  size_t tasks() const { return panels() * token_blocks_; }

  void Multiply(size_t task, size_t thread) const {
    // Neighbouring tasks share their panel's weights, which the outer caches hold meanwhile.
    const size_t token_block = task % token_blocks_;
    const size_t begin = shape_.tokens * token_block / token_blocks_;
    const size_t end = shape_.tokens * (token_block + 1) / token_blocks_;
    const Scratch scratch(*this, thread);
    WithPanel(vectors_, task / token_blocks_, [&](auto vectors, size_t first) HWY_ATTR {
      PackWeights<vectors>(first * kLanes, scratch);
      for (size_t token = begin; token < end; token += kMR) {
        MultiplyTokens<vectors>(token, std::min(kMR, end - token), first * kLanes, scratch);
      }
    });
    hwy::FlushStream();
  }

 private:
  static constexpr size_t kPanel = kNR * kLanes;

  // The memory of one thread, for one panel at a time.
  struct Scratch {
    Scratch(const Layer& layer, size_t thread)
        : Scratch(layer, layer.scratches_ + thread * layer.ScratchBytes()) {}
    Scratch(const Layer& layer, uint8_t* memory) {
      Arena arena(memory);
      panel = arena.Allocate<int8_t>(layer.groups_ * kPanel * kGroup);
      scales = arena.Allocate<float>(kPanel);
      sums = arena.Allocate<float>(kPanel);
      bias = arena.Allocate<float>(kPanel);
      tokens = arena.Allocate<Lhs>(kMR * layer.groups_ * kGroup);
      tile = arena.Allocate<float>(kMR * kPanel);
      end = arena.Allocate<uint8_t>(0);
    }

    int8_t* panel;  // weights, as MultiplyTile wants them
    float* scales;  // of each output
    float* sums;    // of each output's weights
    float* bias;
    Lhs* tokens;  // the last few, filled up
    float* tile;  // [kMR, kPanel] of the result, before the activation
    uint8_t* end;
  };

  size_t panels() const { return hwy::DivCeil(vectors_, kNR); }
  size_t ScratchBytes() const { return reinterpret_cast<uintptr_t>(Scratch(*this, nullptr).end); }

  // A group holds four neighbouring inputs' weights of one output. What lies beyond the weights is
  // 0.
  template <size_t kVectors>
  void PackWeights(size_t output, const Scratch& scratch) const {
    const hn::Rebind<int8_t, Ints> bytes;
    Int sums[kVectors];
    for (Int& sum : sums) sum = hn::Zero(Ints());
    int8_t* to = scratch.panel;
    for (size_t input = 0; input < groups_ * kGroup; input += kGroup) {
      for (size_t v = 0; v < kVectors; ++v, to += kLanes * kGroup) {
        const size_t at = output + v * kLanes;
        const auto load = [&](size_t i) HWY_ATTR {
          if (input + i >= shape_.inputs) return hn::Zero(bytes);
          const int8_t* const from = tensors_.weights + (input + i) * shape_.outputs + at;
          return at + kLanes <= shape_.outputs ? hn::LoadU(bytes, from)
                                               : hn::LoadN(bytes, from, shape_.outputs - at);
        };
        const auto w0 = load(0), w1 = load(1), w2 = load(2), w3 = load(3);
        hn::StoreInterleaved4(w0, w1, w2, w3, bytes, to);
        for (const auto& w : {w0, w1, w2, w3}) sums[v] = hn::Add(sums[v], hn::PromoteTo(Ints(), w));
      }
    }
    const Floats floats;
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = output + v * kLanes;
      const size_t count = shape_.outputs - at;
      const Float scale = LoadUpTo(tensors_.weight_scales + at, count);
      const Float bias =
          tensors_.bias == nullptr ? hn::Zero(floats) : LoadUpTo(tensors_.bias + at, count);
      hn::Store(scale, floats, scratch.scales + v * kLanes);
      hn::Store(hn::Mul(hn::ConvertTo(floats, sums[v]), scale), floats, scratch.sums + v * kLanes);
      hn::Store(bias, floats, scratch.bias + v * kLanes);
    }
  }

  // `count` tokens, at most kMR, from `token` on.
  template <size_t kVectors>
  void MultiplyTokens(size_t token, size_t count, size_t output, const Scratch& scratch) const {
    const Floats floats;
    const size_t stride = groups_ * kGroup;
    const Lhs* left = reinterpret_cast<const Lhs*>(tensors_.tokens) + token * stride;
    if (count < kMR) {
      for (size_t row = 0; row < kMR; ++row) {
        memcpy(scratch.tokens + row * stride, left + std::min(row, count - 1) * stride, stride);
      }
      left = scratch.tokens;
    }
    const TokenScale* const scales = tensors_.token_scales + token;
    MultiplyTile<Product, kVectors>(
        left, stride, scratch.panel, groups_, [](size_t) HWY_ATTR { return hn::Zero(Ints()); },
        [=](size_t r, const Int(&sums)[kVectors]) HWY_ATTR {
          if (r >= count) return;
          VK_UNROLL
          for (size_t v = 0; v < kVectors; ++v) {
            const Float start = hn::MulAdd(hn::Set(floats, scales[r].offset),
                                           hn::Load(floats, scratch.sums + v * kLanes),
                                           hn::Load(floats, scratch.bias + v * kLanes));
            const Float product = hn::Mul(hn::ConvertTo(floats, sums[v]),
                                          hn::Load(floats, scratch.scales + v * kLanes));
            const Float number = hn::MulAdd(product, hn::Set(floats, scales[r].scale), start);
            hn::Store(number, floats, scratch.tile + r * kPanel + v * kLanes);
          }
        });
    switch (activation_) {
      case Activation::kNone:
        return StoreTile<kVectors>(token, count, output, scratch,
                                   [](Float x) HWY_ATTR { return x; });
      case Activation::kGelu:
        return StoreTile<kVectors>(token, count, output, scratch,
                                   [](Float x) HWY_ATTR { return Gelu(x); });
      case Activation::kFastGelu:
        return StoreTile<kVectors>(token, count, output, scratch,
                                   [](Float x) HWY_ATTR { return FastGelu(x); });
    }
  }

  // Whole vectors of the result go past the caches, which could not hold it: so that nothing is
  // fetched only to be overwritten.
  template <size_t kVectors, class Function>
  void StoreTile(size_t token, size_t count, size_t output, const Scratch& scratch,
                 const Function& function) const {
    const Floats floats;
    const size_t width = std::min(kVectors * kLanes, shape_.outputs - output);
    for (size_t r = 0; r < count; ++r) {
      const float* const from = scratch.tile + r * kPanel;
      float* const to = tensors_.result + (token + r) * shape_.outputs + output;
      const bool aligned = reinterpret_cast<uintptr_t>(to) % (kLanes * sizeof(float)) == 0;
      for (size_t i = 0; i < width; i += kLanes) {
        const Float number = function(hn::Load(floats, from + i));
        if (aligned && i + kLanes <= width) {
          hn::Stream(number, floats, to + i);
        } else {
          hn::StoreN(number, floats, to + i, width - i);
        }
      }
    }
  }

  const LinearShape shape_;
  const LinearTensors tensors_;
  const Activation activation_;
  const size_t groups_;       // of a token
  const size_t vectors_;      // of outputs
  uint8_t* const scratches_;  // one per thread
  size_t token_blocks_;       // that the tokens are cut into, for a task each
};

template <class Product>
void Multiply(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
              void* scratch_memory, const ThreadPool& pool) {
  const Layer<Product> layer(shape, tensors, activation, scratch_memory, pool.threads);
  pool.ParallelFor(layer.tasks(),
                   [&](size_t task, size_t thread) { layer.Multiply(task, thread); });
}

template <class Product>
size_t ScratchBytesOf(const LinearShape& shape, size_t threads) {
  return Layer<Product>(shape, {}, Activation::kNone, nullptr, threads).scratch_bytes(threads);
}

#endif  // VK_SERVED

// Plain AVX2 is left out: there onnxruntime's own product is used.
std::vector<LinearVariant> LinearVariantsOfTarget() {
  std::vector<LinearVariant> variants;
#if VK_SERVED
  if (HasDot()) {
    variants.push_back({NameOf<Dot>(), &Quantize<Dot>, &ScratchBytesOf<Dot>, &Multiply<Dot>});
  }
#endif
  return variants;
}

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vision_kernels {

HWY_EXPORT(LinearVariantsOfTarget);

std::vector<LinearVariant> LinearVariants() {
  return HWY_DYNAMIC_DISPATCH(LinearVariantsOfTarget)();
}

}  // namespace vision_kernels
#endif
