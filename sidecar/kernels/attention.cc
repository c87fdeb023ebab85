// SPDX-License-Identifier: Apache-2.0
// Flash attention in 8-bit integers: how it is blocked, packed and scheduled.
//
// The scores of a few queries with a block of keys become probabilities and are spent on the
// block's values before the next block is looked at. docs/kernels.md explains the steps and has a
// picture. microkernel-inl.h knows how numbers are multiplied, softmax-inl.h the softmax; neither
// this file nor they know ONNX Runtime.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set, up to HWY_ONCE
#include "hwy/highway.h"
#include "microkernel-inl.h"
#include "softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

#if VK_SERVED

constexpr size_t kBlockQueries = 120;  // of a task: whole strips, whose sums stay in the L2 cache
constexpr size_t kBlockGroups = kBlockKeys / kGroup;
constexpr size_t kPanelKeys = kNR * kLanes;
constexpr size_t kStatisticsVectors = kStripLanes / kLanes;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kHeadroom = 8.0f;  // octaves that a row's scores may rise before sums are rescaled
constexpr size_t kSampledTokens = 512;  // for means, which need not be exact

static_assert(kBlockQueries % kStripRows == 0 && kStripRows % kMR == 0, "tiles fill their blocks");
static_assert(kBlockKeys % kPanelKeys == 0, "panels fill their blocks");

// Calls use(0) … use(n - 1).
#if defined(__SANITIZE_ADDRESS__)
// In a loop, since the checks of unrolled code take GCC minutes.
#define VK_INLINE_LAMBDA HWY_ATTR
template <size_t n, class Use>
void Unroll(const Use& use) {
  for (size_t k = 0; k < n; ++k) use(k);
}
#else
// Each number is a constant, and `use` becomes part of the function it is used in, registers and
// all.
#define VK_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))
template <class Use, size_t... k>
HWY_INLINE void UnrollSequence(const Use& use, std::index_sequence<k...>) {
  (use(std::integral_constant<size_t, k>()), ...);
}
template <size_t n, class Use>
HWY_INLINE void Unroll(const Use& use) {
  UnrollSequence(use, std::make_index_sequence<n>());
}
#endif

// `Product` is the instruction, of microkernel-inl.h.
template <class Product>
class FlashAttention {
  using Lhs = typename Product::Lhs;  // of queries and probabilities; keys and values are int8_t

 public:
  FlashAttention(const AttentionShape& shape, const AttentionTensors& tensors, void* memory,
                 size_t threads)
      : shape_(shape),
        tensors_(tensors),
        threads_(threads),
        padded_width_(hwy::RoundUpTo(shape.width, kLanes)),
        groups_(hwy::DivCeil(shape.width, kGroup)),
        blocks_(hwy::DivCeil(shape.tokens, kBlockKeys)),
        padded_tokens_(hwy::RoundUpTo(shape.tokens, kStripRows)),
        layout_(LayoutOf(shape.width)) {
    const size_t heads = shape.batch * shape.heads, blocks = heads * blocks_;
    Arena arena(memory);
    keys_ = arena.Allocate<int8_t>(blocks * KeyBytes());
    key_scales_ = arena.Allocate<int16_t>(blocks * kBlockKeys);
    key_units_ = arena.Allocate<float>(blocks);
    key_norms_ = arena.Allocate<float>(blocks);
    key_compensation_ = arena.Allocate<int32_t>(blocks * kBlockKeys);
    key_means_ = arena.Allocate<float>(heads * padded_width_);
    values_ = arena.Allocate<int8_t>(blocks * ValueBytes());
    value_scales_ = arena.Allocate<float>(blocks * padded_width_);
    value_means_ = arena.Allocate<float>(heads * padded_width_);
    queries_ = arena.Allocate<Lhs>(heads * padded_tokens_ * padded_width_);
    query_units_ = arena.Allocate<float>(heads * RowLane(padded_tokens_));
    query_norms_ = arena.Allocate<float>(heads * RowLane(padded_tokens_));
    last_keys_ = arena.Allocate<uint8_t>(kBlockKeys);
    scratches_ = arena.Allocate<uint8_t>(threads * Scratch::Bytes(*this));
    scratch_bytes_ = arena.used() - reinterpret_cast<uintptr_t>(memory) + kCacheLine;
    if (memory == nullptr) return;

    size_t columns[kByteLanes];
    FindColumns(columns);
    for (size_t key = 0; key < kBlockKeys; ++key) {
      columns_[key] = key / kByteLanes * kByteLanes + columns[key % kByteLanes];
      last_keys_[key] = (blocks_ - 1) * kBlockKeys + key < shape.tokens ? 0xFF : 0;
    }
  }

  // What memory at the worst alignment needs.
  size_t scratch_bytes() const { return scratch_bytes_; }

  // The means of an image's keys or values, of all heads. Keys' means are subtracted because they
  // add the same to all scores of a query, which the softmax does not notice; values' means because
  // the weights add up to one. What is left is smaller, hence finer.
  void ComputeMeans(size_t image, bool of_values) {
    const Floats floats;
    const size_t every = (shape_.tokens / kSampledTokens) | 1;  // odd: not one column of the image
    const float* const from =
        (of_values ? tensors_.values : tensors_.keys) + image * shape_.tokens * Stride();
    float* const means =
        (of_values ? value_means_ : key_means_) + image * shape_.heads * padded_width_;
    const Float share =
        hn::Set(floats, 1.0f / static_cast<float>(hwy::DivCeil(shape_.tokens, every)));
    std::fill_n(means, shape_.heads * padded_width_, 0.0f);
    for (size_t token = 0; token < shape_.tokens; token += every) {
      for (size_t head = 0; head < shape_.heads; ++head) {
        const float* const numbers = from + token * Stride() + head * shape_.width;
        float* const mean = means + head * padded_width_;
        for (size_t i = 0; i < shape_.width; i += kLanes) {
          const Float number = LoadUpTo(numbers + i, shape_.width - i);
          hn::Store(hn::MulAdd(number, share, hn::Load(floats, mean + i)), floats, mean + i);
        }
      }
    }
  }

  // A block of 64 tokens, of all heads of an image: so memory is read in its own order, and each
  // page is visited once.
  void Pack(size_t image, size_t block, size_t thread) {
    Scratch scratch(*this, thread);
    const size_t begin = image * shape_.heads, end = begin + shape_.heads;
    Ahead values = BlockOf(tensors_.values, image, block);
    Ahead queries = BlockOf(tensors_.queries, image, block);
    for (size_t head = begin; head < end; ++head) PackKeys(head, block, values, scratch);
    for (size_t head = begin; head < end; ++head) PackValues(head, block, queries, scratch);
    Ahead keys = BlockOf(tensors_.keys, image, block + threads_);  // probably this thread's next
    for (size_t head = begin; head < end; ++head) QuantizeQueries(head, block, keys);
  }

  // One block of queries, of a head that is packed.
  void Attend(size_t head, size_t query_block, size_t thread) const {
    Scratch scratch(*this, thread);
    const size_t first = query_block * kBlockQueries;
    const size_t count = std::min(kBlockQueries, shape_.tokens - first);
    const size_t strips = hwy::DivCeil(count, kStripRows);
    scratch.queries = queries_ + (head * padded_tokens_ + first) * padded_width_;
    const size_t lane = head * RowLane(padded_tokens_) + RowLane(first);
    scratch.query_units = query_units_ + lane;
    scratch.query_norms = query_norms_ + lane;
    std::fill_n(scratch.references, strips * kStripLanes, -kInfinity);
    std::fill_n(scratch.weights, strips * kStripLanes, 0.0f);
    std::fill_n(scratch.sums, strips * kStripRows * padded_width_, 0.0f);
    std::fill_n(scratch.block_factors, 2 * kStripLanes, 0.0f);
    switch (layout_) {
      case Layout::kPanels:
        AttendInTurn(head, strips, scratch);
        break;
#if VK_PIPELINED
      case Layout::kFour:
        AttendPipelined<Layout::kFour>(head, strips, scratch);
        break;
      case Layout::kFourAndHalf:
        AttendPipelined<Layout::kFourAndHalf>(head, strips, scratch);
        break;
      case Layout::kFive:
        AttendPipelined<Layout::kFive>(head, strips, scratch);
        break;
#else
      default:
        break;
#endif
    }
    Normalize(head, first, count, scratch);
  }

 private:
  // How a block's values are packed: in panels as ForEachPanel makes them, for heads of any width;
  // or for the pipeline, as four vectors of channels, and then half a vector, a whole one, or none.
  enum class Layout : uint8_t { kPanels, kFour, kFourAndHalf, kFive };

  static Layout LayoutOf(size_t width) {
#if VK_PIPELINED
    if (width > 60 && width <= 64) return Layout::kFour;
    if (width > 64 && width <= 72) return Layout::kFourAndHalf;
    if (width > 72 && width <= 80) return Layout::kFive;
#else
    static_cast<void>(width);
#endif
    return Layout::kPanels;
  }

  // Some queries and a block of keys.
  struct Strip {
    size_t block;
    size_t row;  // the first, of the block of queries
  };

  // The memory of one thread, for one block of queries or one block of one head to pack. What
  // belongs to rows is indexed by RowLane, and by row where it is a matrix.
  struct Scratch {
    Scratch(const FlashAttention& attention, size_t thread)
        : Scratch(attention, attention.scratches_ + thread * Bytes(attention)) {}

    static size_t Bytes(const FlashAttention& attention) {
      return Scratch(attention, static_cast<uint8_t*>(nullptr)).bytes;
    }

    const Lhs* queries;        // [kBlockQueries, padded_width]
    const float* query_units;  // exponents per score, in units
    const float* query_norms;  // of the queries' integers
    float* references;         // the exponent that the sums are relative to, in units
    float* weights;            // the sum of each query's probabilities so far
    float* sums;               // [kBlockQueries, padded_width]: of probabilities times values

    // Of two strips in turn: side 0 and side 1.
    int16_t* scores;        // [2, kStripRows, kBlockKeys], by WordIndex
    int32_t* sum_shifts;    // [2, kStripLanes]: what makes sums of scores fit into 16 bits
    ExponentScales scales;  // [2, kStripLanes]
    float* block_factors;  // [2, kStripLanes]: what the block's probabilities are worth in the sums

    // Of one strip.
    int16_t* maxima;     // of scores: a vector for each tile, as ReduceStrip takes them
    int16_t* counts;     // sums of probabilities, likewise
    int32_t* reduced;    // [kStripLanes]
    Lhs* probabilities;  // [kStripRows, kBlockKeys]

    // Of the block that is packed.
    int8_t* packed;        // [kBlockKeys, padded_width]
    float* packed_scales;  // of each key, or of each channel

    size_t bytes;

   private:
    Scratch(const FlashAttention& attention, uint8_t* memory) {
      Arena arena(memory);
      references = arena.Allocate<float>(RowLane(kBlockQueries));
      weights = arena.Allocate<float>(RowLane(kBlockQueries));
      sums = arena.Allocate<float>(kBlockQueries * attention.padded_width_);
      scores = arena.Allocate<int16_t>(2 * kStripRows * kBlockKeys);
      sum_shifts = arena.Allocate<int32_t>(2 * kStripLanes);
      scales.top = arena.Allocate<int32_t>(2 * kStripLanes);
      scales.limit = arena.Allocate<int32_t>(2 * kStripLanes);
      scales.shift = arena.Allocate<int32_t>(2 * kStripLanes);
      scales.multiplier = arena.Allocate<int32_t>(2 * kStripLanes);
      block_factors = arena.Allocate<float>(2 * kStripLanes);
      maxima = arena.Allocate<int16_t>(kTiles * kWordLanes);
      counts = arena.Allocate<int16_t>(kTiles * kWordLanes);
      reduced = arena.Allocate<int32_t>(kStripLanes);
      probabilities = arena.Allocate<Lhs>(kStripRows * kBlockKeys);
      packed = arena.Allocate<int8_t>(kBlockKeys * attention.padded_width_);
      packed_scales = arena.Allocate<float>(std::max(kBlockKeys, attention.padded_width_));
      bytes = arena.used() - reinterpret_cast<uintptr_t>(memory);
      queries = nullptr;
      query_units = query_norms = nullptr;
    }
  };

  size_t KeyBytes() const { return kBlockKeys * groups_ * kGroupBytes; }
  size_t ValueBytes() const {
    return kBlockKeys * (layout_ == Layout::kFourAndHalf ? 9 * kLanes / 2 : padded_width_);
  }
  size_t Number(size_t head, size_t block) const { return head * blocks_ + block; }

  // Of the head's row for one token, in each of the tensors.
  size_t Offset(size_t head, size_t token) const {
    const size_t image = head / shape_.heads;
    const size_t row = image * shape_.tokens + token;
    return (row * shape_.heads + head % shape_.heads) * shape_.width;
  }

  size_t Stride() const { return shape_.heads * shape_.width; }  // from one token to the next

  // A block of tokens, of all heads of an image; nothing behind the last one.
  Ahead BlockOf(const float* tensor, size_t image, size_t block) const {
    const size_t first = std::min(shape_.tokens, block * kBlockKeys);
    const size_t end = std::min(shape_.tokens, first + kBlockKeys);
    const float* const tokens = tensor + Offset(image * shape_.heads, 0);
    return {reinterpret_cast<const int8_t*>(tokens + first * Stride()),
            reinterpret_cast<const int8_t*>(tokens + end * Stride())};
  }

  // Of one head's numbers for one token, with its neighbours' share of the first and the last.
  size_t LinesOfHead() const { return hwy::DivCeil(shape_.width * sizeof(float), kCacheLine); }

  // Keys become integers, each key with a scale of its own, in panels of columns. What comes next
  // is fetched meanwhile, in the order in which it lies in memory.
  void PackKeys(size_t head, size_t block, Ahead& next, Scratch& scratch) {
    const Floats floats;
    const size_t number = Number(head, block);
    int8_t* const panels = keys_ + number * KeyBytes();
    const float* const means = key_means_ + head * padded_width_;
    const size_t begin = block * kBlockKeys;
    const float* const keys = tensors_.keys + Offset(head, begin);
    const size_t lines = LinesOfHead();
    for (size_t key = 0; key < kBlockKeys; ++key) {
      // The last token is repeated to fill the last block; `last_keys_` takes its probability away.
      const float* const from = keys + std::min(key, shape_.tokens - 1 - begin) * Stride();
      next.Fetch(lines);
      const auto centred = [&](size_t i) HWY_ATTR {
        return hn::Sub(LoadUpTo(from + i, shape_.width - i), hn::Load(floats, means + i));
      };
      Float largest = hn::Zero(floats);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        largest = hn::Max(largest, hn::Abs(centred(i)));
      }
      const Quantizer quantizer(hn::ReduceMax(floats, largest), Product::kRhsMax);
      scratch.packed_scales[key] = quantizer.scale;
      const Float inverse = hn::Set(floats, quantizer.inverse);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        StoreBytes(Nearest(hn::Mul(centred(i), inverse)), scratch.packed + i);
      }
      // The key is one column of its panel, whose groups lie a row of the panel apart.
      const size_t column = columns_[key] % kPanelKeys;
      int8_t* to = panels + (columns_[key] - column) * groups_ * kGroupBytes + column * kGroupBytes;
      for (size_t group = 0; group < groups_; ++group) {
        memcpy(to, scratch.packed + group * kGroup, kGroupBytes);
        to += kPanelKeys * kGroupBytes;
      }
    }
    SetKeyScales(number, scratch.packed_scales);
    SetKeySums(number, panels);
  }

  // The keys' scales relative to the largest of the block, in 16 bits.
  void SetKeyScales(size_t number, const float* scales) {
    const Floats floats;
    const float largest = *std::max_element(scales, scales + kBlockKeys);
    key_units_[number] = largest * (32768.0f / 32767.0f);
    const Float factor = hn::Set(floats, 32767.0f / largest);
    HWY_ALIGN int32_t relative[kBlockKeys];
    for (size_t key = 0; key < kBlockKeys; key += kLanes) {
      const Float scale = hn::Mul(hn::Load(floats, scales + key), factor);
      hn::Store(Nearest(hn::Min(scale, hn::Set(floats, 32767.0f))), Ints(), relative + key);
    }
    int16_t* const to = key_scales_ + number * kBlockKeys;
    for (size_t key = 0; key < kBlockKeys; ++key) {
      to[SoftmaxTables::WordIndex(key)] = static_cast<int16_t>(relative[key]);
    }
  }

  // Queries are stored plus their zero point; what that adds to a key's sums is compensated by what
  // they begin with. And no sum is larger than the product of the norms of query and key.
  void SetKeySums(size_t number, const int8_t* panels) {
    const hn::Repartition<int8_t, Ints> bytes;
    const Int ones = hn::Set(Ints(), 0x01010101);
    Int longest = hn::Zero(Ints());
    for (size_t column = 0; column < kBlockKeys; column += kLanes) {
      const int8_t* from = panels + column / kPanelKeys * kPanelKeys * groups_ * kGroup +
                           column % kPanelKeys * kGroup;
      Int sum = hn::Zero(Ints()), squares = sum;
      for (size_t group = 0; group < groups_; ++group, from += kPanelKeys * kGroup) {
        const auto keys = hn::Load(bytes, from);
        const Int sizes = hn::BitCast(Ints(), hn::Abs(keys));
        sum = Product::DotAdd(sum, ones, hn::BitCast(Ints(), keys));
        squares = Product::DotAdd(squares, sizes, sizes);
      }
      const Int added = hn::Mul(sum, hn::Set(Ints(), Product::kLhsZeroPoint));
      hn::Store(hn::Neg(added), Ints(), key_compensation_ + number * kBlockKeys + column);
      longest = hn::Max(longest, squares);
    }
    key_norms_[number] = std::sqrt(static_cast<float>(hn::ReduceMax(Ints(), longest)));
  }

  // Values become integers, with a scale for each channel of the block.
  void PackValues(size_t head, size_t block, Ahead& next, Scratch& scratch) {
    for (size_t channel = 0; channel < padded_width_; channel += kChains * kLanes) {
      QuantizeChannels(head, block, channel, next, scratch);
    }
    const size_t number = Number(head, block);
    int8_t* const to = values_ + number * ValueBytes();
    float* const scales = value_scales_ + number * padded_width_;
    std::copy_n(scratch.packed_scales, padded_width_, scales);
    if (layout_ == Layout::kPanels) {
      ForEachPanel(padded_width_ / kLanes, [&](auto vectors, size_t first) HWY_ATTR {
        PackPanel(first, vectors, to + first * kLanes * kBlockKeys, scratch);
      });
      return;
    }
    PackPanel(0, 4, to, scratch);
    if (layout_ == Layout::kFive) PackPanel(4, 1, to + 4 * kLanes * kBlockKeys, scratch);
    if (layout_ == Layout::kFourAndHalf) PackHalf(to + 4 * kLanes * kBlockKeys, scales, scratch);
  }

  // A group holds the same channel of four neighbouring keys.
  void PackPanel(size_t first, size_t vectors, int8_t* to, const Scratch& scratch) const {
    for (size_t group = 0; group < kBlockGroups; ++group) {
      for (size_t v = 0; v < vectors; ++v, to += kLanes * kGroup) {
        InterleaveKeys(group, (first + v) * kLanes, to, scratch);
      }
    }
  }

  void InterleaveKeys(size_t group, size_t channel, int8_t* to, const Scratch& scratch) const {
    const hn::Rebind<int8_t, Ints> bytes;
    const int8_t* const from = scratch.packed + group * kGroup * padded_width_ + channel;
    hn::StoreInterleaved4(hn::Load(bytes, from), hn::Load(bytes, from + padded_width_),
                          hn::Load(bytes, from + 2 * padded_width_),
                          hn::Load(bytes, from + 3 * padded_width_), bytes, to);
  }

  // The fifth vector's channels are at most half a vector: two groups of keys share one. Each
  // channel has two neighbouring lanes, whose sums Normalize adds up.
  void PackHalf(int8_t* to, float* scales, const Scratch& scratch) const {
    for (size_t group = 0; group < kBlockGroups; group += 2, to += kLanes * kGroup) {
      HWY_ALIGN int8_t even[kLanes * kGroup];
      HWY_ALIGN int8_t odd[kLanes * kGroup];
      InterleaveKeys(group, 4 * kLanes, even, scratch);
      InterleaveKeys(group + 1, 4 * kLanes, odd, scratch);
      const Int both = hn::InterleaveWholeLower(Ints(), LoadInts(even), LoadInts(odd));
      hn::Store(both, Ints(), reinterpret_cast<int32_t*>(to));
    }
    const Float scale = hn::Load(Floats(), scales + 4 * kLanes);
    hn::Store(hn::InterleaveWholeLower(Floats(), scale, scale), Floats(), scales + 4 * kLanes);
  }

  static constexpr size_t kChains = kLanes == 16 ? 5 : 3;  // vectors of channels, side by side

  // kChains vectors of channels from `channel` on, less their means. Part of a value's rounding
  // error is carried to the next key: where neighbours weigh about the same, the errors cancel.
  void QuantizeChannels(size_t head, size_t block, size_t channel, Ahead& next,
                        Scratch& scratch) const {
    const Floats floats;
    const size_t first = block * kBlockKeys;
    const size_t count = std::min(kBlockKeys, shape_.tokens - first);
    const size_t chains = std::min(kChains, (padded_width_ - channel) / kLanes);
    Float mean[kChains], reach[kChains], inverse[kChains], error[kChains];
    VK_UNROLL
    for (size_t c = 0; c < kChains; ++c) {
      const float* const means = value_means_ + head * padded_width_ + channel;
      mean[c] = c < chains ? hn::Load(floats, means + c * kLanes) : hn::Zero(floats);
      reach[c] = hn::Set(floats, kSmallest);
      error[c] = hn::Zero(floats);
    }
    const float* const values = tensors_.values + Offset(head, first);
    const auto load = [&](size_t key, size_t c) HWY_ATTR {  // repeats the last one
      const size_t at = std::min(shape_.width, channel + c * kLanes);
      const float* const from = values + std::min(key, count - 1) * Stride() + at;
      return hn::Sub(LoadUpTo(from, shape_.width - at), mean[c]);
    };
    const size_t lines = LinesOfHead();
    for (size_t key = 0; key < count; ++key) {
      next.Fetch(lines);
      VK_UNROLL
      for (size_t c = 0; c < kChains; ++c) reach[c] = hn::Max(reach[c], hn::Abs(load(key, c)));
    }
    const Float limit = hn::Set(floats, Product::kRhsMax);
    VK_UNROLL
    for (size_t c = 0; c < kChains; ++c) {
      inverse[c] = hn::Div(limit, reach[c]);
      if (c >= chains) continue;
      hn::Store(hn::Div(reach[c], limit), floats, scratch.packed_scales + channel + c * kLanes);
    }
    const Float rounder = hn::Set(floats, kRounder);
    for (size_t key = 0; key < kBlockKeys; ++key) {
      VK_UNROLL
      for (size_t c = 0; c < kChains; ++c) {
        const Float exact = hn::MulAdd(error[c], hn::Set(floats, Product::kDiffusion),
                                       hn::Mul(load(key, c), inverse[c]));
        const Float rounded = hn::Add(exact, rounder);
        error[c] = hn::Sub(exact, hn::Sub(rounded, rounder));
        if (c >= chains) continue;
        // At most a quarter above the limit, so still within it when rounded.
        StoreBytes(hn::BitCast(Ints(), rounded),
                   scratch.packed + key * padded_width_ + channel + c * kLanes);
      }
    }
  }

  // Queries become integers, each with a scale of its own; the last is repeated to fill a strip.
  void QuantizeQueries(size_t head, size_t block, Ahead& next) {
    const Floats floats;
    constexpr float kLog2E = 1.44269504f;  // the softmax is made of powers of two
    const size_t end = block + 1 == blocks_ ? padded_tokens_ : (block + 1) * kBlockKeys;
    const float* const queries = tensors_.queries + Offset(head, 0);
    const size_t lines = LinesOfHead();
    for (size_t row = block * kBlockKeys; row < end; ++row) {
      const float* const query = queries + std::min(row, shape_.tokens - 1) * Stride();
      next.Fetch(lines);
      Float largest = hn::Zero(floats);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        largest = hn::Max(largest, hn::Abs(LoadUpTo(query + i, shape_.width - i)));
      }
      const Quantizer quantizer(hn::ReduceMax(floats, largest), 127.0f);
      const Float inverse = hn::Set(floats, quantizer.inverse);
      Lhs* const to = queries_ + (head * padded_tokens_ + row) * padded_width_;
      Float squares = hn::Zero(floats);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        const Int integers = Nearest(hn::Mul(LoadUpTo(query + i, shape_.width - i), inverse));
        StoreBytes(hn::Add(integers, hn::Set(Ints(), Product::kLhsZeroPoint)), to + i);
        const Float rounded = hn::ConvertTo(floats, integers);
        squares = hn::MulAdd(rounded, rounded, squares);
      }
      const size_t lane = head * RowLane(padded_tokens_) + RowLane(row);
      // In units of the largest 16-bit score; a little more, as sums and roots are rounded.
      query_norms_[lane] = std::sqrt(hn::ReduceSum(floats, squares)) * (1.0001f / 32767.0f);
      query_units_[lane] = std::max(quantizer.scale * shape_.scale * kLog2E * kUnitsPerOctave,
                                    std::numeric_limits<float>::min());
      if (row % kTileRows == 0) {  // the unused lane
        query_norms_[lane + kTileRows] = query_units_[lane + kTileRows] = 0.0f;
      }
    }
  }

  // ---- The steps of a strip. `side` is where its numbers are.

  // The shifts that make the strip's sums of scores fit into 16 bits.
  HWY_INLINE void SetSumShifts(Strip strip, Scratch& scratch, size_t side, size_t number) const {
    const Float key_norm = hn::Set(Floats(), key_norms_[number]);
    VK_UNROLL
    for (size_t v = 0; v < kStatisticsVectors; ++v) {
      const Float query_norms =
          hn::Load(Floats(), scratch.query_norms + RowLane(strip.row) + v * kLanes);
      hn::Store(CeilLog2(hn::Mul(query_norms, key_norm), 0), Ints(),
                scratch.sum_shifts + side * kStripLanes + v * kLanes);
    }
  }

  // Once the highest scores are known: how scores become exponents, and what the block's
  // probabilities will be worth. In four steps, so that the pipeline need not wait for the long
  // chain.
  struct Statistics {
    Int tops;
    Float highest;

    HWY_INLINE Statistics() {}  // not by default: GCC for ARM compiles that for another target

    HWY_INLINE void Step(const FlashAttention& attention, size_t number, Strip strip,
                         Scratch& scratch, size_t side, float* pending, size_t k, size_t v = 0) {
      const Floats floats;
      const Ints ints;
      const size_t row_lane = RowLane(strip.row) + v * kLanes;
      const size_t lane = side * kStripLanes + v * kLanes;
      if (k == 0) {
        if (v == 0) {
          ReduceStrip(scratch.maxima, scratch.reduced,
                      [](Word a, Word b) VK_INLINE_LAMBDA { return hn::Max(a, b); });
        }
        tops = hn::Load(ints, scratch.reduced + v * kLanes);
        const Int low = hn::And(tops, hn::Set(ints, 0xFFFF));
        hn::Store(Twice(low), ints, scratch.scales.top + lane);
      }
      if (k == 1) {
        // What one unit of a score is worth in the exponent: a multiplier below 2^16 and a shift.
        const Float unit = hn::Mul(hn::Load(floats, scratch.query_units + row_lane),
                                   hn::Set(floats, attention.key_units_[number]));
        const Float grown = hn::Mul(unit, PowerOf2(hn::Load(ints, scratch.sum_shifts + lane)));
        const Float worth = hn::Min(grown, hn::Set(floats, 32767.0f));
        highest = hn::Mul(hn::ConvertTo(floats, tops), worth);
        const Int shift = hn::Min(CeilLog2(worth, 0), hn::Set(ints, 15));
        const Float scaled = hn::Mul(worth, PowerOf2(hn::Sub(hn::Set(ints, 16), shift)));
        hn::Store(Twice(hn::ConvertTo(ints, scaled)), ints, scratch.scales.multiplier + lane);
        hn::Store(Twice(hn::Shr(hn::Set(ints, 0xFFFF), shift)), ints, scratch.scales.limit + lane);
        const Int shifter = kShiftsByMultiplying ? hn::Shl(hn::Set(ints, 1), shift) : shift;
        hn::Store(Twice(shifter), ints, scratch.scales.shift + lane);
      }
      if (k == 2) {
        const Float reference = hn::Load(floats, scratch.references + row_lane);
        if (HWY_UNLIKELY(!hn::AllFalse(floats, hn::Gt(highest, reference)))) {
          attention.Raise(strip, scratch, &highest, v, pending);
        }
      }
      if (k == 3) {
        const Float reference = hn::Load(floats, scratch.references + row_lane);
        const Float octaves =
            hn::Mul(hn::Sub(highest, reference), hn::Set(floats, 1.0f / kUnitsPerOctave));
        hn::Store(Exp2(octaves), floats, scratch.block_factors + lane);
      }
    }
  };

  // Rows whose highest score rose above their reference get a new one, some octaves higher: as the
  // sums are floats, that is rarely needed again. Their sums so far are worth less, and so is what
  // waits to be added to them (`pending`, if it is for the same rows).
  HWY_NOINLINE void Raise(Strip strip, Scratch& scratch, const Float* highest, size_t v,
                          float* pending) const {
    const Floats floats;
    const size_t row_lane = RowLane(strip.row) + v * kLanes;
    const Float old = hn::Load(floats, scratch.references + row_lane);
    const Float headroom = hn::Set(floats, kHeadroom * kUnitsPerOctave);
    const auto above = hn::Gt(*highest, old);
    const Float raised = hn::IfThenElse(above, hn::Add(*highest, headroom), old);
    const Float octaves = hn::Mul(hn::Sub(old, raised), hn::Set(floats, 1.0f / kUnitsPerOctave));
    HWY_ALIGN float factors[kLanes];
    HWY_ALIGN float olds[kLanes];
    hn::Store(hn::IfThenElse(above, Exp2(octaves), hn::Set(floats, 1.0f)), floats, factors);
    hn::Store(old, floats, olds);
    hn::Store(raised, floats, scratch.references + row_lane);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float factor = factors[lane];
      if (lane % 4 == kTileRows || factor == 1.0f || olds[lane] == -kInfinity) continue;
      if (pending != nullptr) pending[v * kLanes + lane] *= factor;
      scratch.weights[row_lane + lane] *= factor;
      const size_t row = strip.row + (v * kLanes + lane) / 4 * kTileRows + lane % 4;
      float* const sums = scratch.sums + row * padded_width_;
      for (size_t i = 0; i < padded_width_; i += kLanes) {
        hn::Store(hn::Mul(hn::Load(floats, sums + i), hn::Set(floats, factor)), floats, sums + i);
      }
    }
  }

  // Adds the strip's probabilities to the weights of its rows.
  HWY_INLINE void AddWeights(Strip strip, Scratch& scratch, size_t side) const {
    const Floats floats;
    ReduceStrip(scratch.counts, scratch.reduced,
                [](Word a, Word b) VK_INLINE_LAMBDA { return hn::Add(a, b); });
    VK_UNROLL
    for (size_t v = 0; v < kStatisticsVectors; ++v) {
      const Float count = hn::ConvertTo(floats, hn::Load(Ints(), scratch.reduced + v * kLanes));
      const Float factor =
          hn::Load(floats, scratch.block_factors + side * kStripLanes + v * kLanes);
      float* const weights = scratch.weights + RowLane(strip.row) + v * kLanes;
      hn::Store(hn::MulAdd(count, factor, hn::Load(floats, weights)), floats, weights);
    }
  }

  // The keys of the strip's block whose probabilities count, a byte each.
  const uint8_t* ValidKeys(Strip strip) const {
    return strip.block + 1 == blocks_ ? last_keys_ : kSoftmaxTables.all_keys;
  }

  // ---- One step after the other, for heads of any width.

  HWY_NOINLINE void AttendInTurn(size_t head, size_t strips, Scratch& scratch) const {
    for (size_t i = 0; i < strips * blocks_; ++i) {
      const Strip strip{i / strips, i % strips * kStripRows};
      const size_t number = Number(head, strip.block);
      SetSumShifts(strip, scratch, 0, number);
      ComputeScores(number, strip, scratch);
      for (size_t v = 0; v < kStatisticsVectors; ++v) {
        Statistics statistics;
        for (size_t k = 0; k < 4; ++k) {
          statistics.Step(*this, number, strip, scratch, 0, nullptr, k, v);
        }
      }
      for (size_t tile = 0; tile < kTiles; ++tile) Softmax(strip, tile, scratch);
      AddWeights(strip, scratch, 0);
      AccumulateValues(number, strip, scratch);
    }
  }

  void ComputeScores(size_t number, Strip strip, Scratch& scratch) const {
    for (size_t row = 0; row < kStripRows; row += kMR) {
      const Lhs* const queries = scratch.queries + (strip.row + row) * padded_width_;
      const int32_t* const shifts = scratch.sum_shifts + RowLane(row);
      for (size_t key = 0; key < kBlockKeys; key += kPanelKeys) {
        const int32_t* const compensation = key_compensation_ + number * kBlockKeys + key;
        const int16_t* const scales = key_scales_ + number * kBlockKeys + key;
        int16_t* const scores = scratch.scores + row * kBlockKeys + key;
        MultiplyTile<Product, kNR>(
            queries, padded_width_, keys_ + number * KeyBytes() + key * groups_ * kGroupBytes,
            groups_, [=](size_t v) HWY_ATTR { return hn::Load(Ints(), compensation + v * kLanes); },
            [=](size_t r, const Int(&sums)[kNR]) HWY_ATTR {
              const Int shift = hn::Set(Ints(), shifts[RowLane(r)]);
              VK_UNROLL
              for (size_t v = 0; v < kNR; v += 2) {
                const Word score = ToScores(sums[v], sums[v + 1], shift, scales + v * kLanes);
                hn::Store(score, Words(), scores + r * kBlockKeys + v * kLanes);
              }
            });
      }
    }
    for (size_t tile = 0; tile < kTiles; ++tile) {
      Word best[kTileRows];
      for (size_t r = 0; r < kTileRows; ++r) {
        const int16_t* const scores = scratch.scores + (tile * kTileRows + r) * kBlockKeys;
        best[r] = hn::Load(Words(), scores);
        for (size_t i = kWordLanes; i < kBlockKeys; i += kWordLanes) {
          best[r] = hn::Max(best[r], hn::Load(Words(), scores + i));
        }
      }
      hn::Store(MaxOfRows(best[0], best[1], best[2]), Words(), scratch.maxima + tile * kWordLanes);
    }
  }

  // Scores of a tile's three rows become probabilities, relative to the highest of each row.
  void Softmax(Strip strip, size_t tile, Scratch& scratch) const {
    const uint8_t* const valid = ValidKeys(strip);
    Long counts = hn::Zero(Longs());
    VK_UNROLL
    for (size_t r = 0; r < kTileRows; ++r) {
      const size_t row = tile * kTileRows + r;
      Long count = hn::Zero(Longs());
      for (size_t key = 0; key < kBlockKeys; key += kByteLanes) {
        UnsignedWord probabilities[2];
        VK_UNROLL
        for (size_t odd = 0; odd < 2; ++odd) {
          const size_t word = key + odd * kWordLanes;
          const UnsignedWord exponents =
              ToExponents(scratch.scales, RowLane(row), scratch.scores + row * kBlockKeys + word);
          Powers powers;
          powers.LookUp(exponents);
          probabilities[odd] =
              ToProbability(powers.Interpolate(), exponents, kSoftmaxTables.dither + word);
        }
        const Byte bytes = hn::And(ToByteOrder(probabilities[0], probabilities[1]),
                                   hn::Load(Bytes(), valid + key));
        StoreProbabilities(bytes, scratch.probabilities + row * kBlockKeys + key);
        count = hn::Add(count, hn::SumsOf8(bytes));
      }
      counts = hn::Or(counts, hn::Shl(count, hn::Set(Longs(), 16 * r)));
    }
    hn::Store(hn::BitCast(Words(), counts), Words(), scratch.counts + tile * kWordLanes);
  }

  static HWY_INLINE void StoreProbabilities(Byte bytes, Lhs* to) {
    const hn::Repartition<Lhs, Ints> lhs;
    hn::Store(hn::BitCast(lhs, bytes), lhs, to);
  }

  // sums += probabilities * values * scales * block_factors
  void AccumulateValues(size_t number, Strip strip, Scratch& scratch) const {
    for (size_t row = 0; row < kStripRows; row += kMR) {
      ForEachPanel(padded_width_ / kLanes, [&](auto vectors, size_t first) HWY_ATTR {
        constexpr size_t kVectors = decltype(vectors)::value;
        const size_t channel = first * kLanes, stride = padded_width_;
        const float* const scales = value_scales_ + number * padded_width_ + channel;
        const float* const factors = scratch.block_factors + RowLane(row);
        float* const sums = scratch.sums + (strip.row + row) * padded_width_ + channel;
        MultiplyTile<Product, kVectors>(
            scratch.probabilities + row * kBlockKeys, kBlockKeys,
            values_ + number * ValueBytes() + channel * kBlockKeys, kBlockGroups,
            [](size_t) HWY_ATTR { return hn::Zero(Ints()); },
            [=](size_t r, const Int(&products)[kVectors]) HWY_ATTR {
              VK_UNROLL
              for (size_t v = 0; v < kVectors; ++v) {
                AddValues(products[v], scales + v * kLanes, factors[RowLane(r)],
                          sums + r * stride + v * kLanes);
              }
            });
      });
    }
  }

  static HWY_INLINE void AddValues(Int products, const float* scales, float factor, float* sums) {
    const Floats floats;
    const Float part = hn::Mul(hn::ConvertTo(floats, products), hn::Load(floats, scales));
    hn::Store(hn::MulAdd(part, hn::Set(floats, factor), hn::Load(floats, sums)), floats, sums);
  }

  // Divides by the sums of the probabilities.
  void Normalize(size_t head, size_t first, size_t count, const Scratch& scratch) const {
    const Floats floats;
    for (size_t row = 0; row < count; ++row) {
      const Float share = hn::Set(floats, 1.0f / scratch.weights[RowLane(row)]);
      float* const to = tensors_.result + Offset(head, first + row);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        Float sum = hn::Load(floats, scratch.sums + row * padded_width_ + i);
        if (layout_ == Layout::kFourAndHalf && i == 4 * kLanes) {
          sum = hn::Add(hn::ConcatEven(floats, sum, sum), hn::ConcatOdd(floats, sum, sum));
        }
        const Float mean = hn::Load(floats, value_means_ + head * padded_width_ + i);
        hn::StoreN(hn::MulAdd(sum, share, mean), floats, to + i, shape_.width - i);
      }
    }
  }

#if VK_PIPELINED
  // ---- The pipeline: what is not a dot product is done between the dot products, a little after
  // each group of them, since a CPU looks only some dozens of instructions ahead.
  //
  //   dot products   scores of strip n + 1: tile 0 | 1 | 2 | 3    values of strip n: tile 0 | 1 | 2
  //   | 3 between them   epilogue of the tile before                  epilogue of the tile before
  //                  softmax of strip n, a tile's rows each       statistics of strip n + 1,
  //                  weights
  //
  // So there are two sets of sums, 3 x 4 vectors each. GCC keeps them in registers only while every
  // index is a constant (Unroll), and would load a column again for each dot product if it could
  // (LoadOnce).

  static constexpr size_t kSteps = 16;  // groups between which something is done

  struct Sums {
    Int four[kTileRows][4];
    Int fifth[kTileRows];  // of the half or whole fifth vector of values
  };

  static HWY_INLINE void ClearFour(Sums& sums) {
    Unroll<4 * kTileRows>([&](auto i)
                              VK_INLINE_LAMBDA { sums.four[i / 4][i % 4] = hn::Zero(Ints()); });
  }
  static HWY_INLINE void ClearFifth(Sums& sums) {
    Unroll<kTileRows>([&](auto r) VK_INLINE_LAMBDA { sums.fifth[r] = hn::Zero(Ints()); });
  }

  template <class T>
  static HWY_INLINE Int LoadOnce(const T* from) {
    Int x = LoadInts(from);
    asm("" : "+v"(x.raw));
    return x;
  }
  template <class T>
  static HWY_INLINE Int Broadcast(const Lhs* from) {
    T bits;
    memcpy(&bits, from, sizeof(bits));
    Int x = hn::BitCast(Ints(), hn::Set(hn::Repartition<T, Ints>(), bits));
    asm("" : "+v"(x.raw));
    return x;
  }

  // One group of three rows and four vectors of columns.
  static HWY_INLINE void MultiplyGroup(Sums& sums, const Lhs* rows, size_t stride,
                                       const int8_t* columns) {
    Int row[kTileRows];
    VK_UNROLL
    for (size_t r = 0; r < kTileRows; ++r) row[r] = Broadcast<int32_t>(rows + r * stride);
    VK_UNROLL
    for (size_t v = 0; v < 4; ++v) {
      const Int column = LoadOnce(columns + v * kLanes * kGroup);
      VK_UNROLL
      for (size_t r = 0; r < kTileRows; ++r) {
        sums.four[r][v] = Product::DotAdd(sums.four[r][v], row[r], column);
      }
    }
  }

  // Each `between(k)` is called after the k-th of the first kSteps groups, k being a constant.
  template <class Between>
  HWY_INLINE void MultiplyKeys(Sums& sums, size_t number, Strip strip, size_t tile,
                               const Scratch& scratch, const Between& between) const {
    constexpr size_t kGroupOfPanel = kBlockKeys * kGroup;
    const int8_t* const panel = keys_ + number * KeyBytes();
    const Lhs* const rows = scratch.queries + (strip.row + tile * kTileRows) * padded_width_;
    VK_UNROLL
    for (size_t v = 0; v < 4; ++v) {
      const Int start = hn::Load(Ints(), key_compensation_ + number * kBlockKeys + v * kLanes);
      VK_UNROLL
      for (size_t r = 0; r < kTileRows; ++r) sums.four[r][v] = start;
    }
    Unroll<kSteps>([&](auto k) VK_INLINE_LAMBDA {
      MultiplyGroup(sums, rows + k * kGroup, padded_width_, panel + k * kGroupOfPanel);
      between(k);
    });
    for (size_t group = kSteps; group < groups_; ++group) {
      MultiplyGroup(sums, rows + group * kGroup, padded_width_, panel + group * kGroupOfPanel);
    }
  }

  // The fifth vector begins late, when the epilogue of the tile before has freed registers for it.
  template <Layout layout, class Between>
  HWY_INLINE void MultiplyValues(Sums& sums, size_t number, size_t tile, const Scratch& scratch,
                                 const Between& between) const {
    const Lhs* const rows = scratch.probabilities + tile * kTileRows * kBlockKeys;
    const int8_t* const four = values_ + number * ValueBytes();
    const int8_t* const fifth = four + 4 * kLanes * kBlockKeys;
    ClearFour(sums);
    Unroll<kSteps>([&](auto k) VK_INLINE_LAMBDA {
      MultiplyGroup(sums, rows + k * kGroup, kBlockKeys, four + k * 4 * kLanes * kGroup);
      if (layout != Layout::kFour && k >= kSteps / 2) {
        const size_t pair = k - kSteps / 2;
        if (pair == 0) ClearFifth(sums);
        if constexpr (layout == Layout::kFourAndHalf) {
          AddFifth<int64_t>(sums, rows, pair, fifth);
        } else {
          AddFifth<int32_t>(sums, rows, 2 * pair, fifth);
          AddFifth<int32_t>(sums, rows, 2 * pair + 1, fifth);
        }
      }
      between(k);
    });
  }
  template <class T>  // as wide as the groups that share a vector
  static HWY_INLINE void AddFifth(Sums& sums, const Lhs* rows, size_t vector,
                                  const int8_t* columns) {
    const Int column = LoadOnce(columns + vector * kLanes * kGroup);
    VK_UNROLL
    for (size_t r = 0; r < kTileRows; ++r) {
      const Int row = Broadcast<T>(rows + r * kBlockKeys + vector * sizeof(T));
      sums.fifth[r] = Product::DotAdd(sums.fifth[r], row, column);
    }
  }

  // What is done between the dot products, in kSteps steps.

  struct ScoresEpilogue {
    const int16_t* key_scales;
    const int32_t* shifts;
    int16_t* scores;
    int16_t* maxima;
    Word best[kTileRows];

    HWY_INLINE ScoresEpilogue(const FlashAttention& attention, size_t number, size_t tile,
                              const Scratch& scratch, size_t side)
        : key_scales(attention.key_scales_ + number * kBlockKeys),
          shifts(scratch.sum_shifts + side * kStripLanes + tile * 4),
          scores(scratch.scores + (side * kStripRows + tile * kTileRows) * kBlockKeys),
          maxima(scratch.maxima + tile * kWordLanes) {}

    HWY_INLINE void Step(const Sums& sums, size_t k) {
      if (k < 2 * kTileRows) {
        const size_t r = k / 2, half = k % 2;
        const Word score = ToScores(sums.four[r][2 * half], sums.four[r][2 * half + 1],
                                    hn::Set(Ints(), shifts[r]), key_scales + half * kWordLanes);
        hn::Store(score, Words(), scores + r * kBlockKeys + half * kWordLanes);
        best[r] = half == 0 ? score : hn::Max(best[r], score);
      }
      if (k == 2 * kTileRows) {
        hn::Store(MaxOfRows(best[0], best[1], best[2]), Words(), maxima);
      }
    }
  };

  template <Layout layout>
  struct ValuesEpilogue {
    const float* scales;
    const float* factors;
    float* to;
    size_t stride;

    HWY_INLINE ValuesEpilogue(const FlashAttention& attention, size_t number, Strip strip,
                              size_t tile, const Scratch& scratch, size_t side)
        : scales(attention.value_scales_ + number * attention.padded_width_),
          factors(scratch.block_factors + side * kStripLanes + tile * 4),
          to(scratch.sums + (strip.row + tile * kTileRows) * attention.padded_width_),
          stride(attention.padded_width_) {}

    HWY_INLINE void Step(const Sums& sums, size_t k) {
      // Two vectors a step, the fifth ones first: the next tile needs their registers soon.
      if (k < 8) Add(sums, 2 * k);
      if (k < 8) Add(sums, 2 * k + 1);
    }
    HWY_INLINE void Add(const Sums& sums, size_t i) {
      constexpr size_t kFifths = layout == Layout::kFour ? 0 : kTileRows;
      if (i >= kFifths + 4 * kTileRows) return;
      const size_t r = i < kFifths ? i : (i - kFifths) / 4;
      const size_t v = i < kFifths ? 4 : (i - kFifths) % 4;
      AddValues(v == 4 ? sums.fifth[r] : sums.four[r][v], scales + v * kLanes, factors[r],
                to + r * stride + v * kLanes);
    }
  };

  // The softmax of a tile's three rows. Half a row, 32 keys, takes three steps, one after the
  // other, so that what a step needs is ready; the next half begins with the third.
  struct SoftmaxSteps {
    ExponentScales scales;
    size_t lane;
    const int16_t* scores;
    const uint8_t* valid;
    Lhs* probabilities;
    int16_t* counts;
    UnsignedWord exponents, even;
    Powers powers;
    Long count;

    HWY_INLINE SoftmaxSteps(const FlashAttention& attention, Strip strip, size_t tile,
                            const Scratch& scratch, size_t side)
        : scales(scratch.scales),
          lane(side * kStripLanes + tile * 4),
          scores(scratch.scores + (side * kStripRows + tile * kTileRows) * kBlockKeys),
          valid(attention.ValidKeys(strip)),
          probabilities(scratch.probabilities + tile * kTileRows * kBlockKeys),
          counts(scratch.counts + tile * kWordLanes) {}

    HWY_INLINE void Step(size_t k) {
      // Half i = 2 * row + odd: exponents in step 2 i + 3, powers in 2 i + 4, probabilities in 2 i
      // + 5.
      if (k >= 5 && k % 2 == 1) Finish((k - 5) / 2);
      if (k >= 3 && k % 2 == 1 && k < 15) {
        const size_t half = (k - 3) / 2;
        exponents = ToExponents(scales, lane + half / 2, scores + half * kWordLanes);
      }
      if (k >= 4 && k % 2 == 0) powers.LookUp(exponents);
    }
    HWY_INLINE void Finish(size_t half) {
      const size_t r = half / 2, odd = half % 2;
      const UnsignedWord probability =
          ToProbability(powers.Interpolate(), exponents, kSoftmaxTables.dither + odd * kWordLanes);
      if (odd == 0) {
        even = probability;
        return;
      }
      const Byte bytes = hn::And(ToByteOrder(even, probability), hn::Load(Bytes(), valid));
      StoreProbabilities(bytes, probabilities + r * kBlockKeys);
      const Long sum = hn::SumsOf8(bytes);
      if (r == 0) count = sum;
      if (r == 1) count = hn::Or(count, hn::ShiftLeft<16>(sum));
      if (r == 2) {
        count = hn::Or(count, hn::ShiftLeft<32>(sum));
        hn::Store(hn::BitCast(Words(), count), Words(), counts);
      }
    }
  };

  template <Layout layout>
  HWY_NOINLINE void AttendPipelined(size_t head, size_t strips, Scratch& scratch) const {
    const auto nothing = [](auto) VK_INLINE_LAMBDA {};
    const size_t first = Number(head, 0);
    Strip now{0, 0}, before = now;

    // The first strip's scores and statistics; then nothing waits to be added.
    SetSumShifts(now, scratch, 0, first);
    for (size_t tile = 0; tile < kTiles; ++tile) {
      Sums sums;
      MultiplyKeys(sums, first, now, tile, scratch, nothing);
      ScoresEpilogue epilogue(*this, first, tile, scratch, 0);
      Unroll<kSteps>([&](auto k) VK_INLINE_LAMBDA { epilogue.Step(sums, k); });
    }
    Statistics statistics;
    for (size_t k = 0; k < 4; ++k) statistics.Step(*this, first, now, scratch, 0, nullptr, k);
    Sums old;
    ClearFour(old);
    ClearFifth(old);

    size_t side = 0;
    for (size_t i = 1; i < strips * blocks_; ++i, side ^= 1) {
      const bool same_block = now.row + kStripRows < strips * kStripRows;
      const Strip next =
          same_block ? Strip{now.block, now.row + kStripRows} : Strip{now.block + 1, 0};
      const size_t now_number = first + now.block, next_number = first + next.block;
      const size_t other = side ^ 1;
      {  // the next strip's scores
        ValuesEpilogue<layout> epilogue(*this, first + before.block, before, kTiles - 1, scratch,
                                        other);
        SoftmaxSteps softmax(*this, now, 0, scratch, side);
        Sums sums;
        MultiplyKeys(sums, next_number, next, 0, scratch, [&](auto k) VK_INLINE_LAMBDA {
          epilogue.Step(old, k);
          softmax.Step(k);
          if (k == 1) SetSumShifts(next, scratch, other, next_number);
        });
        old = sums;
      }
      for (size_t tile = 1; tile < kTiles; ++tile) {
        ScoresEpilogue epilogue(*this, next_number, tile - 1, scratch, other);
        SoftmaxSteps softmax(*this, now, tile, scratch, side);
        Sums sums;
        MultiplyKeys(sums, next_number, next, tile, scratch, [&](auto k) VK_INLINE_LAMBDA {
          epilogue.Step(old, k);
          softmax.Step(k);
        });
        old = sums;
      }
      {  // this strip's values
        ScoresEpilogue epilogue(*this, next_number, kTiles - 1, scratch, other);
        Sums sums;
        MultiplyValues<layout>(sums, now_number, 0, scratch,
                               [&](auto k) VK_INLINE_LAMBDA { epilogue.Step(old, k); });
        old = sums;
      }
      {
        ValuesEpilogue<layout> epilogue(*this, now_number, now, 0, scratch, side);
        float* const pending =
            next.row == now.row ? scratch.block_factors + side * kStripLanes : nullptr;
        Sums sums;
        MultiplyValues<layout>(sums, now_number, 1, scratch, [&](auto k) VK_INLINE_LAMBDA {
          epilogue.Step(old, k);
          if (k == 2) AddWeights(now, scratch, side);
          if (k >= 6 && k <= 12 && k % 2 == 0) {
            statistics.Step(*this, next_number, next, scratch, other, pending, (k - 6) / 2);
          }
        });
        old = sums;
      }
      for (size_t tile = 2; tile < kTiles; ++tile) {
        ValuesEpilogue<layout> epilogue(*this, now_number, now, tile - 1, scratch, side);
        Sums sums;
        MultiplyValues<layout>(sums, now_number, tile, scratch,
                               [&](auto k) VK_INLINE_LAMBDA { epilogue.Step(old, k); });
        old = sums;
      }
      before = now;
      now = next;
    }

    // The last strip's softmax and values.
    ValuesEpilogue<layout> epilogue(*this, first + before.block, before, kTiles - 1, scratch,
                                    side ^ 1);
    Unroll<kSteps>([&](auto k) VK_INLINE_LAMBDA { epilogue.Step(old, k); });
    for (size_t tile = 0; tile < kTiles; ++tile) {
      SoftmaxSteps softmax(*this, now, tile, scratch, side);
      Unroll<kSteps>([&](auto k) VK_INLINE_LAMBDA { softmax.Step(k); });
    }
    AddWeights(now, scratch, side);
    for (size_t tile = 0; tile < kTiles; ++tile) {
      const size_t number = first + now.block;
      Sums sums;
      MultiplyValues<layout>(sums, number, tile, scratch, nothing);
      ValuesEpilogue<layout> last(*this, number, now, tile, scratch, side);
      Unroll<kSteps>([&](auto k) VK_INLINE_LAMBDA { last.Step(sums, k); });
    }
  }
#endif  // VK_PIPELINED

  const AttentionShape shape_;
  const AttentionTensors tensors_;
  const size_t threads_;
  const size_t padded_width_;   // of a head, in whole vectors
  const size_t groups_;         // of a key
  const size_t blocks_;         // of keys
  const size_t padded_tokens_;  // in whole strips
  const Layout layout_;
  size_t columns_[kBlockKeys];  // of each key in its block, see FindColumns

  // Parts of the scratch memory, for all heads, block after block.
  int8_t* keys_;               // panels of kPanelKeys keys
  int16_t* key_scales_;        // [kBlockKeys], relative to the unit, by WordIndex
  float* key_units_;           // the largest scale of the block
  float* key_norms_;           // of the block's longest key, in integers
  int32_t* key_compensation_;  // [kBlockKeys], by column
  float* key_means_;           // [padded_width], of a head
  int8_t* values_;             // see Layout
  float* value_scales_;        // [padded_width]
  float* value_means_;         // [padded_width], of a head
  Lhs* queries_;               // [padded_tokens, padded_width]
  float* query_units_;         // by RowLane
  float* query_norms_;         // by RowLane
  uint8_t* last_keys_;         // [kBlockKeys]: which of the last block there are
  uint8_t* scratches_;         // one per thread
  size_t scratch_bytes_;
};

template <class Product>
void Run(const AttentionShape& shape, const AttentionTensors& tensors, void* scratch,
         const ThreadPool& pool) {
  FlashAttention<Product> attention(shape, tensors, scratch, pool.threads);
  pool.ParallelFor(2 * shape.batch,
                   [&](size_t task, size_t) { attention.ComputeMeans(task / 2, task % 2 != 0); });
  const size_t key_blocks = hwy::DivCeil(shape.tokens, kBlockKeys);
  pool.ParallelFor(shape.batch * key_blocks, [&](size_t task, size_t thread) {
    attention.Pack(task / key_blocks, task % key_blocks, thread);
  });
  const size_t query_blocks = hwy::DivCeil(shape.tokens, kBlockQueries);
  pool.ParallelFor(shape.batch * shape.heads * query_blocks, [&](size_t task, size_t thread) {
    attention.Attend(task / query_blocks, task % query_blocks, thread);
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
