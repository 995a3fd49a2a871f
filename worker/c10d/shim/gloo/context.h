// See algorithm.h. `setTimeout` is called from an inline function of ProcessGroupGloo.hpp.
#pragma once
#include <chrono>
namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
