// x[:, :s] + depth(dropout(attention(norm(x)))) as one operation of autograd. Kept for the
// gradient: x, q, keys and values, and for each row mean, deviation and log-sum-exp. Probabilities
// and masks are made again.
#pragma once

#include <ATen/core/custom_class.h>
#include <torch/csrc/autograd/custom_function.h>

#include "operations.h"

namespace thanos {

struct AttentionCall {
  int64_t heads, queries;
  double eps;
  // Whether the factors of matrix products are rounded to bfloat16.
  bool bfloat16;
  Drop drop;
};

// What an image draws, and the memory that computes its attention.
template <typename T>
struct AttentionDraws {
  std::vector<uint16_t> weights, output, few;
  std::vector<T> query, scratch;
  const uint16_t* weights_random = nullptr;
  const uint16_t* output_random = nullptr;

  explicit AttentionDraws(int64_t scratch_elements) : scratch(scratch_elements) {}

  void draw(const Drop& drop, const AttentionShape& shape, uint64_t row) {
    const auto at = [&](AttentionSite site) { return Draw{drop.key, row, drop.site + site}; };
    query.resize(shape.queries);
    factors<T>(at(kQuery), drop.query, shape.queries, query.data(), few);
    const auto probabilities = shape.heads * shape.drawn_by_head(),
               outputs = shape.queries * shape.width;
    weights.resize(probabilities + kSlack);
    output.resize(in_groups(outputs) + kSlack);
    weights_random = drawn(at(kWeights), drop.weights, probabilities, weights.data());
    output_random = drawn(at(kAttended), drop.output, outputs, output.data());
  }
};

struct AttentionKept : torch::CustomClassHolder {
  AttentionCall call;
  at::Tensor q, kv, mean, rstd, lse;
};

template <typename T>
at::Tensor attention_forward(const at::Tensor& x, const at::Tensor& norm_weight,
                             const at::Tensor& norm_bias, const at::Tensor& weight,
                             const at::Tensor& rows, const AttentionCall& call,
                             AttentionKept* kept) {
  const auto n = x.size(0), t = x.size(1), d = x.size(2), s = call.queries;
  const AttentionShape shape{t, s, d, call.heads};
  const auto chunk = chunk_of(n, t);
  const auto held = kept ? n : std::min(n, chunk);
  const auto make = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options()); };
  const auto out = make({n, s, d}), q = make({held * s, d}), kv = make({held * t, 2 * d}),
             lse = make({held, call.heads * s});
  const auto mean = make({held, t}), rstd = make({held, t}),
             normed = make({std::min(n, chunk), t, d});
  const Products products(call.bfloat16);
  const auto factor = products.factor(weight);
  const auto q_weight = factor.narrow(0, 0, d).t(), kv_weight = factor.narrow(0, d, 2 * d).t();
  const auto& k = kernels<T>();
  const auto* ids = rows.const_data_ptr<int64_t>();
  const auto make_draws = [&] { return AttentionDraws<T>(k.attention_scratch(shape)); };
  for_chunks<T>(rows, chunk, call.drop, kAttentionDepth, [&](const Chunk<T>& here) {
    const auto at = kept ? here.from : 0, images = here.size();
    for_images(here, [&](int64_t i, int64_t image) {
      k.norm(t, d, read<T>(x) + image * t * d, read<T>(norm_weight), read<T>(norm_bias),
             static_cast<T>(call.eps), write<T>(normed) + i * t * d, write<T>(mean) + (at + i) * t,
             write<T>(rstd) + (at + i) * t);
    });
    const auto normed_here = products.factor(normed.narrow(0, 0, images));
    auto q_here = q.narrow(0, at * s, images * s), kv_here = kv.narrow(0, at * t, images * t);
    products.write(q_here, first_rows(normed_here, s), q_weight);
    products.write(kv_here, normed_here.view({images * t, d}), kv_weight);
    record_attention("thanos::attention", q_here.view({images, s, d}),
                     kv_here.view({images, t, 2 * d}));
    for_images_with(here, make_draws, [&](AttentionDraws<T>& draws, int64_t i, int64_t image) {
      draws.draw(call.drop, shape, ids[image]);
      k.attention(shape, read<T>(q_here) + i * s * d, read<T>(kv_here) + i * t * 2 * d,
                  draws.query.data(), draws.weights_random, keep_of(call.drop.weights),
                  read<T>(x) + image * t * d, here.depth, draws.output_random,
                  keep_of(call.drop.output), write<T>(out) + image * s * d,
                  write<T>(lse) + (at + i) * call.heads * s, draws.scratch.data());
    });
    for (const auto image : here.skipped)
      out.select(0, image).copy_(x.select(0, image).narrow(0, 0, s));
  });
  if (kept) {
    kept->call = call;
    kept->q = q, kept->kv = kv, kept->mean = mean, kept->rstd = rstd, kept->lse = lse;
  }
  return out;
}

// Gradients of x, the norm's weight and bias, and the weight.
template <typename T>
std::vector<at::Tensor> attention_gradients(const at::Tensor& x, const at::Tensor& norm_weight,
                                            const at::Tensor& norm_bias, const at::Tensor& weight,
                                            const at::Tensor& rows, const AttentionKept& kept,
                                            const at::Tensor& grad) {
  const auto& call = kept.call;
  const auto n = x.size(0), t = x.size(1), d = x.size(2), s = call.queries;
  const AttentionShape shape{t, s, d, call.heads};
  const auto chunk = chunk_of(n, t), most = std::min(n, chunk);
  const auto make = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options()); };
  const auto dx = make({n, t, d}), normed = make({most, t, d}), dnormed = make({most, t, d});
  const auto dq = make({most * s, d}), dkv = make({most * t, 2 * d}), sums = make({most, 2 * d});
  const auto dnorm = at::zeros({2 * d}, x.options()), dweight = at::zeros({3 * d, d}, x.options());
  auto dq_weight = dweight.narrow(0, 0, d), dkv_weight = dweight.narrow(0, d, 2 * d);
  const Products products(call.bfloat16);
  const auto factor = products.factor(weight);
  const auto q_weight = factor.narrow(0, 0, d), kv_weight = factor.narrow(0, d, 2 * d);
  const auto& k = kernels<T>();
  const auto* ids = rows.const_data_ptr<int64_t>();
  const auto make_draws = [&] { return AttentionDraws<T>(k.attention_scratch(shape)); };
  for_chunks<T>(rows, chunk, call.drop, kAttentionDepth, [&](const Chunk<T>& here) {
    const auto at = here.from, images = here.size();
    for_images_with(here, make_draws, [&](AttentionDraws<T>& draws, int64_t i, int64_t image) {
      draws.draw(call.drop, shape, ids[image]);
      k.attention_backward(
          shape, read<T>(kept.q) + (at + i) * s * d, read<T>(kept.kv) + (at + i) * t * 2 * d,
          draws.query.data(), draws.weights_random, keep_of(call.drop.weights),
          read<T>(grad) + image * s * d, here.depth, draws.output_random, keep_of(call.drop.output),
          read<T>(kept.lse) + (at + i) * call.heads * s, write<T>(dq) + i * s * d,
          write<T>(dkv) + i * t * 2 * d, draws.scratch.data());
      k.norm_again(t, d, read<T>(x) + image * t * d, read<T>(norm_weight), read<T>(norm_bias),
                   read<T>(kept.mean) + (at + i) * t, read<T>(kept.rstd) + (at + i) * t,
                   write<T>(normed) + i * t * d);
    });
    const auto normed_here = products.factor(normed.narrow(0, 0, images));
    auto dnormed_here = dnormed.narrow(0, 0, images);
    const auto dq_here = products.factor(dq.narrow(0, 0, images * s));
    const auto dkv_here = products.factor(dkv.narrow(0, 0, images * t));
    record_attention("thanos::attention_backward", dq_here.view({images, s, d}),
                     dkv_here.view({images, t, 2 * d}));
    products.add(dq_weight, dq_here.t(), first_rows(normed_here, s));
    products.add(dkv_weight, dkv_here.t(), normed_here.view({images * t, d}));
    auto dnormed_rows = dnormed_here.view({images * t, d});
    products.write(dnormed_rows, dkv_here, kv_weight);
    if (s == t) products.add(dnormed_rows, dq_here, q_weight);
    else dnormed_here.narrow(1, 0, s).add_(dq_here.mm(q_weight).view({images, s, d}));
    for_images(here, [&](int64_t i, int64_t image) {
      k.norm_backward(t, d, read<T>(x) + image * t * d, read<T>(norm_weight),
                      read<T>(kept.mean) + (at + i) * t, read<T>(kept.rstd) + (at + i) * t,
                      read<T>(dnormed_here) + i * t * d, read<T>(grad) + image * s * d, s,
                      write<T>(dx) + image * t * d, write<T>(sums) + i * 2 * d);
    });
    for (const auto image : here.skipped) {
      dx.select(0, image).narrow(0, 0, s).copy_(grad.select(0, image));
      dx.select(0, image).narrow(0, s, t - s).zero_();
    }
    dnorm.add_(sums.narrow(0, 0, images).sum(0));
  });
  return {dx, dnorm.narrow(0, 0, d), dnorm.narrow(0, d, d), dweight};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                            const at::Tensor& weight, const at::Tensor& rows, AttentionCall call,
                            bool trains) {
    auto kept = trains ? c10::make_intrusive<AttentionKept>() : c10::intrusive_ptr<AttentionKept>();
    const auto out = AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "attention", [&] {
      return attention_forward<scalar_t>(x, norm_weight, norm_bias, weight, rows, call, kept.get());
    });
    if (trains) {
      context->saved_data["kept"] = c10::IValue::make_capsule(kept);
      context->save_for_backward({x, norm_weight, norm_bias, weight, rows});
    }
    return out;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto kept =
        c10::static_intrusive_pointer_cast<AttentionKept>(context->saved_data["kept"].toCapsule());
    const auto grad = gradients[0].contiguous();
    const auto found = AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "attention_backward", [&] {
      return attention_gradients<scalar_t>(saved[0], saved[1], saved[2], saved[3], saved[4], *kept,
                                           grad);
    });
    context->saved_data.clear();
    return {found[0], found[1], found[2], found[3], at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace thanos
