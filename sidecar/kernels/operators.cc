// The operators as ONNX Runtime sees them: names, attributes, shapes, errors, threads and memory.
//
// The only file that knows ONNX Runtime, through its C interface. Domain `vision.sidecar`:
//   Attention(queries, keys, values) -> result, all float [batch, tokens, heads * width];
//   attributes num_heads (int) and scale (float).

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "attention.h"
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

float* DataOf(const OrtValue* tensor) {
  void* data = nullptr;
  Check(api->GetTensorMutableData(const_cast<OrtValue*>(tensor), &data));
  return static_cast<float*>(data);
}

// Memory from the session's own allocator, which keeps it for the next run.
class Scratch {
 public:
  Scratch(const OrtKernelContext* context, size_t bytes) {
    OrtMemoryInfo* where = nullptr;
    Check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &where));
    OrtStatus* status = api->KernelContext_GetAllocator(context, where, &allocator_);
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

// ONNX Runtime's own threads. They may be fewer than `count`; then some take several tasks.
void InParallel(const OrtKernelContext* context, size_t count,
                const std::function<void(size_t)>& task) {
  const auto call = [](void* function, size_t index) {
    (*static_cast<const std::function<void(size_t)>*>(function))(index);
  };
  Check(api->KernelContext_ParallelFor(context, call, count, 0,
                                       const_cast<std::function<void(size_t)>*>(&task)));
}

class AttentionKernel {
 public:
  explicit AttentionKernel(const OrtKernelInfo* info) {
    Check(api->KernelInfoGetAttribute_int64(info, "num_heads", &heads_));
    Check(api->KernelInfoGetAttribute_float(info, "scale", &scale_));
    if (heads_ < 1) Refuse("Attention expects num_heads of at least 1.");
    if (!(scale_ > 0)) Refuse("Attention expects a scale above zero.");
    const std::vector<AttentionVariant> variants = AttentionVariants();
    if (variants.empty()) Refuse("Attention is not made for this CPU.");
    variant_ = variants.front();
  }

  void Compute(OrtKernelContext* context) const {
    const OrtValue* inputs[3];
    for (size_t i = 0; i < 3; ++i) Check(api->KernelContext_GetInput(context, i, &inputs[i]));
    const std::vector<int64_t> shape = ShapeOf(inputs[0]);
    if (shape.size() != 3 || ShapeOf(inputs[1]) != shape || ShapeOf(inputs[2]) != shape) {
      Refuse("Attention expects queries, keys and values of one shape [batch, tokens, width].");
    }
    const size_t widest = kWidestHead * static_cast<size_t>(heads_);
    if (shape[2] % heads_ != 0 || static_cast<size_t>(shape[2]) > widest) {
      Refuse("Attention expects a width that is num_heads times at most " +
             std::to_string(kWidestHead) + ".");
    }
    OrtValue* output = nullptr;
    Check(api->KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &output));
    if (shape[0] == 0 || shape[1] == 0 || shape[2] == 0) return;

    const AttentionShape sizes{static_cast<size_t>(shape[0]), static_cast<size_t>(shape[1]),
                               static_cast<size_t>(heads_), static_cast<size_t>(shape[2] / heads_),
                               scale_};
    const AttentionTensors tensors{DataOf(inputs[0]), DataOf(inputs[1]), DataOf(inputs[2]),
                                   DataOf(output)};
    const uint64_t run = current_run;
    const size_t workers = std::max(1u, std::thread::hardware_concurrency());
    const Scratch workspace(context, variant_.workspace(sizes, workers));
    variant_.run(sizes, tensors, workspace.data(), workers,
                 [context](size_t count, const std::function<void(size_t)>& task) {
                   InParallel(context, count, task);
                 },
                 [run] { return ended_run != run; });
    if (ended_run == run) throw Failure{api->CreateStatus(ORT_FAIL, "The run was ended.")};
  }

 private:
  int64_t heads_ = 0;
  float scale_ = 0;
  AttentionVariant variant_{};
};

OrtCustomOp DescribeAttention() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return "Attention"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // CPU
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
  op.GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = op.GetInputType;
  op.GetOutputCharacteristic = op.GetInputCharacteristic;
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputHomogeneity = op.GetVariadicInputHomogeneity;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
    return Guard([context] {
      OrtTensorTypeAndShapeInfo* shape = nullptr;  // belongs to the context
      Check(api->ShapeInferContext_GetInputTypeShape(context, 0, &shape));
      Check(api->ShapeInferContext_SetOutputTypeShape(context, 0, shape));
    });
  };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info,
                         void** kernel) {
    return Guard([info, kernel] { *kernel = new AttentionKernel(info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return Guard([kernel, context] {
      static_cast<const AttentionKernel*>(kernel)->Compute(context);
    });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<AttentionKernel*>(kernel); };
  return op;
}

}  // namespace
}  // namespace vision_kernels

// What this library would compute with on this CPU; empty if it does not serve it.
VK_PUBLIC const char* vision_kernels_variant() {
  static const std::vector<vision_kernels::AttentionVariant> variants =
      vision_kernels::AttentionVariants();
  return variants.empty() ? "" : variants.front().name;
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
    static const OrtCustomOp attention = DescribeAttention();
    static OrtCustomOpDomain* const domain = [] {  // for all sessions, as long as the process
      OrtCustomOpDomain* made = nullptr;
      Check(api->CreateCustomOpDomain("vision.sidecar", &made));
      Check(api->CustomOpDomain_Add(made, &attention));
      return made;
    }();
    Check(api->AddCustomOpDomain(options, domain));
  });
}
