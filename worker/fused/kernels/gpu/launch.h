// How a kernel is started: on the GPU by the driver, on the CPU, for tests, block after block.
#pragma once

#include <ATen/core/Tensor.h>

#include "arguments.h"

namespace thanos::gpu {

// What a kernel's work is counted in.
enum class Unit { kThread, kWarp, kBlock };

struct Work {
  Unit unit;
  int64_t count;
  int threads = 256;  // of a block
  int64_t shared_bytes = 0;
};

// On the current stream of a device.
void launch_on_device(const char* name, c10::Device device, const Work& work,
                      const void* arguments);

// Blocks of one thread; `run` is called for each.
void launch_on_host(const Work& work, void (*run)(const void* arguments), const void* arguments);

// Most shared memory of a block, in bytes; 0 if the kernels cannot run on the current device.
int64_t max_shared_bytes();

}  // namespace thanos::gpu
