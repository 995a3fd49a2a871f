// Around the kernels: which of them this machine runs, buffers, and loops over the images of a
// chunk.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

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

// Rates as the shares of 65536 that are kept, and the key of the step. The same in Rust:
// ../src/raw.rs.
struct Drop {
  uint64_t key;
  // Sites `site` and on are this operation's.
  uint32_t site;
  uint32_t query, weights, output, hidden, depth;
};

// Sites of the branches, from `Drop::site` on.
enum AttentionSite : uint32_t { kQuery, kWeights, kAttended, kAttentionDepth };
enum FeedForwardSite : uint32_t { kHidden, kFed, kFeedForwardDepth };

inline Keep keep_of(uint32_t kept) { return {kept, static_cast<double>(kEverything) / kept}; }

// Random numbers of one site of one image; null where everything is kept.
inline const uint16_t* drawn(const Draw& draw, uint32_t kept, int64_t elements, uint16_t* buffer) {
  if (kept == kEverything) return nullptr;
  kernel_set().draw(draw, in_groups(elements), buffer);
  return buffer;
}

// Factor of each of the first elements of a site: 0 or `scale`.
template <typename T>
void factors(const Draw& draw, uint32_t kept, int64_t elements, T* out,
             std::vector<uint16_t>& buffer) {
  buffer.resize(in_groups(elements) + kSlack);
  const auto* random = drawn(draw, kept, elements, buffer.data());
  const auto scale = static_cast<T>(keep_of(kept).scale);
  for (int64_t i = 0; i < elements; i++) out[i] = random == nullptr || random[i] < kept ? scale : 0;
}

// Rows of a matrix product that fill the processor's units and leave the elements of a chunk in the
// second cache.
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
  const auto most = std::max<int64_t>(1, rows / std::max<int64_t>(1, tokens));
  // Chunks of one size, not a rest: the library adds up a product of a few rows in another order,
  // and an image's bits would depend on how many others its rank has.
  const auto chunks = std::max<int64_t>(1, (images + most - 1) / most);
  return std::max<int64_t>(1, (images + chunks - 1) / chunks);
}

// Images of a chunk by what stochastic depth makes of a branch: the factor of those that compute
// it, and those that skip it, for which nothing is computed.
template <typename T>
struct Chunk {
  int64_t from;
  T depth = 1;
  std::vector<int64_t> images, skipped;

  int64_t size() const { return static_cast<int64_t>(images.size()); }
};

// Calls `body(chunk)` for each chunk. `site` is that of stochastic depth.
template <typename T, typename F>
void for_chunks(const at::Tensor& rows, int64_t chunk, const Drop& drop, uint32_t site,
                const F& body) {
  const auto n = rows.size(0);
  const auto* ids = rows.const_data_ptr<int64_t>();
  std::vector<uint16_t> buffer;
  for (int64_t from = 0; from < n; from += chunk) {
    Chunk<T> here{from};
    for (int64_t image = from; image < std::min(n, from + chunk); image++) {
      T depth = 1;
      factors<T>({drop.key, static_cast<uint64_t>(ids[image]), drop.site + site}, drop.depth, 1,
                 &depth, buffer);
      if (depth == 0) {
        here.skipped.push_back(image);
      } else {
        here.depth = depth;
        here.images.push_back(image);
      }
    }
    body(here);
  }
}

// Calls `body(index, image)` for each image of a chunk that computes the branch, shared among
// threads; the index is that in the chunk's buffers.
template <typename T, typename F>
void for_images(const Chunk<T>& chunk, const F& body) {
  at::parallel_for(0, chunk.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; index++) body(index, chunk.images[index]);
  });
}

// The same, with what an image draws and what a thread needs, which `make()` makes for each thread.
template <typename T, typename M, typename F>
void for_images_with(const Chunk<T>& chunk, const M& make, const F& body) {
  at::parallel_for(0, chunk.size(), 1, [&](int64_t begin, int64_t end) {
    auto own = make();
    for (int64_t index = begin; index < end; index++) body(own, index, chunk.images[index]);
  });
}

// Matrix products of an operation: in the tensors' own kind, or of factors rounded to bfloat16. A
// result is in the kind of the tensor that takes it.
class Products {
 public:
  explicit Products(bool bfloat16) : bfloat16_(bfloat16) {}

  // What is multiplied instead of `x`, made once for all products of it.
  at::Tensor factor(const at::Tensor& x) const {
    if (!bfloat16_) return x;
    const auto rounded = at::empty(x.sizes(), x.options().dtype(at::kBFloat16));
    const auto* from = read<float>(x);
    for_elements(x, [&](int64_t begin, int64_t size) {
      kernel_set().round(size, from + begin, bits(rounded) + begin);
    });
    return rounded;
  }

  // out = left right, of factors.
  void write(at::Tensor& out, const at::Tensor& left, const at::Tensor& right) const {
    if (!bfloat16_) {
      at::mm_out(out, left, right);
      return;
    }
    const auto product = at::mm(left, right);
    for_elements(out, [&](int64_t begin, int64_t size) {
      kernel_set().widen(size, bits(product) + begin, thanos::write<float>(out) + begin);
    });
  }

  // sum += left right, of factors.
  void add(at::Tensor& sum, const at::Tensor& left, const at::Tensor& right) const {
    if (!bfloat16_) {
      sum.addmm_(left, right);
      return;
    }
    const auto product = at::mm(left, right);
    for_elements(sum, [&](int64_t begin, int64_t size) {
      kernel_set().add_widened(size, bits(product) + begin, thanos::write<float>(sum) + begin);
    });
  }

 private:
  static uint16_t* bits(const at::Tensor& tensor) {
    return reinterpret_cast<uint16_t*>(tensor.mutable_data_ptr<at::BFloat16>());
  }

  // All of them are dense, also the slices of a chunk.
  template <typename F>
  static void for_elements(const at::Tensor& tensor, const F& body) {
    TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == at::kFloat,
                "bfloat16 products are of dense float32");
    constexpr int64_t kGrain = 1 << 15;
    at::parallel_for(0, tensor.numel(), kGrain,
                     [&](int64_t begin, int64_t end) { body(begin, end - begin); });
  }

  bool bfloat16_;
};

// Products that `aten` does not see, for those who count: (q [n, s, d], kv [n, t, 2d]).
inline void record_attention(const char* name, const at::Tensor& q, const at::Tensor& kv) {
  RECORD_FUNCTION(name, std::vector<c10::IValue>{q, kv});
}

// The first `first` rows of each of the images of `x` [images, rows, d], as [images x first, d].
inline at::Tensor first_rows(const at::Tensor& x, int64_t first) {
  const auto d = x.size(2);
  if (first == x.size(1)) return x.view({-1, d});
  return x.narrow(1, 0, first).reshape({-1, d});
}

}  // namespace thanos
