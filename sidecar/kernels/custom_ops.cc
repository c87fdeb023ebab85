// SPDX-License-Identifier: Apache-2.0
// The custom ops as ONNX Runtime sees them: names, attributes, shapes, errors, threads and memory.
// The only file that knows ONNX Runtime.
//
// Domain `vision.sidecar`:
//
//   Attention(queries, keys, values) -> result, all float [batch, tokens, heads * width];
//     attributes num_heads (int) and scale (float).
//   QuantiseTokens(numbers: float [..., inputs], factors: float [inputs], optional)
//     -> tokens: uint8 [..., inputs rounded up to 4], token_scales: float [..., 2].
//   NormaliseTokens(numbers: float [..., inputs], weight: float [inputs], bias: float [inputs])
//     -> tokens, token_scales: QuantiseTokens of LayerNormalization; attribute epsilon (float).
//   Linear(tokens, token_scales, weights: int8 [inputs, outputs], weight_scales: float [outputs],
//          bias: float [outputs], optional, residual: float [..., outputs], optional)
//     -> result: float [..., outputs]; attribute activation (string): none, Gelu or FastGelu. The
//     residual is added after the activation.
//   Mlp(tokens, token_scales, weights: int8 [inputs, hidden], weight_scales: float [hidden],
//       bias: float [hidden], weights: int8 [hidden, outputs], weight_scales: float [outputs],
//       bias: float [outputs], factors: float [hidden], optional, residual: float [..., outputs],
//       optional) -> result: float [..., outputs]; attribute activation. Linear, QuantiseTokens
//     with the factors, and Linear with the residual.
//
// The tokens are for Linear and Mlp alone: how a byte holds its integer depends on the CPU.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define ORT_API_MANUAL_INIT
#include "onnxruntime_cxx_api.h"
#undef ORT_API_MANUAL_INIT

#include "attention.h"
#include "linear.h"

#if defined(_WIN32)
#define VK_PUBLIC extern "C" __declspec(dllexport)
#else
#define VK_PUBLIC extern "C" __attribute__((visibility("default")))
#endif

namespace vision_kernels {
namespace {

// ONNX Runtime ends a run between two ops, and ours may take a fifth of a second. So the sidecar
// numbers its runs and says which one to end. One run at a time can be ended so.
std::atomic<uint64_t> current_run{0};
std::atomic<uint64_t> ended_run{UINT64_MAX};

void Require(bool condition, std::string sentence) {
  if (!condition) throw Ort::Exception(std::move(sentence), ORT_INVALID_ARGUMENT);
}

// No exception may reach ONNX Runtime, which may be built by another compiler.
template <class Body>
OrtStatus* Guard(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Ort::Exception& error) {
    return Ort::Status(error).release();
  } catch (const std::exception& error) {
    return Ort::Status(error).release();
  }
}

using Shape = std::vector<int64_t>;

Shape ShapeOf(const Ort::ConstValue& tensor) {
  return tensor.GetTensorTypeAndShapeInfo().GetShape();
}

size_t ElementCount(const Shape& shape) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

// One call of a kernel: its inputs and outputs by number, and ONNX Runtime's threads and memory.
class Call {
 public:
  explicit Call(OrtKernelContext* context) : context_(context), run_(current_run) {}

  Ort::ConstValue Input(size_t index) const { return context_.GetInput(index); }

  // [count] floats, or null where the optional input is absent.
  const float* Vector(size_t index, size_t count, const char* sentence) const {
    if (index >= context_.GetInputCount() || Input(index) == nullptr) return nullptr;
    Require(ElementCount(ShapeOf(Input(index))) == count, sentence);
    return Input(index).GetTensorData<float>();
  }

  template <class T>
  T* Output(size_t index, const Shape& shape) const {
    return context_.GetOutput(index, shape).GetTensorMutableData<T>();
  }

  static size_t Threads() { return std::max(1U, std::thread::hardware_concurrency()); }

  // Calls work(pool) with ONNX Runtime's own threads. They may be fewer than `Threads`; then some
  // take several tasks. Throws if the run was ended meanwhile.
  template <class Work>
  void Parallel(const Work& work) const {
    using Task = std::function<void(size_t)>;
    const Executor execute = [this](size_t count, const Task& task) {
      const auto call = [](void* function, size_t index) {
        (*static_cast<const Task*>(function))(index);
      };
      context_.ParallelFor(call, count, 0, const_cast<Task*>(&task));
    };
    const std::function<bool()> cancelled = [this] { return ended_run == run_; };
    work(ThreadPool{Threads(), execute, cancelled});
    if (cancelled()) throw Ort::Exception("The run was ended.", ORT_FAIL);
  }

  // The same with scratch memory from the session's allocator, which keeps it for the next run:
  // work(scratch, pool).
  template <class Work>
  void Parallel(size_t scratch_bytes, const Work& work) const {
    const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::detail::AllocatorImpl<OrtAllocator> allocator(context_.GetAllocator(*cpu));
    Ort::MemoryAllocation scratch = allocator.GetAllocation(scratch_bytes);
    Parallel([&](const ThreadPool& pool) { work(scratch.get(), pool); });
  }

 private:
  Ort::KernelContext context_;
  uint64_t run_;
};

template <class Variant>
Variant Best(const std::vector<Variant>& variants) {
  Require(!variants.empty(), "This op is not made for this CPU.");
  return variants.front();
}

class AttentionKernel {
 public:
  explicit AttentionKernel(const Ort::ConstKernelInfo& info)
      : variant_(Best(AttentionVariants())),
        heads_(info.GetAttribute<int64_t>("num_heads")),
        scale_(info.GetAttribute<float>("scale")) {
    Require(heads_ >= 1, "Attention expects num_heads of at least 1.");
    Require(scale_ > 0, "Attention expects a scale above zero.");
  }

  void Compute(const Call& call) const {
    const Shape shape = ShapeOf(call.Input(0));
    Require(shape.size() == 3 && ShapeOf(call.Input(1)) == shape && ShapeOf(call.Input(2)) == shape,
            "Attention expects queries, keys and values of one shape [batch, tokens, width].");
    Require(shape[2] % heads_ == 0 && static_cast<size_t>(shape[2] / heads_) <= kMaxHeadWidth,
            "Attention expects a width that is num_heads times at most " +
                std::to_string(kMaxHeadWidth) + ".");
    float* const result = call.Output<float>(0, shape);
    if (ElementCount(shape) == 0) return;

    const AttentionShape sizes{static_cast<size_t>(shape[0]), static_cast<size_t>(shape[1]),
                               static_cast<size_t>(heads_), static_cast<size_t>(shape[2] / heads_),
                               scale_};
    const AttentionTensors tensors{call.Input(0).GetTensorData<float>(),
                                   call.Input(1).GetTensorData<float>(),
                                   call.Input(2).GetTensorData<float>(), result};
    call.Parallel(variant_.scratch_bytes(sizes, Call::Threads()),
                  [&](void* scratch, const ThreadPool& pool) {
                    variant_.run(sizes, tensors, scratch, pool);
                  });
  }

 private:
  AttentionVariant variant_;
  int64_t heads_;
  float scale_;
};

// The numbers that `op` has as input 0, [..., inputs], and its outputs: the tokens and their
// scales.
struct TokenOutputs {
  TokenOutputs(const Call& call, const char* op) {
    Shape shape = ShapeOf(call.Input(0));
    Require(!shape.empty() && static_cast<size_t>(shape.back()) <= kMaxInputs,
            std::string(op) + " expects [..., inputs] with at most " + std::to_string(kMaxInputs) +
                " inputs.");
    inputs = static_cast<size_t>(shape.back());
    tokens = inputs == 0 ? 0 : ElementCount(shape) / inputs;
    numbers = call.Input(0).GetTensorData<float>();
    shape.back() = static_cast<int64_t>(TokenBytes(inputs));
    bytes = call.Output<uint8_t>(0, shape);
    shape.back() = sizeof(TokenScale) / sizeof(float);
    scales = reinterpret_cast<TokenScale*>(call.Output<float>(1, shape));
  }
  size_t inputs, tokens;
  const float* numbers;
  uint8_t* bytes;
  TokenScale* scales;
};

class QuantiseTokensKernel {
 public:
  explicit QuantiseTokensKernel(const Ort::ConstKernelInfo&) : variant_(Best(LinearVariants())) {}

  void Compute(const Call& call) const {
    const TokenOutputs out(call, "QuantiseTokens");
    const float* const factors =
        call.Vector(1, out.inputs, "QuantiseTokens expects one factor per input.");
    if (out.tokens == 0) return;
    call.Parallel([&](const ThreadPool& pool) {
      variant_.quantize(out.tokens, out.inputs, out.numbers, factors, out.bytes, out.scales, pool);
    });
  }

 private:
  LinearVariant variant_;
};

class NormaliseTokensKernel {
 public:
  explicit NormaliseTokensKernel(const Ort::ConstKernelInfo& info)
      : variant_(Best(LinearVariants())), epsilon_(info.GetAttribute<float>("epsilon")) {
    Require(epsilon_ > 0, "NormaliseTokens expects an epsilon above zero.");
  }

  void Compute(const Call& call) const {
    const TokenOutputs out(call, "NormaliseTokens");
    const char* const per_input = "NormaliseTokens expects one weight and one bias per input.";
    const LayerNorm norm{call.Vector(1, out.inputs, per_input),
                         call.Vector(2, out.inputs, per_input), epsilon_};
    if (out.tokens == 0) return;
    call.Parallel([&](const ThreadPool& pool) {
      variant_.normalize(out.tokens, out.inputs, out.numbers, norm, out.bytes, out.scales, pool);
    });
  }

 private:
  LinearVariant variant_;
  float epsilon_;
};

Activation ActivationOf(const Ort::ConstKernelInfo& info) {
  const std::string name = info.GetAttribute<std::string>("activation");
  if (name == "Gelu") return Activation::kGelu;
  if (name == "FastGelu") return Activation::kFastGelu;
  Require(name == "none", "`activation` is to be none, Gelu or FastGelu.");
  return Activation::kNone;
}

// The inputs from `index` on: weights [inputs, outputs], their scales, and a bias that may be
// absent.
struct LayerInputs {
  LayerInputs(const Call& call, size_t index, size_t token_bytes) {
    const Shape shape = ShapeOf(call.Input(index));
    Require(shape.size() == 2 && static_cast<size_t>(shape[0]) <= kMaxInputs &&
                token_bytes == TokenBytes(static_cast<size_t>(shape[0])),
            "A linear layer expects tokens of QuantiseTokens, and weights [inputs, outputs] to "
            "match.");
    inputs = static_cast<size_t>(shape[0]);
    outputs = static_cast<size_t>(shape[1]);
    const char* const per_output = "A linear layer expects one scale and one bias per output.";
    weights = {call.Input(index).GetTensorData<int8_t>(),
               call.Vector(index + 1, outputs, per_output),
               call.Vector(index + 2, outputs, per_output)};
  }
  size_t inputs, outputs;
  LinearWeights weights;
};

// The inputs 0 and 1, which QuantiseTokens and NormaliseTokens make; and the shape of the result.
struct TokenInputs {
  explicit TokenInputs(const Call& call) : shape(ShapeOf(call.Input(0))) {
    Require(!shape.empty(), "Tokens of QuantiseTokens are expected, [..., bytes].");
    token_bytes = static_cast<size_t>(shape.back());
    tokens = token_bytes == 0 ? 0 : ElementCount(shape) / token_bytes;
    bytes = call.Input(0).GetTensorData<uint8_t>();
    scales = reinterpret_cast<const TokenScale*>(
        call.Vector(1, 2 * tokens, "The tokens' scales of QuantiseTokens are expected."));
  }
  Shape ResultShape(size_t outputs) const {
    Shape result = shape;
    result.back() = static_cast<int64_t>(outputs);
    return result;
  }
  Shape shape;
  size_t token_bytes, tokens;
  const uint8_t* bytes;
  const TokenScale* scales;
};

constexpr const char* kAsTheResult = "The residual must have as many numbers as the result.";

class LinearKernel {
 public:
  explicit LinearKernel(const Ort::ConstKernelInfo& info)
      : variant_(Best(LinearVariants())), activation_(ActivationOf(info)) {}

  void Compute(const Call& call) const {
    const TokenInputs in(call);
    const LayerInputs layer(call, 2, in.token_bytes);
    const LinearShape sizes{in.tokens, layer.inputs, layer.outputs};
    const float* const residual = call.Vector(5, sizes.tokens * sizes.outputs, kAsTheResult);
    float* const result = call.Output<float>(0, in.ResultShape(sizes.outputs));
    if (sizes.tokens == 0 || sizes.outputs == 0) return;
    const LinearTensors tensors{in.bytes, in.scales, layer.weights, residual, result};
    call.Parallel(variant_.scratch_bytes(sizes, Call::Threads()),
                  [&](void* scratch, const ThreadPool& pool) {
                    variant_.multiply(sizes, tensors, activation_, scratch, pool);
                  });
  }

 private:
  LinearVariant variant_;
  Activation activation_;
};

class MlpKernel {
 public:
  explicit MlpKernel(const Ort::ConstKernelInfo& info)
      : variant_(Best(LinearVariants())), activation_(ActivationOf(info)) {}

  void Compute(const Call& call) const {
    const TokenInputs in(call);
    const LayerInputs first(call, 2, in.token_bytes);
    const LayerInputs second(call, 5, TokenBytes(first.outputs));
    Require(first.outputs == second.inputs,
            "The second layer's inputs must be the first's outputs.");
    const MlpShape sizes{in.tokens, first.inputs, first.outputs, second.outputs};
    const float* const factors =
        call.Vector(8, sizes.hidden, "Mlp expects one factor per output of its first layer.");
    const float* const residual = call.Vector(9, sizes.tokens * sizes.outputs, kAsTheResult);
    float* const result = call.Output<float>(0, in.ResultShape(sizes.outputs));
    if (sizes.tokens == 0 || sizes.outputs == 0) return;
    const MlpTensors tensors{in.bytes,       in.scales, first.weights, factors,
                             second.weights, residual,  result};
    call.Parallel(variant_.mlp_scratch_bytes(sizes, Call::Threads()),
                  [&](void* scratch, const ThreadPool& pool) {
                    variant_.multiply_mlp(sizes, tensors, activation_, scratch, pool);
                  });
  }

 private:
  LinearVariant variant_;
  Activation activation_;
};

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kUint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr ONNXTensorElementDataType kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;

// A kernel with the status codes that ONNX Runtime wants instead of exceptions.
template <class Kernel>
struct Guarded : Kernel {
  using Kernel::Kernel;
  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    return Guard([&] { this->Compute(Call(context)); });
  }
};

// What the ops have in common. Op declares kName, kInputs, kOptional (the first optional input's
// number) and kOutputs.
template <class Op, class Kernel>
struct CustomOp : Ort::CustomOpBase<Op, Guarded<Kernel>, /*WithStatus=*/true> {
  const char* GetName() const { return Op::kName; }
  size_t GetInputTypeCount() const { return std::size(Op::kInputs); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return Op::kInputs[i]; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t i) const {
    return i >= Op::kOptional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  size_t GetOutputTypeCount() const { return std::size(Op::kOutputs); }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return Op::kOutputs[i]; }
  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return Guard([&] { *kernel = new Guarded<Kernel>(Ort::ConstKernelInfo(info)); });
  }
};

struct AttentionOp : CustomOp<AttentionOp, AttentionKernel> {
  static constexpr const char* kName = "Attention";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kFloat};
  static constexpr size_t kOptional = 3;

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    return context.SetOutputShape(0, context.GetInputShape(0));
  }
};

struct QuantiseTokensOp : CustomOp<QuantiseTokensOp, QuantiseTokensKernel> {
  static constexpr const char* kName = "QuantiseTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kUint8, kFloat};
  static constexpr size_t kOptional = 1;
};

struct NormaliseTokensOp : CustomOp<NormaliseTokensOp, NormaliseTokensKernel> {
  static constexpr const char* kName = "NormaliseTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kUint8, kFloat};
  static constexpr size_t kOptional = 3;
};

struct LinearOp : CustomOp<LinearOp, LinearKernel> {
  static constexpr const char* kName = "Linear";
  static constexpr ONNXTensorElementDataType kInputs[] = {kUint8, kFloat, kInt8,
                                                          kFloat, kFloat, kFloat};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kFloat};
  static constexpr size_t kOptional = 4;
};

struct MlpOp : CustomOp<MlpOp, MlpKernel> {
  static constexpr const char* kName = "Mlp";
  static constexpr ONNXTensorElementDataType kInputs[] = {kUint8, kFloat, kInt8,  kFloat, kFloat,
                                                          kInt8,  kFloat, kFloat, kFloat, kFloat};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kFloat};
  static constexpr size_t kOptional = 8;
};

template <class Variant>
const char* NameOfBest(const std::vector<Variant>& variants) {
  return variants.empty() ? "" : variants.front().name;
}

}  // namespace
}  // namespace vision_kernels

// The instruction set that an op would use on this CPU; empty if the op does not serve this CPU.
VK_PUBLIC const char* vision_kernels_variant(const char* op) {
  using namespace vision_kernels;
  if (std::string(op) == AttentionOp::kName) return NameOfBest(AttentionVariants());
  for (const char* name :
       {QuantiseTokensOp::kName, NormaliseTokensOp::kName, LinearOp::kName, MlpOp::kName}) {
    if (std::string(op) == name) return NameOfBest(LinearVariants());
  }
  return "";
}

// From now on, what is computed belongs to this run. Any number but the last one's, below 2^64 - 1.
VK_PUBLIC void vision_kernels_begin(uint64_t run) { vision_kernels::current_run = run; }

// The ops of this run return an error as soon as they can. Does nothing if the run is over.
VK_PUBLIC void vision_kernels_end(uint64_t run) { vision_kernels::ended_run = run; }

// ONNX Runtime calls this by name when a session registers the library.
VK_PUBLIC OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace vision_kernels;
  const OrtApi* const api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;  // an older ONNX Runtime: it will not know our ops
  Ort::InitApi(api);
  return Guard([options] {
    static const AttentionOp attention;
    static const QuantiseTokensOp quantise_tokens;
    static const NormaliseTokensOp normalise_tokens;
    static const LinearOp linear;
    static const MlpOp mlp;
    static const Ort::CustomOpDomain domain = [] {  // for all sessions, as long as the process
      Ort::CustomOpDomain made("vision.sidecar");
      for (const OrtCustomOp* op :
           {static_cast<const OrtCustomOp*>(&attention),
            static_cast<const OrtCustomOp*>(&quantise_tokens),
            static_cast<const OrtCustomOp*>(&normalise_tokens),
            static_cast<const OrtCustomOp*>(&linear), static_cast<const OrtCustomOp*>(&mlp)}) {
        made.Add(op);
      }
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
  });
}
