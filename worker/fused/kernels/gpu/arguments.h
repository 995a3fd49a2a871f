// What each kernel is given, in one struct, so that a launch passes one argument. Arrays are dense
// unless a row's distance is named. Legend: n images, t tokens, s <= t queries (the first tokens),
// d width, m hidden features, h heads.
#pragma once

#include "../kernels.h"

namespace thanos::gpu {

// Counters that a group is drawn from.
constexpr int64_t kCounters = 16;

// A place in the network: what share of 65536 is kept there, and the inverse of that probability.
struct Site {
  uint32_t site, kept;
  float scale;
};

// On the device, so that a graph of kernels can be run again with other values. Both are null where
// nothing is dropped.
struct Randomness {
  const uint64_t* key;  // [1], of the seed, the stage and the step
  const int64_t* rows;  // [n], of the sample and the view
};

// Factors of a mask, [n, elements]. A thread for each counter.
struct MaskArguments {
  Randomness random;
  Site site;
  int64_t n, elements;
  float* out;
};

// x [rows, d] to its layer norm, and mean and 1 / deviation of each row. A warp for each row.
struct NormArguments {
  const float *x, *weight, *bias;
  void* out;  // bfloat16
  float *mean, *rstd;
  int64_t rows;
  int d;
  float eps;
};

// The gradient of the norm's output to that of x, plus `residual` [n, s, d] for the first s tokens
// of each image. A block for kNormRows rows; `sums` [blocks, 2, d] are its parts of the gradients
// of weight and bias.
struct NormBackwardArguments {
  const float *x, *weight, *mean, *rstd;
  const void* grad;  // bfloat16 [n x t, d]
  const float* residual;
  float *dx, *sums;
  int64_t rows;
  int d, t, s;
};

// out = dropout(gelu(hidden + bias)), bfloat16 [rows, m]; a thread for 8 columns of `rows_each`
// rows.
struct ActivationArguments {
  const void* hidden;
  const float* bias;
  void* out;
  Randomness random;
  Site site;
  int64_t rows;
  int m, t, rows_each;
};

// The gradient of `out` of that becomes the gradient of `hidden`; `sums` [row blocks, m] are parts
// of that of the bias.
struct ActivationBackwardArguments {
  const void* hidden;
  const float* bias;
  void* grad;
  float* sums;
  Randomness random;
  Site site;
  int64_t rows;
  int m, t, rows_each;
};

// out = x + depth x dropout(fed + bias), [rows, d]; a thread for 8 columns of `rows_each` rows. Of
// x, [n, x_t, d], the first t tokens of each image. `bias` may be null.
struct ResidualArguments {
  const float* x;
  const void* fed;  // bfloat16
  const float* bias;
  float* out;
  Randomness random;
  Site site, depth;
  int64_t rows;
  int d, t, x_t, rows_each;
};

// The gradient of `fed` of that; `sums` [row blocks, d] are parts of that of the bias, or null.
struct ResidualBackwardArguments {
  const float* grad;
  void* dfed;  // bfloat16
  float* sums;
  Randomness random;
  Site site, depth;
  int64_t rows;
  int d, t, rows_each;
};

// What both attention kernels read, all of it bfloat16; a token's row of q is `q_row` elements
// long, one of keys and values `kv_row`. A block for each head of each image, and in it a warp for
// each 16 queries, or keys.
struct AttentionArguments {
  const void *q, *k, *v;
  int64_t q_row, kv_row;
  Randomness random;
  Site query, weights;
  int t, s, d, heads;
};

// out [n x s, d] = attention, bfloat16, and log-sum-exps [n, h, s].
struct AttentionForwardArguments {
  AttentionArguments common;
  void* out;
  float* lse;
};

// The gradient of `out` to those of queries, keys and values, in rows as those of the values
// themselves.
struct AttentionBackwardArguments {
  AttentionArguments common;
  const void *grad, *mixed;  // bfloat16: the gradient of `out`, and `out` itself
  const float* lse;
  void *dq, *dk, *dv;
};

// The adjustments of a view's colours.
enum Adjustment : int32_t { kNoAdjustment, kBrightness, kContrast, kSaturation, kHue };

// What chance decided about a view. The same in Rust: ../../src/gpu.rs.
struct View {
  int32_t top, left, height, width, flip, grey;
  int32_t kind[4];
  float amount[4];
};

constexpr int kMaxChannels = 3;

// Views [n, C, S, S] of images [N, S, S, C]: view i is of the image `rows[i]`. A block for each
// view.
struct ViewsArguments {
  const uint8_t* images;
  const int64_t* rows;
  const View* views;
  float* out;
  int channels, side;
  float scale[kMaxChannels], shift[kMaxChannels];
};

// Sums of a view's grey values that are kept apart.
constexpr int kGreySums = 16;

// Shared memory of a view of so many pixels, of all channels: they, and the sums.
constexpr int64_t view_bytes(int64_t pixels) {
  return (pixels + kGreySums) * static_cast<int64_t>(sizeof(float));
}

// Rows of a block that sums over rows, and most columns of a norm, for the registers of a warp.
constexpr int kNormRows = 32;
constexpr int kMaxWidth = 512;
// Most tokens, for the registers of a warp.
constexpr int kMaxTokens = 80;

constexpr int in_tiles(int size) { return (size + 15) / 16 * 16; }

// The shared memory of an attention block: rows of vectors, whose distance spreads them over the
// memory's banks.
struct AttentionMemory {
  int queries, tokens, vector_row, word_groups;

  constexpr AttentionMemory(int t, int s, int head)
      : queries(in_tiles(s)),
        tokens(in_tiles(t)),
        vector_row(head + 8),
        word_groups((s * t + static_cast<int>(kGroup) - 1) / static_cast<int>(kGroup)) {}

  // Three numbers of each query, words of what is kept, queries, keys and values, and gradients of
  // the output.
  constexpr int64_t bytes(bool backward) const {
    const int64_t vectors = (backward ? 2 : 1) * int64_t{queries} + 2 * tokens;
    return 3 * int64_t{queries} * 4 + in_tiles(word_groups * 16) + vectors * vector_row * 2;
  }
};

}  // namespace thanos::gpu
