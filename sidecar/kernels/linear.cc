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

// The panels of one task that multiplies.
constexpr size_t kTaskPanels = 6;
constexpr size_t kTaskWeightBytes = 700'000;

// Rows of weights that are fetched before they are packed.
constexpr size_t kRowsAhead = 32;

// Tokens of one task that multiplies by two layers' weights, at least and at most.
constexpr size_t kMinBlockTokens = 64;
constexpr size_t kMaxBlockTokens = 96;

// `load(i)` gives the token's numbers from the i-th on, a vector of them; beyond the end it gives
// zero. So zero always counts as one of the numbers.
template <class Product, class LoadNumbers>
HWY_INLINE void QuantizeToken(size_t inputs, const LoadNumbers& load, uint8_t* to,
                              TokenScale& scale) {
  const Floats floats;
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

// Tokens [tokens, inputs], multiplied by `factors` unless null.
template <class Product>
void QuantizeTokens(size_t tokens, size_t inputs, const float* numbers, const float* factors,
                    uint8_t* integers, TokenScale* scales) {
  for (size_t token = 0; token < tokens; ++token) {
    const float* const from = numbers + token * inputs;
    const auto load = [=](size_t i) HWY_ATTR {
      const Float number = LoadUpTo(from + i, inputs - i);
      return factors == nullptr ? number : hn::Mul(number, LoadUpTo(factors + i, inputs - i));
    };
    QuantizeToken<Product>(inputs, load, integers + token * TokenBytes(inputs), scales[token]);
  }
}

// The mean of what `change(x)` makes of a token's numbers.
template <class Change>
HWY_INLINE float MeanOf(size_t inputs, const float* numbers, const Change& change) {
  const Floats floats;
  Float sums[4] = {hn::Zero(floats), hn::Zero(floats), hn::Zero(floats), hn::Zero(floats)};
  const size_t whole = inputs / kLanes * kLanes;
  size_t i = 0;
  for (; i + 4 * kLanes <= whole; i += 4 * kLanes) {  // several sums, so that none waits
    VK_UNROLL
    for (size_t sum = 0; sum < 4; ++sum) {
      sums[sum] = hn::Add(sums[sum], change(hn::LoadU(floats, numbers + i + sum * kLanes)));
    }
  }
  for (; i < whole; i += kLanes) {
    sums[0] = hn::Add(sums[0], change(hn::LoadU(floats, numbers + i)));
  }
  if (whole < inputs) {
    const Float last = change(LoadUpTo(numbers + whole, inputs - whole));
    sums[1] = hn::Add(sums[1], hn::IfThenElseZero(hn::FirstN(floats, inputs - whole), last));
  }
  const Float sum = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  return hn::ReduceSum(floats, sum) / static_cast<float>(inputs);
}

// Tokens [tokens, inputs] after LayerNorm.
template <class Product>
void NormalizeTokens(size_t tokens, size_t inputs, const float* numbers, const LayerNorm& norm,
                     uint8_t* integers, TokenScale* scales) {
  const Floats floats;
  for (size_t token = 0; token < tokens; ++token) {
    const float* const from = numbers + token * inputs;
    const Float mean = hn::Set(floats, MeanOf(inputs, from, [](Float x) HWY_ATTR { return x; }));
    const float variance = MeanOf(inputs, from, [=](Float x) HWY_ATTR {
      const Float off = hn::Sub(x, mean);
      return hn::Mul(off, off);
    });
    const Float inverse = hn::Set(floats, 1.0f / std::sqrt(variance + norm.epsilon));
    const auto load = [=](size_t i) HWY_ATTR {
      const size_t rest = inputs - i;
      const Float number = hn::Mul(hn::Sub(LoadUpTo(from + i, rest), mean), inverse);
      return hn::MulAdd(number, LoadUpTo(norm.weight + i, rest), LoadUpTo(norm.bias + i, rest));
    };
    QuantizeToken<Product>(inputs, load, integers + token * TokenBytes(inputs), scales[token]);
  }
}

// Calls use(begin, end) for each block of tokens.
template <class Use>
void ForEachBlock(size_t tokens, const ThreadPool& pool, const Use& use) {
  pool.ParallelFor(hwy::DivCeil(tokens, kQuantizedTokens), [&](size_t task, size_t) {
    const size_t begin = task * kQuantizedTokens;
    use(begin, std::min(tokens, begin + kQuantizedTokens) - begin);
  });
}

template <class Product>
void Quantize(size_t tokens, size_t inputs, const float* numbers, const float* factors,
              uint8_t* integers, TokenScale* scales, const ThreadPool& pool) {
  ForEachBlock(tokens, pool, [&](size_t begin, size_t count) {
    QuantizeTokens<Product>(count, inputs, numbers + begin * inputs, factors,
                            integers + begin * TokenBytes(inputs), scales + begin);
  });
}

template <class Product>
void Normalize(size_t tokens, size_t inputs, const float* numbers, const LayerNorm& norm,
               uint8_t* integers, TokenScale* scales, const ThreadPool& pool) {
  ForEachBlock(tokens, pool, [&](size_t begin, size_t count) {
    NormalizeTokens<Product>(count, inputs, numbers + begin * inputs, norm,
                             integers + begin * TokenBytes(inputs), scales + begin);
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

// Some tokens, and where a layer's result for them goes.
struct Block {
  size_t tokens;
  const uint8_t* bytes;      // [tokens, TokenBytes(inputs)]
  const TokenScale* scales;  // [tokens]
  const float* residual;     // [tokens, outputs], or null
  float* result;             // [tokens, outputs]
  bool cached;               // whether the result is read again before it leaves the caches
};

// One layer's weights, and how a block of tokens is multiplied by some of them. Its panels are
// numbered; each is packed before it is used.
template <class Product>
class Layer {
  using Lhs = typename Product::Lhs;
  static constexpr size_t kTileWidth = kNR * kLanes;

 public:
  Layer(size_t inputs, size_t outputs, const LinearWeights& weights, Activation activation,
        Arena& arena)
      : inputs_(inputs),
        outputs_(outputs),
        groups_(TokenBytes(inputs) / kGroup),
        vectors_(hwy::DivCeil(outputs, kLanes)),
        panels_(hwy::DivCeil(vectors_, kNR)),
        weights_(weights),
        activation_(activation),
        scales_(arena.Allocate<float>(vectors_ * kLanes)),
        sums_(arena.Allocate<float>(vectors_ * kLanes)),
        bias_(arena.Allocate<float>(vectors_ * kLanes)) {}

  size_t panels() const { return panels_; }

  // The panels of one task: as many as the L2 cache holds beside the rest.
  size_t FittingPanels() const {
    return std::max<size_t>(1, std::min({kTaskPanels, kTaskWeightBytes / PackedBytes(1), panels_}));
  }

  // Of so many panels, none of which is wider than any other can be.
  size_t PackedBytes(size_t panels) const { return PanelBytes(panels * kNR); }

  // Where a panel begins if all are packed one after the other.
  size_t PackedOffset(size_t panel) const { return PanelBytes(panel * vectors_ / panels_); }

  // The memory of one thread.
  struct Scratch {
    Scratch(const Layer& layer, Arena& arena)
        : tokens(arena.Allocate<Lhs>(kMR * layer.groups_ * kGroup)),
          tiles{arena.Allocate<float>(kMR * kTileWidth), arena.Allocate<float>(kMR * kTileWidth)} {}
    Lhs* tokens;      // the last few, filled up to kMR
    float* tiles[2];  // each [kMR, kTileWidth] of the result, before the activation
  };

  // The weights of some panels, in the order in which MultiplyTile reads them. They are packed anew
  // in each call of the op: a second copy of all, in memory or on disk, would be as large as the
  // model.
  void Pack(size_t begin, size_t end, int8_t* to) const {
    ForEachPanelOf(begin, end, [&](auto vectors, size_t first) HWY_ATTR {
      PackPanel<decltype(vectors)::value>(first, to);
      to += PanelBytes(vectors);
    });
  }

  // Some panels with a block of tokens: a few tokens meet all of these panels, then the next ones
  // do. So a row of the result is visited once for all of them; each visit may cost a page walk.
  void Multiply(size_t begin, size_t end, const int8_t* packed, const Block& block,
                const Scratch& scratch, Ahead ahead) const {
    switch (activation_) {
      case Activation::kNone:
        return Multiply(begin, end, packed, block, scratch, ahead,
                        [](Float x) HWY_ATTR { return x; });
      case Activation::kGelu:
        return Multiply(begin, end, packed, block, scratch, ahead,
                        [](Float x) HWY_ATTR { return Gelu(x); });
      case Activation::kFastGelu:
        return Multiply(begin, end, packed, block, scratch, ahead,
                        [](Float x) HWY_ATTR { return FastGelu(x); });
    }
  }

 private:
  size_t PanelBytes(size_t vectors) const { return vectors * kLanes * groups_ * kGroup; }

  template <class Use>
  HWY_INLINE void ForEachPanelOf(size_t begin, size_t end, const Use& use) const {
    for (size_t panel = begin; panel < end; ++panel) WithPanel(vectors_, panel, use);
  }

  // Rows lie so far apart that the CPU does not see which one comes next.
  HWY_INLINE void FetchWeights(size_t input, size_t first, size_t vectors) const {
    const int8_t* const row = weights_.weights + std::min(input, inputs_ - 1) * outputs_;
    __builtin_prefetch(row + first * kLanes, 0, 2);
    __builtin_prefetch(row + std::min((first + vectors) * kLanes, outputs_) - 1, 0, 2);
  }

  // A panel of kVectors vectors of outputs, from vector `first` on. A group holds four neighbouring
  // inputs' weights of one output. What lies beyond the weights is 0.
  template <size_t kVectors>
  void PackPanel(size_t first, int8_t* to) const {
    constexpr size_t kAtOnce = kVectors == 3 ? 1 : kVectors;  // vectors; a power of two
    constexpr size_t kOutputs = kAtOnce * kLanes;
    const hn::FixedTag<int8_t, kOutputs> bytes;
    const Int ones = hn::Set(Ints(), 0x01010101);
    Int sums[kVectors];
    for (Int& sum : sums) sum = hn::Zero(Ints());
    for (size_t input = 0; input < groups_ * kGroup; input += kGroup) {
      for (size_t i = 0; i < kGroup; ++i) FetchWeights(input + i + kRowsAhead, first, kVectors);
      VK_UNROLL
      for (size_t v = 0; v < kVectors; v += kAtOnce, to += kOutputs * kGroup) {
        const size_t at = (first + v) * kLanes;
        const auto load = [&](size_t i) HWY_ATTR {
          if (input + i >= inputs_) return hn::Zero(bytes);
          const int8_t* const from = weights_.weights + (input + i) * outputs_ + at;
          return at + kOutputs <= outputs_ ? hn::LoadU(bytes, from)
                                           : hn::LoadN(bytes, from, outputs_ - at);
        };
        hn::StoreInterleaved4(load(0), load(1), load(2), load(3), bytes, to);
        VK_UNROLL
        for (size_t i = 0; i < kAtOnce; ++i) {
          sums[v + i] = Product::DotAdd(sums[v + i], ones, LoadInts(to + i * kLanes * kGroup));
        }
      }
    }
    const Floats floats;
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = (first + v) * kLanes;
      const size_t count = outputs_ - at;
      const Float scale = LoadUpTo(weights_.scales + at, count);
      const Float bias =
          weights_.bias == nullptr ? hn::Zero(floats) : LoadUpTo(weights_.bias + at, count);
      hn::Store(scale, floats, scales_ + at);
      hn::Store(hn::Mul(hn::ConvertTo(floats, sums[v]), scale), floats, sums_ + at);
      hn::Store(bias, floats, bias_ + at);
    }
  }

  // kMR rows of tokens, of which `count` exist.
  const Lhs* Rows(const Block& block, size_t token, size_t count, const Scratch& scratch) const {
    const size_t stride = groups_ * kGroup;
    const Lhs* const rows = reinterpret_cast<const Lhs*>(block.bytes) + token * stride;
    if (count == kMR) return rows;
    for (size_t row = 0; row < kMR; ++row) {
      memcpy(scratch.tokens + row * stride, rows + std::min(row, count - 1) * stride, stride);
    }
    return scratch.tokens;
  }

  // A tile whose sums are known. What is left to do, a vector of numbers after the other, is done
  // between the dot products of the next tile, or at once where the sums would have to make room.
  template <class Function>
  struct Unfinished {
    // Called after each of the next tile's groups.
    HWY_INLINE void operator()(size_t group) {
      if (ahead != nullptr) __builtin_prefetch(ahead + group * kCacheLine, 0, 2);
      if (!VK_PIPELINED || group < next) return;
      next += stride;
      if (row == count) return;
      Finish(row, column);
      column += kLanes;
      if (column < width) return;
      column = 0;
      ++row;
    }

    HWY_INLINE void Finish() {
      const Unfinished rest = *this;  // a copy, which registers can hold
      size_t i = column;
      for (size_t r = row; r < rest.count; ++r, i = 0) {
        for (; i < rest.width; i += kLanes) rest.Finish(r, i);
      }
      row = count;
    }

    // A result that the caches cannot hold goes past them in whole vectors, so that nothing is
    // fetched only to be overwritten.
    HWY_INLINE void Finish(size_t r, size_t i) const {
      const Floats floats;
      Float number = function(hn::Load(floats, tile + r * kTileWidth + i));
      const size_t at = r * outputs + i;
      if (residual != nullptr) number = hn::Add(number, LoadUpTo(residual + at, width - i));
      float* const to = result + at;
      if (i + kLanes > width) {
        hn::StoreN(number, floats, to, width - i);
      } else if (stream && reinterpret_cast<uintptr_t>(to) % (kLanes * sizeof(float)) == 0) {
        hn::Stream(number, floats, to);
      } else {
        hn::StoreU(number, floats, to);
      }
    }

    Function function;
    size_t outputs;                   // between two rows of the result
    bool stream;                      // past the caches
    const float* tile;                // [count, kTileWidth]
    const float* residual = nullptr;  // [count, outputs] from the tile's first number on, or null
    float* result = nullptr;          // the same
    size_t count = 0, width = 0;
    size_t row = 0, column = 0;     // of the next vector
    size_t next = 0, stride = 0;    // the group after which that is finished; from one to the next
    const int8_t* ahead = nullptr;  // cache lines needed soon, one for each group, or null
  };

  template <class Function>
  void Multiply(size_t begin, size_t end, const int8_t* packed, const Block& block,
                const Scratch& scratch, Ahead ahead, const Function& function) const {
    Unfinished<Function> unfinished{function, outputs_, !block.cached, scratch.tiles[1]};
    for (size_t token = 0; token < block.tokens; token += kMR) {
      const size_t count = std::min(kMR, block.tokens - token);
      const Lhs* const rows = Rows(block, token, count, scratch);
      const int8_t* panel = packed;
      ForEachPanelOf(begin, end, [&](auto vectors, size_t first) HWY_ATTR {
        unfinished.ahead = ahead.Next(groups_);
        MultiplyTokens<decltype(vectors)::value>(rows, panel, block, token, count, first, scratch,
                                                 unfinished);
        panel += PanelBytes(vectors);
      });
    }
    unfinished.Finish();
    if (!block.cached) hwy::FlushStream();
  }

  template <size_t kVectors, class Function>
  void MultiplyTokens(const Lhs* rows, const int8_t* panel, const Block& block, size_t token,
                      size_t count, size_t first, const Scratch& scratch,
                      Unfinished<Function>& unfinished) const {
    const Floats floats;
    const size_t output = first * kLanes;
    const size_t width = std::min(kVectors * kLanes, outputs_ - output);
    const size_t at = token * outputs_ + output;
    const float* const residual = block.residual == nullptr ? nullptr : block.residual + at;
    if (residual != nullptr) {  // it arrives while the tile is multiplied
      for (size_t r = 0; r < count; ++r) {
        const float* const row = residual + r * outputs_;
        for (size_t i = 0; i < width; i += kCacheLine / sizeof(float)) hwy::Prefetch(row + i);
      }
    }
    const TokenScale* const token_scales = block.scales + token;
    const float* const scales = scales_ + output;
    const float* const sums_of_weights = sums_ + output;
    const float* const bias = bias_ + output;
    float* const tile = scratch.tiles[unfinished.tile == scratch.tiles[0] ? 1 : 0];
    unfinished.next = unfinished.stride = std::max<size_t>(1, groups_ / (kMR * kNR + 1));
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
        },
        unfinished);
    unfinished.Finish();
    unfinished.tile = tile;
    unfinished.residual = residual;
    unfinished.result = block.result + at;
    unfinished.count = count;
    unfinished.width = width;
    unfinished.row = unfinished.column = 0;
    if (!VK_PIPELINED) unfinished.Finish();
  }

  const size_t inputs_;
  const size_t outputs_;
  const size_t groups_;   // of a token
  const size_t vectors_;  // of outputs
  const size_t panels_;   // of outputs
  const LinearWeights weights_;
  const Activation activation_;

  float* const scales_;  // of each output
  float* const sums_;    // of each output's weights, times its scale
  float* const bias_;    // of each output
};

// A linear layer as tasks: each is a few panels with a block of tokens.
template <class Product>
class Linear {
 public:
  Linear(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
         void* memory, size_t threads)
      : shape_(shape),
        tensors_(tensors),
        arena_(memory),
        layer_(shape.inputs, shape.outputs, tensors.weights, activation, arena_) {
    const size_t tasks = kTasksPerThread * threads;
    const size_t most_blocks = std::max<size_t>(1, shape.tokens / kMinTokens);
    task_panels_ = std::max<size_t>(
        1, std::min(layer_.FittingPanels(), layer_.panels() * most_blocks / tasks));
    token_blocks_ = std::min(most_blocks, hwy::DivCeil(tasks, PanelGroups()));
    packed_ =
        arena_.template Allocate<int8_t>(packs_first() ? layer_.PackedBytes(layer_.panels()) : 0);
    scratches_ = arena_.template Allocate<uint8_t>(threads * Scratch::Bytes(*this));
    scratch_bytes_ = arena_.used() - reinterpret_cast<uintptr_t>(memory) + kCacheLine;
  }

  // What memory at the worst alignment needs.
  size_t scratch_bytes() const { return scratch_bytes_; }

  size_t PanelGroups() const { return hwy::DivCeil(layer_.panels(), task_panels_); }
  size_t tasks() const { return PanelGroups() * token_blocks_; }

  // Whether all weights are packed before the first task multiplies: if several tasks need the
  // same. Else each task packs its own, which then never leave the L2 cache.
  bool packs_first() const { return token_blocks_ > 1; }
  void PackWeights(size_t panel_group) const { PackWeights(panel_group, WeightsOf(panel_group)); }

  void Multiply(size_t task, size_t thread) const {
    // Neighbouring tasks share their weights, which the outer caches hold meanwhile.
    const size_t panel_group = task / token_blocks_, block = task % token_blocks_;
    const size_t token = shape_.tokens * block / token_blocks_;
    const size_t end = shape_.tokens * (block + 1) / token_blocks_;
    const Scratch scratch(*this, thread);
    if (!packs_first()) PackWeights(panel_group, scratch.packed);
    const float* const residual = tensors_.residual;
    const Block tokens{end - token,
                       tensors_.tokens + token * TokenBytes(shape_.inputs),
                       tensors_.token_scales + token,
                       residual == nullptr ? nullptr : residual + token * shape_.outputs,
                       tensors_.result + token * shape_.outputs,
                       false};
    layer_.Multiply(FirstOf(panel_group), FirstOf(panel_group + 1),
                    packs_first() ? WeightsOf(panel_group) : scratch.packed, tokens,
                    scratch.of_layer, {nullptr, nullptr});
  }

 private:
  // The memory of one thread.
  struct Scratch {
    Scratch(const Linear& linear, size_t thread)
        : Scratch(linear, Arena(linear.scratches_ + thread * Bytes(linear))) {}

    static size_t Bytes(const Linear& linear) { return Scratch(linear, Arena(nullptr)).bytes; }

    int8_t* packed;  // the weights of one task, unless all are packed first
    typename Layer<Product>::Scratch of_layer;
    size_t bytes;  // where it begins at null

   private:
    Scratch(const Linear& linear, Arena arena)
        : packed(arena.Allocate<int8_t>(
              linear.packs_first() ? 0 : linear.layer_.PackedBytes(linear.task_panels_))),
          of_layer(linear.layer_, arena),
          bytes(arena.used()) {}
  };

  size_t FirstOf(size_t panel_group) const {
    return std::min(layer_.panels(), panel_group * task_panels_);
  }
  int8_t* WeightsOf(size_t panel_group) const {
    return packed_ + layer_.PackedOffset(FirstOf(panel_group));
  }
  void PackWeights(size_t panel_group, int8_t* to) const {
    layer_.Pack(FirstOf(panel_group), FirstOf(panel_group + 1), to);
  }

  const LinearShape shape_;
  const LinearTensors tensors_;
  Arena arena_;
  const Layer<Product> layer_;
  size_t task_panels_;   // of one task
  size_t token_blocks_;  // that the tokens are cut into, for a task each

  // Parts of the scratch memory.
  int8_t* packed_;      // the weights, panel after panel, if they are packed first
  uint8_t* scratches_;  // one per thread
  size_t scratch_bytes_;
};

template <class Product>
void Multiply(const LinearShape& shape, const LinearTensors& tensors, Activation activation,
              void* scratch, const ThreadPool& pool) {
  const Linear<Product> linear(shape, tensors, activation, scratch, pool.threads);
  if (linear.packs_first()) {
    pool.ParallelFor(linear.PanelGroups(), [&](size_t task, size_t) { linear.PackWeights(task); });
  }
  pool.ParallelFor(linear.tasks(),
                   [&](size_t task, size_t thread) { linear.Multiply(task, thread); });
}

template <class Product>
size_t ScratchBytesOf(const LinearShape& shape, size_t threads) {
  return Linear<Product>(shape, {}, Activation::kNone, nullptr, threads).scratch_bytes();
}

// Two linear layers as tasks: each is a block of tokens that meets all weights of both. What passes
// between the layers stays in the caches, and its memory is a block's.
template <class Product>
class Mlp {
 public:
  // Whether each thread gets tokens enough: each block brings all weights from the outer caches.
  static bool Serves(size_t tokens, size_t threads) {
    return BlockTokens(tokens, threads) >= kMinBlockTokens;
  }

  Mlp(const MlpShape& shape, const MlpTensors& tensors, Activation activation, void* memory,
      size_t threads)
      : shape_(shape),
        tensors_(tensors),
        arena_(memory),
        first_(shape.inputs, shape.hidden, tensors.first, activation, arena_),
        second_(shape.hidden, shape.outputs, tensors.second, Activation::kNone, arena_),
        tasks_(Blocks(shape.tokens, threads)),
        block_tokens_(BlockTokens(shape.tokens, threads)) {
    packed_[0] = arena_.template Allocate<int8_t>(first_.PackedBytes(first_.panels()));
    packed_[1] = arena_.template Allocate<int8_t>(second_.PackedBytes(second_.panels()));
    scratches_ = arena_.template Allocate<uint8_t>(threads * Scratch::Bytes(*this));
    scratch_bytes_ = arena_.used() - reinterpret_cast<uintptr_t>(memory) + kCacheLine;
  }

  size_t scratch_bytes() const { return scratch_bytes_; }
  size_t panels() const { return first_.panels() + second_.panels(); }
  size_t tasks() const { return tasks_; }

  void PackWeights(size_t panel) const {
    const bool in_first = panel < first_.panels();
    const Layer<Product>& layer = in_first ? first_ : second_;
    if (!in_first) panel -= first_.panels();
    layer.Pack(panel, panel + 1, packed_[in_first ? 0 : 1] + layer.PackedOffset(panel));
  }

  void Multiply(size_t task, size_t thread) const {
    const Scratch scratch(*this, thread);
    const size_t token = FirstToken(task), count = FirstToken(task + 1) - token;
    MultiplyAll(first_, packed_[0],
                {count, tensors_.tokens + token * TokenBytes(shape_.inputs),
                 tensors_.token_scales + token, nullptr, scratch.hidden, true},
                scratch.of_first, FirstPanels(second_, packed_[1]));
    QuantizeTokens<Product>(count, shape_.hidden, scratch.hidden, tensors_.factors, scratch.bytes_,
                            scratch.scales);
    const size_t at = token * shape_.outputs;
    const float* const residual = tensors_.residual;
    MultiplyAll(second_, packed_[1],
                {count, scratch.bytes_, scratch.scales,
                 residual == nullptr ? nullptr : residual + at, tensors_.result + at, false},
                scratch.of_second, FirstPanels(first_, packed_[0]));
  }

 private:
  // The memory of one thread.
  struct Scratch {
    Scratch(const Mlp& mlp, size_t thread)
        : Scratch(mlp, Arena(mlp.scratches_ + thread * Bytes(mlp))) {}

    static size_t Bytes(const Mlp& mlp) { return Scratch(mlp, Arena(nullptr)).size; }

    float* hidden;  // [block_tokens_, hidden]: the first layer's result
    uint8_t* bytes_;
    TokenScale* scales;
    typename Layer<Product>::Scratch of_first, of_second;
    size_t size;  // where it begins at null

   private:
    Scratch(const Mlp& mlp, Arena arena)
        : hidden(arena.Allocate<float>(mlp.block_tokens_ * mlp.shape_.hidden)),
          bytes_(arena.Allocate<uint8_t>(mlp.block_tokens_ * TokenBytes(mlp.shape_.hidden))),
          scales(arena.Allocate<TokenScale>(mlp.block_tokens_)),
          of_first(mlp.first_, arena),
          of_second(mlp.second_, arena),
          size(arena.used()) {}
  };

  // As many for each thread.
  static size_t Blocks(size_t tokens, size_t threads) {
    return hwy::RoundUpTo(hwy::DivCeil(tokens, kMaxBlockTokens), std::max<size_t>(1, threads));
  }

  // Of the largest block.
  static size_t BlockTokens(size_t tokens, size_t threads) {
    return hwy::DivCeil(hwy::DivCeil(tokens, kMR), Blocks(tokens, threads)) * kMR;
  }

  // Of a task: whole rows of tiles, as many for each task as for any other, or one more.
  size_t FirstToken(size_t task) const {
    return std::min(shape_.tokens, hwy::DivCeil(shape_.tokens, kMR) * task / tasks_ * kMR);
  }

  // What a task needs first of a layer.
  static Ahead FirstPanels(const Layer<Product>& layer, const int8_t* packed) {
    return {packed, packed + layer.PackedOffset(layer.FittingPanels())};
  }

  // A few panels after the others; meanwhile the next ones are fetched, and `next` in the end.
  static void MultiplyAll(const Layer<Product>& layer, const int8_t* packed, const Block& block,
                          const typename Layer<Product>::Scratch& scratch, const Ahead& next) {
    const size_t step = layer.FittingPanels();
    const auto after = [&](size_t panel) { return std::min(layer.panels(), panel + step); };
    for (size_t panel = 0; panel < layer.panels(); panel += step) {
      const size_t end = after(panel);
      const Ahead following{packed + layer.PackedOffset(end),
                            packed + layer.PackedOffset(after(end))};
      layer.Multiply(panel, end, packed + layer.PackedOffset(panel), block, scratch,
                     end < layer.panels() ? following : next);
    }
  }

  const MlpShape shape_;
  const MlpTensors tensors_;
  Arena arena_;
  const Layer<Product> first_, second_;
  const size_t tasks_;
  const size_t block_tokens_;  // of the largest

  // Parts of the scratch memory.
  int8_t* packed_[2];   // each layer's weights, panel after panel
  uint8_t* scratches_;  // one per thread
  size_t scratch_bytes_;
};

// The same, one layer after the other, each shared among the threads: for few tokens.
template <class Product>
struct MlpInSteps {
  MlpInSteps(const MlpShape& shape, void* memory, size_t threads)
      : first{shape.tokens, shape.inputs, shape.hidden},
        second{shape.tokens, shape.hidden, shape.outputs} {
    Arena arena(memory);
    hidden = arena.Allocate<float>(shape.tokens * shape.hidden);
    tokens = arena.Allocate<uint8_t>(shape.tokens * TokenBytes(shape.hidden));
    scales = arena.Allocate<TokenScale>(shape.tokens);
    scratch = arena.Allocate<uint8_t>(std::max(ScratchBytesOf<Product>(first, threads),
                                               ScratchBytesOf<Product>(second, threads)));
    bytes = arena.used() - reinterpret_cast<uintptr_t>(memory) + kCacheLine;
  }
  const LinearShape first, second;
  float* hidden;
  uint8_t* tokens;
  TokenScale* scales;
  uint8_t* scratch;
  size_t bytes;
};

template <class Product>
void MultiplyMlp(const MlpShape& shape, const MlpTensors& tensors, Activation activation,
                 void* scratch, const ThreadPool& pool) {
  if (Mlp<Product>::Serves(shape.tokens, pool.threads)) {
    const Mlp<Product> mlp(shape, tensors, activation, scratch, pool.threads);
    pool.ParallelFor(mlp.panels(), [&](size_t task, size_t) { mlp.PackWeights(task); });
    pool.ParallelFor(mlp.tasks(), [&](size_t task, size_t thread) { mlp.Multiply(task, thread); });
  } else {
    const MlpInSteps<Product> steps(shape, scratch, pool.threads);
    Multiply<Product>(steps.first,
                      {tensors.tokens, tensors.token_scales, tensors.first, nullptr, steps.hidden},
                      activation, steps.scratch, pool);
    Quantize<Product>(shape.tokens, shape.hidden, steps.hidden, tensors.factors, steps.tokens,
                      steps.scales, pool);
    Multiply<Product>(
        steps.second,
        {steps.tokens, steps.scales, tensors.second, tensors.residual, tensors.result},
        Activation::kNone, steps.scratch, pool);
  }
}

template <class Product>
size_t ScratchBytesOfMlp(const MlpShape& shape, size_t threads) {
  if (!Mlp<Product>::Serves(shape.tokens, threads)) {
    return MlpInSteps<Product>(shape, nullptr, threads).bytes;
  }
  return Mlp<Product>(shape, {}, Activation::kNone, nullptr, threads).scratch_bytes();
}

#endif  // VK_SERVED

// Plain AVX2 is left out: there onnxruntime's own product is used.
std::vector<LinearVariant> LinearVariantsOfTarget() {
  std::vector<LinearVariant> variants;
#if VK_SERVED
  if (HasDot()) {
    variants.push_back({NameOf<Dot>(), &Quantize<Dot>, &Normalize<Dot>, &ScratchBytesOf<Dot>,
                        &Multiply<Dot>, &ScratchBytesOfMlp<Dot>, &MultiplyMlp<Dot>});
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
