// Products of matrices that fit into the first cache, which a library's call would cost more than
// they do.
#pragma once

#include "vectors.h"

namespace {

// R rows by N vectors of C = A B. A's element (i, k) is at a[i * row + k * column]; B's and C's
// rows are dense.
template <typename T, int R, int N>
INLINE void tile(int64_t depth, const T* a, int64_t row, int64_t column, const T* b, int64_t b_row,
                 T* c, int64_t c_row) {
  V<T> sums[R][N] = {};
  for (int64_t k = 0; k < depth; k++) {
    V<T> right[N];
    for (int j = 0; j < N; j++) right[j] = load<T>(b + k * b_row + j * W<T>);
    for (int i = 0; i < R; i++) {
      const V<T> left = all<T>(a[i * row + k * column]);
      for (int j = 0; j < N; j++) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < R; i++) {
    for (int j = 0; j < N; j++) store<T>(c + i * c_row + j * W<T>, sums[i][j]);
  }
}

template <typename T, int N>
static void columns(int64_t rows, int64_t depth, const T* a, int64_t row, int64_t column,
                    const T* b, int64_t b_row, T* c, int64_t c_row) {
  // As many sums as registers, less those of B's row and of A's element.
  constexpr int kMost = (kRegisters - N - 1) / N;
  constexpr int R = kMost > 8 ? 8 : kMost;
  int64_t i = 0;
  for (; i + R <= rows; i += R) {
    tile<T, R, N>(depth, a + i * row, row, column, b, b_row, c + i * c_row, c_row);
  }
  for (; i + 2 <= rows; i += 2)
    tile<T, 2, N>(depth, a + i * row, row, column, b, b_row, c + i * c_row, c_row);
  for (; i < rows; i++)
    tile<T, 1, N>(depth, a + i * row, row, column, b, b_row, c + i * c_row, c_row);
}

// C [rows, width] = A [rows, depth] x B [depth, width]; the width is a multiple of a vector's.
template <typename T>
static void product(int64_t rows, int64_t width, int64_t depth, const T* a, int64_t row,
                    int64_t column, const T* b, int64_t b_row, T* c, int64_t c_row) {
  constexpr int64_t kWidest = kRegisters == 32 ? 5 : 3;
  const int64_t vectors = width / W<T>, blocks = (vectors + kWidest - 1) / kWidest;
  const int64_t each = blocks == 0 ? 0 : (vectors + blocks - 1) / blocks;
  for (int64_t from = 0; from < vectors; from += each) {
    const int64_t left = vectors - from, n = left < each ? left : each;
    const T* right = b + from * W<T>;
    T* out = c + from * W<T>;
    switch (n) {
      case 1:
        columns<T, 1>(rows, depth, a, row, column, right, b_row, out, c_row);
        break;
      case 2:
        columns<T, 2>(rows, depth, a, row, column, right, b_row, out, c_row);
        break;
      case 3:
        columns<T, 3>(rows, depth, a, row, column, right, b_row, out, c_row);
        break;
#if defined(__AVX512F__)
      case 4:
        columns<T, 4>(rows, depth, a, row, column, right, b_row, out, c_row);
        break;
      case 5:
        columns<T, 5>(rows, depth, a, row, column, right, b_row, out, c_row);
        break;
#endif
    }
  }
}

}  // namespace
