// The inner loop that every matrix product here shares, and the number formats that it can use.
//
// Compiled once per instruction set by Highway's foreach_target. A vector register holds kLanes sums
// of 32 bits. One instruction multiplies, for each of these lanes, a group of neighbouring small
// numbers (four of 8 bits or two of 16) and adds the products to the lane's sum.

#if defined(VISION_SIDECAR_KERNELS_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VISION_SIDECAR_KERNELS_PRODUCTS_INL_H_
#undef VISION_SIDECAR_KERNELS_PRODUCTS_INL_H_
#else
#define VISION_SIDECAR_KERNELS_PRODUCTS_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"

// Loops over registers must be unrolled, or the registers become memory.
#if HWY_COMPILER_GCC_ACTUAL
#define VK_UNROLL _Pragma("GCC unroll 16")
#else
#define VK_UNROLL _Pragma("unroll")
#endif

HWY_BEFORE_NAMESPACE();
namespace vision_kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Ints = hn::ScalableTag<int32_t>;
using Float = hn::Vec<Floats>;
using Int = hn::Vec<Ints>;

constexpr size_t kLanes = hn::MaxLanes(Floats());

// A tile of the result is kRows rows by up to kTileVectors vectors of columns: as many sums as fit
// into the registers (32 of them, 16 with AVX2) beside one row of factors and a broadcast one.
constexpr size_t kRows = 6;
constexpr size_t kTileVectors = HWY_TARGET == HWY_AVX2 ? 2 : 4;

// Each format says how its left factors (rows, broadcast) and right factors (columns, one vector)
// are stored, how large they may be, and how the sums become floats.

// 8-bit integers, four to a group.
struct Int8 {
  static constexpr size_t kGroup = 4;
  static constexpr bool kInteger = true;
  using Right = int8_t;
  using Sum = Int;
  static constexpr float kRightLimit = 127.0f;
#if HWY_ARCH_X86
  // x86 multiplies unsigned by signed: a left factor of either sign is stored plus 128.
  using Left = uint8_t;
  static constexpr float kLeftLimit = 255.0f;  // of one that is never negative
  static constexpr int32_t kLeftShift = 128;   // added to one of either sign, at most ±127
#else
  using Left = int8_t;
  static constexpr float kLeftLimit = 127.0f;
  static constexpr int32_t kLeftShift = 0;
#endif
  static constexpr float kSignedLeftLimit = 127.0f;

  static HWY_INLINE Sum Add(Sum sum, Int left, Int right) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
    // Assembly where an intrinsic exists: GCC 12 copies the sums of the intrinsic to and fro.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(left.raw), "v"(right.raw));
    return sum;
#elif HWY_TARGET == HWY_AVX2
    // AVX-VNNI, which Highway does not know. Reached only where the CPU has it: `HasAvxVnni`.
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(left.raw), "x"(right.raw));
    return sum;
#else
    const hn::Repartition<int8_t, Ints> bytes;
    return hn::SumOfMulQuadAccumulate(Ints(), hn::BitCast(bytes, left), hn::BitCast(bytes, right),
                                      sum);
#endif
  }
};

// 16-bit integers, two to a group: for AVX2, whose own 8-bit product overflows.
struct Int16 {
  static constexpr size_t kGroup = 2;
  static constexpr bool kInteger = true;
  using Left = int16_t;
  using Right = int16_t;
  using Sum = Int;
  // kWidestHead * 1023 * 1023 still fits into 31 bits.
  static constexpr float kRightLimit = 1023.0f;
  static constexpr float kLeftLimit = 1023.0f;
  static constexpr float kSignedLeftLimit = 1023.0f;
  static constexpr int32_t kLeftShift = 0;

  static HWY_INLINE Sum Add(Sum sum, Int left, Int right) {
    const hn::Repartition<int16_t, Ints> shorts;
    return hn::Add(sum, hn::WidenMulPairwiseAdd(Ints(), hn::BitCast(shorts, left),
                                                hn::BitCast(shorts, right)));
  }
};

#if HWY_NATIVE_DOT_BF16
// The upper halves of floats, two to a group, with sums in float.
struct BFloat16 {
  static constexpr size_t kGroup = 2;
  static constexpr bool kInteger = false;
  using Left = hwy::bfloat16_t;
  using Right = hwy::bfloat16_t;
  using Sum = Float;
  static constexpr float kLeftLimit = 1.0f;

  static HWY_INLINE Sum Add(Sum sum, Int left, Int right) {
    const hn::Repartition<hwy::bfloat16_t, Floats> halves;
    Float unused = hn::Zero(Floats());  // stays zero where the CPU has the instruction
    return hn::ReorderWidenMulAccumulate(Floats(), hn::BitCast(halves, left),
                                         hn::BitCast(halves, right), sum, unused);
  }
};
#endif

static HWY_INLINE Float ToFloat(Int sum) { return hn::ConvertTo(Floats(), sum); }
static HWY_INLINE Float ToFloat(Float sum) { return sum; }

// Multiplies kRows rows by a panel of kVectors vectors of columns.
//
// `left` holds the rows, `left_stride` bytes apart, each of `groups` groups. `panel` holds, group
// after group, kVectors vectors: lane j of vector v is that group of column v * kLanes + j. So each
// step loads the panel straight on, and one group of each row. `start(v)` is what a sum of vector v
// begins with; `finish(row, v, sum)` takes it in the end. Never inlined: the registers are all ours.
template <class Format, size_t kVectors, class Start, class Finish>
HWY_NOINLINE void MultiplyTile(const uint8_t* left, size_t left_stride, const uint8_t* panel,
                               size_t groups, const Start& start, const Finish& finish) {
  const Ints ints;
  typename Format::Sum sums[kRows][kVectors];
  VK_UNROLL
  for (size_t v = 0; v < kVectors; ++v) {
    VK_UNROLL
    for (size_t row = 0; row < kRows; ++row) sums[row][v] = start(v);
  }
  for (size_t group = 0; group < groups; ++group) {
    Int right[kVectors];
    VK_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      right[v] = hn::Load(ints, reinterpret_cast<const int32_t*>(panel) + v * kLanes);
    }
    VK_UNROLL
    for (size_t row = 0; row < kRows; ++row) {
      int32_t bits;  // one group of small numbers, whatever they are
      memcpy(&bits, left + row * left_stride + group * sizeof(bits), sizeof(bits));
      const Int broadcast = hn::Set(ints, bits);
      VK_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        sums[row][v] = Format::Add(sums[row][v], broadcast, right[v]);
      }
    }
    panel += kVectors * kLanes * sizeof(int32_t);
  }
  VK_UNROLL
  for (size_t row = 0; row < kRows; ++row) {
    VK_UNROLL
    for (size_t v = 0; v < kVectors; ++v) finish(row, v, sums[row][v]);
  }
}

// Splits `vectors` into panels as even as can be, none wider than kTileVectors, and calls
// use(width as a type, first vector) for each: a last narrow panel would leave the CPU waiting.
template <class Use>
HWY_INLINE void ForEachPanel(size_t vectors, const Use& use) {
  const size_t panels = hwy::DivCeil(vectors, kTileVectors);
  for (size_t panel = 0; panel < panels; ++panel) {
    const size_t first = panel * vectors / panels;
    const size_t width = (panel + 1) * vectors / panels - first;
    if (width == 1) use(std::integral_constant<size_t, 1>(), first);
    if (width == 2) use(std::integral_constant<size_t, 2>(), first);
    if constexpr (kTileVectors > 2) {
      if (width == 3) use(std::integral_constant<size_t, 3>(), first);
      if (width == 4) use(std::integral_constant<size_t, 4>(), first);
    }
  }
}

// 2 to the power of x, to five digits; below -120 as if it were -120, up to 127.
static HWY_INLINE Float Exp2(Float x) {
  const Floats floats;
  const Ints ints;
  x = hn::Max(x, hn::Set(floats, -120.0f));
  // Adding 1.5 * 2^23 leaves no bits for a fraction: the nearest integer, in the lowest bits.
  const Float shift = hn::Set(floats, 12582912.0f);
  const Float shifted = hn::Add(x, shift);
  const Float fraction = hn::Sub(x, hn::Sub(shifted, shift));  // -0.5 … 0.5
  Float power = hn::Set(floats, 0.0096181291f);
  power = hn::MulAdd(power, fraction, hn::Set(floats, 0.0555041087f));
  power = hn::MulAdd(power, fraction, hn::Set(floats, 0.2402265070f));
  power = hn::MulAdd(power, fraction, hn::Set(floats, 0.6931471806f));
  power = hn::MulAdd(power, fraction, hn::Set(floats, 1.0f));
  // The integer is added to the exponent, which begins at bit 23.
  const Int exponent = hn::ShiftLeft<23>(hn::BitCast(ints, shifted));
  return hn::BitCast(floats, hn::Add(hn::BitCast(ints, power), exponent));
}

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#endif  // VISION_SIDECAR_KERNELS_PRODUCTS_INL_H_
