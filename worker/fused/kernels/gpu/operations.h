// The two branches of a block as operations of autograd whose kernels run on a GPU, with products
// of bfloat16 factors. What a key and rows are is read on the device: a CUDA graph of these
// operations can be run again for another step. Kept for the gradient: inputs, what products read,
// and for each row mean, deviation and log-sum-exp.
#pragma once

#include <ATen/Functions.h>
#include <ATen/core/custom_class.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../operations.h"
#include "host.h"

namespace thanos::gpu {

// Rates and sites, and on the device the key and the rows that all random numbers are functions of.
struct Draws {
  thanos::Drop drop;
  at::Tensor key, rows;

  Randomness random() const {
    if (!key.defined()) return {};
    return {reinterpret_cast<const uint64_t*>(key.const_data_ptr<int64_t>()),
            rows.const_data_ptr<int64_t>()};
  }

  Site site(uint32_t offset, uint32_t kept) const {
    return {drop.site + offset, kept, static_cast<float>(keep_of(kept).scale)};
  }

  // Beside the tensors, in what autograd keeps for the backward pass. The key is read on the device
  // alone.
  void save(torch::autograd::AutogradContext* context) const {
    context->saved_data["drop"] = std::vector<int64_t>{drop.site,   drop.query,  drop.weights,
                                                       drop.output, drop.hidden, drop.depth};
  }

  static Draws saved(torch::autograd::AutogradContext* context, const at::Tensor& key,
                     const at::Tensor& rows) {
    const auto drop = context->saved_data["drop"].toIntVector();
    const auto at = [&](size_t index) { return static_cast<uint32_t>(drop[index]); };
    return {{0, at(0), at(1), at(2), at(3), at(4), at(5)}, key, rows};
  }
};

inline at::Tensor narrow_like(const at::Tensor& x, at::IntArrayRef sizes) {
  return at::empty(sizes, x.options().dtype(at::kBFloat16));
}

inline at::Tensor float_like(const at::Tensor& x, at::IntArrayRef sizes) {
  return at::empty(sizes, x.options().dtype(at::kFloat));
}

inline const float* floats(const at::Tensor& x) { return x.const_data_ptr<float>(); }
inline float* mutable_floats(const at::Tensor& x) { return x.mutable_data_ptr<float>(); }
inline void* bits(const at::Tensor& x) { return x.mutable_data_ptr<at::BFloat16>(); }

inline at::Tensor factor(const at::Tensor& weight) { return weight.to(at::kBFloat16); }

// The gradient of a weight, [output, input], from bfloat16 rows of output gradients and of inputs.
inline at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& input) {
  return at::mm(grad.t(), input).to(at::kFloat);
}

// Rows of a thread of the element-wise kernels: a few where there are few rows, so that all of a
// GPU has work.
inline int rows_each(int64_t rows) {
  return static_cast<int>(std::clamp<int64_t>(rows / 4096, 4, 32));
}

inline int64_t parts_of(int64_t rows, int64_t each) { return (rows + each - 1) / each; }

// A thread for 8 columns of rows_each(rows) rows.
inline Work columns_of(int64_t rows, int64_t width) {
  return {Unit::kThread, parts_of(rows, rows_each(rows)) * (width / 8), 128};
}

struct Normed {
  at::Tensor out, mean, rstd;
};

inline Normed normalise(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                        double eps) {
  const auto rows = x.size(0) * x.size(1), d = x.size(2);
  Normed made{narrow_like(x, {rows, d}), float_like(x, {rows}), float_like(x, {rows})};
  const NormArguments arguments{floats(x),
                                floats(weight),
                                floats(bias),
                                bits(made.out),
                                mutable_floats(made.mean),
                                mutable_floats(made.rstd),
                                rows,
                                static_cast<int>(d),
                                static_cast<float>(eps)};
  const Work work{Unit::kWarp, rows};
  if (d <= 256) THANOS_LAUNCH(norm_forward_256, x, work, arguments);
  else THANOS_LAUNCH(norm_forward_512, x, work, arguments);
  return made;
}

// Gradients of x, weight and bias of a norm, from that of its output, [n x t, d]. `residual` [n, s,
// d] is added to the first tokens' of x.
inline std::array<at::Tensor, 3> norm_gradients(const at::Tensor& x, const at::Tensor& weight,
                                                const Normed& normed, const at::Tensor& grad,
                                                const at::Tensor& residual) {
  const auto rows = x.size(0) * x.size(1), d = x.size(2), parts = parts_of(rows, kNormRows);
  const auto dx = float_like(x, x.sizes()), sums = float_like(x, {parts, 2, d});
  const NormBackwardArguments arguments{floats(x),
                                        floats(weight),
                                        floats(normed.mean),
                                        floats(normed.rstd),
                                        bits(grad),
                                        floats(residual),
                                        mutable_floats(dx),
                                        mutable_floats(sums),
                                        rows,
                                        static_cast<int>(d),
                                        static_cast<int>(x.size(1)),
                                        static_cast<int>(residual.size(1))};
  constexpr int kThreads = 256, kWarps = kThreads / 32;
  const Work work{Unit::kBlock, parts, kThreads,
                  kWarps * 2 * d * static_cast<int64_t>(sizeof(float))};
  if (d <= 256) THANOS_LAUNCH(norm_backward_256, x, work, arguments);
  else THANOS_LAUNCH(norm_backward_512, x, work, arguments);
  const auto total = sums.sum(0);
  return {dx, total.select(0, 0), total.select(0, 1)};
}

// x[:, :s] + depth(dropout(fed + bias)), [n, s, d]; `sites` are that of the dropout and that of the
// depth.
inline at::Tensor add_branch(const at::Tensor& x, int64_t s, const at::Tensor& fed,
                             const float* bias, const Randomness& random,
                             std::array<Site, 2> sites) {
  const auto n = x.size(0), t = x.size(1), d = x.size(2), rows = n * s;
  const auto [site, depth] = sites;
  const auto out = float_like(x, {n, s, d});
  const ResidualArguments arguments{floats(x),
                                    bits(fed),
                                    bias,
                                    mutable_floats(out),
                                    random,
                                    site,
                                    depth,
                                    rows,
                                    static_cast<int>(d),
                                    static_cast<int>(s),
                                    static_cast<int>(t),
                                    rows_each(rows)};
  THANOS_LAUNCH(residual_forward, x, columns_of(rows, d), arguments);
  return out;
}

// The gradient of `fed` of that, bfloat16 [n x s, d], from that of the result [n, s, d]. Parts of
// the gradient of the bias go to `sums`.
inline at::Tensor branch_gradient(const at::Tensor& grad, float* sums, const Randomness& random,
                                  Site site, Site depth) {
  const auto s = grad.size(1), d = grad.size(2), rows = grad.size(0) * s;
  const auto dfed = narrow_like(grad, {rows, d});
  const ResidualBackwardArguments arguments{
      floats(grad),        bits(dfed),          sums,           random, site, depth, rows,
      static_cast<int>(d), static_cast<int>(s), rows_each(rows)};
  THANOS_LAUNCH(residual_backward, grad, columns_of(rows, d), arguments);
  return dfed;
}

// Queries, keys and values in one tensor [n x t, 3d] where all tokens are queries, else in two, [n
// x s, d] and [n x t, 2d].
struct Projected {
  at::Tensor all, q, kv;
};

inline AttentionArguments attention_arguments(const AttentionShape& shape,
                                              const Projected& projected, const Draws& draws) {
  const auto d = shape.width;
  AttentionArguments a{};
  if (projected.all.defined()) {
    const auto* first = static_cast<const at::BFloat16*>(bits(projected.all));
    a.q = first, a.k = first + d, a.v = first + 2 * d;
    a.q_row = a.kv_row = 3 * d;
  } else {
    const auto* first = static_cast<const at::BFloat16*>(bits(projected.kv));
    a.q = bits(projected.q), a.k = first, a.v = first + d;
    a.q_row = d, a.kv_row = 2 * d;
  }
  a.random = draws.random();
  a.query = draws.site(kQuery, draws.drop.query);
  a.weights = draws.site(kWeights, draws.drop.weights);
  a.t = static_cast<int>(shape.tokens), a.s = static_cast<int>(shape.queries);
  a.d = static_cast<int>(d), a.heads = static_cast<int>(shape.heads);
  return a;
}

// A block for each head of each of n images, and in it a warp for each 16 queries, or keys.
inline Work attention_work(int64_t n, const AttentionShape& shape, bool backward) {
  const AttentionMemory memory(static_cast<int>(shape.tokens), static_cast<int>(shape.queries),
                               static_cast<int>(shape.head()));
  const auto strips = (backward ? std::max(memory.queries, memory.tokens) : memory.queries) / 16;
  return {Unit::kBlock, n * shape.heads, strips * 32, memory.bytes(backward)};
}

// Starts the kernel of a head's width: 16, 32 or 64.
#define THANOS_LAUNCH_OF_HEAD(kernel, head, like, work, arguments) \
  switch (head) {                                                  \
    case 16:                                                       \
      THANOS_LAUNCH(kernel##_16, like, work, arguments);           \
      break;                                                       \
    case 32:                                                       \
      THANOS_LAUNCH(kernel##_32, like, work, arguments);           \
      break;                                                       \
    case 64:                                                       \
      THANOS_LAUNCH(kernel##_64, like, work, arguments);           \
      break;                                                       \
    default:                                                       \
      TORCH_CHECK(false, "no kernel for heads of width ", head);   \
  }

class AttentionOperation : public torch::autograd::Function<AttentionOperation> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                            const at::Tensor& weight, int64_t heads, int64_t queries, double eps,
                            Draws draws, bool trains) {
    const auto n = x.size(0), t = x.size(1), d = x.size(2);
    const AttentionShape shape{t, queries, d, heads};
    const auto normed = normalise(x, norm_weight, norm_bias, eps);
    const auto narrow_weight = factor(weight);
    Projected projected;
    if (queries == t) {
      projected.all = at::mm(normed.out, narrow_weight.t());
    } else {
      projected.q = at::mm(first_rows(normed.out.view({n, t, d}), queries),
                           narrow_weight.narrow(0, 0, d).t());
      projected.kv = at::mm(normed.out, narrow_weight.narrow(0, d, 2 * d).t());
    }
    const auto mixed = narrow_like(x, {n * queries, d}), lse = float_like(x, {n, heads, queries});
    const AttentionForwardArguments arguments{attention_arguments(shape, projected, draws),
                                              bits(mixed), mutable_floats(lse)};
    record("thanos::attention", n, shape, projected);
    THANOS_LAUNCH_OF_HEAD(attention_forward, shape.head(), x, attention_work(n, shape, false),
                          arguments);
    const auto out = add_branch(
        x, queries, mixed, nullptr, draws.random(),
        {draws.site(kAttended, draws.drop.output), draws.site(kAttentionDepth, draws.drop.depth)});
    if (trains) {
      context->saved_data["heads"] = heads;
      draws.save(context);
      context->save_for_backward({x, norm_weight, narrow_weight, normed.out, normed.mean,
                                  normed.rstd, projected.all, projected.q, projected.kv, lse,
                                  draws.key, draws.rows, mixed});
    }
    return out;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto grad = gradients[0].contiguous();
    const auto &x = saved[0], &norm_weight = saved[1], &weight = saved[2], &lse = saved[9];
    const Normed normed{saved[3], saved[4], saved[5]};
    const Projected projected{saved[6], saved[7], saved[8]};
    const auto draws = Draws::saved(context, saved[10], saved[11]);
    const auto n = x.size(0), t = x.size(1), d = x.size(2), s = grad.size(1);
    const AttentionShape shape{t, s, d, context->saved_data["heads"].toInt()};
    const auto dmixed =
        branch_gradient(grad, nullptr, draws.random(), draws.site(kAttended, draws.drop.output),
                        draws.site(kAttentionDepth, draws.drop.depth));
    AttentionBackwardArguments arguments{attention_arguments(shape, projected, draws),
                                         bits(dmixed),
                                         bits(saved[12]),
                                         floats(lse),
                                         {},
                                         {},
                                         {}};
    record("thanos::attention_backward", n, shape, projected);
    const auto work = attention_work(n, shape, true);
    at::Tensor dnormed, dweight;
    if (s == t) {
      const auto dall = narrow_like(x, {n * t, 3 * d});
      auto* first = static_cast<at::BFloat16*>(bits(dall));
      arguments.dq = first, arguments.dk = first + d, arguments.dv = first + 2 * d;
      THANOS_LAUNCH_OF_HEAD(attention_backward, shape.head(), x, work, arguments);
      dweight = weight_gradient(dall, normed.out);
      dnormed = at::mm(dall, weight);
    } else {
      const auto dq = narrow_like(x, {n * s, d}), dkv = narrow_like(x, {n * t, 2 * d});
      auto* first = static_cast<at::BFloat16*>(bits(dkv));
      arguments.dq = bits(dq), arguments.dk = first, arguments.dv = first + d;
      THANOS_LAUNCH_OF_HEAD(attention_backward, shape.head(), x, work, arguments);
      const auto first_normed = first_rows(normed.out.view({n, t, d}), s);
      dweight = at::cat({weight_gradient(dq, first_normed), weight_gradient(dkv, normed.out)}, 0);
      dnormed = at::mm(dkv, weight.narrow(0, d, 2 * d));
      dnormed.view({n, t, d}).narrow(1, 0, s).add_(
          at::mm(dq, weight.narrow(0, 0, d)).view({n, s, d}));
    }
    const auto [dx, dnorm_weight, dnorm_bias] =
        norm_gradients(x, norm_weight, normed, dnormed, grad);
    const at::Tensor none;
    return {dx, dnorm_weight, dnorm_bias, dweight, none, none, none, none, none};
  }

  static void record(const char* name, int64_t n, const AttentionShape& shape,
                     const Projected& projected) {
    const auto t = shape.tokens, s = shape.queries, d = shape.width;
    if (projected.all.defined()) {
      const auto all = projected.all.view({n, t, 3 * d});
      record_attention(name, all.narrow(2, 0, d), all.narrow(2, d, 2 * d));
    } else {
      record_attention(name, projected.q.view({n, s, d}), projected.kv.view({n, t, 2 * d}));
    }
  }
};

class FeedForwardOperation : public torch::autograd::Function<FeedForwardOperation> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                            const at::Tensor& in, const at::Tensor& in_bias, const at::Tensor& out,
                            const at::Tensor& out_bias, double eps, Draws draws, bool trains) {
    const auto n = x.size(0), t = x.size(1), d = x.size(2), m = in.size(0), rows = n * t;
    const auto normed = normalise(x, norm_weight, norm_bias, eps);
    const auto narrow_in = factor(in), narrow_out = factor(out);
    const auto hidden = at::mm(normed.out, narrow_in.t()), active = narrow_like(x, {rows, m});
    const ActivationArguments activation{bits(hidden),
                                         floats(in_bias),
                                         bits(active),
                                         draws.random(),
                                         draws.site(kHidden, draws.drop.hidden),
                                         rows,
                                         static_cast<int>(m),
                                         static_cast<int>(t),
                                         rows_each(rows)};
    THANOS_LAUNCH(activation_forward, x, columns_of(rows, m), activation);
    const auto fed = at::mm(active, narrow_out.t());
    const auto result = add_branch(
        x, t, fed, floats(out_bias), draws.random(),
        {draws.site(kFed, draws.drop.output), draws.site(kFeedForwardDepth, draws.drop.depth)});
    if (trains) {
      draws.save(context);
      context->save_for_backward({x, norm_weight, in_bias, narrow_in, narrow_out, normed.out,
                                  normed.mean, normed.rstd, hidden, active, draws.key, draws.rows});
    }
    return result;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto grad = gradients[0].contiguous();
    const auto &x = saved[0], &norm_weight = saved[1], &in_bias = saved[2], &in = saved[3],
               &out = saved[4];
    const Normed normed{saved[5], saved[6], saved[7]};
    const auto &hidden = saved[8], &active = saved[9];
    const auto draws = Draws::saved(context, saved[10], saved[11]);
    const auto t = x.size(1), d = x.size(2), m = in.size(0), rows = x.size(0) * t;
    const auto parts = parts_of(rows, rows_each(rows));
    const auto fed_sums = float_like(x, {parts, d});
    const auto dfed = branch_gradient(grad, mutable_floats(fed_sums), draws.random(),
                                      draws.site(kFed, draws.drop.output),
                                      draws.site(kFeedForwardDepth, draws.drop.depth));
    const auto dhidden = at::mm(dfed, out), hidden_sums = float_like(x, {parts, m});
    const ActivationBackwardArguments activation{bits(hidden),
                                                 floats(in_bias),
                                                 bits(dhidden),
                                                 mutable_floats(hidden_sums),
                                                 draws.random(),
                                                 draws.site(kHidden, draws.drop.hidden),
                                                 rows,
                                                 static_cast<int>(m),
                                                 static_cast<int>(t),
                                                 rows_each(rows)};
    THANOS_LAUNCH(activation_backward, x, columns_of(rows, m), activation);
    const auto dnormed = at::mm(dhidden, in);
    const auto [dx, dnorm_weight, dnorm_bias] =
        norm_gradients(x, norm_weight, normed, dnormed, grad);
    const at::Tensor none;
    return {dx,
            dnorm_weight,
            dnorm_bias,
            weight_gradient(dhidden, normed.out),
            hidden_sums.sum(0),
            weight_gradient(dfed, active),
            fed_sums.sum(0),
            none,
            none,
            none};
  }
};

}  // namespace thanos::gpu
