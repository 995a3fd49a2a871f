// The kernels as functions of the CPU, for tests on machines without a GPU.
#include "kernels.cu"
#include "host.h"

namespace thanos::gpu {

void launch_on_host(const Work& work, void (*run)(const void* arguments), const void* arguments) {
  host_block.memory.assign(work.shared_bytes / sizeof(double) + 64, 0);
  for (int64_t index = 0; index < work.count; index++) {
    host_block.index = index;
    run(arguments);
  }
}

}  // namespace thanos::gpu
