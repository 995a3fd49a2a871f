// How every C function of this folder fails: by the kind and the text of a C++ exception, never by
// the exception itself.
#pragma once

#include <c10/util/Exception.h>
#include <gloo/common/error.h>

#include <cstring>
#include <exception>
#include <string>

// Messages begin with the kind of the error; `group.rs` takes it off.
constexpr char kPeerLost = 'P';
constexpr char kOtherError = 'O';

// NCCL's results have no types of their own: c10d names them in the text of a DistBackendError.
inline bool is_lost_nccl_peer(const std::string& text) {
  const auto has = [&](const char* part) { return text.find(part) != std::string::npos; };
  for (const char* own_fault : {"ncclInvalidUsage:", "ncclInvalidArgument:",
                                "ncclUnhandledCudaError:", "ncclInternalError:"}) {
    if (has(own_fault)) return false;
  }
  return has("ncclRemoteError:") || has("ncclSystemError:") ||
         has("NCCL communicator was aborted") || has("NCCL timeout") ||
         has("collective operation timeout");
}

// The exception that is being handled, as a message after its kind. Whatever is not known to come
// from a lost connection is an error that may repeat.
inline std::string describe_current_exception() {
  const auto described = [](bool peer_lost, const std::string& text) {
    return (peer_lost ? kPeerLost : kOtherError) + text;
  };
  try {
    throw;
  } catch (const gloo::IoException& error) {
    return described(true, error.what());
  } catch (const c10::DistStoreError& error) {
    return described(true, error.what_without_backtrace());
  } catch (const c10::DistNetworkError& error) {
    return described(true, error.what_without_backtrace());
  } catch (const c10::DistBackendError& error) {
    const std::string text = error.what_without_backtrace();
    return described(is_lost_nccl_peer(text), text);
  } catch (const c10::Error& error) {
    // c10d replaces Gloo's own exception, of connections that could not be made, by one of its base
    // class.
    const std::string text = error.what_without_backtrace();
    return described(text.starts_with("Gloo connectFullMesh failed with "), text);
  } catch (const std::exception& error) {
    return described(false, error.what());
  } catch (...) {
    return described(false, "a C++ exception of an unknown type");
  }
}

// Runs `body` and returns null, or its error (malloc'ed, freed by the caller).
template <typename F>
char* guard(F&& body) {
  try {
    body();
    return nullptr;
  } catch (...) {
    return strdup(describe_current_exception().c_str());
  }
}
