// The C side of ../../src/gpu.rs: see ../guard.h for how a function fails.
#include "operations.h"

#include "../guard.h"

namespace {

using namespace thanos::gpu;

bool trains(at::Tensor* const* tensors, size_t count) {
  const auto requires_grad = [](const at::Tensor* tensor) { return tensor->requires_grad(); };
  return at::GradMode::is_enabled() && std::any_of(tensors, tensors + count, requires_grad);
}

}  // namespace

extern "C" {

// Most shared memory of a block on the current GPU, in bytes, and what attention of this shape
// needs.
char* thanos_gpu_shared_bytes(int64_t* bytes) {
  return guard([&] { *bytes = max_shared_bytes(); });
}

int64_t thanos_gpu_attention_bytes(int64_t tokens, int64_t queries, int64_t head) {
  return AttentionMemory(static_cast<int>(tokens), static_cast<int>(queries),
                         static_cast<int>(head))
      .bytes(true);
}

// What a view of so many pixels, of all channels, needs.
int64_t thanos_gpu_view_bytes(int64_t pixels) { return view_bytes(pixels); }

// Most columns of a norm, and most tokens.
void thanos_gpu_limits(int64_t* limits) {
  limits[0] = kMaxWidth;
  limits[1] = kMaxTokens;
}

// Factors of a mask [n, elements], float32, where `rows` are. `tensors`: key [1], rows [n].
char* thanos_gpu_mask(at::Tensor* const* tensors, int64_t elements, const thanos::Drop* drop,
                      at::Tensor** out) {
  return guard([&] {
    at::NoGradGuard no_grad;
    const Draws draws{*drop, *tensors[0], *tensors[1]};
    const auto n = draws.rows.size(0);
    auto mask = float_like(draws.rows, {n, elements});
    const MaskArguments arguments{draws.random(), draws.site(0, drop->output), n, elements,
                                  mutable_floats(mask)};
    const auto counters = thanos::in_groups(elements) / thanos::kGroup * kCounters;
    THANOS_LAUNCH(draw_mask, mask, (Work{Unit::kThread, n * counters}), arguments);
    *out = new at::Tensor(mask);
  });
}

// `tensors`: x [n, t, d], weight and bias of the norm [d], weight of q, k and v [3d, d], key [1],
// rows [n].
char* thanos_gpu_attention(at::Tensor* const* tensors, int64_t heads, int64_t queries, double eps,
                           const thanos::Drop* drop, at::Tensor** out) {
  return guard([&] {
    const auto at = [&](size_t index) -> const at::Tensor& { return *tensors[index]; };
    *out = new at::Tensor(AttentionOperation::apply(at(0).contiguous(), at(1), at(2), at(3), heads,
                                                    queries, eps, Draws{*drop, at(4), at(5)},
                                                    trains(tensors, 4)));
  });
}

// `tensors`: x [n, t, d], weight and bias of the norm [d], [m, d] and [m] of the first layer, [d,
// m] and [d] of the second, key [1], rows [n].
char* thanos_gpu_feed_forward(at::Tensor* const* tensors, double eps, const thanos::Drop* drop,
                              at::Tensor** out) {
  return guard([&] {
    const auto at = [&](size_t index) -> const at::Tensor& { return *tensors[index]; };
    *out = new at::Tensor(
        FeedForwardOperation::apply(at(0).contiguous(), at(1), at(2), at(3), at(4), at(5), at(6),
                                    eps, Draws{*drop, at(7), at(8)}, trains(tensors, 7)));
  });
}

// Views [n, C, S, S] into `out`. `tensors`: images [N, S, S, C] u8, rows [n] i64, views [n, 14] i32
// as `View`, out.
char* thanos_gpu_views(at::Tensor* const* tensors, const float* scale, const float* shift) {
  return guard([&] {
    const auto &images = *tensors[0], &rows = *tensors[1], &views = *tensors[2], &out = *tensors[3];
    const auto side = images.size(1), channels = images.size(3);
    ViewsArguments arguments{images.const_data_ptr<uint8_t>(),
                             rows.const_data_ptr<int64_t>(),
                             reinterpret_cast<const View*>(views.const_data_ptr<int32_t>()),
                             mutable_floats(out),
                             static_cast<int>(channels),
                             static_cast<int>(side),
                             {},
                             {}};
    std::copy_n(scale, channels, arguments.scale);
    std::copy_n(shift, channels, arguments.shift);
    constexpr int kThreads = 256;
    const Work work{Unit::kBlock, rows.size(0), kThreads, view_bytes(side * side * channels)};
    THANOS_LAUNCH(make_views, out, work, arguments);
  });
}

}  // extern "C"
