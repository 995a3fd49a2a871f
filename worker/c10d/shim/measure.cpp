// What a piece of a program computes, for benchmarks: operators, floating point operations and,
// with CUDA, kernels and memory. The other side is ../src/measure.rs. The formulas are those of
// torch.utils.flop_counter.
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#ifdef USE_C10D_NCCL
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/autograd/profiler_kineto.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guard.h"

namespace {

using Inputs = c10::ArrayRef<const c10::IValue>;

std::atomic<uint64_t> operators{0};
std::atomic<uint64_t> flops{0};

// Operators that this thread is inside of, and the depth of the one whose operations are counted
// (0: none): those that it is made of are not counted again.
thread_local int depth = 0;
thread_local int counted_at = 0;

uint64_t product(at::IntArrayRef sizes) {
  uint64_t all = 1;
  for (const auto size : sizes) all *= static_cast<uint64_t>(size);
  return all;
}

// The size in the dimension that counts from the end: 1 is the last one.
uint64_t from_end(const at::Tensor& tensor, int64_t dimension) {
  return static_cast<uint64_t>(tensor.size(tensor.dim() - dimension));
}

// [.., m, k] x [.., k, n].
uint64_t matrix_product(const at::Tensor& left, const at::Tensor& right) {
  return 2 * product(left.sizes()) * from_end(right, 1);
}

// A list of one number stands for all dimensions.
int64_t at_dimension(const c10::List<int64_t>& list, size_t dimension) {
  return list.get(list.size() == 1 ? 0 : dimension);
}

// Every weight is multiplied once for each image and each place of the output, or of the input if
// it is transposed.
uint64_t convolution_part(uint64_t images, const at::Tensor& weight, at::IntArrayRef places) {
  return 2 * images * product(weight.sizes()) * product(places);
}

// (input, weight, bias, stride, padding, dilation, transposed, ..)
uint64_t convolution(Inputs inputs) {
  const auto& input = inputs[0].toTensor();
  const auto& weight = inputs[1].toTensor();
  const auto images = static_cast<uint64_t>(input.size(0));
  if (inputs[6].toBool()) return convolution_part(images, weight, input.sizes().slice(2));
  const auto stride = inputs[3].toIntList(), padding = inputs[4].toIntList(),
             dilation = inputs[5].toIntList();
  std::vector<int64_t> output;
  for (int64_t i = 0; i + 2 < input.dim(); i++) {
    const auto span = at_dimension(dilation, i) * (weight.size(i + 2) - 1) + 1;
    const auto room = input.size(i + 2) + 2 * at_dimension(padding, i) - span;
    output.push_back(room / at_dimension(stride, i) + 1);
  }
  return convolution_part(images, weight, output);
}

// (output's gradient, input, weight, bias sizes, stride, padding, dilation, transposed, .., ..,
// mask of outputs): the gradients of the input and of the weight are as large as the convolution
// each.
uint64_t convolution_backward(Inputs inputs) {
  const auto& gradient = inputs[0].toTensor();
  const auto& input = inputs[1].toTensor();
  const auto& places = inputs[7].toBool() ? input : gradient;
  const auto part = convolution_part(static_cast<uint64_t>(input.size(0)), inputs[2].toTensor(),
                                     places.sizes().slice(2));
  const auto mask = inputs[10].toBoolList();
  return part * (static_cast<uint64_t>(mask.get(0)) + static_cast<uint64_t>(mask.get(1)));
}

// Queries [b, h, s, d] with keys [b, h, t, d]: scores of all pairs, [b, h, s, t].
uint64_t scores(const at::Tensor& query, const at::Tensor& key) {
  return 2 * product(query.sizes()) * from_end(key, 2);
}

// The same with values [b, h, t, e], which are summed by the scores.
uint64_t weighted_values(const at::Tensor& query, const at::Tensor& value) {
  return 2 * product(query.sizes().slice(0, 3)) * from_end(value, 2) * from_end(value, 1);
}

// The fused attentions: (query, key, value, ..), and backwards (output's gradient, query, key,
// value, ..), which computes the scores again and has four products of gradients.
uint64_t attention(std::string_view name, Inputs inputs) {
  const size_t first = name.ends_with("_backward") ? 1 : 0;
  const auto& query = inputs[first].toTensor();
  const auto pairs = scores(query, inputs[first + 1].toTensor());
  const auto values = weighted_values(query, inputs[first + 2].toTensor());
  return first == 0 ? pairs + values : 3 * pairs + 2 * values;
}

// The fused attention of `thanos-fused`, whose products no operator of libtorch makes: queries [n,
// s, d] of all heads together, keys and values [n, t, 2d]. Backwards it computes the scores again
// and has four products of gradients.
uint64_t own_attention(std::string_view name, Inputs inputs) {
  const auto product_of_pairs =
      2 * product(inputs[0].toTensor().sizes()) * from_end(inputs[1].toTensor(), 2);
  return (name.ends_with("_backward") ? 5 : 2) * product_of_pairs;
}

uint64_t flops_of(std::string_view name, Inputs inputs) {
  if (name.starts_with("thanos::attention")) return own_attention(name, inputs);
  constexpr std::string_view kNamespace = "aten::", kAttention = "_scaled_dot_product_";
  if (!name.starts_with(kNamespace)) return 0;
  name.remove_prefix(kNamespace.size());
  if (name == "mm" || name == "bmm")
    return matrix_product(inputs[0].toTensor(), inputs[1].toTensor());
  if (name == "addmm" || name == "baddbmm" || name == "addmm_" || name == "baddbmm_" ||
      name == "_addmm_activation") {
    return matrix_product(inputs[1].toTensor(), inputs[2].toTensor());
  }
  if (name == "convolution") return convolution(inputs);
  if (name == "convolution_backward") return convolution_backward(inputs);
  // The unfused one is made of `bmm`.
  const bool fused =
      name.starts_with(kAttention) && !name.starts_with("_scaled_dot_product_attention_math");
  return fused ? attention(name, inputs) : 0;
}

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
  depth++;
  if (depth == 1) operators++;
  if (counted_at == 0) {
    const auto counted = flops_of(function.name(), function.inputs());
    if (counted > 0) counted_at = depth;
    flops += counted;
  }
  return nullptr;
}

void leave(const at::RecordFunction&, at::ObserverContext*) {
  if (counted_at == depth) counted_at = 0;
  depth--;
}

}  // namespace

extern "C" {

// Counts what this thread dispatches from here on, and the threads of its backward passes.
char* thanos_count_begin(uint64_t* handle) {
  return guard([&] {
    operators = 0;
    flops = 0;
    auto callback = at::RecordFunctionCallback(enter, leave)
                        .needsInputs(true)
                        .scopes({at::RecordScope::FUNCTION});
    *handle = at::addThreadLocalCallback(callback);
  });
}

char* thanos_count_end(uint64_t handle, uint64_t* operators_counted, uint64_t* flops_counted) {
  return guard([&] {
    at::removeCallback(handle);
    *operators_counted = operators;
    *flops_counted = flops;
  });
}

#ifdef USE_C10D_NCCL

namespace profiler = torch::autograd::profiler;

namespace {

struct Spent {
  uint64_t calls = 0, nanoseconds = 0;
};

// Microseconds, calls and name of each kernel, the costliest first.
void write_times(const char* path, const std::map<std::string, Spent>& spent) {
  std::vector<std::pair<std::string, Spent>> sorted(spent.begin(), spent.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second.nanoseconds > b.second.nanoseconds;
  });
  std::ofstream out(path);
  for (const auto& [name, own] : sorted)
    out << own.nanoseconds / 1e3 << '\t' << own.calls << '\t' << name << '\n';
}

}  // namespace

char* thanos_kernels_begin() {
  return guard([] {
    const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
    const std::set<profiler::ActivityType> activities{profiler::ActivityType::CUDA};
    c10::cuda::device_synchronize();
    profiler::prepareProfiler(config, activities);
    profiler::enableProfiler(config, activities);
  });
}

// Kernels that the device ran since, without copies and fills of memory.
char* thanos_kernels_end(uint64_t* kernels) {
  return guard([&] {
    c10::cuda::device_synchronize();
    const auto result = profiler::disableProfiler();
    *kernels = 0;
    std::map<std::string, Spent> spent;
    for (const auto& event : result->events()) {
      if (event.deviceType() != c10::DeviceType::CUDA) continue;
      const auto name = event.name();
      const bool moves = name.starts_with("Memcpy") || name.starts_with("Memset");
      if (!moves) ++*kernels;
      auto& own = spent[name];
      own.calls++;
      own.nanoseconds += event.durationNs();
    }
    if (const char* path = getenv("THANOS_KERNEL_TIMES")) write_times(path, spent);
  });
}

char* thanos_cuda_reset_peak(int32_t device) {
  return guard([&] {
    c10::cuda::CUDACachingAllocator::resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}

// Bytes that the allocator has reserved at most since.
char* thanos_cuda_peak(int32_t device, uint64_t* bytes) {
  return guard([&] {
    const auto stats =
        c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *bytes = static_cast<uint64_t>(stats.reserved_bytes[all].peak);
  });
}

// `name` is malloc'ed, and freed by the caller.
char* thanos_cuda_name(int32_t device, char** name) {
  return guard([&] {
    *name = strdup(at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device))->name);
  });
}

#else

namespace {
char* without_cuda() {
  return guard([] {
    throw std::runtime_error("this build has no CUDA: build it with the cargo feature `cuda`");
  });
}
}  // namespace

char* thanos_kernels_begin() { return without_cuda(); }
char* thanos_kernels_end(uint64_t*) { return without_cuda(); }
char* thanos_cuda_reset_peak(int32_t) { return without_cuda(); }
char* thanos_cuda_peak(int32_t, uint64_t*) { return without_cuda(); }
char* thanos_cuda_name(int32_t, char**) { return without_cuda(); }

#endif

}  // extern "C"
