// What the kernels of one instruction set offer. Each works on one image; they hold no state and
// allocate nothing. Shapes: t tokens, s <= t queries (the first tokens), d width, h heads, m hidden
// features; all arrays are dense, rows last to first. `random` is null where nothing is dropped.
#pragma once

#include <cstdint>

namespace thanos {

// Elements that are drawn together. A site's random numbers of an image are 16 bits an element, in
// such groups.
constexpr int64_t kGroup = 128;
// A rate of which nothing is dropped: rates are shares of it.
constexpr uint32_t kEverything = 65536;
// Elements that may be read after the last one of a buffer of random numbers, for whole vectors.
constexpr int64_t kSlack = 64;

constexpr int64_t in_groups(int64_t elements) { return (elements + kGroup - 1) / kGroup * kGroup; }

// An element is kept where its random number is below `kept`, of 65536, and then multiplied by
// `scale`.
struct Keep {
  uint32_t kept;
  double scale;
};

// Which numbers are drawn: all of them are functions of this and of the element's index.
struct Draw {
  uint64_t key;   // of the seed, the stage and the step
  uint64_t row;   // of the sample and the view
  uint32_t site;  // of the place in the network
};

struct AttentionShape {
  int64_t tokens, queries, width, heads;
  int64_t head() const { return width / heads; }
  // Random numbers of a head's probabilities, [s, t]. A head begins a new group.
  int64_t drawn_by_head() const { return in_groups(queries * tokens); }
};

// Feature maps [images, channels, pixels], and the channels that a call works on.
struct Maps {
  int64_t images, channels, pixels;
  int64_t from, to;
};

template <typename T>
struct Kernels {
  // Elements of the scratch memory of an attention kernel.
  int64_t (*attention_scratch)(const AttentionShape& shape);

  // x [rows, d] to its layer norm `out`, and to mean and 1 / deviation of each row.
  void (*norm)(int64_t rows, int64_t d, const T* x, const T* weight, const T* bias, T eps, T* out,
               T* mean, T* rstd);
  // The same from mean and 1 / deviation.
  void (*norm_again)(int64_t rows, int64_t d, const T* x, const T* weight, const T* bias,
                     const T* mean, const T* rstd, T* out);
  // `grad` [rows, d] is of the norm's output; `residual` [added, d] is added to the first rows of
  // the result `dx`. `sums` [2, d]: gradients of weight and bias.
  void (*norm_backward)(int64_t rows, int64_t d, const T* x, const T* weight, const T* mean,
                        const T* rstd, const T* grad, const T* residual, int64_t added, T* dx,
                        T* sums);

  // q [s, d], kv [t, 2d] to out = x + factor x dropout(attention) [s, d], and log-sum-exps [h, s].
  // `query` [s] scales the queries.
  void (*attention)(const AttentionShape& shape, const T* q, const T* kv, const T* query,
                    const uint16_t* random, Keep keep, const T* x, T factor,
                    const uint16_t* out_random, Keep out_keep, T* out, T* lse, T* scratch);
  // The gradient `grad` [s, d] of `out` to dq [s, d] and dkv [t, 2d].
  void (*attention_backward)(const AttentionShape& shape, const T* q, const T* kv, const T* query,
                             const uint16_t* random, Keep keep, const T* grad, T factor,
                             const uint16_t* out_random, Keep out_keep, const T* lse, T* dq, T* dkv,
                             T* scratch);

  // out = dropout(gelu(hidden + bias)), [rows, m].
  void (*activation)(int64_t rows, int64_t m, const T* hidden, const T* bias,
                     const uint16_t* random, Keep keep, T* out);
  // `grad` of that becomes the gradient of `hidden`, `out` is made again; `sums` [m]: gradient of
  // the bias.
  void (*activation_backward)(int64_t rows, int64_t m, const T* hidden, const T* bias,
                              const uint16_t* random, Keep keep, T* grad, T* out, T* sums);

  // out = x + factor x dropout(fed + bias), [rows, d].
  void (*residual)(int64_t rows, int64_t d, const T* x, const T* fed, const T* bias, T factor,
                   const uint16_t* random, Keep keep, T* out);
  // The gradient of `fed` of that, and `sums` [d], of the bias.
  void (*residual_backward)(int64_t rows, int64_t d, const T* grad, T factor,
                            const uint16_t* random, Keep keep, T* dfed, T* sums);

  // The following work on feature maps; what belongs to channels has an element for each, whichever
  // are worked on.

  // Sums of x and of its squares over images and pixels, to `sums` [2, channels].
  void (*moments)(const Maps& maps, const T* x, double* sums);
  // dx = grad + slope x (x - centre) + offset.
  void (*moments_backward)(const Maps& maps, const T* x, const T* grad, const T* centre,
                           const T* slope, const T* offset, T* dx);
  // out = (x - centre) x scale + shift + residual, and what is negative becomes zero if `relu`.
  // `residual` may be null.
  void (*standardise)(const Maps& maps, const T* x, const T* centre, const T* scale, const T* shift,
                      const T* residual, bool relu, T* out);
  // `grad` of that is zero where `out` is not positive, unless `out` is null; as that it goes to
  // `masked` unless this is null. dx = grad x scale; `sums` [2, channels]: of grad, and of grad x
  // (x - centre).
  void (*standardise_backward)(const Maps& maps, const T* x, const T* out, const T* grad,
                               const T* centre, const T* scale, T* dx, T* masked, double* sums);
};

struct KernelSet {
  // Rounds to bfloat16, half to even. NaN stays NaN.
  void (*round)(int64_t elements, const float* x, uint16_t* out);
  // bfloat16 to float32, and the same added to `out`.
  void (*widen)(int64_t elements, const uint16_t* x, float* out);
  void (*add_widened)(int64_t elements, const uint16_t* x, float* out);
  // `elements`, a multiple of kGroup, 16-bit numbers: Philox4x32-10, see ../src/draws.rs.
  void (*draw)(const Draw& draw, int64_t elements, uint16_t* out);
  Kernels<float> floats;
  Kernels<double> doubles;
};

extern const KernelSet portable;
#ifdef __x86_64__
extern const KernelSet avx2;
extern const KernelSet avx512;
#endif

}  // namespace thanos
