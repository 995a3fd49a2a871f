// x + depth(dropout(W2 dropout(gelu(W1 norm(x) + b1)) + b2)) as one operation of autograd. Kept for
// the gradient: x, W1 norm(x), and for each row mean and deviation. The activation and the masks
// are made again.
#pragma once

#include <ATen/core/custom_class.h>
#include <torch/csrc/autograd/custom_function.h>

#include "operations.h"

namespace thanos {

struct FeedForwardCall {
  double eps;
  // Whether the factors of matrix products are rounded to bfloat16.
  bool bfloat16;
  Drop drop;
};

struct FeedForwardWeights {
  at::Tensor norm_weight, norm_bias, in, in_bias, out, out_bias;
};

// What an image draws.
struct FeedForwardDraws {
  std::vector<uint16_t> hidden, fed;
  const uint16_t* hidden_random = nullptr;
  const uint16_t* fed_random = nullptr;

  void draw_hidden(const Drop& drop, int64_t elements, uint64_t row) {
    hidden.resize(in_groups(elements) + kSlack);
    hidden_random =
        drawn({drop.key, row, drop.site + kHidden}, drop.hidden, elements, hidden.data());
  }

  void draw_fed(const Drop& drop, int64_t elements, uint64_t row) {
    fed.resize(in_groups(elements) + kSlack);
    fed_random = drawn({drop.key, row, drop.site + kFed}, drop.output, elements, fed.data());
  }
};

struct FeedForwardKept : torch::CustomClassHolder {
  FeedForwardCall call;
  at::Tensor hidden, mean, rstd;
};

template <typename T>
at::Tensor feed_forward(const at::Tensor& x, const FeedForwardWeights& w, const at::Tensor& rows,
                        const FeedForwardCall& call, FeedForwardKept* kept) {
  const auto n = x.size(0), t = x.size(1), d = x.size(2), m = w.in.size(0);
  const auto chunk = chunk_of(n, t), most = std::min(n, chunk), held = kept ? n : most;
  const auto make = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options()); };
  const auto out = make({n, t, d}), hidden = make({held * t, m}), mean = make({held, t}),
             rstd = make({held, t});
  const auto normed = make({most * t, d}), active = make({most * t, m});
  const Products products(call.bfloat16);
  const auto in = products.factor(w.in), out_weight = products.factor(w.out);
  const auto& k = kernels<T>();
  const auto* ids = rows.const_data_ptr<int64_t>();
  const auto make_draws = [] { return FeedForwardDraws(); };
  for_chunks<T>(rows, chunk, call.drop, kFeedForwardDepth, [&](const Chunk<T>& here) {
    const auto at = kept ? here.from : 0, images = here.size();
    for_images(here, [&](int64_t i, int64_t image) {
      k.norm(t, d, read<T>(x) + image * t * d, read<T>(w.norm_weight), read<T>(w.norm_bias),
             static_cast<T>(call.eps), write<T>(normed) + i * t * d, write<T>(mean) + (at + i) * t,
             write<T>(rstd) + (at + i) * t);
    });
    auto normed_here = normed.narrow(0, 0, images * t),
         hidden_here = hidden.narrow(0, at * t, images * t);
    products.write(hidden_here, products.factor(normed_here), in.t());
    for_images_with(here, make_draws, [&](FeedForwardDraws& draws, int64_t i, int64_t image) {
      draws.draw_hidden(call.drop, t * m, ids[image]);
      k.activation(t, m, read<T>(hidden_here) + i * t * m, read<T>(w.in_bias), draws.hidden_random,
                   keep_of(call.drop.hidden), write<T>(active) + i * t * m);
    });
    // The norm is not needed any more: its memory takes the branch's output.
    products.write(normed_here, products.factor(active.narrow(0, 0, images * t)), out_weight.t());
    for_images_with(here, make_draws, [&](FeedForwardDraws& draws, int64_t i, int64_t image) {
      draws.draw_fed(call.drop, t * d, ids[image]);
      k.residual(t, d, read<T>(x) + image * t * d, read<T>(normed_here) + i * t * d,
                 read<T>(w.out_bias), here.depth, draws.fed_random, keep_of(call.drop.output),
                 write<T>(out) + image * t * d);
    });
    for (const auto image : here.skipped) out.select(0, image).copy_(x.select(0, image));
  });
  if (kept) {
    kept->call = call;
    kept->hidden = hidden, kept->mean = mean, kept->rstd = rstd;
  }
  return out;
}

// Gradients of x and of the weights, in the order of `FeedForwardWeights`.
template <typename T>
std::vector<at::Tensor> feed_forward_gradients(const at::Tensor& x, const FeedForwardWeights& w,
                                               const at::Tensor& rows, const FeedForwardKept& kept,
                                               const at::Tensor& grad) {
  const auto& call = kept.call;
  const auto n = x.size(0), t = x.size(1), d = x.size(2), m = w.in.size(0);
  const auto chunk = chunk_of(n, t), most = std::min(n, chunk);
  const auto make = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options()); };
  const auto zeros = [&](at::IntArrayRef sizes) { return at::zeros(sizes, x.options()); };
  const auto dx = make({n, t, d}), dfed = make({most * t, d}), normed = make({most * t, d});
  const auto active = make({most * t, m}), dactive = make({most * t, m});
  const auto sums = make({most, 2 * d}), in_sums = make({most, m}), out_sums = make({most, d});
  const auto dnorm = zeros({2 * d}), din_bias = zeros({m}), dout_bias = zeros({d});
  auto din = zeros({m, d}), dout = zeros({d, m});
  const Products products(call.bfloat16);
  const auto in = products.factor(w.in), out_weight = products.factor(w.out);
  const auto& k = kernels<T>();
  const auto* ids = rows.const_data_ptr<int64_t>();
  const auto make_draws = [] { return FeedForwardDraws(); };
  for_chunks<T>(rows, chunk, call.drop, kFeedForwardDepth, [&](const Chunk<T>& here) {
    const auto at = here.from, images = here.size();
    auto dfed_here = dfed.narrow(0, 0, images * t), dactive_here = dactive.narrow(0, 0, images * t);
    const auto normed_here = normed.narrow(0, 0, images * t),
               active_here = active.narrow(0, 0, images * t);
    for_images_with(here, make_draws, [&](FeedForwardDraws& draws, int64_t i, int64_t image) {
      draws.draw_fed(call.drop, t * d, ids[image]);
      k.residual_backward(t, d, read<T>(grad) + image * t * d, here.depth, draws.fed_random,
                          keep_of(call.drop.output), write<T>(dfed) + i * t * d,
                          write<T>(out_sums) + i * d);
    });
    const auto dfed_factor = products.factor(dfed_here);
    products.write(dactive_here, dfed_factor, out_weight);
    for_images_with(here, make_draws, [&](FeedForwardDraws& draws, int64_t i, int64_t image) {
      draws.draw_hidden(call.drop, t * m, ids[image]);
      k.activation_backward(t, m, read<T>(kept.hidden) + (at + i) * t * m, read<T>(w.in_bias),
                            draws.hidden_random, keep_of(call.drop.hidden),
                            write<T>(dactive) + i * t * m, write<T>(active) + i * t * m,
                            write<T>(in_sums) + i * m);
      k.norm_again(t, d, read<T>(x) + image * t * d, read<T>(w.norm_weight), read<T>(w.norm_bias),
                   read<T>(kept.mean) + (at + i) * t, read<T>(kept.rstd) + (at + i) * t,
                   write<T>(normed) + i * t * d);
    });
    products.add(dout, dfed_factor.t(), products.factor(active_here));
    const auto dactive_factor = products.factor(dactive_here);
    products.add(din, dactive_factor.t(), products.factor(normed_here));
    // The gradient of the norm's output takes the memory of the branch's.
    products.write(dfed_here, dactive_factor, in);
    for_images(here, [&](int64_t i, int64_t image) {
      k.norm_backward(t, d, read<T>(x) + image * t * d, read<T>(w.norm_weight),
                      read<T>(kept.mean) + (at + i) * t, read<T>(kept.rstd) + (at + i) * t,
                      read<T>(dfed_here) + i * t * d, read<T>(grad) + image * t * d, t,
                      write<T>(dx) + image * t * d, write<T>(sums) + i * 2 * d);
    });
    for (const auto image : here.skipped) dx.select(0, image).copy_(grad.select(0, image));
    dnorm.add_(sums.narrow(0, 0, images).sum(0));
    din_bias.add_(in_sums.narrow(0, 0, images).sum(0));
    dout_bias.add_(out_sums.narrow(0, 0, images).sum(0));
  });
  return {dx, dnorm.narrow(0, 0, d), dnorm.narrow(0, d, d), din, din_bias, dout, dout_bias};
}

class FeedForward : public torch::autograd::Function<FeedForward> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                            const at::Tensor& in, const at::Tensor& in_bias, const at::Tensor& out,
                            const at::Tensor& out_bias, const at::Tensor& rows,
                            FeedForwardCall call, bool trains) {
    auto kept =
        trains ? c10::make_intrusive<FeedForwardKept>() : c10::intrusive_ptr<FeedForwardKept>();
    const FeedForwardWeights weights{norm_weight, norm_bias, in, in_bias, out, out_bias};
    const auto fed = AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "feed_forward", [&] {
      return feed_forward<scalar_t>(x, weights, rows, call, kept.get());
    });
    if (trains) {
      context->saved_data["kept"] = c10::IValue::make_capsule(kept);
      context->save_for_backward({x, norm_weight, norm_bias, in, in_bias, out, out_bias, rows});
    }
    return fed;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto kept = c10::static_intrusive_pointer_cast<FeedForwardKept>(
        context->saved_data["kept"].toCapsule());
    const FeedForwardWeights weights{saved[1], saved[2], saved[3], saved[4], saved[5], saved[6]};
    const auto grad = gradients[0].contiguous();
    auto found = AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "feed_forward_backward", [&] {
      return feed_forward_gradients<scalar_t>(saved[0], weights, saved[7], *kept, grad);
    });
    context->saved_data.clear();
    found.resize(10);
    return found;
  }
};

}  // namespace thanos
