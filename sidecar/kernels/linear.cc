// SPDX-License-Identifier: Apache-2.0
// Linear layers in 8-bit integers: how tokens are quantized, how a layer is blocked, and its
// epilogue.
//
// docs/kernels.md explains the steps. microkernel-inl.h knows how numbers are multiplied; neither
// file knows ONNX Runtime.

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

constexpr size_t kQuantizedTokens = 64;  // of one task that quantizes
constexpr size_t kMinTokens =
    128;  // of one task that multiplies: it brings weights into the L2 cache
constexpr size_t kTasksPerThread = 8;  // so that no core waits long for the last task

// The panels of one task that multiplies: as many as the L2 cache holds beside the rest. A row of
// the result is visited once for all of them, since each visit may cost a page walk.
constexpr size_t kTaskPanels = 6;
constexpr size_t kTaskWeightBytes = 700'000;

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
  pool.ParallelFor(hwy::DivCeil(tokens, kQuantizedTokens), [&](size_t task, size_t) {
    const size_t end = std::min(tokens, (task + 1) * kQuantizedTokens);
    for (size_t token = task * kQuantizedTokens; token < end; ++token) {
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
  Layer(const LinearShape& shape, const LinearTensors& tensors, Activation activation, void* memory,
        size_t threads)
      : shape_(shape),
        tensors_(tensors),
        activation_(activation),
        groups_(TokenBytes(shape.inputs) / kGroup),
        vectors_(hwy::DivCeil(shape.outputs, kLanes)),
        panels_(hwy::DivCeil(vectors_, kNR)) {
    const size_t tasks = kTasksPerThread * threads;
    const size_t most_blocks = std::max<size_t>(1, shape.tokens / kMinTokens);
    const size_t fitting = kTaskWeightBytes / PanelBytes(1);
    task_panels_ = std::max<size_t>(
        1, std::min({kTaskPanels, fitting, panels_ * most_blocks / tasks, panels_}));
    token_blocks_ = std::min(most_blocks, hwy::DivCeil(tasks, PanelGroups()));

    Arena arena(memory);
    weights_ = arena.Allocate<int8_t>(packs_first() ? PanelBytes(panels_) : 0);
    scales_ = arena.Allocate<float>(vectors_ * kLanes);
    sums_ = arena.Allocate<float>(vectors_ * kLanes);
    bias_ = arena.Allocate<float>(vectors_ * kLanes);
    scratches_ = arena.Allocate<uint8_t>(threads * Scratch::Bytes(*this));
    scratch_bytes_ = arena.used() - reinterpret_cast<uintptr_t>(memory) + kCacheLine;
  }

  // What memory at the worst alignment needs.
  size_t scratch_bytes() const { return scratch_bytes_; }

  size_t PanelGroups() const { return hwy::DivCeil(panels_, task_panels_); }
  size_t tasks() const { return PanelGroups() * token_blocks_; }

  // Whether all weights are packed before the first task multiplies: if several tasks need the
  // same. Else each task packs its own, which then never leave the L2 cache.
  bool packs_first() const { return token_blocks_ > 1; }

  // The weights of one group of panels, in the order in which MultiplyTile reads them. They are
  // packed anew in each call: a second copy of all, in memory or on disk, would be as large as the
  // model.
  void PackWeights(size_t panel_group, int8_t* to) const {
    ForEachPanelOf(panel_group, [&](auto vectors, size_t first) HWY_ATTR {
      PackPanel<decltype(vectors)::value>(first, to);
      to += PanelWeights(vectors);
    });
  }
  void PackWeights(size_t panel_group) const { PackWeights(panel_group, WeightsOf(panel_group)); }

  // A group of panels with a block of tokens.
  void Multiply(size_t task, size_t thread) const {
    // Neighbouring tasks share their weights, which the outer caches hold meanwhile.
    const size_t panel_group = task / token_blocks_, block = task % token_blocks_;
    const size_t begin = shape_.tokens * block / token_blocks_;
    const size_t end = shape_.tokens * (block + 1) / token_blocks_;
    const Scratch scratch(*this, thread);
    if (!packs_first()) PackWeights(panel_group, scratch.weights);
    for (size_t token = begin; token < end; token += kMR) {
      const size_t count = std::min(kMR, end - token);
      const Lhs* const rows = Rows(token, count, scratch);
      const int8_t* panel = packs_first() ? WeightsOf(panel_group) : scratch.weights;
      ForEachPanelOf(panel_group, [&](auto vectors, size_t first) HWY_ATTR {
        MultiplyTokens<decltype(vectors)::value>(rows, panel, token, count, first, scratch);
        panel += PanelWeights(vectors);
      });
    }
    hwy::FlushStream();
  }

 private:
  static constexpr size_t kTileWidth = kNR * kLanes;

  // The memory of one thread.
  struct Scratch {
    Scratch(const Layer& layer, size_t thread)
        : Scratch(layer, layer.scratches_ + thread * Bytes(layer)) {}

    static size_t Bytes(const Layer& layer) {
      return Scratch(layer, static_cast<uint8_t*>(nullptr)).bytes;
    }

    int8_t* weights;  // packed, of one task, unless they are packed first
    Lhs* tokens;      // the last few, filled up to kMR
    float* tile;      // [kMR, kTileWidth] of the result, before the activation
    size_t bytes;

   private:
    Scratch(const Layer& layer, uint8_t* memory) {
      Arena arena(memory);
      weights =
          arena.Allocate<int8_t>(layer.packs_first() ? 0 : layer.PanelBytes(layer.task_panels_));
      tokens = arena.Allocate<Lhs>(kMR * layer.groups_ * kGroup);
      tile = arena.Allocate<float>(kMR * kTileWidth);
      bytes = arena.used() - reinterpret_cast<uintptr_t>(memory);
    }
  };

  size_t PanelBytes(size_t panels) const { return PanelWeights(panels * kNR); }
  size_t PanelWeights(size_t vectors) const { return vectors * kLanes * groups_ * kGroup; }
  int8_t* WeightsOf(size_t panel_group) const {
    const size_t panel = panel_group * task_panels_;
    return weights_ + PanelWeights(panel * vectors_ / panels_);
  }

  template <class Use>
  HWY_INLINE void ForEachPanelOf(size_t panel_group, const Use& use) const {
    const size_t begin = panel_group * task_panels_;
    const size_t end = std::min(panels_, begin + task_panels_);
    for (size_t panel = begin; panel < end; ++panel) WithPanel(vectors_, panel, use);
  }

  // A panel of kVectors vectors of outputs, from vector `first` on. A group holds four neighbouring
  // inputs' weights of one output. What lies beyond the weights is 0.
  template <size_t kVectors>
  void PackPanel(size_t first, int8_t* to) const {
    const hn::Rebind<int8_t, Ints> bytes;
    Int sums[kVectors];
    for (Int& sum : sums) sum = hn::Zero(Ints());
    for (size_t input = 0; input < groups_ * kGroup; input += kGroup) {
      for (size_t v = 0; v < kVectors; ++v, to += kLanes * kGroup) {
        const size_t at = (first + v) * kLanes;
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
      const size_t at = (first + v) * kLanes;
      const size_t count = shape_.outputs - at;
      const Float scale = LoadUpTo(tensors_.weight_scales + at, count);
      const Float bias =
          tensors_.bias == nullptr ? hn::Zero(floats) : LoadUpTo(tensors_.bias + at, count);
      hn::Store(scale, floats, scales_ + at);
      hn::Store(hn::Mul(hn::ConvertTo(floats, sums[v]), scale), floats, sums_ + at);
      hn::Store(bias, floats, bias_ + at);
    }
  }

  // kMR rows of tokens, of which `count` exist.
  const Lhs* Rows(size_t token, size_t count, const Scratch& scratch) const {
    const size_t stride = groups_ * kGroup;
    const Lhs* const rows = reinterpret_cast<const Lhs*>(tensors_.tokens) + token * stride;
    if (count == kMR) return rows;
    for (size_t row = 0; row < kMR; ++row) {
      memcpy(scratch.tokens + row * stride, rows + std::min(row, count - 1) * stride, stride);
    }
    return scratch.tokens;
  }

  template <size_t kVectors>
  void MultiplyTokens(const Lhs* rows, const int8_t* panel, size_t token, size_t count,
                      size_t first, const Scratch& scratch) const {
    const Floats floats;
    const size_t output = first * kLanes;
    const TokenScale* const token_scales = tensors_.token_scales + token;
    const float* const scales = scales_ + output;
    const float* const sums_of_weights = sums_ + output;
    const float* const bias = bias_ + output;
    float* const tile = scratch.tile;
    MultiplyTile<Product, kVectors>(
        rows, groups_ * kGroup, panel, groups_, [](size_t) HWY_ATTR { return hn::Zero(Ints()); },
        [=](size_t r, const Int(&sums)[kVectors]) HWY_ATTR {
          if (r >= count) return;
          const Float token_offset = hn::Set(floats, token_scales[r].offset);
          const Float token_scale = hn::Set(floats, token_scales[r].scale);
          VK_UNROLL
          for (size_t v = 0; v < kVectors; ++v) {
            const Float start =
                hn::MulAdd(token_offset, hn::Load(floats, sums_of_weights + v * kLanes),
                           hn::Load(floats, bias + v * kLanes));
            const Float product =
                hn::Mul(hn::ConvertTo(floats, sums[v]), hn::Load(floats, scales + v * kLanes));
            hn::Store(hn::MulAdd(product, token_scale, start), floats,
                      tile + r * kTileWidth + v * kLanes);
          }
        });
    switch (activation_) {
      case Activation::kNone:
        return StoreTile<kVectors>(token, count, output, tile, [](Float x) HWY_ATTR { return x; });
      case Activation::kGelu:
        return StoreTile<kVectors>(token, count, output, tile,
                                   [](Float x) HWY_ATTR { return Gelu(x); });
      case Activation::kFastGelu:
        return StoreTile<kVectors>(token, count, output, tile,
                                   [](Float x) HWY_ATTR { return FastGelu(x); });
    }
  }

  // Whole vectors of the result go past the caches, which could not hold it: so that nothing is
  // fetched only to be overwritten.
  template <size_t kVectors, class Function>
  void StoreTile(size_t token, size_t count, size_t output, const float* tile,
                 const Function& function) const {
    const Floats floats;
    const size_t width = std::min(kVectors * kLanes, shape_.outputs - output);
    for (size_t r = 0; r < count; ++r) {
      const float* const from = tile + r * kTileWidth;
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
  const size_t groups_;   // of a token
  const size_t vectors_;  // of outputs
  const size_t panels_;   // of outputs
  size_t task_panels_;    // of one task
  size_t token_blocks_;   // that the tokens are cut into, for a task each

  // Parts of the scratch memory.
  int8_t* weights_;     // packed, panel after panel, if they are packed first
  float* scales_;       // of each output
  float* sums_;         // of each output's weights, times its scale
  float* bias_;         // of each output
  uint8_t* scratches_;  // one per thread
  size_t scratch_bytes_;
};

template <class Product>
void Multiply(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
              void* scratch, const ThreadPool& pool) {
  const Layer<Product> layer(shape, tensors, activation, scratch, pool.threads);
  if (layer.packs_first()) {
    pool.ParallelFor(layer.PanelGroups(), [&](size_t task, size_t) { layer.PackWeights(task); });
  }
  pool.ParallelFor(layer.tasks(),
                   [&](size_t task, size_t thread) { layer.Multiply(task, thread); });
}

template <class Product>
size_t ScratchBytesOf(const LinearShape& shape, size_t threads) {
  return Layer<Product>(shape, {}, Activation::kNone, nullptr, threads).scratch_bytes();
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
