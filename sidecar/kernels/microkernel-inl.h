// SPDX-License-Identifier: Apache-2.0
// The micro-kernel of every int8 matrix product, the instructions it uses, and how floats become
// int8. What only attention or only a linear layer needs does not belong here.
//
// Compiled once per instruction set by Highway's foreach_target. A vector register holds kLanes
// 32-bit accumulators. One instruction multiplies, for each of these lanes, a group of four
// neighbouring bytes of each factor, and adds the products to the lane's accumulator.

#if defined(VISION_SIDECAR_KERNELS_MICROKERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VISION_SIDECAR_KERNELS_MICROKERNEL_INL_H_
#undef VISION_SIDECAR_KERNELS_MICROKERNEL_INL_H_
#else
#define VISION_SIDECAR_KERNELS_MICROKERNEL_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"
#include "runtime.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#endif

// Highway compiles for the CPU's baseline as well, which is not worth serving.
#undef VK_SERVED
#if HWY_ARCH_X86
#define VK_SERVED (HWY_TARGET == HWY_AVX2 || HWY_TARGET <= HWY_AVX3_DL)
#elif defined(VISION_KERNELS_TEST_NEON)  // correct, but its speed was never measured
#define VK_SERVED 1
#else
#define VK_SERVED 0
#endif

// Whether 32 registers of 512 bits leave room for what is not a dot product between dot products.
#undef VK_PIPELINED
#define VK_PIPELINED (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL)

// The tests may run the code for AVX-VNNI with the same instruction's encoding for AVX512-VNNI.
#ifdef VISION_KERNELS_TEST_VNNI
#define VK_VEX ""
#else
#define VK_VEX "%{vex%} "
#endif

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

#if VK_SERVED

using Floats = hn::ScalableTag<float>;
using Ints = hn::ScalableTag<int32_t>;
using Float = hn::Vec<Floats>;
using Int = hn::Vec<Ints>;

constexpr size_t kLanes = hn::MaxLanes(Floats());
constexpr size_t kGroup = 4;            // small integers
constexpr size_t kGroupBytes = kGroup;  // of 8 bits each: as wide as a lane

// A tile of the result is kMR rows by up to kNR vectors of columns: as many accumulators as fit
// into the registers (32 of them, 16 with AVX2) beside kNR vectors of columns and a broadcast
// group.
constexpr size_t kMR = 6;
constexpr size_t kNR = HWY_TARGET == HWY_AVX2 ? 2 : 4;

// The left-hand factor's rows are broadcast, a group at a time; the right-hand factor's columns are
// vectors of groups. The instruction decides how large each may be.

// Instructions that add four products to a 32-bit accumulator at once: VNNI, and NEON's dot
// product.
struct Dot {
  static constexpr float kRhsMax = 127.0f;
  static constexpr float kDiffusion = 0.5f;  // of a value's rounding error, to the next one
#if HWY_ARCH_X86
  // x86 multiplies unsigned by signed: a signed left-hand byte is stored plus its zero point.
  using Lhs = uint8_t;
  static constexpr float kLhsMax = 255.0f;       // of one that is never negative
  static constexpr int32_t kLhsZeroPoint = 128;  // of a signed one
  static constexpr int32_t kLhsMin = 0;          // of all that a left-hand byte can be
#else
  using Lhs = int8_t;
  static constexpr float kLhsMax = 127.0f;
  static constexpr int32_t kLhsZeroPoint = 0;
  static constexpr int32_t kLhsMin = -128;
#endif

  static HWY_INLINE Int DotAdd(Int sum, Int lhs, Int rhs) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
    // Assembly where an intrinsic exists: GCC 12 copies the sums of the intrinsic to and fro.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(lhs.raw), "v"(rhs.raw));
    return sum;
#elif HWY_TARGET == HWY_AVX2
    // AVX-VNNI, which Highway does not know. Reached only where `HasVnni`.
    asm(VK_VEX "vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(lhs.raw), "x"(rhs.raw));
    return sum;
#else
    const hn::Repartition<int8_t, Ints> bytes;
    return hn::SumOfMulQuadAccumulate(Ints(), hn::BitCast(bytes, lhs), hn::BitCast(bytes, rhs),
                                      sum);
#endif
  }
};

// Whether this CPU, which has this instruction set, can do `Dot`.
static bool HasDot() {
#if HWY_TARGET == HWY_AVX2
  uint32_t eax, ebx, ecx, edx;
#ifdef VISION_KERNELS_TEST_VNNI
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_AVX512VNNI) != 0;
#else
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & bit_AVXVNNI) != 0;
#endif
#else
  return true;
#endif
}

// The name of the instruction set with this product, for people.
template <class Product>
const char* NameOf() {
  if (HWY_TARGET == HWY_AVX2) return std::is_same<Product, Dot>() ? "AVX2 and VNNI" : "AVX2";
  return HWY_ARCH_X86 ? "AVX512 and VNNI" : "NEON";
}

#if HWY_TARGET == HWY_AVX2
// Without VNNI, AVX2 adds pairs of products in 16 bits: right-hand bytes have 7 bits, so that they
// fit.
struct Pairs {
  static constexpr float kRhsMax = 64.0f;    // 2 * 255 * 64 < 2^15
  static constexpr float kDiffusion = 0.2f;  // less, as the error of each value is larger
  using Lhs = uint8_t;
  static constexpr float kLhsMax = 255.0f;
  static constexpr int32_t kLhsZeroPoint = 128;

  static HWY_INLINE Int DotAdd(Int sum, Int lhs, Int rhs) {
    const hn::Repartition<uint8_t, Ints> u8;
    const hn::Repartition<int8_t, Ints> i8;
    const hn::Repartition<int16_t, Ints> i16;
    const auto pairs = hn::SatWidenMulPairwiseAdd(i16, hn::BitCast(u8, lhs), hn::BitCast(i8, rhs));
    return hn::Add(sum, hn::WidenMulPairwiseAdd(Ints(), pairs, hn::Set(i16, 1)));
  }
};
#endif

struct Nothing {
  HWY_INLINE void operator()(size_t) const {}
};

// Multiplies kMR rows by a packed panel of kVectors vectors of columns.
//
// `lhs` holds the rows, `lhs_stride` bytes apart, each of `groups` groups. `panel` holds, group
// after group, kVectors vectors: lane j of vector v is that group of column v * kLanes + j. So each
// step loads the panel straight on, and one group of each row. `start(v)` is what an accumulator of
// vector v begins with; `epilogue(row, sums)` takes a row's in the end. Both are copied: else what
// they hold would be loaded again after each float that is stored. `between(group)` is called after
// each group, for what can be done beside dot products. Never inlined: the registers are all ours.
template <class Product, size_t kVectors, class Start, class Epilogue, class Between = Nothing>
HWY_NOINLINE void MultiplyTile(const typename Product::Lhs* lhs, size_t lhs_stride,
                               const int8_t* panel, size_t groups, const Start start,
                               const Epilogue epilogue, Between&& between = {}) {
  const Ints ints;
  Int sums[kMR][kVectors];
  VK_UNROLL
  for (size_t v = 0; v < kVectors; ++v) {
    VK_UNROLL
    for (size_t row = 0; row < kMR; ++row) sums[row][v] = start(v);
  }
  for (size_t group = 0; group < groups; ++group) {
    Int columns[kVectors];
    VK_UNROLL
    for (size_t v = 0; v < kVectors; ++v) {
      columns[v] = hn::Load(ints, reinterpret_cast<const int32_t*>(panel) + v * kLanes);
    }
    VK_UNROLL
    for (size_t row = 0; row < kMR; ++row) {
      int32_t bits;
      memcpy(&bits, lhs + row * lhs_stride + group * kGroupBytes, kGroupBytes);
      const Int broadcast = hn::Set(ints, bits);
      VK_UNROLL
      for (size_t v = 0; v < kVectors; ++v) {
        sums[row][v] = Product::DotAdd(sums[row][v], broadcast, columns[v]);
      }
    }
    panel += kVectors * kLanes * kGroupBytes;
    between(group);
  }
  VK_UNROLL
  for (size_t row = 0; row < kMR; ++row) {
    epilogue(row, sums[row]);
  }
}

// `vectors` are split into panels as even as can be, none wider than kNR: a last narrow one
// would leave the CPU waiting. Calls use(width as a type, first vector) for one of them.
template <class Use>
HWY_INLINE void WithPanel(size_t vectors, size_t panel, const Use& use) {
  const size_t panels = hwy::DivCeil(vectors, kNR);
  const size_t first = panel * vectors / panels;
  const size_t width = (panel + 1) * vectors / panels - first;
  if (width == 1) use(std::integral_constant<size_t, 1>(), first);
  if (width == 2) use(std::integral_constant<size_t, 2>(), first);
  if constexpr (kNR > 2) {
    if (width == 3) use(std::integral_constant<size_t, 3>(), first);
    if (width == 4) use(std::integral_constant<size_t, 4>(), first);
  }
}

template <class Use>
HWY_INLINE void ForEachPanel(size_t vectors, const Use& use) {
  const size_t panels = hwy::DivCeil(vectors, kNR);
  for (size_t panel = 0; panel < panels; ++panel) WithPanel(vectors, panel, use);
}

static HWY_INLINE Float LoadUpTo(const float* from, size_t count) {
  return count >= kLanes ? hn::LoadU(Floats(), from) : hn::LoadN(Floats(), from, count);
}

template <class T>
HWY_INLINE Int LoadInts(const T* from) {
  return hn::Load(Ints(), reinterpret_cast<const int32_t*>(from));
}

constexpr float kSmallest = 1e-35f;  // what is smaller counts as this, so no inverse overflows

// How numbers of at most `largest` become integers of at most `limit`.
struct Quantizer {
  Quantizer(float largest, float limit)
      : scale(std::max(largest, kSmallest) / limit),
        inverse(limit / std::max(largest, kSmallest)) {}
  float scale;    // what one unit is worth
  float inverse;  // units per 1.0
};

// Keeps the lowest byte of each integer, which must fit into it.
template <class T>
HWY_INLINE hn::Vec<hn::Rebind<T, Ints>> ToBytes(Int integers) {
  const hn::RebindToUnsigned<Ints> bits;
  const hn::Rebind<uint8_t, Ints> bytes;
  return hn::BitCast(hn::Rebind<T, Ints>(), hn::TruncateTo(bytes, hn::BitCast(bits, integers)));
}

template <class T>
HWY_INLINE void StoreBytes(Int integers, T* to) {
  hn::StoreU(ToBytes<T>(integers), hn::Rebind<T, Ints>(), to);
}

// Adding this to a float below 2^22 leaves no bits for a fraction: what remains is rounded to the
// nearest integer, which the lowest bits then hold.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

static HWY_INLINE Int Nearest(Float x) {
  const Float rounder = hn::Set(Floats(), kRounder);
  return hn::Sub(hn::BitCast(Ints(), hn::Add(x, rounder)), hn::BitCast(Ints(), rounder));
}

// 2 to the power of x, by the polynomial 1 + c0 f + c1 f^2 + … of its fraction f, which is between
// -0.5 and 0.5. Exact for integers. Below -120 it is as if x were -120; x is at most 100.
template <size_t kDegree>
HWY_INLINE Float Exp2By(const float (&coefficients)[kDegree], Float x) {
  const Floats floats;
  const Ints ints;
  const Float rounder = hn::Set(floats, kRounder);
  x = hn::Max(x, hn::Set(floats, -120.0f));
  const Float rounded = hn::Add(x, rounder);
  const Float fraction = hn::Sub(x, hn::Sub(rounded, rounder));
  Float power = hn::Set(floats, coefficients[kDegree - 1]);
  for (size_t i = kDegree - 1; i-- > 0;) {
    power = hn::MulAdd(power, fraction, hn::Set(floats, coefficients[i]));
  }
  power = hn::MulAdd(power, fraction, hn::Set(floats, 1.0f));
  // The integer is added to the exponent, which begins at bit 23.
  const Int exponent = hn::ShiftLeft<23>(hn::BitCast(ints, rounded));
  return hn::BitCast(floats, hn::Add(hn::BitCast(ints, power), exponent));
}

// The coefficients have the least relative error: one part in 9000, which 8 bits cannot tell.
static HWY_INLINE Float Exp2(Float x) {
  return Exp2By({0.693282927f, 0.24221096f, 0.055008931f}, x);
}

// One part in ten million.
static HWY_INLINE Float FineExp2(Float x) {
  return Exp2By({0.693146978f, 0.240222421f, 0.0555073374f, 0.00967151265f, 0.00132647272f}, x);
}

#endif  // VK_SERVED

}  // namespace HWY_NAMESPACE
}  // namespace vision_kernels
HWY_AFTER_NAMESPACE();

#endif  // VISION_SIDECAR_KERNELS_MICROKERNEL_INL_H_
