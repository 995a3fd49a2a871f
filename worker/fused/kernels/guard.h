// How every C function of this crate fails: by the text of a C++ exception, never by the exception
// itself.
#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

// Runs `body` and returns null, or its error (malloc'ed, freed by the caller).
template <typename F>
char* guard(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("a C++ exception of an unknown type");
  }
}
