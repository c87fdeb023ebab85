// Flash attention in small integers: the scores of a few queries with a block of keys are made,
// turned into probabilities and spent on the block's values before the next block is looked at.
//
// docs/kernels.md explains the steps and the picture of the blocking. This file knows how attention
// is blocked; products-inl.h knows how numbers are multiplied; neither knows ONNX Runtime.

#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set, up to HWY_ONCE
#include "hwy/highway.h"
#include "products-inl.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

// The older instruction sets, which Highway compiles for as well, have no products to our taste.
#undef VK_SERVED
#if HWY_ARCH_X86
#define VK_SERVED (HWY_TARGET == HWY_AVX2 || HWY_TARGET <= HWY_AVX3_DL)
#else
#define VK_SERVED (HWY_TARGET == HWY_NEON || HWY_TARGET == HWY_NEON_BF16)
#endif

#if VK_SERVED

constexpr size_t kBlockKeys = 64;      // values share a scale within a block: larger is less exact
constexpr size_t kBlockQueries = 120;  // a multiple of kRows; their sums stay in the L2 cache
constexpr size_t kCacheLine = 64;
constexpr float kSmallest = 1e-36f;  // scales below it count as this, so that none divides by zero
constexpr size_t kBlockVectors = kBlockKeys / kLanes;

// Deals out consecutive, aligned parts of one piece of memory; from null, just adds them up.
class Carver {
 public:
  explicit Carver(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)) {}

  template <class T>
  T* Take(size_t count) {
    next_ = hwy::RoundUpTo(next_, kCacheLine);
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += count * sizeof(T);
    return taken;
  }

  uintptr_t next() const { return next_; }

 private:
  uintptr_t next_;
};

// The numbers that `max |x| <= limit` makes of floats: x divided by `step`, rounded.
struct Quantiser {
  Quantiser(float largest, float limit)
      : step(std::max(largest, kSmallest) / limit), inverse(limit / std::max(largest, kSmallest)) {}
  float step;
  float inverse;
};

HWY_INLINE Float LoadUpTo(const float* from, size_t count) {
  return count >= kLanes ? hn::LoadU(Floats(), from) : hn::LoadN(Floats(), from, count);
}

// Stores kLanes integers as Format's left or right factors, which they fit.
template <class T>
HWY_INLINE void StoreIntegers(Int integers, T* to) {
  const hn::Rebind<T, Ints> narrow;
  hn::StoreU(hn::DemoteTo(narrow, integers), narrow, to);
}

// ScoreFormat multiplies queries with keys, ValueFormat probabilities with values.
template <class ScoreFormat, class ValueFormat>
class FlashAttention {
  using Query = typename ScoreFormat::Left;
  using Key = typename ScoreFormat::Right;
  using Probability = typename ValueFormat::Left;
  using Value = typename ValueFormat::Right;

 public:
  FlashAttention(const AttentionShape& shape, const AttentionTensors& tensors, void* workspace,
                 size_t workers)
      : shape_(shape),
        tensors_(tensors),
        row_(shape.heads * shape.width),
        padded_width_(hwy::RoundUpTo(shape.width, kLanes)),
        key_groups_(hwy::DivCeil(shape.width, ScoreFormat::kGroup)),
        blocks_(hwy::DivCeil(shape.tokens, kBlockKeys)) {
    const size_t heads = shape.batch * shape.heads;
    const size_t keys_of_head = blocks_ * kBlockKeys;
    Carver carver(workspace);
    packed_keys_ = carver.Take<uint8_t>(heads * keys_of_head * key_groups_ * sizeof(int32_t));
    key_steps_ = carver.Take<float>(heads * keys_of_head);
    key_starts_ = carver.Take<int32_t>(heads * keys_of_head);
    packed_values_ = carver.Take<uint8_t>(heads * keys_of_head * padded_width_ * sizeof(Value));
    value_steps_ = carver.Take<float>(heads * blocks_ * padded_width_);
    value_centres_ = carver.Take<float>(heads * blocks_ * padded_width_);
    desks_ = carver.Take<uint8_t>(0);
    Desk first(*this, desks_);
    desk_bytes_ = first.bytes;
    workspace_bytes_ = reinterpret_cast<uintptr_t>(desks_) - reinterpret_cast<uintptr_t>(workspace) +
                       workers * desk_bytes_ + kCacheLine;
  }

  size_t workspace_bytes() const { return workspace_bytes_; }

  // Must be done for a head before `Attend` is called for it.
  void Pack(size_t head, size_t worker) {
    Desk desk(*this, desks_ + worker * desk_bytes_);
    PackKeys(head, desk);
    PackValues(head);
  }

  void Attend(size_t head, size_t query_block, size_t worker) {
    Desk desk(*this, desks_ + worker * desk_bytes_);
    const size_t first = query_block * kBlockQueries;
    const size_t count = std::min(kBlockQueries, shape_.tokens - first);
    const size_t padded = hwy::RoundUpTo(count, kRows);
    TakeQueries(head, first, count, padded, desk);
    for (size_t block = 0; block < blocks_; ++block) {
      for (size_t row = 0; row < padded; row += kRows) {
        Score(head, block, row, desk);
        Weigh(block, row, desk);
        Accumulate(head, block, row, desk);
      }
    }
    Finish(head, first, count, desk);
  }

 private:
  // What one worker needs for one block of queries.
  struct Desk {
    Desk(const FlashAttention& attention, uint8_t* memory) {
      Carver carver(memory);
      query_stride = hwy::RoundUpTo(attention.shape_.width, kLanes) * sizeof(Query);
      queries = carver.Take<uint8_t>(kBlockQueries * query_stride);
      query_steps = carver.Take<float>(kBlockQueries);
      highest = carver.Take<float>(kBlockQueries);
      weights = carver.Take<float>(kBlockQueries);
      sums = carver.Take<float>(kBlockQueries * attention.padded_width_);
      scores = carver.Take<float>(kRows * kBlockKeys);
      probabilities = carver.Take<Probability>(kRows * kBlockKeys);
      means = carver.Take<float>(attention.padded_width_);
      key = carver.Take<Key>(attention.padded_width_ + kLanes);
      carver.Take<uint8_t>(0);
      bytes = carver.next() - reinterpret_cast<uintptr_t>(memory);
    }

    uint8_t* queries;  // rows of numbers, query_stride bytes apart
    size_t query_stride;
    float* query_steps;  // what one unit of a query row is worth, in powers of two of probability
    float* highest;      // the highest score of each row so far
    float* weights;      // the sum of each row's probabilities so far, relative to `highest`
    float* sums;         // [kBlockQueries, padded_width]: the sum of probability times value
    float* scores;       // [kRows, kBlockKeys]
    Probability* probabilities;  // [kRows, kBlockKeys]
    float* means;                // of the keys
    Key* key;                    // one key as numbers
    size_t bytes;

    // Of the kRows rows at hand, set by Weigh and spent by Accumulate.
    float kept[kRows];      // what the earlier sums still count
    float gained[kRows];    // what this block's probabilities count
    float block_sum[kRows];  // of this block's probabilities
  };

  // `head` counts through all images.
  size_t Offset(size_t head, size_t token) const {
    const size_t image = head / shape_.heads;
    return (image * shape_.tokens + token) * row_ + head % shape_.heads * shape_.width;
  }

  const float* Row(const float* matrix, size_t head, size_t token) const {
    return matrix + Offset(head, token);
  }

  // Keys become numbers of 8 or 16 bits, each key with its own scale. Their mean is subtracted
  // first: it adds the same to all scores of a query, which the softmax does not notice, and what
  // is left is smaller, hence finer.
  void PackKeys(size_t head, Desk& desk) {
    const Floats floats;
    const size_t width = shape_.width;
    std::fill_n(desk.means, padded_width_, 0.0f);
    for (size_t token = 0; token < shape_.tokens; ++token) {
      const float* const key = Row(tensors_.keys, head, token);
      for (size_t i = 0; i < width; i += kLanes) {
        const Float mean = hn::Load(floats, desk.means + i);
        hn::Store(hn::Add(mean, LoadUpTo(key + i, width - i)), floats, desk.means + i);
      }
    }
    const float share = 1.0f / static_cast<float>(shape_.tokens);
    for (size_t i = 0; i < width; ++i) desk.means[i] *= share;

    const size_t key_bytes = key_groups_ * sizeof(int32_t);
    uint8_t* const panels = packed_keys_ + head * blocks_ * kBlockKeys * key_bytes;
    float* const steps = key_steps_ + head * blocks_ * kBlockKeys;
    int32_t* const starts = key_starts_ + head * blocks_ * kBlockKeys;
    for (size_t token = 0; token < blocks_ * kBlockKeys; ++token) {
      if (token < shape_.tokens) {
        int32_t sum;
        steps[token] = QuantiseKey(Row(tensors_.keys, head, token), desk, sum);
        // Queries are stored plus kLeftShift: what that adds to the product is taken off here.
        starts[token] = -ScoreFormat::kLeftShift * sum;
      } else {  // beyond the last key; Weigh leaves these out
        std::fill_n(desk.key, padded_width_, Key{0});
        steps[token] = 0.0f;
        starts[token] = 0;
      }
      // One column of its panel: its groups lie a row of the panel apart.
      constexpr size_t kColumns = kTileVectors * kLanes;
      uint8_t* column = panels + token / kColumns * kColumns * key_bytes +
                        token % kColumns * sizeof(int32_t);
      for (size_t group = 0; group < key_groups_; ++group) {
        memcpy(column, desk.key + group * ScoreFormat::kGroup, sizeof(int32_t));
        column += kColumns * sizeof(int32_t);
      }
    }
  }

  float QuantiseKey(const float* key, Desk& desk, int32_t& sum) const {
    const Floats floats;
    const size_t width = shape_.width;
    Float largest = hn::Zero(floats);
    for (size_t i = 0; i < width; i += kLanes) {
      const Float mean = hn::Load(floats, desk.means + i);
      largest = hn::Max(largest, hn::Abs(hn::Sub(LoadUpTo(key + i, width - i), mean)));
    }
    const Quantiser quantiser(hn::ReduceMax(floats, largest), ScoreFormat::kRightLimit);
    Int total = hn::Zero(Ints());
    for (size_t i = 0; i < width; i += kLanes) {
      const Float mean = hn::Load(floats, desk.means + i);
      const Float centred = hn::Sub(LoadUpTo(key + i, width - i), mean);
      const Int integers = hn::NearestInt(hn::Mul(centred, hn::Set(floats, quantiser.inverse)));
      StoreIntegers(integers, desk.key + i);
      total = hn::Add(total, integers);
    }
    sum = hn::ReduceSum(Ints(), total);
    return quantiser.step;
  }

  // Values have the centre of their block of keys subtracted, per channel, and become integers with
  // one scale for that block and channel, or bf16. A group is the same channel of neighbouring keys.
  void PackValues(size_t head) {
    for (size_t block = 0; block < blocks_; ++block) {
      const size_t first = block * kBlockKeys;
      const size_t count = std::min(kBlockKeys, shape_.tokens - first);
      uint8_t* const panels = packed_values_ + (head * blocks_ + block) * ValueBlockBytes();
      ForEachPanel(padded_width_ / kLanes, [&](auto vectors, size_t first_vector) HWY_ATTR {
        uint8_t* const panel = panels + first_vector * kLanes * kBlockKeys * sizeof(Value);
        for (size_t v = 0; v < vectors; ++v) {
          PackChannels(head, first, count, (first_vector + v) * kLanes,
                       panel + v * kLanes * sizeof(int32_t),
                       vectors * kLanes * sizeof(int32_t));
        }
      });
    }
  }

  size_t ValueBlockBytes() const { return kBlockKeys * padded_width_ * sizeof(Value); }

  // kLanes channels from `channel` on, of `count` keys; groups lie `stride` bytes apart.
  void PackChannels(size_t head, size_t first, size_t count, size_t channel, uint8_t* to,
                    size_t stride) {
    const Floats floats;
    const size_t channels = shape_.width - channel;
    const auto load = [&](size_t key) HWY_ATTR {
      return key < count ? LoadUpTo(Row(tensors_.values, head, first + key) + channel, channels)
                         : hn::Zero(floats);  // its probability is zero, whatever this is
    };
    Float lowest = load(0), highest = load(0);
    for (size_t key = 1; key < count; ++key) {
      lowest = hn::Min(lowest, load(key));
      highest = hn::Max(highest, load(key));
    }
    const Float half = hn::Set(floats, 0.5f);
    const Float centre = hn::MulAdd(half, lowest, hn::Mul(half, highest));
    const size_t at = (head * blocks_ + first / kBlockKeys) * padded_width_ + channel;
    hn::Store(centre, floats, value_centres_ + at);

    if constexpr (ValueFormat::kInteger) {
      const Float limit = hn::Set(floats, ValueFormat::kRightLimit);
      const Float reach = hn::Max(hn::Sub(highest, centre), hn::Set(floats, kSmallest));
      hn::Store(hn::Div(reach, limit), floats, value_steps_ + at);
      const Float inverse = hn::Div(limit, reach);
      const hn::Rebind<Value, Floats> narrow;
      const auto quantise = [&](size_t key) HWY_ATTR {
        return hn::DemoteTo(narrow, hn::NearestInt(hn::Mul(hn::Sub(load(key), centre), inverse)));
      };
      for (size_t key = 0; key < kBlockKeys; key += ValueFormat::kGroup, to += stride) {
        Value* const group = reinterpret_cast<Value*>(to);
        if constexpr (ValueFormat::kGroup == 4) {
          hn::StoreInterleaved4(quantise(key), quantise(key + 1), quantise(key + 2),
                                quantise(key + 3), narrow, group);
        } else {
          hn::StoreInterleaved2(quantise(key), quantise(key + 1), narrow, group);
        }
      }
    } else {
      const hn::Rebind<hwy::bfloat16_t, Floats> narrow;
      const hn::Rebind<uint16_t, Floats> bits;
      const auto shorten = [&](size_t key) HWY_ATTR {
        return hn::BitCast(bits, hn::DemoteTo(narrow, hn::Sub(load(key), centre)));
      };
      for (size_t key = 0; key < kBlockKeys; key += 2, to += stride) {
        hn::StoreInterleaved2(shorten(key), shorten(key + 1), bits,
                              reinterpret_cast<uint16_t*>(to));
      }
    }
  }

  // Queries become numbers, each row with its own scale; rows up to `padded` repeat the last one.
  void TakeQueries(size_t head, size_t first, size_t count, size_t padded, Desk& desk) const {
    const Floats floats;
    const size_t width = shape_.width;
    const float log2_e = 1.44269504f;  // so that the softmax can use powers of two
    for (size_t row = 0; row < padded; ++row) {
      const float* const query = Row(tensors_.queries, head, first + std::min(row, count - 1));
      Float largest = hn::Zero(floats);
      for (size_t i = 0; i < width; i += kLanes) {
        largest = hn::Max(largest, hn::Abs(LoadUpTo(query + i, width - i)));
      }
      const Quantiser quantiser(hn::ReduceMax(floats, largest), ScoreFormat::kSignedLeftLimit);
      Query* const to = reinterpret_cast<Query*>(desk.queries + row * desk.query_stride);
      for (size_t i = 0; i < width; i += kLanes) {
        const Float scaled =
            hn::Mul(LoadUpTo(query + i, width - i), hn::Set(floats, quantiser.inverse));
        StoreIntegers(
            hn::Add(hn::NearestInt(scaled), hn::Set(Ints(), ScoreFormat::kLeftShift)), to + i);
      }
      // Above zero, or the scores of padding could not be minus infinity times this.
      desk.query_steps[row] = std::max(quantiser.step * shape_.scale * log2_e,
                                       std::numeric_limits<float>::min());
    }
    std::fill_n(desk.highest, padded, -std::numeric_limits<float>::infinity());
    std::fill_n(desk.weights, padded, 0.0f);
    std::fill_n(desk.sums, padded * padded_width_, 0.0f);
  }

  // Products of kRows queries with a block of keys, still to be multiplied by the queries' steps.
  void Score(size_t head, size_t block, size_t row, Desk& desk) const {
    const Floats floats;
    constexpr size_t kColumns = kTileVectors * kLanes;
    const size_t panel_bytes = key_groups_ * kColumns * sizeof(int32_t);
    for (size_t column = 0; column < kBlockKeys; column += kColumns) {
      const size_t key = (head * blocks_ + block) * kBlockKeys + column;
      const float* const steps = key_steps_ + key;
      const int32_t* const starts = key_starts_ + key;
      float* const scores = desk.scores + column;
      MultiplyTile<ScoreFormat, kTileVectors>(
          desk.queries + row * desk.query_stride, desk.query_stride,
          packed_keys_ + key / kColumns * panel_bytes, key_groups_,
          [starts](size_t v) HWY_ATTR { return hn::Load(Ints(), starts + v * kLanes); },
          [steps, scores, floats](size_t r, size_t v, Int sum) HWY_ATTR {
            const Float score = hn::Mul(ToFloat(sum), hn::Load(floats, steps + v * kLanes));
            hn::Store(score, floats, scores + r * kBlockKeys + v * kLanes);
          });
    }
  }

  // Scores become probabilities, relative to the row's highest score within this block.
  void Weigh(size_t block, size_t row, Desk& desk) const {
    const Floats floats;
    const size_t valid = std::min(kBlockKeys, shape_.tokens - block * kBlockKeys);
    // Lanes beyond kRows stay zero: one vector, or two, for all rows at once.
    constexpr size_t kPadded = (kRows + kLanes - 1) / kLanes * kLanes;
    HWY_ALIGN float fallen[kPadded] = {};
    HWY_ALIGN float below[kPadded] = {};
    for (size_t r = 0; r < kRows; ++r) {
      float* const scores = desk.scores + r * kBlockKeys;
      std::fill(scores + valid, scores + kBlockKeys, -std::numeric_limits<float>::infinity());
      Float best = hn::Load(floats, scores);
      for (size_t v = 1; v < kBlockVectors; ++v) {
        best = hn::Max(best, hn::Load(floats, scores + v * kLanes));
      }
      const float step = desk.query_steps[row + r];
      const float block_highest = hn::ReduceMax(floats, best) * step;
      const float highest = std::max(desk.highest[row + r], block_highest);
      fallen[r] = desk.highest[row + r] - highest;
      below[r] = block_highest - highest;
      desk.highest[row + r] = highest;
      desk.block_sum[r] =
          WriteProbabilities(scores, step, block_highest, desk.probabilities + r * kBlockKeys);
    }
    for (size_t r = 0; r < kPadded; r += kLanes) {
      hn::Store(Exp2(hn::Load(floats, fallen + r)), floats, fallen + r);
      hn::Store(Exp2(hn::Load(floats, below + r)), floats, below + r);
    }
    for (size_t r = 0; r < kRows; ++r) {
      desk.kept[r] = fallen[r];
      desk.gained[r] = below[r];
      desk.weights[row + r] = desk.weights[row + r] * fallen[r] + desk.block_sum[r] * below[r];
    }
  }

  // The probability of the block's highest score becomes kLeftLimit; returns the sum of all, as
  // rounded. A factor common to all probabilities does no harm: `weights` has it too.
  static float WriteProbabilities(const float* scores, float step, float highest, Probability* to) {
    const Floats floats;
    const Float factor = hn::Set(floats, step);
    const Float offset = hn::Set(floats, std::log2(ValueFormat::kLeftLimit) - highest);
    auto total = hn::Zero(hn::DFromV<typename ValueFormat::Sum>());
    for (size_t v = 0; v < kBlockVectors; ++v) {
      const Float score = hn::Load(floats, scores + v * kLanes);
      const Float probability = Exp2(hn::MulAdd(score, factor, offset));
      if constexpr (ValueFormat::kInteger) {
        const Int integers = hn::NearestInt(probability);
        StoreIntegers(integers, to + v * kLanes);
        total = hn::Add(total, integers);
      } else {
        const hn::Rebind<hwy::bfloat16_t, Floats> narrow;
        hn::StoreU(hn::DemoteTo(narrow, probability), narrow, to + v * kLanes);
        total = hn::Add(total, probability);
      }
    }
    return hn::ReduceSum(floats, ToFloat(total));
  }

  // sums = sums * kept + probabilities * values * gained
  void Accumulate(size_t head, size_t block, size_t row, Desk& desk) const {
    const Floats floats;
    const size_t stride = padded_width_;
    const uint8_t* const panels = packed_values_ + (head * blocks_ + block) * ValueBlockBytes();
    const float* const steps = value_steps_ + (head * blocks_ + block) * stride;
    const float* const centres = value_centres_ + (head * blocks_ + block) * stride;
    ForEachPanel(stride / kLanes, [&](auto vectors, size_t first_vector) HWY_ATTR {
      const size_t channel = first_vector * kLanes;
      float* const sums = desk.sums + row * stride + channel;
      MultiplyTile<ValueFormat, vectors>(
          reinterpret_cast<const uint8_t*>(desk.probabilities), kBlockKeys * sizeof(Probability),
          panels + channel * kBlockKeys * sizeof(Value), kBlockKeys / ValueFormat::kGroup,
          [](size_t) HWY_ATTR { return hn::Zero(hn::DFromV<typename ValueFormat::Sum>()); },
          [=, &desk](size_t r, size_t v, typename ValueFormat::Sum product) HWY_ATTR {
            Float added = ToFloat(product);
            if constexpr (ValueFormat::kInteger) {
              added = hn::Mul(added, hn::Load(floats, steps + channel + v * kLanes));
            }
            const Float centre = hn::Load(floats, centres + channel + v * kLanes);
            added = hn::MulAdd(centre, hn::Set(floats, desk.block_sum[r]), added);
            float* const sum = sums + r * stride + v * kLanes;
            const Float kept = hn::Mul(hn::Load(floats, sum), hn::Set(floats, desk.kept[r]));
            hn::Store(hn::MulAdd(added, hn::Set(floats, desk.gained[r]), kept), floats, sum);
          });
    });
  }

  void Finish(size_t head, size_t first, size_t count, const Desk& desk) const {
    const Floats floats;
    for (size_t row = 0; row < count; ++row) {
      const Float share = hn::Set(floats, 1.0f / desk.weights[row]);
      float* const to = tensors_.result + Offset(head, first + row);
      for (size_t i = 0; i < shape_.width; i += kLanes) {
        const Float sum = hn::Load(floats, desk.sums + row * padded_width_ + i);
        hn::StoreN(hn::Mul(sum, share), floats, to + i, shape_.width - i);
      }
    }
  }

  const AttentionShape shape_;
  const AttentionTensors tensors_;
  const size_t row_;           // floats from one token to the next
  const size_t padded_width_;  // of a head, in whole vectors
  const size_t key_groups_;
  const size_t blocks_;  // of keys

  uint8_t* packed_keys_;
  float* key_steps_;
  int32_t* key_starts_;
  uint8_t* packed_values_;
  float* value_steps_;
  float* value_centres_;
  uint8_t* desks_;
  size_t desk_bytes_;
  size_t workspace_bytes_;
};

#if HWY_TARGET == HWY_AVX2
bool HasAvxVnni() {
  uint32_t eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}
#endif

// Each worker takes the next task until none is left, so that a slow core holds nobody up.
template <class Task>
void Share(size_t tasks, size_t workers, const Parallel& parallel, const Task& task) {
  std::atomic<size_t> next{0};
  parallel(std::min(workers, tasks), [&](size_t worker) {
    for (size_t i = next++; i < tasks; i = next++) task(i, worker);
  });
}

template <class ScoreFormat, class ValueFormat>
void Run(const AttentionShape& shape, const AttentionTensors& tensors, void* workspace,
         size_t workers, const Parallel& parallel) {
  FlashAttention<ScoreFormat, ValueFormat> attention(shape, tensors, workspace, workers);
  const size_t heads = shape.batch * shape.heads;
  Share(heads, workers, parallel,
        [&](size_t head, size_t worker) { attention.Pack(head, worker); });
  const size_t blocks = hwy::DivCeil(shape.tokens, kBlockQueries);
  Share(heads * blocks, workers, parallel, [&](size_t task, size_t worker) {
    attention.Attend(task / blocks, task % blocks, worker);
  });
}

template <class ScoreFormat, class ValueFormat>
size_t Workspace(const AttentionShape& shape, size_t workers) {
  return FlashAttention<ScoreFormat, ValueFormat>(shape, {}, nullptr, workers).workspace_bytes();
}

template <class ScoreFormat, class ValueFormat>
AttentionVariant Make(const char* name) {
  return {name, &Workspace<ScoreFormat, ValueFormat>, &Run<ScoreFormat, ValueFormat>};
}

#endif  // VK_SERVED

#define VK_NAME(formats) HWY_STR(HWY_NAMESPACE) formats

std::vector<AttentionVariant> VariantsOfTarget() {
  std::vector<AttentionVariant> variants;
#if VK_SERVED && HWY_NATIVE_DOT_BF16
  variants.push_back(Make<Int8, BFloat16>(VK_NAME(", int8 scores, bf16 values")));
#endif
#if VK_SERVED && HWY_TARGET == HWY_AVX2
  if (HasAvxVnni()) variants.push_back(Make<Int8, Int8>(VK_NAME(" and VNNI, int8")));
  variants.push_back(Make<Int16, Int16>(VK_NAME(", int16")));
#elif VK_SERVED
  variants.push_back(Make<Int8, Int8>(VK_NAME(", int8")));
#endif
  return variants;
}

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace vision_kernels {

HWY_EXPORT(VariantsOfTarget);

std::vector<AttentionVariant> AttentionVariants() {
  return HWY_DYNAMIC_DISPATCH(VariantsOfTarget)();
}

}  // namespace vision_kernels
#endif
