// See ../algorithm.h. The exceptions of lost connections, by the names and bases that libtorch has
// them with: `catch` goes by these. Never thrown on our side.
#pragma once
#include <stdexcept>
namespace gloo {
struct Exception : public std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Also the base of Gloo's timeouts.
struct IoException : public Exception {
  using Exception::Exception;
};
}  // namespace gloo
