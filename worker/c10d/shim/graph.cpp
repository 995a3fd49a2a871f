// CUDA graphs: what a piece of code launches, recorded once and started again by one call. As in shim.cpp, every function
// returns the text of an error, or null.
#include <cstdlib>
#include <memory>
#include <stdexcept>

#include "guard.h"

#ifdef USE_C10D_NCCL

#include <ATen/cuda/CUDAGraph.h>

using Graph = at::cuda::CUDAGraph;

#else

// A build without CUDA has no graph.
struct Graph {
  void capture_end() { unavailable(); }
  void replay() { unavailable(); }
  [[noreturn]] static void unavailable() { throw std::runtime_error("this program was built without CUDA"); }
};

#endif

extern "C" {

// From here on the current stream, which must not be the default one, records instead of running.
char* thanos_graph_begin(Graph** out) {
  return guard([&] {
    auto graph = std::make_unique<Graph>();
#ifdef USE_C10D_NCCL
    // Other threads, such as the one that saves, may go on using the device.
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
#else
    Graph::unavailable();
#endif
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
