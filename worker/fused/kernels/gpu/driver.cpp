// Kernels on a GPU, through the driver: the program neither links with CUDA's runtime nor needs to
// find it, as the driver's library is there once libtorch uses a GPU. The kernels are in the
// program, for several architectures.
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include "launch.h"

#ifdef THANOS_FATBIN

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>

// The file as it is, from the linker's point of view.
asm(".section .rodata\n.balign 16\nthanos_kernels_image:\n.incbin \"" THANOS_FATBIN
    "\"\n.byte 0\n.previous\n");
extern "C" const char thanos_kernels_image[];

namespace thanos::gpu {
namespace {

struct Driver {
  decltype(&cuModuleLoadData) load_module;
  decltype(&cuModuleGetFunction) function;
  decltype(&cuFuncSetAttribute) set_attribute;
  decltype(&cuDeviceGetAttribute) device_attribute;
  decltype(&cuLaunchKernel) launch;
  decltype(&cuGetErrorString) error_text;

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    TORCH_CHECK(library, "the driver's library: ", dlerror());
    const auto find = [library](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      TORCH_CHECK(function, "the driver has no ", name);
    };
    find(load_module, "cuModuleLoadData");
    find(function, "cuModuleGetFunction");
    find(set_attribute, "cuFuncSetAttribute");
    find(device_attribute, "cuDeviceGetAttribute");
    find(launch, "cuLaunchKernel");
    find(error_text, "cuGetErrorString");
  }

  void check(const char* what, CUresult result) const {
    if (result == CUDA_SUCCESS) return;
    const char* text = nullptr;
    error_text(result, &text);
    TORCH_CHECK(false, what, ": ", text ? text : "an unknown error");
  }
};

const Driver& driver() {
  static const Driver loaded;
  return loaded;
}

struct Function {
  CUfunction handle;
  int64_t shared_bytes = 48 << 10;  // the default limit of a kernel
};

// The functions of one GPU. A module belongs to the context of its device.
struct Module {
  CUmodule handle;
  std::map<std::string, Function> functions;
};

std::mutex mutex;
std::map<int, Module> modules;

Module& module_of(int device) {
  const auto found = modules.find(device);
  if (found != modules.end()) return found->second;
  CUmodule handle;
  driver().check("loading the kernels", driver().load_module(&handle, thanos_kernels_image));
  return modules.emplace(device, Module{handle, {}}).first->second;
}

Function& function_of(Module& module, const char* name) {
  const auto found = module.functions.find(name);
  if (found != module.functions.end()) return found->second;
  Function function;
  driver().check(name, driver().function(&function.handle, module.handle, name));
  return module.functions.emplace(name, function).first->second;
}

}  // namespace

void launch_on_device(const char* name, c10::Device device, const Work& work,
                      const void* arguments) {
  const c10::DeviceGuard guard(device);
  const auto per_block = work.unit == Unit::kThread ? work.threads
                         : work.unit == Unit::kWarp ? work.threads / 32
                                                    : 1;
  const auto blocks = (work.count + per_block - 1) / per_block;
  TORCH_CHECK(blocks <= INT32_MAX, name, ": too many blocks");
  const std::lock_guard<std::mutex> lock(mutex);
  auto& function = function_of(module_of(device.index()), name);
  if (work.shared_bytes > function.shared_bytes) {
    const auto bytes = static_cast<int>(work.shared_bytes);
    driver().check(name,
                   driver().set_attribute(function.handle,
                                          CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes));
    function.shared_bytes = work.shared_bytes;
  }
  void* parameters[] = {const_cast<void*>(arguments)};
  const auto stream = c10::cuda::getCurrentCUDAStream().stream();
  driver().check(name, driver().launch(function.handle, static_cast<unsigned>(blocks), 1, 1,
                                       work.threads, 1, 1, static_cast<unsigned>(work.shared_bytes),
                                       stream, parameters, nullptr));
}

int64_t max_shared_bytes() {
  int bytes = 0;
  const auto device = static_cast<CUdevice>(c10::cuda::current_device());
  const auto attribute = CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
  driver().check("shared memory", driver().device_attribute(&bytes, attribute, device));
  const std::lock_guard<std::mutex> lock(mutex);
  module_of(device);
  return bytes;
}

}  // namespace thanos::gpu

#else

namespace thanos::gpu {

void launch_on_device(const char* name, c10::Device, const Work&, const void*) {
  TORCH_CHECK(false, name, ": this program was built without CUDA");
}

int64_t max_shared_bytes() { return 0; }

}  // namespace thanos::gpu

#endif
