// The kernels of one instruction set: compiled once for each, with THANOS_KERNELS as the name of
// the set.
#include "kernels.h"
#include "maps.h"
#include "products.h"
#include "random.h"
#include "vectors.h"

namespace {

using thanos::AttentionShape;
using thanos::Keep;

// Multiplies by a mask: each element by `scale` or 0. Without random numbers everything is kept.
template <typename T>
struct Mask {
  const uint16_t* random;
  int32_t below;
  V<T> scale;

  Mask(const uint16_t* random, Keep keep, T factor = 1)
      : random(random),
        below(static_cast<int32_t>(keep.kept)),
        scale(all<T>(random ? static_cast<T>(keep.scale) * factor : factor)) {}

  V<T> at(int64_t element) const {
    return random ? kept<T>(random + element, below, scale) : scale;
  }
};

template <typename T>
static void norm_again(int64_t rows, int64_t d, const T* x, const T* weight, const T* bias,
                       const T* mean, const T* rstd, T* out) {
  for (int64_t row = 0; row < rows; row++, x += d, out += d) {
    const V<T> centre = all<T>(mean[row]), scale = all<T>(rstd[row]);
    for (int64_t i = 0; i < d; i += W<T>) {
      const V<T> unit = (load<T>(x + i, d - i) - centre) * scale;
      store<T>(out + i, unit * load<T>(weight + i, d - i) + load<T>(bias + i, d - i), d - i);
    }
  }
}

template <typename T>
static void norm(int64_t rows, int64_t d, const T* x, const T* weight, const T* bias, T eps, T* out,
                 T* mean, T* rstd) {
  for (int64_t row = 0; row < rows; row++) {
    const T* from = x + row * d;
    V<T> total{};
    for (int64_t i = 0; i < d; i += W<T>) total += load<T>(from + i, d - i);
    const T centre = sum<T>(total) / static_cast<T>(d);
    V<T> squares{};
    int64_t i = 0;
    for (; i + W<T> <= d; i += W<T>) {
      const V<T> away = load<T>(from + i) - centre;
      squares += away * away;
    }
    T square = sum<T>(squares);
    for (; i < d; i++) square += (from[i] - centre) * (from[i] - centre);
    mean[row] = centre;
    rstd[row] = 1 / static_cast<T>(__builtin_sqrt(square / static_cast<T>(d) + eps));
  }
  norm_again<T>(rows, d, x, weight, bias, mean, rstd, out);
}

template <typename T>
static void norm_backward(int64_t rows, int64_t d, const T* x, const T* weight, const T* mean,
                          const T* rstd, const T* grad, const T* residual, int64_t added, T* dx,
                          T* sums) {
  for (int64_t i = 0; i < 2 * d; i++) sums[i] = 0;
  for (int64_t row = 0; row < rows; row++, x += d, grad += d, dx += d) {
    const V<T> centre = all<T>(mean[row]), scale = all<T>(rstd[row]);
    V<T> first{}, second{};
    for (int64_t i = 0; i < d; i += W<T>) {
      const int64_t left = d - i;
      const V<T> unit = (load<T>(x + i, left) - centre) * scale, out = load<T>(grad + i, left);
      // Lanes after the last element have a gradient of zero.
      const V<T> inner = out * load<T>(weight + i, left);
      first += inner;
      second += inner * unit;
      store<T>(sums + i, load<T>(sums + i, left) + out * unit, left);
      store<T>(sums + d + i, load<T>(sums + d + i, left) + out, left);
    }
    const V<T> mean_first = all<T>(sum<T>(first) / static_cast<T>(d));
    const V<T> mean_second = all<T>(sum<T>(second) / static_cast<T>(d));
    const T* more = row < added ? residual + row * d : nullptr;
    for (int64_t i = 0; i < d; i += W<T>) {
      const int64_t left = d - i;
      const V<T> unit = (load<T>(x + i, left) - centre) * scale;
      const V<T> inner = load<T>(grad + i, left) * load<T>(weight + i, left);
      V<T> out = (inner - mean_first - unit * mean_second) * scale;
      if (more) out += load<T>(more + i, left);
      store<T>(dx + i, out, left);
    }
  }
}

// The scratch memory of one head: t and head width are padded to whole vectors, with zeros.
template <typename T>
struct Head {
  int64_t tokens, queries, width, padded_tokens, padded_width;
  T *queries_scaled, *keys, *values, *keys_transposed, *values_transposed, *scores, *kept_scores,
      *grad, *result;

  Head(const AttentionShape& shape, T* scratch)
      : tokens(shape.tokens),
        queries(shape.queries),
        width(shape.head()),
        padded_tokens(padded<T>(tokens)),
        padded_width(padded<T>(width)) {
    T* free = scratch;
    const auto take = [&free](int64_t rows, int64_t columns) {
      T* taken = free;
      free += rows * columns;
      return taken;
    };
    queries_scaled = take(queries, padded_width);
    keys = take(tokens, padded_width);
    values = take(tokens, padded_width);
    keys_transposed = take(width, padded_tokens);
    values_transposed = take(width, padded_tokens);
    scores = take(queries, padded_tokens);
    kept_scores = take(queries, padded_tokens);
    grad = take(queries, padded_width);
    // Of queries, or of keys.
    result = take(tokens > queries ? tokens : queries, padded_width);
    used = free - scratch;
  }
  int64_t used;

  // Rows `from` [rows, width] that are `stride` apart, with zeros after each.
  void copy(int64_t rows, const T* from, int64_t stride, T* to) const {
    for (int64_t row = 0; row < rows; row++) {
      for (int64_t i = 0; i < padded_width; i += W<T>) {
        store<T>(to + row * padded_width + i, load<T>(from + row * stride + i, width - i));
      }
    }
  }

  // [tokens, width] with padded rows to [width, tokens] with padded rows.
  void transpose(const T* from, T* to) const {
    for (int64_t column = 0; column < width; column++) {
      T* row = to + column * padded_tokens;
      for (int64_t token = 0; token < tokens; token++)
        row[token] = from[token * padded_width + column];
      for (int64_t token = tokens; token < padded_tokens; token++) row[token] = 0;
    }
  }

  // Queries times `query` over the root of the width, and scores of all pairs.
  void score(const T* q, const T* kv, const T* query, int64_t d) {
    const T root = 1 / static_cast<T>(__builtin_sqrt(static_cast<double>(width)));
    copy(queries, q, d, queries_scaled);
    for (int64_t row = 0; row < queries; row++) {
      T* scaled = queries_scaled + row * padded_width;
      const V<T> factor = all<T>(query[row] * root);
      for (int64_t i = 0; i < padded_width; i += W<T>)
        store<T>(scaled + i, load<T>(scaled + i) * factor);
    }
    copy(tokens, kv, 2 * d, keys);
    transpose(keys, keys_transposed);
    product<T>(queries, padded_tokens, width, queries_scaled, padded_width, 1, keys_transposed,
               padded_tokens, scores, padded_tokens);
  }
};

template <typename T>
static int64_t attention_scratch(const AttentionShape& shape) {
  return Head<T>(shape, nullptr).used;
}

// Logits [padded_tokens] to exp(logit - `subtracted`), zeros after the last token; returns their
// sum.
template <typename T>
INLINE T exponentials(const Head<T>& head, T* row, T subtracted) {
  V<T> total{};
  int64_t i = 0;
  for (; i + W<T> <= head.tokens; i += W<T>) {
    const V<T> power = exponential(load<T>(row + i) - subtracted);
    total += power;
    store<T>(row + i, power);
  }
  if (i < head.tokens) {
    const V<T> power = first_lanes<T>(exponential(load<T>(row + i) - subtracted), head.tokens - i);
    total += power;
    store<T>(row + i, power);
  }
  return sum<T>(total);
}

template <typename T>
static void attention(const AttentionShape& shape, const T* q, const T* kv, const T* query,
                      const uint16_t* random, Keep keep, const T* x, T factor,
                      const uint16_t* out_random, Keep out_keep, T* out, T* lse, T* scratch) {
  Head<T> head(shape, scratch);
  const int64_t d = shape.width, width = head.width;
  const Mask<T> out_mask(out_random, out_keep, factor);
  for (int64_t h = 0; h < shape.heads; h++) {
    const int64_t first = h * width;
    head.score(q + first, kv + first, query, d);
    const Mask<T> mask(random ? random + h * shape.drawn_by_head() : nullptr, keep);
    for (int64_t row = 0; row < head.queries; row++) {
      T* logits = head.scores + row * head.padded_tokens;
      T most = logits[0];
      V<T> highest = all<T>(most);
      int64_t i = 0;
      for (; i + W<T> <= head.tokens; i += W<T>) {
        const V<T> these = load<T>(logits + i);
        highest = these > highest ? these : highest;
      }
      most = maximum<T>(highest);
      for (; i < head.tokens; i++) most = logits[i] > most ? logits[i] : most;
      const T total = exponentials<T>(head, logits, most);
      lse[h * head.queries + row] = most + static_cast<T>(__builtin_log(total));
      const V<T> share = all<T>(1 / total);
      for (i = 0; i < head.padded_tokens; i += W<T>) {
        store<T>(logits + i, load<T>(logits + i) * share * mask.at(row * head.tokens + i));
      }
    }
    head.copy(head.tokens, kv + d + first, 2 * d, head.values);
    product<T>(head.queries, head.padded_width, head.tokens, head.scores, head.padded_tokens, 1,
               head.values, head.padded_width, head.result, head.padded_width);
    for (int64_t row = 0; row < head.queries; row++) {
      const int64_t at = row * d + first;
      for (int64_t i = 0; i < width; i += W<T>) {
        const V<T> mixed = load<T>(head.result + row * head.padded_width + i) * out_mask.at(at + i);
        store<T>(out + at + i, load<T>(x + at + i, width - i) + mixed, width - i);
      }
    }
  }
}

// Probabilities P and gradients of dropped-out ones to P with dropout, in place of the scores, and
// gradients of logits.
template <typename T>
static void softmax_backward(const Head<T>& head, const Mask<T>& mask, const T* lse) {
  for (int64_t row = 0; row < head.queries; row++) {
    T* shares = head.scores + row * head.padded_tokens;
    T* grads = head.kept_scores + row * head.padded_tokens;
    exponentials<T>(head, shares, lse[row]);
    V<T> dot{};
    for (int64_t i = 0; i < head.padded_tokens; i += W<T>) {
      const V<T> grad = load<T>(grads + i) * mask.at(row * head.tokens + i);
      dot += grad * load<T>(shares + i);
      store<T>(grads + i, grad);
    }
    const V<T> mean = all<T>(sum<T>(dot));
    for (int64_t i = 0; i < head.padded_tokens; i += W<T>) {
      const V<T> share = load<T>(shares + i);
      store<T>(grads + i, share * (load<T>(grads + i) - mean));
      store<T>(shares + i, share * mask.at(row * head.tokens + i));
    }
  }
}

// Rows of `result` [rows, padded_width] times `factor` to rows that are `stride` apart.
template <typename T>
static void write(const Head<T>& head, int64_t rows, const T* query, T factor, T* to,
                  int64_t stride) {
  for (int64_t row = 0; row < rows; row++) {
    const V<T> scale = all<T>(query ? query[row] * factor : factor);
    for (int64_t i = 0; i < head.width; i += W<T>) {
      store<T>(to + row * stride + i, load<T>(head.result + row * head.padded_width + i) * scale,
               head.width - i);
    }
  }
}

template <typename T>
static void attention_backward(const AttentionShape& shape, const T* q, const T* kv, const T* query,
                               const uint16_t* random, Keep keep, const T* grad, T factor,
                               const uint16_t* out_random, Keep out_keep, const T* lse, T* dq,
                               T* dkv, T* scratch) {
  Head<T> head(shape, scratch);
  const int64_t d = shape.width, width = head.width;
  const T root = 1 / static_cast<T>(__builtin_sqrt(static_cast<double>(width)));
  const Mask<T> out_mask(out_random, out_keep, factor);
  for (int64_t h = 0; h < shape.heads; h++) {
    const int64_t first = h * width;
    head.score(q + first, kv + first, query, d);
    for (int64_t row = 0; row < head.queries; row++) {
      const int64_t at = row * d + first;
      for (int64_t i = 0; i < head.padded_width; i += W<T>) {
        const V<T> masked = load<T>(grad + at + i, width - i) * out_mask.at(at + i);
        store<T>(head.grad + row * head.padded_width + i, masked);
      }
    }
    head.copy(head.tokens, kv + d + first, 2 * d, head.values);
    head.transpose(head.values, head.values_transposed);
    product<T>(head.queries, head.padded_tokens, width, head.grad, head.padded_width, 1,
               head.values_transposed, head.padded_tokens, head.kept_scores, head.padded_tokens);
    softmax_backward<T>(head, {random ? random + h * shape.drawn_by_head() : nullptr, keep},
                        lse + h * head.queries);
    // dV = P^T dO, dQ = dS K, dK = dS^T Q.
    product<T>(head.tokens, head.padded_width, head.queries, head.scores, 1, head.padded_tokens,
               head.grad, head.padded_width, head.result, head.padded_width);
    write<T>(head, head.tokens, nullptr, 1, dkv + d + first, 2 * d);
    product<T>(head.queries, head.padded_width, head.tokens, head.kept_scores, head.padded_tokens,
               1, head.keys, head.padded_width, head.result, head.padded_width);
    write<T>(head, head.queries, query, root, dq + first, d);
    product<T>(head.tokens, head.padded_width, head.queries, head.kept_scores, 1,
               head.padded_tokens, head.queries_scaled, head.padded_width, head.result,
               head.padded_width);
    write<T>(head, head.tokens, nullptr, 1, dkv + first, 2 * d);
  }
}

template <typename T>
static void activation(int64_t rows, int64_t m, const T* hidden, const T* bias,
                       const uint16_t* random, Keep keep, T* out) {
  const Mask<T> mask(random, keep);
  for (int64_t at = 0; at < rows * m; at += m) {
    for (int64_t i = 0; i < m; i += W<T>) {
      const V<T> u = load<T>(hidden + at + i, m - i) + load<T>(bias + i, m - i);
      store<T>(out + at + i, u * normal(u).below * mask.at(at + i), m - i);
    }
  }
}

template <typename T>
static void activation_backward(int64_t rows, int64_t m, const T* hidden, const T* bias,
                                const uint16_t* random, Keep keep, T* grad, T* out, T* sums) {
  const Mask<T> mask(random, keep);
  for (int64_t i = 0; i < m; i++) sums[i] = 0;
  for (int64_t at = 0; at < rows * m; at += m) {
    for (int64_t i = 0; i < m; i += W<T>) {
      const int64_t left = m - i;
      const V<T> u = load<T>(hidden + at + i, left) + load<T>(bias + i, left),
                 scale = mask.at(at + i);
      const Normal<T> found = normal(u);
      const V<T> inner = load<T>(grad + at + i, left) * scale * (found.below + u * found.density);
      store<T>(out + at + i, u * found.below * scale, left);
      store<T>(grad + at + i, inner, left);
      store<T>(sums + i, load<T>(sums + i, left) + inner, left);
    }
  }
}

template <typename T>
static void residual(int64_t rows, int64_t d, const T* x, const T* fed, const T* bias, T factor,
                     const uint16_t* random, Keep keep, T* out) {
  const Mask<T> mask(random, keep, factor);
  for (int64_t at = 0; at < rows * d; at += d) {
    for (int64_t i = 0; i < d; i += W<T>) {
      const V<T> branch = load<T>(fed + at + i, d - i) + load<T>(bias + i, d - i);
      store<T>(out + at + i, load<T>(x + at + i, d - i) + branch * mask.at(at + i), d - i);
    }
  }
}

template <typename T>
static void residual_backward(int64_t rows, int64_t d, const T* grad, T factor,
                              const uint16_t* random, Keep keep, T* dfed, T* sums) {
  const Mask<T> mask(random, keep, factor);
  for (int64_t i = 0; i < d; i++) sums[i] = 0;
  for (int64_t at = 0; at < rows * d; at += d) {
    for (int64_t i = 0; i < d; i += W<T>) {
      const V<T> inner = load<T>(grad + at + i, d - i) * mask.at(at + i);
      store<T>(dfed + at + i, inner, d - i);
      store<T>(sums + i, load<T>(sums + i, d - i) + inner, d - i);
    }
  }
}

static void round(int64_t elements, const float* x, uint16_t* out) {
  typedef I<float> Bits;
  for (int64_t i = 0; i < elements; i += W<float>) {
    const int64_t left = elements - i;
    const V<float> value = load<float>(x + i, left);
    Bits bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    // Sums wrap around where the sign is set, and the sign bit goes through unchanged.
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits rounded = value == value ? bits : Bits{} + 0x7fc0;
    const auto narrow = __builtin_convertvector(rounded & 0xffff, Lanes<float>::U);
    __builtin_memcpy(out + i, &narrow, (left < W<float> ? left : W<float>)*sizeof(uint16_t));
  }
}

template <bool adds>
static void widen(int64_t elements, const uint16_t* x, float* out) {
  for (int64_t i = 0; i < elements; i += W<float>) {
    const int64_t left = elements - i;
    Lanes<float>::U narrow{};
    __builtin_memcpy(&narrow, x + i, (left < W<float> ? left : W<float>)*sizeof(uint16_t));
    const I<float> bits = __builtin_convertvector(narrow, I<float>) << 16;
    V<float> value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    if (adds) value += load<float>(out + i, left);
    store<float>(out + i, value, left);
  }
}

template <typename T>
constexpr thanos::Kernels<T> kernels() {
  return {attention_scratch<T>, norm<T>,
          norm_again<T>,        norm_backward<T>,
          attention<T>,         attention_backward<T>,
          activation<T>,        activation_backward<T>,
          residual<T>,          residual_backward<T>,
          moments<T>,           moments_backward<T>,
          standardise<T>,       standardise_backward<T>};
}

}  // namespace

namespace thanos {
extern const KernelSet THANOS_KERNELS = {round, widen<false>,     widen<true>,
                                         draw,  kernels<float>(), kernels<double>()};
}
