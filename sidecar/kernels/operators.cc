// The operators as ONNX Runtime sees them: names, attributes, shapes, errors, threads and memory.
//
// The only file that knows ONNX Runtime, through its C interface. Domain `vision.sidecar`:
//
//   Attention(queries, keys, values) -> result, all float [batch, tokens, heads * width];
//     attributes num_heads (int) and scale (float).
//   QuantiseTokens(numbers: float [..., inputs], factors: float [inputs], may be left out)
//     -> integers: uint8 [..., inputs rounded up to 4], scales: float [..., 2].
//   Linear(integers, scales, weights: int8 [inputs, outputs], weight_steps: float [outputs],
//          bias: float [outputs], may be left out) -> result: float [..., outputs];
//     attribute activation (string): none, Gelu or FastGelu.
//
// What QuantiseTokens makes is for Linear alone: how a byte holds its integer depends on the CPU.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "onnxruntime_c_api.h"

#if defined(_WIN32)
#define VK_PUBLIC extern "C" __declspec(dllexport)
#else
#define VK_PUBLIC extern "C" __attribute__((visibility("default")))
#endif

namespace vision_kernels {
namespace {

const OrtApi* api = nullptr;  // set before any kernel exists, the same for all sessions

// ONNX Runtime ends a run between two operators, and ours may take a fifth of a second. So whoever
// starts runs numbers them and says which one to end. One run at a time can be ended so.
std::atomic<uint64_t> current_run{0};
std::atomic<uint64_t> ended_run{UINT64_MAX};

// An error of ONNX Runtime on its way through our code.
struct Failure {
  OrtStatus* status;
};

void Check(OrtStatus* status) {
  if (status != nullptr) throw Failure{status};
}

[[noreturn]] void Refuse(const std::string& sentence) {
  throw Failure{api->CreateStatus(ORT_INVALID_ARGUMENT, sentence.c_str())};
}

// No exception may leave for ONNX Runtime, which may be built by another compiler.
template <class Body>
OrtStatus* Guard(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

std::vector<int64_t> ShapeOf(const OrtValue* tensor) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api->GetTensorTypeAndShape(tensor, &info));
  size_t rank = 0;
  OrtStatus* status = api->GetDimensionsCount(info, &rank);
  std::vector<int64_t> shape(rank);
  if (status == nullptr) status = api->GetDimensions(info, shape.data(), rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  Check(status);
  return shape;
}

size_t Elements(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

template <class T>
T* DataOf(const OrtValue* tensor) {
  void* data = nullptr;
  Check(api->GetTensorMutableData(const_cast<OrtValue*>(tensor), &data));
  return static_cast<T*>(data);
}

// One operator at work: its inputs and outputs by number, and ONNX Runtime's threads and memory.
class Call {
 public:
  explicit Call(OrtKernelContext* context) : context_(context), run_(current_run) {}

  // Null where the input was left out.
  const OrtValue* Input(size_t index) const {
    size_t count = 0;
    Check(api->KernelContext_GetInputCount(context_, &count));
    const OrtValue* value = nullptr;
    if (index < count) Check(api->KernelContext_GetInput(context_, index, &value));
    return value;
  }

  // [count] floats, or null where the input was left out.
  const float* Vector(size_t index, size_t count, const char* sentence) const {
    const OrtValue* const value = Input(index);
    if (value == nullptr) return nullptr;
    if (Elements(ShapeOf(value)) != count) Refuse(sentence);
    return DataOf<float>(value);
  }

  template <class T>
  T* Output(size_t index, const std::vector<int64_t>& shape) const {
    OrtValue* output = nullptr;
    Check(api->KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &output));
    return DataOf<T>(output);
  }

  // Calls work(crew) with ONNX Runtime's own threads. They may be fewer than the crew's workers; then
  // some take several tasks. Fails if the run was ended meanwhile.
  template <class Work>
  void Parallel(size_t workers, const Work& work) const {
    const vision_kernels::Parallel parallel =
        [this](size_t count, const std::function<void(size_t)>& task) {
          const auto call = [](void* function, size_t index) {
            (*static_cast<const std::function<void(size_t)>*>(function))(index);
          };
          Check(api->KernelContext_ParallelFor(
              context_, call, count, 0, const_cast<std::function<void(size_t)>*>(&task)));
        };
    const Wanted wanted = [this] { return ended_run != run_; };
    work(Crew{workers, parallel, wanted});
    if (!wanted()) throw Failure{api->CreateStatus(ORT_FAIL, "The run was ended.")};
  }

  OrtKernelContext* context() const { return context_; }

 private:
  OrtKernelContext* context_;
  uint64_t run_;
};

size_t Workers() { return std::max(1u, std::thread::hardware_concurrency()); }

// Memory from the session's own allocator, which keeps it for the next run.
class Scratch {
 public:
  Scratch(const Call& call, size_t bytes) {
    OrtMemoryInfo* where = nullptr;
    Check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &where));
    OrtStatus* status = api->KernelContext_GetAllocator(call.context(), where, &allocator_);
    api->ReleaseMemoryInfo(where);
    Check(status);
    status = api->AllocatorAlloc(allocator_, bytes, &data_);
    if (status != nullptr) {
      api->ReleaseAllocator(allocator_);
      throw Failure{status};
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    OrtStatus* const status = api->AllocatorFree(allocator_, data_);
    if (status != nullptr) api->ReleaseStatus(status);
    api->ReleaseAllocator(allocator_);
  }

  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

// Types of inputs and outputs; an optional one may be left out.
struct Argument {
  ONNXTensorElementDataType type;
  bool optional = false;
};

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kUint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr ONNXTensorElementDataType kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;

template <class Variant>
Variant Best(const std::vector<Variant>& variants) {
  if (variants.empty()) Refuse("This operator is not made for this CPU.");
  return variants.front();
}

class AttentionKernel {
 public:
  static constexpr const char* kName = "Attention";
  static constexpr Argument kInputs[] = {{kFloat}, {kFloat}, {kFloat}};
  static constexpr Argument kOutputs[] = {{kFloat}};

  explicit AttentionKernel(const OrtKernelInfo* info) : variant_(Best(AttentionVariants())) {
    Check(api->KernelInfoGetAttribute_int64(info, "num_heads", &heads_));
    Check(api->KernelInfoGetAttribute_float(info, "scale", &scale_));
    if (heads_ < 1) Refuse("Attention expects num_heads of at least 1.");
    if (!(scale_ > 0)) Refuse("Attention expects a scale above zero.");
  }

  void Compute(const Call& call) const {
    const OrtValue* inputs[3];
    for (size_t i = 0; i < 3; ++i) inputs[i] = call.Input(i);
    const std::vector<int64_t> shape = ShapeOf(inputs[0]);
    if (shape.size() != 3 || ShapeOf(inputs[1]) != shape || ShapeOf(inputs[2]) != shape) {
      Refuse("Attention expects queries, keys and values of one shape [batch, tokens, width].");
    }
    const size_t widest = kWidestHead * static_cast<size_t>(heads_);
    if (shape[2] % heads_ != 0 || static_cast<size_t>(shape[2]) > widest) {
      Refuse("Attention expects a width that is num_heads times at most " +
             std::to_string(kWidestHead) + ".");
    }
    float* const result = call.Output<float>(0, shape);
    if (Elements(shape) == 0) return;

    const AttentionShape sizes{static_cast<size_t>(shape[0]), static_cast<size_t>(shape[1]),
                               static_cast<size_t>(heads_), static_cast<size_t>(shape[2] / heads_),
                               scale_};
    const AttentionTensors tensors{DataOf<float>(inputs[0]), DataOf<float>(inputs[1]),
                                   DataOf<float>(inputs[2]), result};
    const Scratch workspace(call, variant_.workspace(sizes, Workers()));
    call.Parallel(Workers(), [&](const Crew& crew) {
      variant_.run(sizes, tensors, workspace.data(), crew);
    });
  }

  static OrtStatus* InferShape(const OrtCustomOp*, OrtShapeInferContext* context) {
    return Guard([context] {
      OrtTensorTypeAndShapeInfo* shape = nullptr;  // belongs to the context
      Check(api->ShapeInferContext_GetInputTypeShape(context, 0, &shape));
      Check(api->ShapeInferContext_SetOutputTypeShape(context, 0, shape));
    });
  }

 private:
  AttentionVariant variant_;
  int64_t heads_ = 0;
  float scale_ = 0;
};

class QuantiseTokensKernel {
 public:
  static constexpr const char* kName = "QuantiseTokens";
  static constexpr Argument kInputs[] = {{kFloat}, {kFloat, true}};
  static constexpr Argument kOutputs[] = {{kUint8}, {kFloat}};
  static constexpr std::nullptr_t InferShape = nullptr;

  explicit QuantiseTokensKernel(const OrtKernelInfo*) : variant_(Best(LinearVariants())) {}

  void Compute(const Call& call) const {
    std::vector<int64_t> shape = ShapeOf(call.Input(0));
    if (shape.empty() || static_cast<size_t>(shape.back()) > kMostInputs) {
      Refuse("QuantiseTokens expects [..., inputs] with at most " + std::to_string(kMostInputs) +
             " inputs.");
    }
    const size_t inputs = static_cast<size_t>(shape.back()), elements = Elements(shape);
    const float* const factors =
        call.Vector(1, inputs, "QuantiseTokens expects one factor per input.");
    shape.back() = static_cast<int64_t>(TokenBytes(inputs));
    uint8_t* const integers = call.Output<uint8_t>(0, shape);
    shape.back() = sizeof(TokenScale) / sizeof(float);
    float* const scales = call.Output<float>(1, shape);
    if (elements == 0) return;
    call.Parallel(Workers(), [&](const Crew& crew) {
      variant_.quantise(elements / inputs, inputs, DataOf<float>(call.Input(0)), factors, integers,
                        reinterpret_cast<TokenScale*>(scales), crew);
    });
  }

 private:
  LinearVariant variant_;
};

class LinearKernel {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr Argument kInputs[] = {{kUint8}, {kFloat}, {kInt8}, {kFloat}, {kFloat, true}};
  static constexpr Argument kOutputs[] = {{kFloat}};
  static constexpr std::nullptr_t InferShape = nullptr;

  explicit LinearKernel(const OrtKernelInfo* info) : variant_(Best(LinearVariants())) {
    char name[16] = "";
    size_t size = sizeof(name);
    Check(api->KernelInfoGetAttribute_string(info, "activation", name, &size));
    if (strcmp(name, "Gelu") == 0) activation_ = Activation::kGelu;
    else if (strcmp(name, "FastGelu") == 0) activation_ = Activation::kFastGelu;
    else if (strcmp(name, "none") != 0) Refuse("Linear expects none, Gelu or FastGelu.");
  }

  void Compute(const Call& call) const {
    std::vector<int64_t> shape = ShapeOf(call.Input(0));
    const std::vector<int64_t> weights = ShapeOf(call.Input(2));
    if (weights.size() != 2 || static_cast<size_t>(weights[0]) > kMostInputs || shape.empty() ||
        shape.back() != static_cast<int64_t>(TokenBytes(static_cast<size_t>(weights[0])))) {
      Refuse("Linear expects integers of QuantiseTokens, and weights [inputs, outputs] to match.");
    }
    const size_t row = static_cast<size_t>(shape.back());
    const LinearShape sizes{row == 0 ? 0 : Elements(shape) / row, static_cast<size_t>(weights[0]),
                            static_cast<size_t>(weights[1])};
    const float* const scales =
        call.Vector(1, 2 * sizes.tokens, "Linear expects the scales of QuantiseTokens.");
    const char* const per_output = "Linear expects one step and one bias per output.";
    const float* const steps = call.Vector(3, sizes.outputs, per_output);
    const float* const bias = call.Vector(4, sizes.outputs, per_output);
    shape.back() = weights[1];
    float* const result = call.Output<float>(0, shape);
    if (sizes.tokens == 0 || sizes.outputs == 0) return;
    const LinearTensors tensors{DataOf<uint8_t>(call.Input(0)),
                                reinterpret_cast<const TokenScale*>(scales),
                                DataOf<int8_t>(call.Input(2)), steps, bias, result};
    const Scratch workspace(call, variant_.workspace(sizes, Workers()));
    call.Parallel(Workers(), [&](const Crew& crew) {
      variant_.multiply(sizes, tensors, activation_, workspace.data(), crew);
    });
  }

 private:
  LinearVariant variant_;
  Activation activation_ = Activation::kNone;
};

OrtCustomOpInputOutputCharacteristic Characteristic(const Argument& argument) {
  return argument.optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

template <class Kernel>
OrtCustomOp Describe() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return Kernel::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // CPU
  op.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kInputs); };
  op.GetInputType = [](const OrtCustomOp*, size_t i) { return Kernel::kInputs[i].type; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
    return Characteristic(Kernel::kInputs[i]);
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kOutputs); };
  op.GetOutputType = [](const OrtCustomOp*, size_t i) { return Kernel::kOutputs[i].type; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) {
    return Characteristic(Kernel::kOutputs[i]);
  };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputHomogeneity = op.GetVariadicInputHomogeneity;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.InferOutputShapeFn = Kernel::InferShape;
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) {
    return Guard([info, kernel] { *kernel = new Kernel(info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return Guard([kernel, context] { static_cast<const Kernel*>(kernel)->Compute(Call(context)); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

template <class Variant>
const char* NameOfBest(const std::vector<Variant>& variants) {
  return variants.empty() ? "" : variants.front().name;
}

}  // namespace
}  // namespace vision_kernels

// With which instruction set an operator would compute on this CPU; empty if it does not serve it.
VK_PUBLIC const char* vision_kernels_variant(const char* name) {
  using namespace vision_kernels;
  if (strcmp(name, AttentionKernel::kName) == 0) return NameOfBest(AttentionVariants());
  if (strcmp(name, LinearKernel::kName) == 0) return NameOfBest(LinearVariants());
  return "";
}

// For measurements: see LinearVariant::peak; 0 where this CPU is not served.
VK_PUBLIC uint64_t vision_kernels_peak(uint64_t rounds) {
  const auto variants = vision_kernels::LinearVariants();
  return variants.empty() ? 0 : variants.front().peak(rounds);
}

// From now on, what is computed belongs to this run. Any number but the last one's, below 2^64 - 1.
VK_PUBLIC void vision_kernels_begin(uint64_t run) { vision_kernels::current_run = run; }

// The operators of this run return an error as soon as they can; does nothing if it is over.
VK_PUBLIC void vision_kernels_end(uint64_t run) { vision_kernels::ended_run = run; }

// ONNX Runtime calls this by name when a session registers the library.
VK_PUBLIC OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace vision_kernels;
  api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;  // an older ONNX Runtime: it will not know our operators
  return Guard([options] {
    static const OrtCustomOp operators[] = {Describe<AttentionKernel>(),
                                            Describe<QuantiseTokensKernel>(),
                                            Describe<LinearKernel>()};
    static OrtCustomOpDomain* const domain = [] {  // for all sessions, as long as the process
      OrtCustomOpDomain* made = nullptr;
      Check(api->CreateCustomOpDomain("vision.sidecar", &made));
      for (const OrtCustomOp& op : operators) Check(api->CustomOpDomain_Add(made, &op));
      return made;
    }();
    Check(api->AddCustomOpDomain(options, domain));
  });
}
