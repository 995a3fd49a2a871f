// The kernels of the two branches of a block, in bfloat16 with sums in float32. What each computes: arguments.h.
#include "device.h"
#include "random.h"

namespace {

using namespace thanos::gpu;

DEVICE const Bf16* in(const void* x) { return static_cast<const Bf16*>(x); }
DEVICE Bf16* out(void* x) { return static_cast<Bf16*>(x); }

// Columns of a row that a lane has in registers: column `lane() + k * kLanes` is number k of them.
constexpr int kPerLane = kMostWidth / kLanes;

// Calls `body(column, k)` for the columns of a lane. Unrolled, so that arrays with an index k stay in registers.
template <typename F>
DEVICE void for_columns(int d, const F& body) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int k = 0; k < kPerLane; k++) {
    const int column = lane() + k * kLanes;
    if (column < d) body(column, k);
  }
}

// Where a thread of an element-wise kernel works: eight columns, 16 apart from `column` on, of some rows of [rows, width].
struct Columns {
  int64_t first_row, last_row, block;
  int column, counter;

  DEVICE Columns(int64_t rows, int width) {
    const int slots = width / kNumbers;
    const int64_t index = ::block() * threads() + thread();
    const int slot = static_cast<int>(index % slots);
    block = index / slots;
    first_row = block * kRows;
    last_row = first_row + kRows < rows ? first_row + kRows : rows;
    counter = slot;
    column = slot / static_cast<int>(kCounters) * static_cast<int>(kGroup) + slot % static_cast<int>(kCounters);
  }

  DEVICE int at(int number) const { return column + number * static_cast<int>(kCounters); }

  // Of a row, which is the token `row % t` of an image, among the counters of a site that draws for [t, width].
  DEVICE uint32_t counter_of(int64_t row, int t, int width) const {
    return static_cast<uint32_t>(row % t * (width / kNumbers) + counter);
  }
};

// The factor of one element of a site of an image.
DEVICE float factor_at(const Randomness& random, int64_t image, Site site, int64_t element) {
  const uint32_t within = static_cast<uint32_t>(element % kGroup), lane = within % kCounters;
  const Mask mask(random, image, site, static_cast<uint32_t>(element / kGroup * kCounters) + lane);
  return mask.at(within / kCounters);
}

// The share of a normal distribution below x, and its density there.
DEVICE float normal_below(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
DEVICE float normal_density(float x) { return 0.39894228040143268f * expf(-0.5f * x * x); }

struct alignas(16) Eight {
  uint32_t word[4];
};

// Rows [rows, width] that are `distance` apart to shared memory, with zeros up to `padded` rows.
DEVICE void load_rows(const Bf16* from, int64_t distance, int rows, int padded, int width, Bf16* to, int ld) {
  const int pieces = width / 8;
  for (int i = thread(); i < padded * pieces; i += threads()) {
    const int row = i / pieces, piece = i % pieces * 8;
    Eight eight{};
    if (row < rows) eight = *reinterpret_cast<const Eight*>(from + row * distance + piece);
    *reinterpret_cast<Eight*>(to + row * ld + piece) = eight;
  }
}

// Rows [rows, width] from shared memory, as bfloat16.
DEVICE void store_rows(const float* from, int ld, int rows, int width, Bf16* to, int64_t distance) {
  for (int i = thread(); i < rows * width; i += threads()) {
    const int row = i / width, column = i % width;
    to[row * distance + column] = narrow(from[row * ld + column]);
  }
}

// What an attention block knows, and its shared memory.
struct AttentionBlock {
  AttentionArguments a;
  int64_t image;
  int head, width;
  AttentionMemory memory;
  float depth;

  DEVICE explicit AttentionBlock(const AttentionArguments& a)
      : a(a), image(block() / a.heads), head(static_cast<int>(block() % a.heads)), width(a.d / a.heads),
        memory(a.t, a.s, a.d / a.heads), depth(branch_factor(a.random, image, a.depth)) {}

  DEVICE void load(Bf16* q, Bf16* k, Bf16* v) const {
    const int64_t first = int64_t{head} * width;
    load_rows(in(a.q) + image * a.s * a.q_row + first, a.q_row, a.s, memory.queries, width, q, memory.vector_row);
    load_rows(in(a.k) + image * a.t * a.kv_row + first, a.kv_row, a.t, memory.tokens, width, k, memory.vector_row);
    load_rows(in(a.v) + image * a.t * a.kv_row + first, a.kv_row, a.t, memory.tokens, width, v, memory.vector_row);
  }

  // Whether each probability [s, t] is kept.
  DEVICE void draw_weights(uint8_t* kept) const {
    if (a.weights.kept == kEverything) return;
    const int elements = a.s * a.t, counters = (elements + static_cast<int>(kGroup) - 1) / static_cast<int>(kGroup) * 16;
    for (int i = thread(); i < counters; i += threads()) {
      // A head begins a new group.
      const Mask mask(a.random, image, a.weights, static_cast<uint32_t>(head) * counters + i);
      const int first = i / 16 * static_cast<int>(kGroup) + i % 16;
      for (int number = 0; number < kNumbers; number++) kept[first + number * 16] = mask.at(number) > 0;
    }
  }

  // Of a logit of this query; 0 of one that is dropped, so that it attends to all tokens alike.
  DEVICE float logit_factor(int query) const {
    return factor_at(a.random, image, a.query, query) / sqrtf(static_cast<float>(width));
  }

  DEVICE float weight_factor(const uint8_t* kept, int query, int token) const {
    if (a.weights.kept == kEverything) return 1;
    return kept[query * a.t + token] ? a.weights.scale : 0;
  }

  // Of an element of the branch's output.
  DEVICE float output_factor(int query, int column) const {
    return depth * factor_at(a.random, image, a.output, int64_t{query} * a.d + head * width + column);
  }
};

// Where a pixel of a view comes from along one dimension, as `taps` of thanos-views says.
struct Tap {
  int first, second;
  float weight;

  DEVICE Tap(int at, int from, int length, int side) {
    double place = (at + 0.5) * (static_cast<double>(length) / side) - 0.5;
    if (place < 0) place = 0;
    int before = static_cast<int>(place);
    if (before > length - 1) before = length - 1;
    first = from + before;
    second = from + (before + 1 < length ? before + 1 : length - 1);
    weight = static_cast<float>(place - before);
  }
};

DEVICE float clamped(float x) { return fminf(fmaxf(x, 0), 1); }
DEVICE float blended(float value, float other, float factor) { return clamped(factor * value + (1 - factor) * other); }
DEVICE float grey(float r, float g, float b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }

// As `turn_hue` of thanos-views.
DEVICE void turn_hue(float& r, float& g, float& b, float turns) {
  const float most = fmaxf(fmaxf(r, g), b), least = fminf(fminf(r, g), b), range = most - least;
  const float divisor = range == 0 ? 1 : range;
  const float from = most == r ? 0 : most == g ? 2 : 4;
  const float difference = most == r ? g - b : most == g ? b - r : r - g;
  float hue = from + difference / divisor + 6 * turns;
  if (hue < 0) hue += 6;
  if (hue >= 6) hue -= 6;
  r = least + range * clamped(fabsf(hue - 3) - 1);
  g = least + range * clamped(2 - fabsf(hue - 2));
  b = least + range * clamped(2 - fabsf(hue - 4));
}

// One view, made in shared memory, [C, S x S]: each thread has pixels of its own.
struct ViewBlock {
  const ViewsArguments& a;
  const View& view;
  float *pixels, *sums;
  int area;

  DEVICE float grey_of(int p) const {
    return a.channels == 3 ? grey(pixels[p], pixels[area + p], pixels[2 * area + p]) : pixels[p];
  }

  // Of all pixels.
  DEVICE float mean_grey() const {
    float sum = 0;
    for (int p = thread(); p < area; p += threads()) sum += grey_of(p);
    sum = warp_sum(sum);
    if (lane() == 0) sums[warp()] = sum;
    wait_for_block();
    float total = 0;
    for (int i = 0; i < warps(); i++) total += sums[i];
    wait_for_block();
    return total / area;
  }

  DEVICE void crop() const {
    const int side = a.side, channels = a.channels;
    const uint8_t* image = a.images + a.rows[block()] * area * channels;
    for (int p = thread(); p < area; p += threads()) {
      const int x = p % side;
      const Tap across(view.flip ? side - 1 - x : x, view.left, view.width, side);
      const Tap down(p / side, view.top, view.height, side);
      for (int c = 0; c < channels; c++) {
        const auto at = [&](int y, int x) { return static_cast<float>(image[(y * side + x) * channels + c]); };
        const auto row = [&](int y) {
          const float left = at(y, across.first);
          return left + (at(y, across.second) - left) * across.weight;
        };
        const float upper = row(down.first);
        pixels[c * area + p] = (upper + (row(down.second) - upper) * down.weight) / 255;
      }
    }
  }

  DEVICE void adjust(int kind, float amount) const {
    const float mean = kind == kContrast ? mean_grey() : 0;
    for (int p = thread(); p < area; p += threads()) {
      if (kind == kHue) {
        turn_hue(pixels[p], pixels[area + p], pixels[2 * area + p], amount);
        continue;
      }
      const float other = kind == kSaturation ? grey_of(p) : mean;
      for (int c = 0; c < a.channels; c++) {
        float& value = pixels[c * area + p];
        value = kind == kBrightness ? clamped(value * amount) : blended(value, other, amount);
      }
    }
  }

  DEVICE void write() const {
    for (int p = thread(); p < area; p += threads()) {
      const float shade = grey_of(p);
      for (int c = 0; c < a.channels; c++) {
        const float value = view.grey ? shade : pixels[c * area + p];
        a.out[(block() * a.channels + c) * area + p] = value * a.scale[c] + a.shift[c];
      }
    }
  }
};

}  // namespace

KERNEL make_views(ViewsArguments a) {
  SHARED(shared);
  float* pixels = reinterpret_cast<float*>(shared);
  const int area = a.side * a.side;
  const ViewBlock here{a, a.views[block()], pixels, pixels + a.channels * area, area};
  here.crop();
  for (int i = 0; i < 4; i++) {
    if (here.view.kind[i] != kNoAdjustment) here.adjust(here.view.kind[i], here.view.amount[i]);
  }
  here.write();
}

KERNEL draw_mask(MaskArguments a) {
  const int64_t counters = (a.elements + kGroup - 1) / kGroup * kCounters;
  const int64_t index = block() * threads() + thread();
  if (index >= a.n * counters) return;
  const int64_t image = index / counters, counter = index % counters;
  const Mask mask(a.random, image, a.site, static_cast<uint32_t>(counter));
  for (int number = 0; number < kNumbers; number++) {
    const int64_t element = counter / kCounters * kGroup + counter % kCounters + number * kCounters;
    if (element < a.elements) a.out[image * a.elements + element] = mask.at(number);
  }
}

KERNEL norm_forward(NormArguments a) {
  const int64_t row = block() * warps() + warp();
  if (row >= a.rows) return;
  const float* x = a.x + row * a.d;
  float values[kPerLane];
  float sum = 0, squares = 0;
  for_columns(a.d, [&](int i, int k) { sum += values[k] = x[i]; });
  const float mean = warp_sum(sum) / a.d;
  for_columns(a.d, [&](int, int k) { squares += (values[k] - mean) * (values[k] - mean); });
  const float rstd = 1 / sqrtf(warp_sum(squares) / a.d + a.eps);
  if (lane() == 0) {
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
  Bf16* normed = out(a.out) + row * a.d;
  for_columns(a.d, [&](int i, int k) { normed[i] = narrow((values[k] - mean) * rstd * a.weight[i] + a.bias[i]); });
}

KERNEL norm_backward(NormBackwardArguments a) {
  const int64_t part = block() * warps() + warp();
  if (part * kRows >= a.rows) return;
  const int64_t last = (part + 1) * kRows < a.rows ? (part + 1) * kRows : a.rows;
  float dweight[kPerLane] = {}, dbias[kPerLane] = {}, units[kPerLane], inner[kPerLane];
  for (int64_t row = part * kRows; row < last; row++) {
    const float mean = a.mean[row], rstd = a.rstd[row];
    const float* x = a.x + row * a.d;
    const Bf16* grad = in(a.grad) + row * a.d;
    float first = 0, second = 0;
    for_columns(a.d, [&](int i, int k) {
      const float g = widen(grad[i]);
      units[k] = (x[i] - mean) * rstd;
      inner[k] = g * a.weight[i];
      first += inner[k];
      second += inner[k] * units[k];
      dweight[k] += g * units[k];
      dbias[k] += g;
    });
    first = warp_sum(first) / a.d;
    second = warp_sum(second) / a.d;
    const int token = static_cast<int>(row % a.t);
    const float* residual = token < a.s ? a.residual + (row / a.t * a.s + token) * a.d : nullptr;
    float* dx = a.dx + row * a.d;
    for_columns(a.d, [&](int i, int k) {
      const float own = (inner[k] - first - units[k] * second) * rstd;
      dx[i] = residual ? own + residual[i] : own;
    });
  }
  float* sums = a.sums + part * 2 * a.d;
  for_columns(a.d, [&](int i, int k) {
    sums[i] = dweight[k];
    sums[a.d + i] = dbias[k];
  });
}

KERNEL activation_forward(ActivationArguments a) {
  const Columns columns(a.rows, a.m);
  for (int64_t row = columns.first_row; row < columns.last_row; row++) {
    const Mask mask(a.random, row / a.t, a.site, columns.counter_of(row, a.t, a.m));
    for (int number = 0; number < kNumbers; number++) {
      const int column = columns.at(number);
      const int64_t at = row * a.m + column;
      const float u = widen(in(a.hidden)[at]) + a.bias[column];
      out(a.out)[at] = narrow(u * normal_below(u) * mask.at(number));
    }
  }
}

KERNEL activation_backward(ActivationBackwardArguments a) {
  const Columns columns(a.rows, a.m);
  if (columns.first_row >= a.rows) return;
  float sums[kNumbers] = {};
  for (int64_t row = columns.first_row; row < columns.last_row; row++) {
    const Mask mask(a.random, row / a.t, a.site, columns.counter_of(row, a.t, a.m));
    for (int number = 0; number < kNumbers; number++) {
      const int column = columns.at(number);
      const int64_t at = row * a.m + column;
      const float u = widen(in(a.hidden)[at]) + a.bias[column];
      const float slope = normal_below(u) + u * normal_density(u);
      const float grad = widen(out(a.grad)[at]) * mask.at(number) * slope;
      out(a.grad)[at] = narrow(grad);
      sums[number] += grad;
    }
  }
  for (int number = 0; number < kNumbers; number++) a.sums[columns.block * a.m + columns.at(number)] = sums[number];
}

KERNEL residual_forward(ResidualArguments a) {
  const Columns columns(a.rows, a.d);
  for (int64_t row = columns.first_row; row < columns.last_row; row++) {
    const float depth = branch_factor(a.random, row / a.t, a.depth);
    const Mask mask(a.random, row / a.t, a.site, columns.counter_of(row, a.t, a.d));
    for (int number = 0; number < kNumbers; number++) {
      const int column = columns.at(number);
      const int64_t at = row * a.d + column;
      const float branch = (widen(in(a.fed)[at]) + a.bias[column]) * mask.at(number) * depth;
      // A branch that is skipped adds nothing, not even what is no number.
      a.out[at] = depth == 0 ? a.x[at] : a.x[at] + branch;
    }
  }
}

KERNEL residual_backward(ResidualBackwardArguments a) {
  const Columns columns(a.rows, a.d);
  if (columns.first_row >= a.rows) return;
  float sums[kNumbers] = {};
  for (int64_t row = columns.first_row; row < columns.last_row; row++) {
    const float depth = branch_factor(a.random, row / a.t, a.depth);
    const Mask mask(a.random, row / a.t, a.site, columns.counter_of(row, a.t, a.d));
    for (int number = 0; number < kNumbers; number++) {
      const int64_t at = row * a.d + columns.at(number);
      const float grad = depth == 0 ? 0 : a.grad[at] * mask.at(number) * depth;
      out(a.dfed)[at] = narrow(grad);
      sums[number] += grad;
    }
  }
  for (int number = 0; number < kNumbers; number++) a.sums[columns.block * a.d + columns.at(number)] = sums[number];
}

KERNEL attention_forward(AttentionForwardArguments arguments) {
  const AttentionBlock here(arguments.common);
  const AttentionArguments& a = here.a;
  const AttentionMemory& memory = here.memory;
  SHARED(shared);
  float* scores = reinterpret_cast<float*>(shared);
  Bf16* q = reinterpret_cast<Bf16*>(scores + memory.floats());
  Bf16* k = q + memory.queries * memory.vector_row;
  Bf16* v = k + memory.tokens * memory.vector_row;
  Bf16* shares = v + memory.tokens * memory.vector_row;
  uint8_t* kept = reinterpret_cast<uint8_t*>(shares + memory.queries * memory.pair_row);
  here.load(q, k, v);
  here.draw_weights(kept);
  wait_for_block();
  multiply<false, true>(q, memory.vector_row, k, memory.vector_row, scores, memory.pair_row, memory.queries,
                        memory.tokens, here.width);
  wait_for_block();
  for (int row = warp(); row < memory.queries; row += warps()) {
    float* logits = scores + row * memory.pair_row;
    Bf16* row_shares = shares + row * memory.pair_row;
    if (row >= a.s) {
      for (int i = lane(); i < memory.tokens; i += kLanes) row_shares[i] = narrow(0);
      continue;
    }
    const float factor = here.logit_factor(row);
    float most = -INFINITY;
    for (int i = lane(); i < a.t; i += kLanes) most = fmaxf(most, logits[i] * factor);
    most = warp_max(most);
    float total = 0;
    for (int i = lane(); i < a.t; i += kLanes) total += logits[i] = expf(logits[i] * factor - most);
    total = warp_sum(total);
    if (lane() == 0) arguments.lse[(here.image * a.heads + here.head) * a.s + row] = most + logf(total);
    for (int i = lane(); i < memory.tokens; i += kLanes) {
      row_shares[i] = narrow(i < a.t ? logits[i] / total * here.weight_factor(kept, row, i) : 0);
    }
  }
  wait_for_block();
  multiply<false, false>(shares, memory.pair_row, v, memory.vector_row, scores, memory.vector_row, memory.queries,
                         here.width, memory.tokens);
  wait_for_block();
  for (int i = thread(); i < a.s * here.width; i += threads()) {
    const int row = i / here.width, column = i % here.width, at = here.head * here.width + column;
    const float x = arguments.x[(here.image * a.t + row) * a.d + at];
    const float mixed = scores[row * memory.vector_row + column] * here.output_factor(row, column);
    arguments.out[(here.image * a.s + row) * a.d + at] = here.depth == 0 ? x : x + mixed;
  }
}

KERNEL attention_backward(AttentionBackwardArguments arguments) {
  const AttentionBlock here(arguments.common);
  const AttentionArguments& a = here.a;
  const AttentionMemory& memory = here.memory;
  SHARED(shared);
  float* scores = reinterpret_cast<float*>(shared);
  float* gradients = scores + memory.floats();
  Bf16* q = reinterpret_cast<Bf16*>(gradients + memory.floats());
  Bf16* k = q + memory.queries * memory.vector_row;
  Bf16* v = k + memory.tokens * memory.vector_row;
  Bf16* grad = v + memory.tokens * memory.vector_row;
  Bf16* shares = grad + memory.queries * memory.vector_row;
  Bf16* dlogits = shares + memory.queries * memory.pair_row;
  uint8_t* kept = reinterpret_cast<uint8_t*>(dlogits + memory.queries * memory.pair_row);
  here.load(q, k, v);
  for (int i = thread(); i < memory.queries * here.width; i += threads()) {
    const int row = i / here.width, column = i % here.width;
    float value = 0;
    if (row < a.s && here.depth != 0) {
      const int64_t at = (here.image * a.s + row) * a.d + here.head * here.width + column;
      value = arguments.grad[at] * here.output_factor(row, column);
    }
    grad[row * memory.vector_row + column] = narrow(value);
  }
  here.draw_weights(kept);
  wait_for_block();
  multiply<false, true>(q, memory.vector_row, k, memory.vector_row, scores, memory.pair_row, memory.queries,
                        memory.tokens, here.width);
  multiply<false, true>(grad, memory.vector_row, v, memory.vector_row, gradients, memory.pair_row, memory.queries,
                        memory.tokens, here.width);
  wait_for_block();
  for (int row = warp(); row < memory.queries; row += warps()) {
    float *row_scores = scores + row * memory.pair_row, *row_gradients = gradients + row * memory.pair_row;
    Bf16 *row_shares = shares + row * memory.pair_row, *row_dlogits = dlogits + row * memory.pair_row;
    if (row >= a.s) {
      for (int i = lane(); i < memory.tokens; i += kLanes) row_shares[i] = row_dlogits[i] = narrow(0);
      continue;
    }
    const float factor = here.logit_factor(row);
    const float lse = arguments.lse[(here.image * a.heads + here.head) * a.s + row];
    float mean = 0;
    for (int i = lane(); i < a.t; i += kLanes) {
      row_scores[i] = expf(row_scores[i] * factor - lse);
      row_gradients[i] *= here.weight_factor(kept, row, i);
      mean += row_scores[i] * row_gradients[i];
    }
    mean = warp_sum(mean);
    for (int i = lane(); i < memory.tokens; i += kLanes) {
      const float share = i < a.t ? row_scores[i] : 0;
      row_shares[i] = narrow(i < a.t ? share * here.weight_factor(kept, row, i) : 0);
      row_dlogits[i] = narrow(i < a.t ? share * (row_gradients[i] - mean) * factor : 0);
    }
  }
  wait_for_block();
  // The scores' memory takes the gradient of the values, and then that of the keys.
  multiply<true, false>(shares, memory.pair_row, grad, memory.vector_row, scores, memory.vector_row, memory.tokens,
                        here.width, memory.queries);
  multiply<false, false>(dlogits, memory.pair_row, k, memory.vector_row, gradients, memory.vector_row, memory.queries,
                         here.width, memory.tokens);
  wait_for_block();
  const int64_t first = int64_t{here.head} * here.width;
  store_rows(scores, memory.vector_row, a.t, here.width, out(arguments.dv) + here.image * a.t * a.kv_row + first,
             a.kv_row);
  store_rows(gradients, memory.vector_row, a.s, here.width, out(arguments.dq) + here.image * a.s * a.q_row + first,
             a.q_row);
  wait_for_block();
  multiply<true, false>(dlogits, memory.pair_row, q, memory.vector_row, scores, memory.vector_row, memory.tokens,
                        here.width, memory.queries);
  wait_for_block();
  store_rows(scores, memory.vector_row, a.t, here.width, out(arguments.dk) + here.image * a.t * a.kv_row + first,
             a.kv_row);
}
