// What each kernel is given, in one struct, so that a launch passes one argument. Arrays are dense unless a row's distance
// is named. Legend: n images, t tokens, s <= t queries (the first tokens), d width, m hidden features, h heads.
#pragma once

#include <cstdint>

namespace thanos::gpu {

constexpr uint32_t kEverything = 65536;
// Elements of a site that are drawn together, from kCounters counters.
constexpr int64_t kGroup = 128, kCounters = 16;

// A place in the network: what share of 65536 is kept there, and the inverse of that probability.
struct Site {
  uint32_t site, kept;
  float scale;
};

// On the device, so that a graph of kernels can be run again with other values. Both are null where nothing is dropped.
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

// The gradient of the norm's output to that of x, plus `residual` [n, s, d] for the first s tokens of each image. A warp
// for kRows rows; `sums` [warps, 2, d] are its parts of the gradients of weight and bias.
struct NormBackwardArguments {
  const float *x, *weight, *mean, *rstd;
  const void* grad;  // bfloat16 [n x t, d]
  const float* residual;
  float *dx, *sums;
  int64_t rows;
  int d, t, s;
};

// out = dropout(gelu(hidden + bias)), bfloat16 [rows, m]; a thread for 8 columns of kRows rows.
struct ActivationArguments {
  const void* hidden;
  const float* bias;
  void* out;
  Randomness random;
  Site site;
  int64_t rows;
  int m, t;
};

// The gradient of `out` of that becomes the gradient of `hidden`; `sums` [row blocks, m] are parts of that of the bias.
struct ActivationBackwardArguments {
  const void* hidden;
  const float* bias;
  void* grad;
  float* sums;
  Randomness random;
  Site site;
  int64_t rows;
  int m, t;
};

// out = x + depth x dropout(fed + bias), [rows, d]; a thread for 8 columns of kRows rows.
struct ResidualArguments {
  const float* x;
  const void* fed;  // bfloat16
  const float* bias;
  float* out;
  Randomness random;
  Site site, depth;
  int64_t rows;
  int d, t;
};

// The gradient of `fed` of that; `sums` [row blocks, d] are parts of that of the bias.
struct ResidualBackwardArguments {
  const float* grad;
  void* dfed;  // bfloat16
  float* sums;
  Randomness random;
  Site site, depth;
  int64_t rows;
  int d, t;
};

// What both attention kernels read. Queries, keys and values are bfloat16; a token's row of q is `q_row` elements long, one
// of keys and values `kv_row`. A block for each head of each image.
struct AttentionArguments {
  const void *q, *k, *v;
  int64_t q_row, kv_row;
  Randomness random;
  Site query, weights, output, depth;
  int t, s, d, heads;
};

// out [n, s, d] = x[:, :s] + depth x dropout(attention), and log-sum-exps [n, h, s].
struct AttentionForwardArguments {
  AttentionArguments common;
  const float* x;
  float *out, *lse;
};

// The gradient of `out` to those of queries, keys and values, in rows as those of the values themselves.
struct AttentionBackwardArguments {
  AttentionArguments common;
  const float *grad, *lse;
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

constexpr int kMostChannels = 3;

// Views [n, C, S, S] of images [N, S, S, C]: view i is of the image `rows[i]`. A block for each view.
struct ViewsArguments {
  const uint8_t* images;
  const int64_t* rows;
  const View* views;
  float* out;
  int channels, side;
  float scale[kMostChannels], shift[kMostChannels];
};

// Rows that a warp or a thread works on, one after the other, where it sums over rows.
constexpr int kRows = 16;
// Most columns of a norm, for the registers of a warp.
constexpr int kMostWidth = 512;

// Sizes of an attention block's shared memory.
struct AttentionMemory {
  int queries, tokens, width;   // multiples of 16
  int vector_row, pair_row;     // elements of a row of vectors, and of pairs of a query and a token

  constexpr AttentionMemory(int t, int s, int head)
      : queries((s + 15) / 16 * 16), tokens((t + 15) / 16 * 16), width(head), vector_row(head + 8),
        pair_row((t + 15) / 16 * 16 + 8) {}

  constexpr int64_t mask_bytes(int t, int s) const { return (int64_t{t} * s + kGroup - 1) / kGroup * kGroup; }
  // float32 pairs or vectors, in one place after the other.
  constexpr int64_t floats() const {
    const int64_t pairs = int64_t{queries} * pair_row;
    const int64_t vectors = int64_t{queries > tokens ? queries : tokens} * vector_row;
    return pairs > vectors ? pairs : vectors;
  }
  constexpr int64_t forward_bytes(int t, int s) const {
    return floats() * 4 + (int64_t{queries} + 2 * tokens) * vector_row * 2 + int64_t{queries} * pair_row * 2 +
           mask_bytes(t, s);
  }
  constexpr int64_t backward_bytes(int t, int s) const {
    return 2 * floats() * 4 + 2 * (int64_t{queries} + tokens) * vector_row * 2 + 2 * int64_t{queries} * pair_row * 2 +
           mask_bytes(t, s);
  }
};

}  // namespace thanos::gpu
