// CUDA graphs: what a piece of code launches, recorded once and launched again by one call. As in
// shim.cpp, every function returns the text of an error, or null.
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "guard.h"

#ifdef USE_C10D_NCCL

#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDACachingAllocator.h>

namespace allocator = c10::cuda::CUDACachingAllocator;

// A CUDA graph and the pool of memory that it works on.
class Graph {
 public:
  void capture_begin() {
    // What eager steps have cached would be held beside the same amount in the graph's pool.
    allocator::emptyCache();
    device_ = c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice().index();
    pool_ = at::cuda::graph_pool_handle();
    // Other threads, such as the one that saves, may continue to use the device.
    release_on_error([&] { graph_.capture_begin(pool_, cudaStreamCaptureModeThreadLocal); });
  }

  void capture_end() {
    release_on_error([&] { graph_.capture_end(); });
  }

  void replay() { graph_.replay(); }

 private:
  // libtorch leaves its allocator in the state of a capture when a capture fails.
  template <typename F>
  void release_on_error(F&& body) {
    try {
      body();
    } catch (...) {
      free(guard([&] { allocator::endAllocateToPool(device_, pool_); }));
      free(guard([&] { allocator::releasePool(device_, pool_); }));
      throw;
    }
  }

  at::cuda::CUDAGraph graph_;
  at::cuda::MempoolId_t pool_{};
  c10::DeviceIndex device_ = 0;
};

#else

// A build without CUDA has no graph.
struct Graph {
  void capture_begin() { unavailable(); }
  void capture_end() { unavailable(); }
  void replay() { unavailable(); }
  [[noreturn]] static void unavailable() {
    throw std::runtime_error("this program was built without CUDA");
  }
};

#endif

extern "C" {

// From here on the current stream, which must not be the default one, records instead of running.
char* thanos_graph_begin(Graph** out) {
  return guard([&] {
    auto graph = std::make_unique<Graph>();
    graph->capture_begin();
    *out = graph.release();
  });
}

char* thanos_graph_end(Graph* graph) {
  return guard([&] { graph->capture_end(); });
}

char* thanos_graph_replay(Graph* graph) {
  return guard([&] { graph->replay(); });
}

void thanos_graph_free(Graph* graph) {
  free(guard([&] { delete graph; }));
}

}  // extern "C"
