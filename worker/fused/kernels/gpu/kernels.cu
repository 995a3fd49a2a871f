// The kernels of the two branches of a block, in bfloat16 with sums in float32, of masks, and of
// views. What each computes: arguments.h.
#include "device.h"
#include "random.h"
#include "tiles.h"

namespace {

using namespace thanos;
using namespace thanos::gpu;

DEVICE const Bf16* in(const void* x) { return static_cast<const Bf16*>(x); }
DEVICE Bf16* out(void* x) { return static_cast<Bf16*>(x); }

// Columns that a lane has of a row, in steps of eight: those from (lane + k x kLanes) x 8 on.
// `widths` is the most columns in units of 32 lanes.
template <int widths>
constexpr int kStepsOfLane = widths * 32 / kLanes;

// Calls `body(column, k)` for each step of a lane. Unrolled, so that arrays with an index k stay in
// registers.
template <int steps, typename F>
DEVICE void for_steps(int d, const F& body) {
  UNROLL for (int k = 0; k < steps; k++) {
    const int column = (lane() + k * kLanes) * 8;
    if (column < d) body(column, k);
  }
}

// Where a thread of an element-wise kernel works: eight columns of some rows of [rows, width].
struct Columns {
  int64_t first_row, block;
  int column, group, place;

  DEVICE Columns(int width, int rows_each) {
    const int slots = width / 8;
    const int64_t index = ::block() * threads() + thread();
    const int slot = static_cast<int>(index % slots);
    block = index / slots;
    first_row = block * rows_each;
    column = slot * 8;
    group = slot / kCountersOfGroup;
    place = slot % kCountersOfGroup;
  }

  // Which are kept of a row, the token `row % t` of an image, where a site draws for [t, width].
  DEVICE uint32_t kept(const Randomness& random, Site site, int64_t row, int t, int width) const {
    return kept_of_eight(random, row / t, site,
                         row % t * (width / static_cast<int>(kGroup)) + group, place);
  }
};

// The share of a normal distribution below x, and its density there. The polynomial is 7.1.26 of
// Abramowitz and Stegun, within 1.5e-7.
struct Normal {
  float below, density;

  DEVICE explicit Normal(float x) {
    const float power = fast_exp(-0.5f * x * x);
    const float t = 1 / (1 + 0.3275911f * 0.70710678f * fabsf(x));
    const float tail =
        0.5f * power * t *
        (0.254829592f +
         t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    below = x < 0 ? tail : 1 - tail;
    density = 0.39894228f * power;
  }
};

constexpr int kMaxTiles = kMaxTokens / kTileColumns;

// What an attention block knows, and its shared memory. Heads are `width` wide.
template <int width>
struct AttentionBlock {
  const AttentionArguments& a;
  int64_t image;
  int head;
  AttentionMemory memory;
  float *factors, *lse, *dots;
  uint16_t* words;
  Bf16 *q, *k, *v, *grad;

  DEVICE AttentionBlock(const AttentionArguments& a, uint8_t* shared)
      : a(a),
        image(block() / a.heads),
        head(static_cast<int>(block() % a.heads)),
        memory(a.t, a.s, width) {
    factors = reinterpret_cast<float*>(shared);
    lse = factors + memory.queries;
    dots = lse + memory.queries;
    words = reinterpret_cast<uint16_t*>(dots + memory.queries);
    q = reinterpret_cast<Bf16*>(words + in_tiles(memory.word_groups * 16) / 2);
    k = q + memory.queries * memory.vector_row;
    v = k + memory.tokens * memory.vector_row;
    grad = v + memory.tokens * memory.vector_row;
  }

  // Rows [rows, width] that are `distance` apart to shared memory, with zeros up to `padded` rows.
  DEVICE void load_rows(const Bf16* from, int64_t distance, int rows, int padded, Bf16* to) const {
    constexpr int kPieces = width / 8;
    for (int i = thread(); i < padded * kPieces; i += threads()) {
      const int row = i / kPieces, piece = i % kPieces * 8;
      EightNarrow eight{};
      if (row < rows) eight = *reinterpret_cast<const EightNarrow*>(from + row * distance + piece);
      *reinterpret_cast<EightNarrow*>(to + row * memory.vector_row + piece) = eight;
    }
  }

  // Queries, keys and values, factors of the queries' logits, and what is kept of the
  // probabilities.
  DEVICE void load() const {
    const int64_t first = int64_t{head} * width;
    load_rows(in(a.q) + image * a.s * a.q_row + first, a.q_row, a.s, memory.queries, q);
    load_rows(in(a.k) + image * a.t * a.kv_row + first, a.kv_row, a.t, memory.tokens, k);
    load_rows(in(a.v) + image * a.t * a.kv_row + first, a.kv_row, a.t, memory.tokens, v);
    const float root = 1 / sqrtf(static_cast<float>(width));
    for (int i = thread(); i < memory.queries; i += threads()) {
      // 0 of a query that is dropped, so that it attends to all tokens alike.
      factors[i] = root * element_factor(a.random, image, a.query, i);
    }
    if (a.weights.kept != kEverything) {
      // A head begins a new group.
      draw_words(a.random, image, a.weights, static_cast<uint32_t>(head * memory.word_groups),
                 memory.word_groups, words);
    }
  }

  DEVICE float weight_factor(int query, int token) const {
    if (a.weights.kept == kEverything) return 1;
    return is_kept(words, query * a.t + token) ? a.weights.scale : 0;
  }

  // Writes the rows of a strip, as bfloat16.
  DEVICE void store(const Sums* sums, int first_row, int rows, Bf16* to, int64_t distance) const {
    UNROLL for (int tile = 0; tile < width / kTileColumns; tile++) {
      UNROLL for (int i = 0; i < kElements; i += 2) {
        const int row = first_row + row_of(i);
        if (row < rows)
          store_pair(to + row * distance + tile * kTileColumns + column_of(i), sums[tile].of + i);
      }
    }
  }
};

// The left factors of a strip: 16 rows of `width` columns.
template <int width>
struct Strip {
  static constexpr int kSteps = width / kTileDepth;
  Left of[kSteps];

  DEVICE Strip(const Bf16* at, int ld) {
    UNROLL for (int step = 0; step < kSteps; step++) of[step] = left_of(at + step * kTileDepth, ld);
  }

  // Times the columns that are the first 8 rows at `right`.
  DEVICE Sums times(const Bf16* right, int ld) const {
    Sums sums{};
    UNROLL for (int step = 0; step < kSteps; step++) {
      multiply_add(sums, of[step], right_of_columns(right + step * kTileDepth, ld));
    }
    return sums;
  }
};

// sums [16, width] += left [16, 16] times the first 16 rows at `right`.
template <int width>
DEVICE void add_product(Sums* sums, const Left& left, const Bf16* right, int ld) {
  UNROLL for (int tile = 0; tile < width / kTileColumns; tile++) {
    multiply_add(sums[tile], left, right_of_rows(right + tile * kTileColumns, ld));
  }
}

// Calls `body(tile, i)` for each element of this lane in a strip of tiles.
template <typename F>
DEVICE void for_elements(int tiles, const F& body) {
  UNROLL for (int tile = 0; tile < kMaxTiles; tile++) {
    if (tile >= tiles) continue;
    UNROLL for (int i = 0; i < kElements; i++) body(tile, i);
  }
}

// Where a pixel of a view comes from along one dimension, as `taps` of thanos-views says.
struct Tap {
  int first, second;
  float weight;

  DEVICE Tap(int at, int from, int length, int side) {
    double place = difference(product(at + 0.5, static_cast<double>(length) / side), 0.5);
    if (place < 0) place = 0;
    int before = static_cast<int>(place);
    if (before > length - 1) before = length - 1;
    first = from + before;
    second = from + (before + 1 < length ? before + 1 : length - 1);
    weight = static_cast<float>(place - before);
  }
};

DEVICE float clamped(float x) { return fminf(fmaxf(x, 0), 1); }

DEVICE float blended(float value, float other, float factor) {
  return clamped(sum(product(factor, value), product(1 - factor, other)));
}

DEVICE float grey(float r, float g, float b) {
  return sum(sum(product(0.2989f, r), product(0.587f, g)), product(0.114f, b));
}

// `a` of the way from `first` to `second`.
DEVICE float between(float first, float second, float a) {
  return sum(first, product(difference(second, first), a));
}

// As `turn_hue` of thanos-views.
DEVICE void turn_hue(float& r, float& g, float& b, float turns) {
  const float most = fmaxf(fmaxf(r, g), b), least = fminf(fminf(r, g), b), range = most - least;
  const float divisor = range == 0 ? 1 : range;
  const float from = most == r ? 0 : most == g ? 2 : 4;
  const float apart = most == r ? g - b : most == g ? b - r : r - g;
  float hue = sum(sum(from, apart / divisor), product(6, turns));
  if (hue < 0) hue += 6;
  if (hue >= 6) hue -= 6;
  r = sum(least, product(range, clamped(fabsf(hue - 3) - 1)));
  g = sum(least, product(range, clamped(2 - fabsf(hue - 2))));
  b = sum(least, product(range, clamped(2 - fabsf(hue - 4))));
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

  // Of all pixels, in the order of thanos-views: every kGreySums-th one after the other, then what
  // is left, then the sums.
  DEVICE float mean_grey() const {
    const int whole = area / kGreySums * kGreySums;
    for (int i = thread(); i < kGreySums; i += threads()) {
      float own = 0;
      for (int p = i; p < whole; p += kGreySums) own = sum(own, grey_of(p));
      sums[i] = own;
    }
    wait_for_block();
    float rest = 0, total = 0;
    for (int p = whole; p < area; p++) rest = sum(rest, grey_of(p));
    for (int i = 0; i < kGreySums; i++) total = sum(total, sums[i]);
    wait_for_block();
    return sum(total, rest) / area;
  }

  DEVICE void crop() const {
    const int side = a.side, channels = a.channels;
    const uint8_t* image = a.images + a.rows[block()] * area * channels;
    for (int p = thread(); p < area; p += threads()) {
      const int x = p % side;
      const Tap across(view.flip ? side - 1 - x : x, view.left, view.width, side);
      const Tap down(p / side, view.top, view.height, side);
      for (int c = 0; c < channels; c++) {
        const auto at = [&](int y, int x) {
          return static_cast<float>(image[(y * side + x) * channels + c]);
        };
        const auto row = [&](int y) {
          return between(at(y, across.first), at(y, across.second), across.weight);
        };
        pixels[c * area + p] = between(row(down.first), row(down.second), down.weight) / 255;
      }
    }
  }

  DEVICE void adjust(int kind, float amount) const {
    // Pixels of other threads are read.
    if (kind == kContrast) wait_for_block();
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
        a.out[(block() * a.channels + c) * area + p] = sum(product(value, a.scale[c]), a.shift[c]);
      }
    }
  }
};

template <int widths>
DEVICE void normalise(const NormArguments& a) {
  constexpr int kSteps = kStepsOfLane<widths>;
  const int64_t row = block() * warps() + warp();
  if (row >= a.rows) return;
  const float* x = a.x + row * a.d;
  float values[kSteps][8];
  float total = 0, squares = 0;
  for_steps<kSteps>(a.d, [&](int column, int k) {
    load_eight(x + column, values[k]);
    for (int i = 0; i < 8; i++) total += values[k][i];
  });
  const float mean = warp_sum(total) / a.d;
  for_steps<kSteps>(a.d, [&](int, int k) {
    for (int i = 0; i < 8; i++) squares += (values[k][i] - mean) * (values[k][i] - mean);
  });
  const float rstd = 1 / sqrtf(warp_sum(squares) / a.d + a.eps);
  if (lane() == 0) {
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
  for_steps<kSteps>(a.d, [&](int column, int k) {
    float weight[8], bias[8];
    load_eight(a.weight + column, weight);
    load_eight(a.bias + column, bias);
    for (int i = 0; i < 8; i++) values[k][i] = (values[k][i] - mean) * rstd * weight[i] + bias[i];
    store_eight(out(a.out) + row * a.d + column, values[k]);
  });
}

template <int widths>
DEVICE void normalise_backward(const NormBackwardArguments& a) {
  constexpr int kSteps = kStepsOfLane<widths>;
  const int64_t first_row = block() * kNormRows;
  const int64_t last = first_row + kNormRows < a.rows ? first_row + kNormRows : a.rows;
  float dweight[kSteps][8] = {}, dbias[kSteps][8] = {};
  for (int64_t row = first_row + warp(); row < last; row += warps()) {
    const float mean = a.mean[row], rstd = a.rstd[row];
    float units[kSteps][8], inner[kSteps][8];
    float first = 0, second = 0;
    for_steps<kSteps>(a.d, [&](int column, int k) {
      float grad[8], weight[8];
      load_eight(a.x + row * a.d + column, units[k]);
      load_eight(in(a.grad) + row * a.d + column, grad);
      load_eight(a.weight + column, weight);
      for (int i = 0; i < 8; i++) {
        units[k][i] = (units[k][i] - mean) * rstd;
        inner[k][i] = grad[i] * weight[i];
        first += inner[k][i];
        second += inner[k][i] * units[k][i];
        dweight[k][i] += grad[i] * units[k][i];
        dbias[k][i] += grad[i];
      }
    });
    first = warp_sum(first) / a.d;
    second = warp_sum(second) / a.d;
    const int token = static_cast<int>(row % a.t);
    const float* residual = token < a.s ? a.residual + (row / a.t * a.s + token) * a.d : nullptr;
    for_steps<kSteps>(a.d, [&](int column, int k) {
      float more[8] = {};
      if (residual) load_eight(residual + column, more);
      for (int i = 0; i < 8; i++) more[i] += (inner[k][i] - first - units[k][i] * second) * rstd;
      store_eight(a.dx + row * a.d + column, more);
    });
  }
  // The warps' sums, one after the other.
  SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  for_steps<kSteps>(a.d, [&](int column, int k) {
    store_eight(sums + (warp() * 2) * a.d + column, dweight[k]);
    store_eight(sums + (warp() * 2 + 1) * a.d + column, dbias[k]);
  });
  wait_for_block();
  for (int i = thread(); i < 2 * a.d; i += threads()) {
    float total = 0;
    for (int from = 0; from < warps(); from++) total += sums[from * 2 * a.d + i];
    a.sums[block() * 2 * a.d + i] = total;
  }
}

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
  const int64_t counters = in_groups(a.elements) / kGroup * kCounters;
  const int64_t index = block() * threads() + thread();
  if (index >= a.n * counters) return;
  const int64_t image = index / counters, counter = index % counters;
  const Numbers numbers = draw(*a.random.key, static_cast<uint64_t>(a.random.rows[image]),
                               a.site.site, static_cast<uint32_t>(counter));
  for (int number = 0; number < kNumbers; number++) {
    const int64_t element = counter / kCounters * kGroup + counter % kCounters + number * kCounters;
    if (element < a.elements)
      a.out[image * a.elements + element] = numbers.at(number) < a.site.kept ? a.site.scale : 0;
  }
}

KERNEL norm_forward_256(NormArguments a) { normalise<1>(a); }
KERNEL norm_forward_512(NormArguments a) { normalise<2>(a); }
KERNEL norm_backward_256(NormBackwardArguments a) { normalise_backward<1>(a); }
KERNEL norm_backward_512(NormBackwardArguments a) { normalise_backward<2>(a); }

KERNEL activation_forward(ActivationArguments a) {
  const Columns columns(a.m, a.rows_each);
  float bias[8];
  load_eight(a.bias + columns.column, bias);
  for (int i = 0; i < a.rows_each; i++) {
    const int64_t row = columns.first_row + i;
    // All threads of a warp draw.
    const bool is_row = row < a.rows;
    const uint32_t kept = columns.kept(a.random, a.site, is_row ? row : 0, a.t, a.m);
    if (!is_row) continue;
    float values[8];
    load_eight(in(a.hidden) + row * a.m + columns.column, values);
    for (int k = 0; k < 8; k++) {
      const float u = values[k] + bias[k];
      values[k] = kept >> k & 1 ? u * Normal(u).below * a.site.scale : 0;
    }
    store_eight(out(a.out) + row * a.m + columns.column, values);
  }
}

KERNEL activation_backward(ActivationBackwardArguments a) {
  const Columns columns(a.m, a.rows_each);
  float bias[8], sums[8] = {};
  load_eight(a.bias + columns.column, bias);
  for (int i = 0; i < a.rows_each; i++) {
    const int64_t row = columns.first_row + i;
    const bool is_row = row < a.rows;
    const uint32_t kept = columns.kept(a.random, a.site, is_row ? row : 0, a.t, a.m);
    if (!is_row) continue;
    float values[8], grad[8];
    load_eight(in(a.hidden) + row * a.m + columns.column, values);
    load_eight(in(a.grad) + row * a.m + columns.column, grad);
    for (int k = 0; k < 8; k++) {
      const float u = values[k] + bias[k];
      const Normal normal(u);
      grad[k] = kept >> k & 1 ? grad[k] * a.site.scale * (normal.below + u * normal.density) : 0;
      sums[k] += grad[k];
    }
    store_eight(out(a.grad) + row * a.m + columns.column, grad);
  }
  if (columns.first_row < a.rows) store_eight(a.sums + columns.block * a.m + columns.column, sums);
}

KERNEL residual_forward(ResidualArguments a) {
  const Columns columns(a.d, a.rows_each);
  float bias[8] = {};
  if (a.bias) load_eight(a.bias + columns.column, bias);
  for (int i = 0; i < a.rows_each; i++) {
    const int64_t row = columns.first_row + i;
    const bool is_row = row < a.rows;
    const uint32_t kept = columns.kept(a.random, a.site, is_row ? row : 0, a.t, a.d);
    if (!is_row) continue;
    const float factor = element_factor(a.random, row / a.t, a.depth, 0) * a.site.scale;
    float values[8], fed[8];
    load_eight(a.x + (row / a.t * a.x_t + row % a.t) * a.d + columns.column, values);
    load_eight(in(a.fed) + row * a.d + columns.column, fed);
    for (int k = 0; k < 8; k++) {
      // A branch that is skipped adds nothing, not even a NaN.
      if (factor != 0) values[k] += (fed[k] + bias[k]) * (kept >> k & 1 ? factor : 0);
    }
    store_eight(a.out + row * a.d + columns.column, values);
  }
}

KERNEL residual_backward(ResidualBackwardArguments a) {
  const Columns columns(a.d, a.rows_each);
  float sums[8] = {};
  for (int i = 0; i < a.rows_each; i++) {
    const int64_t row = columns.first_row + i;
    const bool is_row = row < a.rows;
    const uint32_t kept = columns.kept(a.random, a.site, is_row ? row : 0, a.t, a.d);
    if (!is_row) continue;
    const float factor = element_factor(a.random, row / a.t, a.depth, 0) * a.site.scale;
    float grad[8];
    load_eight(a.grad + row * a.d + columns.column, grad);
    for (int k = 0; k < 8; k++) {
      grad[k] = factor != 0 && kept >> k & 1 ? grad[k] * factor : 0;
      sums[k] += grad[k];
    }
    store_eight(out(a.dfed) + row * a.d + columns.column, grad);
  }
  if (a.sums && columns.first_row < a.rows)
    store_eight(a.sums + columns.block * a.d + columns.column, sums);
}

namespace {

template <int width>
DEVICE void attend(const AttentionForwardArguments& arguments, uint8_t* shared) {
  const AttentionArguments& a = arguments.common;
  const AttentionBlock<width> here(a, shared);
  const int ld = here.memory.vector_row, tiles = here.memory.tokens / kTileColumns;
  here.load();
  wait_for_block();
  for (int strip = warp(); strip < here.memory.queries / kTileRows; strip += warps()) {
    const int first = strip * kTileRows;
    const Strip<width> queries(here.q + first * ld, ld);
    Sums pairs[kMaxTiles] = {}, mixed[width / kTileColumns] = {};
    UNROLL for (int tile = 0; tile < kMaxTiles; tile++) {
      if (tile < tiles) pairs[tile] = queries.times(here.k + tile * kTileColumns * ld, ld);
    }
    float factor[kRowsOfLane], most[kRowsOfLane], total[kRowsOfLane];
    for (int row = 0; row < kRowsOfLane; row++) {
      factor[row] = here.factors[first + row_of(row * kInRow)];
      most[row] = -INFINITY;
      total[row] = 0;
    }
    for_elements(tiles, [&](int tile, int i) {
      const bool is_token = tile * kTileColumns + column_of(i) < a.t;
      float& pair = pairs[tile].of[i];
      pair = is_token ? pair * factor[i / kInRow] : -INFINITY;
      most[i / kInRow] = fmaxf(most[i / kInRow], pair);
    });
    for (int row = 0; row < kRowsOfLane; row++) most[row] = row_max(most[row]);
    for_elements(tiles, [&](int tile, int i) {
      float& pair = pairs[tile].of[i];
      pair = fast_exp(pair - most[i / kInRow]);
      total[i / kInRow] += pair;
    });
    for (int row = 0; row < kRowsOfLane; row++) {
      total[row] = row_sum(total[row]);
      const int query = first + row_of(row * kInRow);
      const bool is_first = kLanes == 1 || lane() % 4 == 0;
      if (is_first && query < a.s) {
        arguments.lse[(here.image * a.heads + here.head) * a.s + query] =
            most[row] + logf(total[row]);
      }
      total[row] = 1 / total[row];
    }
    for_elements(tiles, [&](int tile, int i) {
      const int query = first + row_of(i), token = tile * kTileColumns + column_of(i);
      const bool is_pair = query < a.s && token < a.t;
      pairs[tile].of[i] *= is_pair ? total[i / kInRow] * here.weight_factor(query, token) : 0;
    });
    UNROLL for (int tile = 0; tile < kMaxTiles; tile += 2) {
      if (tile < tiles) {
        add_product<width>(mixed, left_of(pairs[tile], pairs[tile + 1]),
                           here.v + tile * kTileColumns * ld, ld);
      }
    }
    here.store(mixed, first, a.s, out(arguments.out) + here.image * a.s * a.d + here.head * width,
               a.d);
  }
}

// Probabilities are made twice: by queries, for the gradients of queries, and by keys, for those of
// keys and values. So no sum has two writers. A logit's gradient is its probability times (gradient
// of the kept probability - dot), where the dot product of the output with its gradient is the sum
// over the row.
template <int width>
DEVICE void attend_backward(const AttentionBackwardArguments& arguments, uint8_t* shared) {
  const AttentionArguments& a = arguments.common;
  const AttentionBlock<width> here(a, shared);
  const int ld = here.memory.vector_row;
  const int64_t head_first = int64_t{here.head} * width;
  here.load();
  here.load_rows(in(arguments.grad) + here.image * a.s * a.d + head_first, a.d, a.s,
                 here.memory.queries, here.grad);
  wait_for_block();
  for (int i = thread(); i < here.memory.queries; i += threads()) {
    here.lse[i] = i < a.s ? arguments.lse[(here.image * a.heads + here.head) * a.s + i] : 0;
    float dot = 0;
    for (int column = 0; column < width && i < a.s; column += 8) {
      float mixed[8], grad[8];
      load_eight(in(arguments.mixed) + (here.image * a.s + i) * a.d + head_first + column, mixed);
      load_eight(here.grad + i * ld + column, grad);
      for (int k = 0; k < 8; k++) dot += mixed[k] * grad[k];
    }
    here.dots[i] = dot;
  }
  wait_for_block();
  for (int strip = warp(); strip < here.memory.queries / kTileRows; strip += warps()) {
    const int first = strip * kTileRows;
    const Strip<width> queries(here.q + first * ld, ld), grads(here.grad + first * ld, ld);
    float factor[kRowsOfLane], lse[kRowsOfLane], dot[kRowsOfLane];
    for (int row = 0; row < kRowsOfLane; row++) {
      const int query = first + row_of(row * kInRow);
      factor[row] = here.factors[query], lse[row] = here.lse[query], dot[row] = here.dots[query];
    }
    Sums dq[width / kTileColumns] = {};
    for (int token = 0; token < here.memory.tokens; token += kTileDepth) {
      Sums pairs[2];
      UNROLL for (int half = 0; half < 2; half++) {
        const int column = token + half * kTileColumns;
        pairs[half] = queries.times(here.k + column * ld, ld);
        const Sums gradients = grads.times(here.v + column * ld, ld);
        UNROLL for (int i = 0; i < kElements; i++) {
          const int query = first + row_of(i), at = column + column_of(i), row = i / kInRow;
          const bool is_pair = query < a.s && at < a.t;
          const float share = fast_exp(pairs[half].of[i] * factor[row] - lse[row]);
          const float kept = is_pair ? here.weight_factor(query, at) : 0;
          pairs[half].of[i] =
              is_pair ? share * (gradients.of[i] * kept - dot[row]) * factor[row] : 0;
        }
      }
      add_product<width>(dq, left_of(pairs[0], pairs[1]), here.k + token * ld, ld);
    }
    here.store(dq, first, a.s, out(arguments.dq) + here.image * a.s * a.q_row + head_first,
               a.q_row);
  }
  for (int strip = warp(); strip < here.memory.tokens / kTileRows; strip += warps()) {
    const int first = strip * kTileRows;
    const Strip<width> keys(here.k + first * ld, ld), values(here.v + first * ld, ld);
    Sums dk[width / kTileColumns] = {}, dv[width / kTileColumns] = {};
    for (int query_first = 0; query_first < here.memory.queries; query_first += kTileDepth) {
      Sums pairs[2], gradients[2];
      UNROLL for (int half = 0; half < 2; half++) {
        const int column = query_first + half * kTileColumns;
        pairs[half] = keys.times(here.q + column * ld, ld);
        gradients[half] = values.times(here.grad + column * ld, ld);
        UNROLL for (int i = 0; i < kElements; i++) {
          const int token = first + row_of(i), query = column + column_of(i);
          const bool is_pair = query < a.s && token < a.t;
          const float factor = here.factors[query],
                      kept = is_pair ? here.weight_factor(query, token) : 0;
          const float share = is_pair ? fast_exp(pairs[half].of[i] * factor - here.lse[query]) : 0;
          gradients[half].of[i] =
              share * (gradients[half].of[i] * kept - here.dots[query]) * factor;
          pairs[half].of[i] = share * kept;
        }
      }
      add_product<width>(dv, left_of(pairs[0], pairs[1]), here.grad + query_first * ld, ld);
      add_product<width>(dk, left_of(gradients[0], gradients[1]), here.q + query_first * ld, ld);
    }
    const int64_t rows = here.image * a.t * a.kv_row + head_first;
    here.store(dv, first, a.t, out(arguments.dv) + rows, a.kv_row);
    here.store(dk, first, a.t, out(arguments.dk) + rows, a.kv_row);
  }
}

}  // namespace

// For heads of one width.
#define ATTENTION_KERNELS(width)                                    \
  KERNEL attention_forward_##width(AttentionForwardArguments a) {   \
    SHARED(shared);                                                 \
    attend<width>(a, shared);                                       \
  }                                                                 \
  KERNEL attention_backward_##width(AttentionBackwardArguments a) { \
    SHARED(shared);                                                 \
    attend_backward<width>(a, shared);                              \
  }

ATTENTION_KERNELS(16)
ATTENTION_KERNELS(32)
ATTENTION_KERNELS(64)
