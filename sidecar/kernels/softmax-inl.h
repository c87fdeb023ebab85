// SPDX-License-Identifier: Apache-2.0
// The softmax of attention in 16-bit integers: from the 32-bit sums of queries times keys to
// probabilities in 8 bits. What needs to know how attention is blocked or packed does not belong
// here.
//
// Compiled once per instruction set by Highway's foreach_target. docs/kernels.md explains the
// numbers.

#if defined(VISION_SIDECAR_KERNELS_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VISION_SIDECAR_KERNELS_SOFTMAX_INL_H_
#undef VISION_SIDECAR_KERNELS_SOFTMAX_INL_H_
#else
#define VISION_SIDECAR_KERNELS_SOFTMAX_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "microkernel-inl.h"
#include "runtime.h"

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

#if VK_SERVED

using Words = hn::Repartition<int16_t, Ints>;
using UnsignedWords = hn::Repartition<uint16_t, Ints>;
using Bytes = hn::Repartition<uint8_t, Ints>;
using Longs = hn::Repartition<uint64_t, Ints>;
using Word = hn::Vec<Words>;
using UnsignedWord = hn::Vec<UnsignedWords>;
using Byte = hn::Vec<Bytes>;
using Long = hn::Vec<Longs>;

constexpr size_t kBlockKeys = 64;  // values share a scale within a block: larger is less exact
constexpr size_t kWordLanes = 2 * kLanes;
constexpr size_t kByteLanes = 4 * kLanes;
constexpr size_t kBlockByteVectors = kBlockKeys / kByteLanes;  // of a row of probabilities

// A strip is a few tiles of three rows (queries) each. What belongs to a row is kept in one of four
// 32-bit lanes of its tile, the last of which is unused, so that all rows are computed together.
constexpr size_t kTileRows = 3;
constexpr size_t kTiles = kLanes == 16 ? 4 : 2;
constexpr size_t kStripRows = kTiles * kTileRows;
constexpr size_t kStripLanes = kTiles * 4;
constexpr size_t RowLane(size_t row) { return row / kTileRows * 4 + row % kTileRows; }

constexpr float kUnitsPerOctave = 2048.0f;  // of an exponent in 16 bits

// The fraction bits of a probability before it is rounded. Its integer part is at most 254, or 127
// where bytes are signed.
constexpr int kFractionBits = HWY_TARGET == HWY_AVX2 ? 7 : 8;

struct SoftmaxTables {
  constexpr SoftmaxTables() {
    double here = 254.0 * 256.0;
    for (size_t i = 0; i < 32; ++i) {
      const double next = here * 0.97857206208770013;  // 2^(-1/32)
      power[i] = Round(here);
      drop[i] = Round(here - next);
      here = next;
    }
    for (size_t key = 0; key < kBlockKeys; ++key) {
      size_t reversed = 0;  // its bits
      for (size_t bit = 1; bit < kBlockKeys; bit *= 2) reversed = 2 * reversed + key / bit % 2;
      constexpr size_t kStep = (size_t{1} << kFractionBits) / kBlockKeys;
      // The last unit makes up for what earlier steps have cut off.
      dither[WordIndex(key)] = static_cast<uint16_t>(kStep * reversed + kStep - 1);
      all_keys[key] = 0xFF;
    }
  }

  static constexpr uint16_t Round(double x) {
    return static_cast<uint16_t>(static_cast<uint32_t>(2 * x + 1) / 2);
  }

  // Where the word of a key is among those of its block: the even keys of a vector of bytes come
  // first, then the odd ones.
  static constexpr size_t WordIndex(size_t key) {
    const size_t within = key % kByteLanes;
    return key - within + within % 2 * kWordLanes + within / 2;
  }

  // 254 * 2^(-i/32) in 8.8 bits, and how much less the next one is.
  alignas(kCacheLine) uint16_t power[32] = {};
  alignas(kCacheLine) uint16_t drop[32] = {};

  // What is added to a probability before its fraction is cut off, evenly from 0 to 1, far apart
  // for neighbours. Where one key of a block outweighs all others, theirs are far below one unit.
  // Rounded alike they would all be lost, though together they count; so as many of them become 1
  // as make up their sum. By WordIndex.
  alignas(kCacheLine) uint16_t dither[kBlockKeys] = {};

  alignas(kCacheLine) uint8_t all_keys[kBlockKeys] = {};
};
constexpr SoftmaxTables kSoftmaxTables;

// Columns of scores are numbered so that two packing instructions, which mix the lanes of their
// inputs, put the keys into order: `columns[i]` is the column of the key i of a vector of bytes.
static HWY_INLINE void FindColumns(size_t (&columns)[kByteLanes]) {
  for (size_t odd = 0; odd < 2; ++odd) {
    const Int low = hn::Iota(Ints(), static_cast<int32_t>(2 * odd * kLanes));
    const Int high = hn::Iota(Ints(), static_cast<int32_t>((2 * odd + 1) * kLanes));
    HWY_ALIGN int16_t words[kWordLanes];
    hn::Store(hn::ReorderDemote2To(Words(), low, high), Words(), words);
    for (size_t i = 0; i < kWordLanes; ++i) columns[2 * i + odd] = static_cast<size_t>(words[i]);
  }
}

// Two vectors of sums become one of 16-bit scores: shifted so that they fit, then multiplied by the
// keys' scales, which are relative to the largest of the block.
static HWY_INLINE Word ToScores(Int low, Int high, Int shift, const int16_t* key_scales) {
  const Word packed = hn::ReorderDemote2To(Words(), hn::Shr(low, shift), hn::Shr(high, shift));
  return hn::MulFixedPoint15(packed, hn::Load(Words(), key_scales));
}

// The largest of three rows, each spread over a vector: every 64 bits of the result hold the four
// words (row 0, row 1, row 2, row 2), still to be reduced by ReduceStrip.
static HWY_INLINE Word MaxOfRows(Word row0, Word row1, Word row2) {
  const Word a =
      hn::Max(hn::InterleaveLower(Words(), row0, row1), hn::InterleaveUpper(Words(), row0, row1));
  const Word b =
      hn::Max(hn::InterleaveLower(Words(), row2, row2), hn::InterleaveUpper(Words(), row2, row2));
  const Int lower = hn::InterleaveLower(Ints(), hn::BitCast(Ints(), a), hn::BitCast(Ints(), b));
  const Int upper = hn::InterleaveUpper(Ints(), hn::BitCast(Ints(), a), hn::BitCast(Ints(), b));
  return hn::Max(hn::BitCast(Words(), lower), hn::BitCast(Words(), upper));
}

// Four words in each 64 bits of each tile's vector become one number in each of the strip's lanes,
// by an operation that is associative, such as Max.
template <class Operation>
HWY_INLINE void ReduceStrip(const int16_t* tiles, int32_t* lanes, const Operation& operation) {
  const auto load = [&](size_t tile) HWY_ATTR {
    return hn::BitCast(Longs(), hn::Load(Words(), tiles + tile * kWordLanes));
  };
  const auto pair = [&](size_t tile) HWY_ATTR {
    const Long a = load(tile), b = load(tile + 1);
    return operation(hn::BitCast(Words(), hn::InterleaveLower(Longs(), a, b)),
                     hn::BitCast(Words(), hn::InterleaveUpper(Longs(), a, b)));
  };
#if HWY_MAX_BYTES == 64
  const Word ab = pair(0), cd = pair(2);
  const Word folded =
      operation(hn::OddEvenBlocks(cd, ab), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(ab, cd)));
  const Word all = operation(folded, hn::ConcatLowerUpper(Words(), folded, folded));
  hn::Store(hn::PromoteTo(Ints(), hn::LowerHalf(all)), Ints(), lanes);
#elif HWY_MAX_BYTES == 32
  const Word ab = pair(0);
  const Word all = operation(ab, hn::SwapAdjacentBlocks(ab));
  hn::Store(hn::PromoteTo(Ints(), hn::LowerHalf(all)), Ints(), lanes);
#else
  const Word all = pair(0);
  hn::Store(hn::PromoteLowerTo(Ints(), all), Ints(), lanes);
  hn::Store(hn::PromoteUpperTo(Ints(), all), Ints(), lanes + kLanes);
#endif
}

// 16 bits twice, because broadcasting 32 bits from memory costs nothing beside the load.
static HWY_INLINE Int Twice(Int x) { return hn::Or(x, hn::ShiftLeft<16>(x)); }
static HWY_INLINE UnsignedWord BroadcastTwice(const int32_t* from) {
  return hn::BitCast(UnsignedWords(), hn::Set(Ints(), *from));
}

// How the scores of each row become exponents. By RowLane, each number twice.
struct ExponentScales {
  int32_t* top;         // the highest score
  int32_t* limit;       // what the shift leaves room for
  int32_t* shift;       // or the power of two that shifts by it, where kShiftsByMultiplying
  int32_t* multiplier;  // of the shifted distance to `top`; the upper 16 bits of the product count
};

constexpr bool kShiftsByMultiplying = HWY_TARGET == HWY_AVX2;  // it shifts no words by vectors

// How far scores are below the row's highest, in units of an exponent.
static HWY_INLINE UnsignedWord ToExponents(const ExponentScales& scales, size_t lane,
                                           const int16_t* scores) {
  const UnsignedWord top = BroadcastTwice(scales.top + lane);
  const UnsignedWord score = hn::BitCast(UnsignedWords(), hn::Load(Words(), scores));
  const UnsignedWord below = hn::Min(hn::Sub(top, score), BroadcastTwice(scales.limit + lane));
  const UnsignedWord shift = BroadcastTwice(scales.shift + lane);
  UnsignedWord shifted;
  if constexpr (kShiftsByMultiplying) {
    shifted = hn::Mul(below, shift);
  } else {
    shifted = hn::Shl(below, shift);
  }
  return hn::MulHigh(shifted, BroadcastTwice(scales.multiplier + lane));
}

// 2 to the power of minus the fraction of an exponent, times 254 (or 127), with kFractionBits.
struct Powers {
  HWY_INLINE Powers() {}  // not by default: GCC for ARM compiles that for another target
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  // A table and the way to the next entry. In two steps, between which others can be done.
  UnsignedWord power, drop, rest;

  HWY_INLINE void LookUp(UnsignedWord exponents) {
    const UnsignedWord index = hn::ShiftRight<6>(exponents);  // higher bits are ignored
    power = Permute(index, kSoftmaxTables.power);
    drop = Permute(index, kSoftmaxTables.drop);
    rest = hn::ShiftLeft<10>(exponents);
  }
  HWY_INLINE UnsignedWord Interpolate() const { return hn::Sub(power, hn::MulHigh(rest, drop)); }

  static HWY_INLINE UnsignedWord Permute(UnsignedWord index, const uint16_t* table) {
    const UnsignedWord entries = hn::Load(UnsignedWords(), table);
    return UnsignedWord{_mm512_permutexvar_epi16(index.raw, entries.raw)};
  }
#else
  // A cubic of the fraction, in 15 bits.
  UnsignedWord fraction;

  HWY_INLINE void LookUp(UnsignedWord exponents) {
    fraction = hn::And(hn::ShiftLeft<4>(exponents), hn::Set(UnsignedWords(), uint16_t{0x7FFF}));
  }
  HWY_INLINE UnsignedWord Interpolate() const {
    const Words words;
    const Word x = hn::BitCast(words, fraction);
    Word power = hn::Add(hn::MulFixedPoint15(x, hn::Set(words, int16_t{-1254})),
                         hn::Set(words, int16_t{7396}));
    power = hn::Add(hn::MulFixedPoint15(x, power), hn::Set(words, int16_t{-22396}));
    power = hn::Add(hn::MulFixedPoint15(x, power), hn::Set(words, int16_t{32512}));
    return hn::BitCast(UnsignedWords(), power);
  }
#endif
};

// A word's probability with its fraction, dithered.
static HWY_INLINE UnsignedWord ToProbability(UnsignedWord power, UnsignedWord exponents,
                                             const uint16_t* dither) {
  const UnsignedWord octaves = hn::ShiftRight<11>(exponents);
  return hn::Add(hn::Shr(power, octaves), hn::Load(UnsignedWords(), dither));
}

// The integer parts of the even and the odd keys' probabilities, in order.
static HWY_INLINE Byte ToByteOrder(UnsignedWord even, UnsignedWord odd) {
  const Byte low = hn::BitCast(Bytes(), hn::ShiftRight<kFractionBits>(even));
  if constexpr (kFractionBits == 8) return hn::OddEven(hn::BitCast(Bytes(), odd), low);
  return hn::OddEven(hn::BitCast(Bytes(), hn::Add(odd, odd)), low);
}

// The exponent of a float above zero, plus one: the least n so that x < 2^n. At least `least`.
static HWY_INLINE Int CeilLog2(Float x, int32_t least) {
  const Int exponent = hn::Sub(hn::ShiftRight<23>(hn::BitCast(Ints(), x)), hn::Set(Ints(), 126));
  return hn::Min(hn::Max(exponent, hn::Set(Ints(), least)), hn::Set(Ints(), 31));
}

// 2 to the power of n, which is between -126 and 127.
static HWY_INLINE Float PowerOf2(Int n) {
  return hn::BitCast(Floats(), hn::ShiftLeft<23>(hn::Add(n, hn::Set(Ints(), 127))));
}

#endif  // VK_SERVED

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#endif  // VISION_SIDECAR_KERNELS_SOFTMAX_INL_H_
