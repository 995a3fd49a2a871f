// Around the kernels: which of them this machine runs, buffers, and loops over the images of a chunk.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <optional>
#include <string>

#include "kernels.h"

namespace thanos {

// As libtorch chooses its own kernels, so ATEN_CPU_CAPABILITY chooses both.
inline const KernelSet& kernel_set() {
  static const KernelSet& chosen = []() -> const KernelSet& {
#ifdef __x86_64__
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return avx512;
    if (capability == "AVX2") return avx2;
#endif
    return portable;
  }();
  return chosen;
}

template <typename T>
const Kernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>) return kernel_set().floats;
  else return kernel_set().doubles;
}

// Rates as the shares of 65536 that are kept, and the key of the step. The same in Rust: ../src/raw.rs.
struct Drop {
  uint64_t key;
  // Sites `site` and on are this operation's.
  uint32_t site;
  uint32_t query, weights, output, hidden, depth;
};

constexpr uint32_t kEverything = 65536;

inline Keep keep_of(uint32_t kept) { return {kept, static_cast<double>(kEverything) / kept}; }

// Random numbers of one site of one image; null where everything is kept.
inline const uint16_t* drawn(const Draw& draw, uint32_t kept, int64_t elements, uint16_t* buffer) {
  if (kept == kEverything) return nullptr;
  kernel_set().draw(draw, in_groups(elements), buffer);
  return buffer;
}

// Factor of each of the first elements of a site: 0 or `scale`.
template <typename T>
void factors(const Draw& draw, uint32_t kept, int64_t elements, T* out, std::vector<uint16_t>& buffer) {
  buffer.resize(in_groups(elements) + kSlack);
  const auto* random = drawn(draw, kept, elements, buffer.data());
  const auto scale = static_cast<T>(keep_of(kept).scale);
  for (int64_t i = 0; i < elements; i++) out[i] = random == nullptr || random[i] < kept ? scale : 0;
}

// Rows of a matrix product that fill the processor's units and leave the elements of a chunk in the second cache.
constexpr int64_t kRowsOfChunk = 1040;

template <typename T>
const T* read(const at::Tensor& tensor) {
  return tensor.const_data_ptr<T>();
}

template <typename T>
T* write(const at::Tensor& tensor) {
  return tensor.mutable_data_ptr<T>();
}

// Images of a chunk of `tokens` rows each.
inline int64_t chunk_of(int64_t images, int64_t tokens) {
  const auto rows = kRowsOfChunk * at::get_num_threads();
  return std::max<int64_t>(1, std::min(images, rows / std::max<int64_t>(1, tokens)));
}

// Calls `body(from, images)` for each chunk.
template <typename F>
void for_chunks(int64_t images, int64_t chunk, const F& body) {
  for (int64_t from = 0; from < images; from += chunk) body(from, std::min(chunk, images - from));
}

// Calls `body(image)` for each image of a chunk, shared among threads.
template <typename F>
void for_images(int64_t images, const F& body) {
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; image++) body(image);
  });
}

// The first `first` rows of each of the images of `x` [images, rows, d], as [images x first, d].
inline at::Tensor first_rows(const at::Tensor& x, int64_t first) {
  const auto d = x.size(2);
  if (first == x.size(1)) return x.view({-1, d});
  return x.narrow(1, 0, first).reshape({-1, d});
}

}  // namespace thanos
