// What the kernels need of their device. nvcc compiles them for GPUs; a C++ compiler compiles the
// same bodies with blocks of one thread, for tests on machines without a GPU. So a kernel must be
// right for any number of threads: loops begin at `thread()` and advance by `threads()`, or at
// `lane()` by `kLanes` within a warp.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define UNROLL _Pragma("unroll")
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

// Products and sums that are rounded one after the other, as a CPU does it.
DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
DEVICE float sum(float a, float b) { return __fadd_rn(a, b); }
DEVICE float difference(float a, float b) { return __fsub_rn(a, b); }
DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
DEVICE double difference(double a, double b) { return __dsub_rn(a, b); }
DEVICE float fast_exp(float x) { return __expf(x); }

DEVICE float warp_sum(float x) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(0xffffffff, x, offset);
  return x;
}

}  // namespace

#else

#include <cmath>
#include <cstring>
#include <vector>

#define DEVICE inline
#define KERNEL void
#define UNROLL
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

DEVICE float product(float a, float b) { return a * b; }
DEVICE float sum(float a, float b) { return a + b; }
DEVICE float difference(float a, float b) { return a - b; }
DEVICE double product(double a, double b) { return a * b; }
DEVICE double difference(double a, double b) { return a - b; }
DEVICE float fast_exp(float x) { return expf(x); }

DEVICE float warp_sum(float x) { return x; }

}  // namespace

#endif

namespace {

DEVICE int lane() { return thread() % kLanes; }
DEVICE int warp() { return thread() / kLanes; }
DEVICE int warps() { return threads() / kLanes; }

// Eight neighbours of a row: one access of 16 bytes, or two.
struct alignas(16) Four {
  float of[4];
};

struct alignas(16) EightNarrow {
  Bf16 of[8];
};

DEVICE void load_eight(const float* at, float* values) {
  const Four first = *reinterpret_cast<const Four*>(at),
             second = *reinterpret_cast<const Four*>(at + 4);
  for (int i = 0; i < 4; i++) values[i] = first.of[i], values[4 + i] = second.of[i];
}

DEVICE void load_eight(const Bf16* at, float* values) {
  const EightNarrow eight = *reinterpret_cast<const EightNarrow*>(at);
  for (int i = 0; i < 8; i++) values[i] = widen(eight.of[i]);
}

DEVICE void store_eight(float* at, const float* values) {
  *reinterpret_cast<Four*>(at) = {{values[0], values[1], values[2], values[3]}};
  *reinterpret_cast<Four*>(at + 4) = {{values[4], values[5], values[6], values[7]}};
}

DEVICE void store_eight(Bf16* at, const float* values) {
  EightNarrow eight;
  for (int i = 0; i < 8; i++) eight.of[i] = narrow(values[i]);
  *reinterpret_cast<EightNarrow*>(at) = eight;
}

// Two neighbours, in one access.
DEVICE void store_pair(Bf16* at, const float* values) {
  struct alignas(4) Pair {
    Bf16 of[2];
  };
  *reinterpret_cast<Pair*>(at) = {{narrow(values[0]), narrow(values[1])}};
}

}  // namespace
