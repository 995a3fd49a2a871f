// What a GPU needs beside its tensors, and tch does not bind: which one this thread uses, its
// memory, events on its streams, and the precision of its products. As in shim.cpp, every function
// returns the text of an error, or null. It goes through c10's interface for any device: CUDA's own
// headers would bring inline calls of the CUDA runtime, which this program would then have to be
// linked with and to find.
#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "guard.h"

namespace {

c10::impl::VirtualGuardImpl cuda() {
  if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA))
    throw std::runtime_error("this program was built without CUDA");
  return c10::impl::VirtualGuardImpl(c10::kCUDA);
}

}  // namespace

extern "C" {

// TensorFloat-32 in products and convolutions of float32. libtorch's defaults differ: on in cuDNN,
// off in cuBLAS.
char* thanos_set_tf32(bool allowed) {
  return guard([&] {
    at::globalContext().setAllowTF32CuDNN(allowed);
    at::globalContext().setAllowTF32CuBLAS(allowed);
  });
}

// NCCL reads it when it first starts. Not thread-safe, as setenv is not.
void thanos_use_interface(const char* name) { setenv("NCCL_SOCKET_IFNAME", name, /*overwrite=*/0); }

// Of this thread: pinned memory, streams and events without a tensor belong to the current device.
// Its work goes to a stream of its own, as the default one cannot be recorded.
char* thanos_use_gpu(int32_t gpu) {
  return guard([&] {
    const auto impl = cuda();
    const c10::Device device(c10::kCUDA, static_cast<c10::DeviceIndex>(gpu));
    impl.setDevice(device);
    at::globalContext().lazyInitDevice(c10::kCUDA);
    impl.exchangeStream(impl.getStreamFromGlobalPool(device));
  });
}

// The same sums in the same order at every call. Some of cuDNN's algorithms add as threads come.
void thanos_be_deterministic() {
  at::globalContext().setDeterministicCuDNN(true);
  at::globalContext().setBenchmarkCuDNN(false);
  // Their gradients of queries are added up as blocks of keys come.
  at::globalContext().setSDPUseFlash(false);
  at::globalContext().setSDPUseMemEfficient(false);
  at::globalContext().setSDPUseCuDNN(false);
}

char* thanos_gpu_memory(uint64_t* free_bytes, uint64_t* total_bytes) {
  return guard([&] {
    const auto gpu = cuda().getDevice().index();
    // It exists once CUDA is initialised.
    at::globalContext().lazyInitDevice(c10::kCUDA);
    const auto [free, total] = c10::getDeviceAllocator(c10::kCUDA)->getMemoryInfo(gpu);
    *free_bytes = free;
    *total_bytes = total;
  });
}

char* thanos_event_record(c10::Event** out) {
  return guard([&] {
    const auto impl = cuda();
    // Of the two kinds of events, this one measures time.
    auto event = std::make_unique<c10::Event>(c10::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
    event->record(impl.getStream(impl.getDevice()));
    *out = event.release();
  });
}

char* thanos_event_wait(c10::Event* event) {
  return guard([&] {
    // The thread that saves has chosen no device: waiting would make a context on the first one.
    const c10::DeviceGuard device(event->device());
    event->synchronize();
  });
}

char* thanos_event_elapsed(c10::Event* from, c10::Event* to, double* milliseconds) {
  return guard([&] { *milliseconds = from->elapsedTime(*to); });
}

void thanos_event_free(c10::Event* event) { delete event; }

}  // extern "C"
