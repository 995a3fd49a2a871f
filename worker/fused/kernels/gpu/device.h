// What the kernels need of their device. nvcc compiles them for GPUs; a C++ compiler compiles the same bodies with blocks
// of one thread, for tests on machines without a GPU. So a kernel must be right for any number of threads: loops begin at
// `thread()` and advance by `threads()`, or at `lane()` by `kLanes` within a warp.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <mma.h>

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
// Memory of a block, of the size that the launch asks for.
#define SHARED(name) extern __shared__ __align__(128) uint8_t name[]

namespace {

using Bf16 = __nv_bfloat16;

constexpr int kLanes = 32;

DEVICE int thread() { return static_cast<int>(threadIdx.x); }
DEVICE int threads() { return static_cast<int>(blockDim.x); }
DEVICE int64_t block() { return blockIdx.x; }
DEVICE void wait_for_block() { __syncthreads(); }
DEVICE float widen(Bf16 x) { return __bfloat162float(x); }
DEVICE Bf16 narrow(float x) { return __float2bfloat16_rn(x); }
DEVICE uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }

DEVICE float warp_sum(float x) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffff, x, offset);
  return x;
}

DEVICE float warp_max(float x) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, offset));
  return x;
}

}  // namespace

#else

#include <cmath>
#include <cstring>
#include <vector>

#define DEVICE inline
#define KERNEL void
#define SHARED(name) auto* name = reinterpret_cast<uint8_t*>(host_block.memory.data())

namespace {

struct Bf16 {
  uint16_t bits;
};

// The block that runs.
struct HostBlock {
  int64_t index = 0;
  std::vector<double> memory;
};
thread_local HostBlock host_block;

constexpr int kLanes = 1;

DEVICE int thread() { return 0; }
DEVICE int threads() { return 1; }
DEVICE int64_t block() { return host_block.index; }
DEVICE void wait_for_block() {}

DEVICE float widen(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Half to even; NaN stays NaN.
DEVICE Bf16 narrow(float x) {
  if (x != x) return {0x7fc0};
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

DEVICE uint32_t high_product(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

DEVICE float warp_sum(float x) { return x; }
DEVICE float warp_max(float x) { return x; }

}  // namespace

#endif

namespace {

DEVICE int lane() { return thread() % kLanes; }
DEVICE int warp() { return thread() / kLanes; }
DEVICE int warps() { return threads() / kLanes; }

// Side of a tile that a warp multiplies at once.
constexpr int kTile = 16;

// c [16, 16] = A [16, depth] B [depth, 16] by one warp, of tiles in shared memory whose rows are `ld` elements apart. With
// `transpose_a`, `a` holds the transpose of A, and B alike. `depth` is a multiple of 16; each row tile begins at a multiple
// of 32 bytes.
template <bool transpose_a, bool transpose_b>
DEVICE void multiply_tile(const Bf16* a, int a_ld, const Bf16* b, int b_ld, float* c, int c_ld, int depth) {
#ifdef __CUDACC__
  namespace w = nvcuda::wmma;
  using ALayout = typename std::conditional<transpose_a, w::col_major, w::row_major>::type;
  using BLayout = typename std::conditional<transpose_b, w::col_major, w::row_major>::type;
  w::fragment<w::accumulator, kTile, kTile, kTile, float> sum;
  w::fill_fragment(sum, 0.0f);
  for (int k = 0; k < depth; k += kTile) {
    w::fragment<w::matrix_a, kTile, kTile, kTile, Bf16, ALayout> left;
    w::fragment<w::matrix_b, kTile, kTile, kTile, Bf16, BLayout> right;
    w::load_matrix_sync(left, a + (transpose_a ? k * a_ld : k), a_ld);
    w::load_matrix_sync(right, b + (transpose_b ? k : k * b_ld), b_ld);
    w::mma_sync(sum, left, right, sum);
  }
  w::store_matrix_sync(c, sum, c_ld, w::mem_row_major);
#else
  for (int i = 0; i < kTile; i++) {
    for (int j = 0; j < kTile; j++) {
      float sum = 0;
      for (int k = 0; k < depth; k++) {
        const float left = widen(transpose_a ? a[k * a_ld + i] : a[i * a_ld + k]);
        sum += left * widen(transpose_b ? b[j * b_ld + k] : b[k * b_ld + j]);
      }
      c[i * c_ld + j] = sum;
    }
  }
#endif
}

// C [rows, columns] = A [rows, depth] B [depth, columns] by the whole block, all sizes multiples of 16.
template <bool transpose_a, bool transpose_b>
DEVICE void multiply(const Bf16* a, int a_ld, const Bf16* b, int b_ld, float* c, int c_ld, int rows, int columns,
                     int depth) {
  const int across = columns / kTile, tiles = rows / kTile * across;
  for (int tile = warp(); tile < tiles; tile += warps()) {
    const int i = tile / across * kTile, j = tile % across * kTile;
    multiply_tile<transpose_a, transpose_b>(a + (transpose_a ? i : i * a_ld), a_ld,
                                            b + (transpose_b ? j * b_ld : j), b_ld, c + i * c_ld + j, c_ld, depth);
  }
}

}  // namespace
