// Products of tiles by one warp, on the tensor cores: m16n8k16 of PTX, whose fragments have a
// documented layout. A lane knows which elements it has, so what comes between two products stays
// in registers. On the CPU a lane has all elements.
#pragma once

#include "device.h"

namespace {

// Sides of a tile of sums, and the depth of one product.
constexpr int kTileRows = 16, kTileColumns = 8, kTileDepth = 16;
// Elements of a tile of sums that a lane has, and rows that they are in.
constexpr int kElements = kTileRows * kTileColumns / kLanes;
constexpr int kRowsOfLane = kLanes == 1 ? kTileRows : 2;
constexpr int kInRow = kElements / kRowsOfLane;

// Where element `i` of this lane is in its tile. Elements of a row follow each other.
DEVICE int row_of(int i) { return kLanes == 1 ? i / kTileColumns : lane() / 4 + i / 2 * 8; }
DEVICE int column_of(int i) { return kLanes == 1 ? i % kTileColumns : lane() % 4 * 2 + i % 2; }

// [16, 8] float32.
struct Sums {
  float of[kElements];
};

#ifdef __CUDACC__

// [16, 16] and [16, 8] of bfloat16, two in a register.
struct Left {
  uint32_t of[4];
};
struct Right {
  uint32_t of[2];
};

DEVICE uint32_t pair_at(const Bf16* at) { return *reinterpret_cast<const uint32_t*>(at); }

// Rows of `at` are the rows of the factor.
DEVICE Left left_of(const Bf16* at, int ld) {
  const Bf16* first = at + lane() / 4 * ld + lane() % 4 * 2;
  return {
      {pair_at(first), pair_at(first + 8 * ld), pair_at(first + 8), pair_at(first + 8 * ld + 8)}};
}

// Rows of `at` are the columns of the factor.
DEVICE Right right_of_columns(const Bf16* at, int ld) {
  const Bf16* first = at + lane() / 4 * ld + lane() % 4 * 2;
  return {{pair_at(first), pair_at(first + 8)}};
}

// Rows of `at` are the rows of the factor.
DEVICE Right right_of_rows(const Bf16* at, int ld) {
  Right right;
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(at + lane() % 16 * ld));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(right.of[0]), "=r"(right.of[1])
               : "r"(address));
  return right;
}

DEVICE uint32_t pair_of(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Two tiles of sums next to each other, as the left factor of another product.
DEVICE Left left_of(const Sums& first, const Sums& second) {
  return {{pair_of(first.of[0], first.of[1]), pair_of(first.of[2], first.of[3]),
           pair_of(second.of[0], second.of[1]), pair_of(second.of[2], second.of[3])}};
}

DEVICE void multiply_add(Sums& sums, const Left& left, const Right& right) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums.of[0]), "+f"(sums.of[1]), "+f"(sums.of[2]), "+f"(sums.of[3])
      : "r"(left.of[0]), "r"(left.of[1]), "r"(left.of[2]), "r"(left.of[3]), "r"(right.of[0]),
        "r"(right.of[1]));
}

// Over the lanes that share a row.
DEVICE float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

DEVICE float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

#else

struct Left {
  float of[kTileRows][kTileDepth];
};
struct Right {
  float of[kTileDepth][kTileColumns];
};

DEVICE Left left_of(const Bf16* at, int ld) {
  Left left;
  for (int i = 0; i < kTileRows; i++) {
    for (int k = 0; k < kTileDepth; k++) left.of[i][k] = widen(at[i * ld + k]);
  }
  return left;
}

DEVICE Right right_of_columns(const Bf16* at, int ld) {
  Right right;
  for (int k = 0; k < kTileDepth; k++) {
    for (int j = 0; j < kTileColumns; j++) right.of[k][j] = widen(at[j * ld + k]);
  }
  return right;
}

DEVICE Right right_of_rows(const Bf16* at, int ld) {
  Right right;
  for (int k = 0; k < kTileDepth; k++) {
    for (int j = 0; j < kTileColumns; j++) right.of[k][j] = widen(at[k * ld + j]);
  }
  return right;
}

DEVICE Left left_of(const Sums& first, const Sums& second) {
  Left left;
  for (int i = 0; i < kElements; i++) {
    left.of[row_of(i)][column_of(i)] = widen(narrow(first.of[i]));
    left.of[row_of(i)][kTileColumns + column_of(i)] = widen(narrow(second.of[i]));
  }
  return left;
}

DEVICE void multiply_add(Sums& sums, const Left& left, const Right& right) {
  for (int i = 0; i < kElements; i++) {
    for (int k = 0; k < kTileDepth; k++)
      sums.of[i] += left.of[row_of(i)][k] * right.of[k][column_of(i)];
  }
}

DEVICE float row_sum(float x) { return x; }
DEVICE float row_max(float x) { return x; }

#endif

}  // namespace
