// What a GPU needs beside its tensors, and tch does not bind: which one this thread uses, its memory, events on its
// streams, and the precision of its products. As in shim.cpp, every function returns the text of an error, or null.
#include <ATen/Context.h>
#ifdef USE_C10D_NCCL
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "guard.h"

namespace {

#ifndef USE_C10D_NCCL
[[noreturn]] void no_cuda() { throw std::runtime_error("this program was built without CUDA"); }
#endif

}  // namespace

extern "C" {

// TensorFloat-32 in products and convolutions of float32. libtorch's defaults differ: on in cuDNN, off in cuBLAS.
char* thanos_set_tf32(bool allowed) {
  return guard([&] {
    at::globalContext().setAllowTF32CuDNN(allowed);
    at::globalContext().setAllowTF32CuBLAS(allowed);
  });
}

// NCCL reads it when it first starts. Not thread-safe, as setenv is not.
void thanos_use_interface(const char* name) { setenv("NCCL_SOCKET_IFNAME", name, /*overwrite=*/0); }

#ifdef USE_C10D_NCCL

// Of this thread: pinned memory, streams and events without a tensor belong to the current device.
char* thanos_use_gpu(int32_t gpu) {
  return guard([&] { c10::cuda::set_device(static_cast<c10::DeviceIndex>(gpu)); });
}

char* thanos_gpu_memory(uint64_t* free_bytes, uint64_t* total_bytes) {
  return guard([&] {
    size_t free = 0, total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    *free_bytes = free;
    *total_bytes = total;
  });
}

char* thanos_event_record(at::cuda::CUDAEvent** out) {
  return guard([&] {
    auto event = std::make_unique<at::cuda::CUDAEvent>(cudaEventDefault);
    event->record();
    *out = event.release();
  });
}

char* thanos_event_wait(at::cuda::CUDAEvent* event) {
  return guard([&] { event->synchronize(); });
}

char* thanos_event_elapsed(at::cuda::CUDAEvent* from, at::cuda::CUDAEvent* to, double* milliseconds) {
  return guard([&] { *milliseconds = from->elapsed_time(*to); });
}

void thanos_event_free(at::cuda::CUDAEvent* event) { delete event; }

#else

char* thanos_use_gpu(int32_t) { return guard(no_cuda); }
char* thanos_gpu_memory(uint64_t*, uint64_t*) { return guard(no_cuda); }
char* thanos_event_record(void**) { return guard(no_cuda); }
char* thanos_event_wait(void*) { return guard(no_cuda); }
char* thanos_event_elapsed(void*, void*, double*) { return guard(no_cuda); }
void thanos_event_free(void*) {}

#endif

}  // extern "C"
