// SPDX-License-Identifier: Apache-2.0
// Flash attention in 8-bit integers: the scores of a few queries with a block of keys are made,
// turned into probabilities and spent on the block's values before the next block is looked at.
//
// docs/kernels.md explains the scales and has a picture of the blocking. This file knows how
// attention is blocked; microkernel-inl.h knows how numbers are multiplied; neither knows ONNX
// Runtime.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set, up to HWY_ONCE
#include "hwy/highway.h"
#include "microkernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

#if VK_SERVED

constexpr size_t kBlockKeys = 64;      // values share a scale within a block: larger is less exact
constexpr size_t kBlockQueries = 120;  // a multiple of kMR; their sums stay in the L2 cache
constexpr size_t kBlockVectors = kBlockKeys / kLanes;
constexpr size_t kPanelKeys = kNR * kLanes;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

static_assert(kBlockQueries % kMR == 0 && kBlockKeys % kPanelKeys == 0, "tiles fill their blocks");

// What is added to a probability before it is rounded, by the number of its key in the block:
// evenly from -0.5 to 0.5, far apart for neighbours. Where one key of a block outweighs all others,
// theirs are far below one unit. Rounded alike they would all be lost, though together they count;
// so as many of them become 1 as make up their sum.
struct Dither {
  constexpr Dither() : offsets() {
    for (size_t key = 0; key < kBlockKeys; ++key) {
      size_t reversed = 0;  // its bits
      for (size_t bit = 1; bit < kBlockKeys; bit *= 2) reversed = 2 * reversed + (key / bit) % 2;
      offsets[key] = (static_cast<float>(reversed) + 0.5f) / kBlockKeys - 0.5f;
    }
  }
  alignas(kCacheLine) float offsets[kBlockKeys];
};
constexpr Dither kDither;

// `Product` is the instruction, of microkernel-inl.h.
template <class Product>
class FlashAttention {
  using Lhs = typename Product::Lhs;  // queries and probabilities; keys and values are int8_t

 public:
  FlashAttention(const AttentionShape& shape, const AttentionTensors& tensors, void* scratch_memory,
                 size_t threads)
      : shape_(shape),
        tensors_(tensors),
        padded_width_(hwy::RoundUpTo(shape.width, kLanes)),
        groups_(hwy::DivCeil(shape.width, kGroup)),
        blocks_(hwy::DivCeil(shape.tokens, kBlockKeys)) {
    const size_t blocks = shape.batch * shape.heads * blocks_;  // of all heads
    Arena arena(scratch_memory);
    keys_ = arena.Allocate<int8_t>(blocks * KeyBlockBytes());
    key_scales_ = arena.Allocate<float>(blocks * kBlockKeys);
    key_compensation_ = arena.Allocate<int32_t>(blocks * kBlockKeys);
    values_ = arena.Allocate<int8_t>(blocks * ValueBlockBytes());
    value_scales_ = arena.Allocate<float>(blocks * padded_width_);
    value_centres_ = arena.Allocate<float>(blocks * padded_width_);
    scratches_ = arena.Allocate<uint8_t>(0);
    uint8_t* const end = arena.Allocate<uint8_t>(threads * Scratch::Bytes(*this));
    scratch_bytes_ = reinterpret_cast<uintptr_t>(end) -
                     reinterpret_cast<uintptr_t>(scratch_memory) + threads * Scratch::Bytes(*this) +
                     kCacheLine;
  }

  // What a scratch_memory at the worst alignment needs.
  size_t scratch_bytes() const { return scratch_bytes_; }

  // Keys and values of one head of one image; `head` counts through all images. Each thread is told
  // a number of its own, below the number of threads.
  void Pack(size_t head, size_t thread) {
    Scratch scratch(*this, thread);
    PackKeys(head, scratch);
    for (size_t block = 0; block < blocks_; ++block) PackValues(head, block);
  }

  // One block of queries, with a head that is packed.
  void Attend(size_t head, size_t query_block, size_t thread) const {
    Scratch scratch(*this, thread);
    const size_t first = query_block * kBlockQueries;
    const size_t count = std::min(kBlockQueries, shape_.tokens - first);
    const size_t padded = hwy::RoundUpTo(count, kMR);
    QuantizeQueries(head, first, count, padded, scratch);
    for (size_t block = 0; block < blocks_; ++block) {
      for (size_t row = 0; row < padded; row += kMR) {
        ComputeScores(head, block, row, scratch);
        Softmax(block, row, scratch);
        AccumulateValues(head, block, row, scratch);
      }
    }
    Normalize(head, first, count, scratch);
  }

 private:
  // The memory of one thread, for one block of queries at a time.
  struct Scratch {
    Scratch(const FlashAttention& attention, size_t thread)
        : Scratch(attention, attention.scratches_ + thread * Bytes(attention)) {}

    static size_t Bytes(const FlashAttention& attention) {
      return reinterpret_cast<uintptr_t>(Scratch(attention, nullptr).end);
    }

    size_t stride;        // of queries and sums, in elements
    Lhs* queries;         // [kBlockQueries, stride]
    float* query_scales;  // what a product is worth in the exponent of a power of two, per query
    float* highest;       // the highest score of each query so far
    float* weights;       // the sum of each query's probabilities so far
    float* sums;          // [kBlockQueries, stride]: the sum of its probabilities times values

    float* scores;             // [kMR, kBlockKeys]; with what follows, of the kMR queries at hand
    Lhs* probabilities;        // [kMR, kBlockKeys]
    float block_sums[kMR];     // of these probabilities
    float old_factors[kMR];    // what earlier sums are still worth
    float block_factors[kMR];  // what this block's are worth

    float* means;  // [stride], of the keys
    int8_t* key;   // [stride]

   private:
    Scratch(const FlashAttention& attention, uint8_t* memory) : stride(attention.padded_width_) {
      Arena arena(memory);
      queries = arena.Allocate<Lhs>(kBlockQueries * stride);
      query_scales = arena.Allocate<float>(kBlockQueries);
      highest = arena.Allocate<float>(kBlockQueries);
      weights = arena.Allocate<float>(kBlockQueries);
      sums = arena.Allocate<float>(kBlockQueries * stride);
      scores = arena.Allocate<float>(kMR * kBlockKeys);
      probabilities = arena.Allocate<Lhs>(kMR * kBlockKeys);
      means = arena.Allocate<float>(stride);
      key = arena.Allocate<int8_t>(stride);
      end = arena.Allocate<uint8_t>(0);
    }

    uint8_t* end;
  };

  size_t KeyBlockBytes() const { return kBlockKeys * groups_ * kGroupBytes; }
  size_t ValueBlockBytes() const { return kBlockKeys * padded_width_; }

  // Of the head's row for one token, in each of the tensors.
  size_t Offset(size_t head, size_t token) const {
    const size_t image = head / shape_.heads;
    const size_t row = image * shape_.tokens + token;
    return (row * shape_.heads + head % shape_.heads) * shape_.width;
  }

  // Keys become integers, each key with a scale of its own. Their mean is subtracted first: it adds
  // the same to all scores of a query, which the softmax does not notice, and the rest is smaller,
  // hence finer.
  void PackKeys(size_t head, Scratch& scratch) {
    FindMeans(head, scratch.means);
    for (size_t token = 0; token < blocks_ * kBlockKeys; ++token) {
      const size_t number = head * blocks_ * kBlockKeys + token;  // of the key among all
      if (token < shape_.tokens) {
        const uint32_t sum = QuantizeKey(head, token, scratch, key_scales_[number]);
        // Queries are stored plus kLhsZeroPoint; what that adds to their products is taken off
        // here.
        key_compensation_[number] = static_cast<int32_t>(0u - Product::kLhsZeroPoint * sum);
      } else {  // fills the last block up; Softmax overwrites its scores
        std::fill_n(scratch.key, scratch.stride, int8_t{0});
        key_scales_[number] = 0.0f;
        key_compensation_[number] = 0;
      }
      // The key is one column of its panel, whose groups lie a row of the panel apart.
      const size_t column = number % kPanelKeys;
      int8_t* to = keys_ + (number - column) * groups_ * kGroupBytes + column * kGroupBytes;
      for (size_t group = 0; group < groups_; ++group) {
        memcpy(to, scratch.key + group * kGroup, kGroupBytes);
        to += kPanelKeys * kGroupBytes;
      }
    }
  }

  void FindMeans(size_t head, float* means) const {
    const Floats floats;
    std::fill_n(means, padded_width_, 0.0f);
    for (size_t token = 0; token < shape_.tokens; ++token) {
      const float* const key = tensors_.keys + Offset(head, token);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        const Float sum = hn::Load(floats, means + i);
        hn::Store(hn::Add(sum, LoadUpTo(key + i, shape_.width - i)), floats, means + i);
      }
    }
    for (size_t i = 0; i < shape_.width; ++i) means[i] /= static_cast<float>(shape_.tokens);
  }

  // Leaves the key in `scratch.key`; returns the sum of its integers, modulo 2^32.
  uint32_t QuantizeKey(size_t head, size_t token, Scratch& scratch, float& scale) const {
    const Floats floats;
    const float* const key = tensors_.keys + Offset(head, token);
    const auto centred = [&](size_t i) HWY_ATTR {
      return hn::Sub(LoadUpTo(key + i, shape_.width - i), hn::Load(floats, scratch.means + i));
    };
    Float largest = hn::Zero(floats);
    for (size_t i = 0; i < shape_.width; i += kLanes) {
      largest = hn::Max(largest, hn::Abs(centred(i)));
    }
    const Quantizer quantizer(hn::ReduceMax(floats, largest), Product::kRhsMax);
    scale = quantizer.scale;
    const Float inverse = hn::Set(floats, quantizer.inverse);
    Int sum = hn::Zero(Ints());
    for (size_t i = 0; i < shape_.width; i += kLanes) {
      const Int integers = Nearest(hn::Mul(centred(i), inverse));
      StoreBytes(integers, scratch.key + i);
      sum = hn::Add(sum, integers);
    }
    return static_cast<uint32_t>(hn::ReduceSum(Ints(), sum));
  }

  // A group holds the same channel of four neighbouring keys.
  void PackValues(size_t head, size_t block) {
    int8_t* const panels = values_ + (head * blocks_ + block) * ValueBlockBytes();
    ForEachPanel(padded_width_ / kLanes, [&](auto vectors, size_t first) HWY_ATTR {
      int8_t* const panel = panels + first * kLanes * kBlockKeys;
      for (size_t v = 0; v < vectors; ++v) {
        PackChannels(head, block, (first + v) * kLanes, panel + v * kLanes * kGroupBytes,
                     vectors * kLanes * kGroupBytes);
      }
    });
  }

  // The kLanes channels from `channel` on, as integers with one centre and one scale per channel.
  // Groups lie `stride` bytes apart.
  void PackChannels(size_t head, size_t block, size_t channel, int8_t* to, size_t stride) {
    const Floats floats;
    const size_t first = block * kBlockKeys;
    const size_t count = std::min(kBlockKeys, shape_.tokens - first);
    const auto load = [&](size_t key) HWY_ATTR {  // repeats the last one, to fill the last block up
      const size_t at = Offset(head, first + std::min(key, count - 1)) + channel;
      return LoadUpTo(tensors_.values + at, shape_.width - channel);
    };
    Float lowest = load(0), highest = load(0);
    for (size_t key = 1; key < count; ++key) {
      lowest = hn::Min(lowest, load(key));
      highest = hn::Max(highest, load(key));
    }
    const Float half = hn::Set(floats, 0.5f);
    const Float centre = hn::MulAdd(half, lowest, hn::Mul(half, highest));
    const Float reach = hn::Max(hn::Sub(highest, centre), hn::Set(floats, kSmallest));
    const Float limit = hn::Set(floats, Product::kRhsMax);
    const size_t at = (head * blocks_ + block) * padded_width_ + channel;
    hn::Store(centre, floats, value_centres_ + at);
    hn::Store(hn::Div(reach, limit), floats, value_scales_ + at);

    const Float inverse = hn::Div(limit, reach);
    const auto quantize = [&](size_t key) HWY_ATTR {
      return ToBytes<int8_t>(Nearest(hn::Mul(hn::Sub(load(key), centre), inverse)));
    };
    for (size_t key = 0; key < kBlockKeys; key += kGroup, to += stride) {
      hn::StoreInterleaved4(quantize(key), quantize(key + 1), quantize(key + 2), quantize(key + 3),
                            hn::Rebind<int8_t, Ints>(), to);
    }
  }

  // Queries become integers, each with a scale of its own; rows up to `padded` repeat the last one.
  void QuantizeQueries(size_t head, size_t first, size_t count, size_t padded,
                       Scratch& scratch) const {
    const Floats floats;
    const float log2_e = 1.44269504f;  // the softmax is made of powers of two
    for (size_t row = 0; row < padded; ++row) {
      const float* const query = tensors_.queries + Offset(head, first + std::min(row, count - 1));
      Float largest = hn::Zero(floats);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        largest = hn::Max(largest, hn::Abs(LoadUpTo(query + i, shape_.width - i)));
      }
      const Quantizer quantizer(hn::ReduceMax(floats, largest), 127.0f);
      const Float inverse = hn::Set(floats, quantizer.inverse);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        const Int integers = Nearest(hn::Mul(LoadUpTo(query + i, shape_.width - i), inverse));
        StoreBytes(hn::Add(integers, hn::Set(Ints(), Product::kLhsZeroPoint)),
                   scratch.queries + row * scratch.stride + i);
      }
      // Above zero, so that minus infinity times this is what it should be.
      scratch.query_scales[row] =
          std::max(quantizer.scale * shape_.scale * log2_e, std::numeric_limits<float>::min());
    }
    std::fill_n(scratch.highest, padded, -kInfinity);
    std::fill_n(scratch.weights, padded, 0.0f);
    std::fill_n(scratch.sums, padded * scratch.stride, 0.0f);
  }

  // Scores of kMR queries with a block of keys, still to be multiplied by the queries' scales.
  void ComputeScores(size_t head, size_t block, size_t row, Scratch& scratch) const {
    const Floats floats;
    for (size_t panel = 0; panel < kBlockKeys; panel += kPanelKeys) {
      const size_t key = (head * blocks_ + block) * kBlockKeys + panel;
      const float* const scales = key_scales_ + key;
      const int32_t* const compensation = key_compensation_ + key;
      float* const scores = scratch.scores + panel;
      MultiplyTile<Product, kNR>(
          scratch.queries + row * scratch.stride, scratch.stride,
          keys_ + key * groups_ * kGroupBytes, groups_,
          [=](size_t v) HWY_ATTR { return hn::Load(Ints(), compensation + v * kLanes); },
          [=](size_t r, size_t v, Int sum) HWY_ATTR {
            const Float scale = hn::Load(floats, scales + v * kLanes);
            const Float score = hn::Mul(hn::ConvertTo(floats, sum), scale);
            hn::Store(score, floats, scores + r * kBlockKeys + v * kLanes);
          });
    }
  }

  // Scores become probabilities, relative to the query's highest score within this block.
  void Softmax(size_t block, size_t row, Scratch& scratch) const {
    const Floats floats;
    const size_t valid = std::min(kBlockKeys, shape_.tokens - block * kBlockKeys);
    constexpr size_t kPadded = (kMR + kLanes - 1) / kLanes * kLanes;  // whole vectors
    HWY_ALIGN float old_factors[kPadded] = {};
    HWY_ALIGN float block_factors[kPadded] = {};
    for (size_t r = 0; r < kMR; ++r) {
      float* const scores = scratch.scores + r * kBlockKeys;
      std::fill(scores + valid, scores + kBlockKeys, -kInfinity);
      Float best = hn::Load(floats, scores);
      for (size_t v = 1; v < kBlockVectors; ++v) {
        best = hn::Max(best, hn::Load(floats, scores + v * kLanes));
      }
      const float scale = scratch.query_scales[row + r];
      const float block_highest = hn::ReduceMax(floats, best) * scale;
      const float highest = std::max(scratch.highest[row + r], block_highest);
      old_factors[r] = scratch.highest[row + r] - highest;
      block_factors[r] = block_highest - highest;
      scratch.highest[row + r] = highest;
      scratch.block_sums[r] =
          WriteProbabilities(scores, scale, block_highest, scratch.probabilities + r * kBlockKeys);
    }
    for (size_t r = 0; r < kPadded; r += kLanes) {
      hn::Store(Exp2(hn::Load(floats, old_factors + r)), floats, old_factors + r);
      hn::Store(Exp2(hn::Load(floats, block_factors + r)), floats, block_factors + r);
    }
    for (size_t r = 0; r < kMR; ++r) {
      scratch.old_factors[r] = old_factors[r];
      scratch.block_factors[r] = block_factors[r];
      scratch.weights[row + r] =
          scratch.weights[row + r] * old_factors[r] + scratch.block_sums[r] * block_factors[r];
    }
  }

  // The highest score's probability becomes the largest left factor, or one less where the dither
  // does not round it up; returns the sum of all. All are too large by the same factor: so are the
  // weights, by which they are divided in the end.
  static float WriteProbabilities(const float* scores, float scale, float highest, Lhs* to) {
    const Floats floats;
    const Float factor = hn::Set(floats, scale);
    const Float offset = hn::Set(floats, std::log2(Product::kLhsMax - 1) - highest);
    Int sum = hn::Zero(Ints());
    for (size_t v = 0; v < kBlockVectors; ++v) {
      const Float score = hn::Load(floats, scores + v * kLanes);
      const Float dither = hn::Load(floats, kDither.offsets + v * kLanes);
      const Int integers = NearestExp2(hn::MulAdd(score, factor, offset), dither);
      StoreBytes(integers, to + v * kLanes);
      sum = hn::Add(sum, integers);
    }
    return static_cast<float>(hn::ReduceSum(Ints(), sum));
  }

  // sums = sums * old_factors + probabilities * values * block_factors
  void AccumulateValues(size_t head, size_t block, size_t row, Scratch& scratch) const {
    const Floats floats;
    const size_t number = head * blocks_ + block;
    ForEachPanel(padded_width_ / kLanes, [&](auto vectors, size_t first) HWY_ATTR {
      const size_t channel = first * kLanes;
      const int8_t* const panel = values_ + number * ValueBlockBytes() + channel * kBlockKeys;
      const float* const scales = value_scales_ + number * padded_width_ + channel;
      const float* const centres = value_centres_ + number * padded_width_ + channel;
      float* const sums = scratch.sums + row * scratch.stride + channel;
      const size_t stride = scratch.stride;
      const float* const block_sums = scratch.block_sums;
      const float* const old_factors = scratch.old_factors;
      const float* const block_factors = scratch.block_factors;
      MultiplyTile<Product, vectors>(
          scratch.probabilities, kBlockKeys, panel, kBlockKeys / kGroup,
          [](size_t) HWY_ATTR { return hn::Zero(Ints()); },
          [=](size_t r, size_t v, Int product) HWY_ATTR {
            const Float scale = hn::Load(floats, scales + v * kLanes);
            const Float centre = hn::Load(floats, centres + v * kLanes);
            const Float centres_part = hn::Mul(centre, hn::Set(floats, block_sums[r]));
            const Float added = hn::MulAdd(hn::ConvertTo(floats, product), scale, centres_part);
            float* const sum = sums + r * stride + v * kLanes;
            const Float old = hn::Mul(hn::Load(floats, sum), hn::Set(floats, old_factors[r]));
            hn::Store(hn::MulAdd(added, hn::Set(floats, block_factors[r]), old), floats, sum);
          });
    });
  }

  void Normalize(size_t head, size_t first, size_t count, const Scratch& scratch) const {
    const Floats floats;
    for (size_t row = 0; row < count; ++row) {
      const Float share = hn::Set(floats, 1.0f / scratch.weights[row]);
      float* const to = tensors_.result + Offset(head, first + row);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        const Float sum = hn::Load(floats, scratch.sums + row * scratch.stride + i);
        hn::StoreN(hn::Mul(sum, share), floats, to + i, shape_.width - i);
      }
    }
  }

  const AttentionShape shape_;
  const AttentionTensors tensors_;
  const size_t padded_width_;  // of a head, in whole vectors
  const size_t groups_;        // of a key
  const size_t blocks_;        // of keys

  // Parts of the scratch_memory, for all heads, block after block.
  int8_t* keys_;               // panels of kPanelKeys keys
  float* key_scales_;          // [kBlockKeys]
  int32_t* key_compensation_;  // [kBlockKeys]
  int8_t* values_;             // panels as ForEachPanel makes them
  float* value_scales_;        // [padded_width]
  float* value_centres_;       // [padded_width]
  uint8_t* scratches_;         // one per thread
  size_t scratch_bytes_;
};

template <class Product>
void Run(const AttentionShape& shape, const AttentionTensors& tensors, void* scratch_memory,
         const ThreadPool& pool) {
  FlashAttention<Product> attention(shape, tensors, scratch_memory, pool.threads);
  const size_t heads = shape.batch * shape.heads;
  pool.ParallelFor(heads, [&](size_t head, size_t thread) { attention.Pack(head, thread); });
  const size_t blocks = hwy::DivCeil(shape.tokens, kBlockQueries);
  pool.ParallelFor(heads * blocks, [&](size_t task, size_t thread) {
    attention.Attend(task / blocks, task % blocks, thread);
  });
}

template <class Product>
size_t ScratchBytesOf(const AttentionShape& shape, size_t threads) {
  return FlashAttention<Product>(shape, {}, nullptr, threads).scratch_bytes();
}

template <class Product>
AttentionVariant Variant() {
  return {NameOf<Product>(), &ScratchBytesOf<Product>, &Run<Product>};
}

#endif  // VK_SERVED

std::vector<AttentionVariant> AttentionVariantsOfTarget() {
  std::vector<AttentionVariant> variants;
#if VK_SERVED
  if (HasDot()) variants.push_back(Variant<Dot>());
#if HWY_TARGET == HWY_AVX2
  variants.push_back(Variant<Pairs>());
#endif
#endif
  return variants;
}

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vision_kernels {

HWY_EXPORT(AttentionVariantsOfTarget);

std::vector<AttentionVariant> AttentionVariants() {
  return HWY_DYNAMIC_DISPATCH(AttentionVariantsOfTarget)();
}

}  // namespace vision_kernels
#endif
