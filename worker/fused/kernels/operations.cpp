// The C side of thanos-fused. Every function catches every C++ exception and returns its text
// (malloc'ed, freed by the caller), or null. See ../src/raw.rs for the other side, line by line.
#include <ATen/Dispatch.h>

#include "attention.h"
#include "batch_norm.h"
#include "feed_forward.h"
#include "guard.h"

namespace {

bool trains(std::initializer_list<const at::Tensor*> inputs) {
  const auto requires_grad = [](const at::Tensor* input) { return input->requires_grad(); };
  return at::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), requires_grad);
}

template <typename T>
void fill(at::Tensor& out, const at::Tensor& rows, const thanos::Drop& drop) {
  const auto n = out.size(0), elements = out.size(1);
  const auto* ids = rows.const_data_ptr<int64_t>();
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint16_t> buffer;
    for (int64_t row = begin; row < end; row++) {
      const thanos::Draw draw{drop.key, static_cast<uint64_t>(ids[row]), drop.site};
      thanos::factors<T>(draw, drop.output, elements, thanos::write<T>(out) + row * elements,
                         buffer);
    }
  });
}

}  // namespace

extern "C" {

// Factors of a mask [n, elements] of the site `drop.site`, of which `drop.output` of 65536 are
// kept.
char* thanos_mask(at::Tensor* rows, int64_t elements, bool doubles, const thanos::Drop* drop,
                  at::Tensor** out) {
  return guard([&] {
    at::NoGradGuard no_grad;
    auto mask = at::empty({rows->size(0), elements}, doubles ? at::kDouble : at::kFloat);
    if (doubles) fill<double>(mask, *rows, *drop);
    else fill<float>(mask, *rows, *drop);
    *out = new at::Tensor(mask);
  });
}

// Random numbers of one image and site, `groups` of them.
char* thanos_draw(const thanos::Drop* drop, uint64_t row, int64_t elements, uint16_t* out) {
  return guard([&] { thanos::kernel_set().draw({drop->key, row, drop->site}, elements, out); });
}

// `tensors`: x [n, t, d], the norm's weight and bias [d], the weight of q, k and v [3d, d], rows
// [n].
char* thanos_attention(at::Tensor* const* tensors, int64_t heads, int64_t queries, double eps,
                       bool bfloat16, const thanos::Drop* drop, at::Tensor** out) {
  return guard([&] {
    const auto &x = *tensors[0], &norm_weight = *tensors[1], &norm_bias = *tensors[2],
               &weight = *tensors[3];
    *out = new at::Tensor(
        thanos::Attention::apply(x.contiguous(), norm_weight, norm_bias, weight, *tensors[4],
                                 thanos::AttentionCall{heads, queries, eps, bfloat16, *drop},
                                 trains({&x, &norm_weight, &norm_bias, &weight})));
  });
}

// `tensors`: x [n, t, d], the norm's weight and bias [d], the weight [m, d] and bias [m] of the
// first layer, [d, m] and [d] of the second, rows [n].
char* thanos_feed_forward(at::Tensor* const* tensors, double eps, bool bfloat16,
                          const thanos::Drop* drop, at::Tensor** out) {
  return guard([&] {
    const auto at = [&](size_t index) -> const at::Tensor& { return *tensors[index]; };
    *out = new at::Tensor(
        thanos::FeedForward::apply(at(0).contiguous(), at(1), at(2), at(3), at(4), at(5), at(6),
                                   at(7), thanos::FeedForwardCall{eps, bfloat16, *drop},
                                   trains({tensors[0], tensors[1], tensors[2], tensors[3],
                                           tensors[4], tensors[5], tensors[6]})));
  });
}

// x [n, C, H, W] to `out`: x again, for the norm, and its moments [2 C + 1] in float64.
char* thanos_batch_moments(at::Tensor* x, at::Tensor** out) {
  return guard([&] {
    const auto found = thanos::BatchMoments::apply(x->contiguous());
    out[0] = new at::Tensor(found[0]);
    out[1] = new at::Tensor(found[1]);
  });
}

// `tensors`: x [n, C, H, W] and its moments over all ranks, weight, bias, running mean and variance
// [C], and unless null a residual of the shape of x. The running statistics are moved.
char* thanos_batch_norm(at::Tensor* const* tensors, double eps, double momentum, bool relu,
                        at::Tensor** out) {
  return guard([&] {
    const auto &x = *tensors[0], moments = tensors[1]->contiguous();
    const auto residual = tensors[6] ? std::optional(tensors[6]->contiguous()) : std::nullopt;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm", [&] {
      thanos::track<scalar_t>(thanos::Moments(moments), momentum, *tensors[4], *tensors[5]);
    });
    *out = new at::Tensor(thanos::BatchNorm::apply(x, moments, *tensors[2], *tensors[3], residual,
                                                   thanos::BatchNormCall{eps, relu}));
  });
}

// Parameters hold no gradient afterwards: the next backward pass makes one instead of adding to
// zeros.
char* thanos_drop_gradients(size_t count, at::Tensor* const* parameters) {
  return guard([&] {
    for (size_t i = 0; i < count; i++) parameters[i]->mutable_grad().reset();
  });
}

}  // extern "C"
