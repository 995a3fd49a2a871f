// Batch norm over the images of all ranks as two operations of autograd: this rank's moments, and
// the norm by the moments of all ranks, followed by a sum with a residual and a ReLU. Between them
// the caller adds up the moments.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include "operations.h"

namespace thanos {

inline Maps maps_of(const at::Tensor& x) {
  return {x.size(0), x.size(1), x.size(2) * x.size(3), 0, x.size(1)};
}

// Calls `body(maps)` for all channels, shared among threads.
template <typename F>
void for_channels(const Maps& maps, const F& body) {
  constexpr int64_t kGrain = 1 << 15;
  const auto elements = std::max<int64_t>(1, maps.images * maps.pixels);
  at::parallel_for(0, maps.channels, std::max<int64_t>(1, kGrain / elements),
                   [&](int64_t begin, int64_t end) {
                     auto here = maps;
                     here.from = begin, here.to = end;
                     body(here);
                   });
}

inline at::Tensor doubles(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kDouble));
}

// Moments are sums of x, sums of its squares, and the number of elements of a channel: [2 C + 1],
// float64.
struct Moments {
  const double *first, *second;
  double count;

  explicit Moments(const at::Tensor& moments) {
    const auto channels = (moments.numel() - 1) / 2;
    first = read<double>(moments), second = first + channels, count = first[2 * channels];
  }

  double mean(int64_t channel) const { return first[channel] / count; }

  // May be below zero by rounding.
  double variance(int64_t channel) const {
    const auto centre = mean(channel);
    return second[channel] / count - centre * centre;
  }
};

struct BatchNormCall {
  double eps;
  bool relu;
};

class BatchMoments : public torch::autograd::Function<BatchMoments> {
 public:
  // x again, and its moments. The norm takes that x, so that its gradient comes through here.
  static torch::autograd::tensor_list forward(torch::autograd::AutogradContext* context,
                                              const at::Tensor& x) {
    const auto maps = maps_of(x);
    const auto moments = doubles({2 * maps.channels + 1}, x);
    auto* sums = write<double>(moments);
    sums[2 * maps.channels] = static_cast<double>(maps.images * maps.pixels);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_moments", [&] {
      for_channels(maps, [&](const Maps& here) {
        kernels<scalar_t>().moments(here, read<scalar_t>(x), sums);
      });
    });
    context->save_for_backward({x, moments});
    return {x, moments};
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto& x = saved[0];
    const auto grad = gradients[0].contiguous(), dmoments = gradients[1].contiguous(),
               dx = at::empty_like(x);
    const auto maps = maps_of(x);
    const Moments own(saved[1]);
    const auto *dfirst = read<double>(dmoments), *dsecond = dfirst + maps.channels;
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_moments_backward", [&] {
      std::vector<scalar_t> centre(maps.channels), slope(maps.channels), offset(maps.channels);
      for (int64_t channel = 0; channel < maps.channels; channel++) {
        // Moved to this rank's own mean, so that large terms cancel out in float64.
        centre[channel] = static_cast<scalar_t>(own.count > 0 ? own.mean(channel) : 0);
        slope[channel] = static_cast<scalar_t>(2 * dsecond[channel]);
        offset[channel] = static_cast<scalar_t>(
            dfirst[channel] + 2 * static_cast<double>(centre[channel]) * dsecond[channel]);
      }
      for_channels(maps, [&](const Maps& here) {
        kernels<scalar_t>().moments_backward(here, read<scalar_t>(x), read<scalar_t>(grad),
                                             centre.data(), slope.data(), offset.data(),
                                             write<scalar_t>(dx));
      });
    });
    return {dx};
  }
};

// What the kernels need of each channel.
template <typename T>
struct Transform {
  std::vector<T> centre, scale, shift;

  Transform(const Moments& moments, const at::Tensor& weight, const at::Tensor& bias, double eps) {
    const auto channels = weight.numel();
    centre.resize(channels), scale.resize(channels), shift.resize(channels);
    for (int64_t channel = 0; channel < channels; channel++) {
      const auto mean = moments.mean(channel);
      const auto factor =
          read<T>(weight)[channel] / std::sqrt(std::max(moments.variance(channel), 0.0) + eps);
      centre[channel] = static_cast<T>(mean);
      scale[channel] = static_cast<T>(factor);
      shift[channel] = static_cast<T>(read<T>(bias)[channel] +
                                      (static_cast<double>(centre[channel]) - mean) * factor);
    }
  }
};

// Running statistics, as torch's: the variance without bias.
template <typename T>
void track(const Moments& moments, double momentum, const at::Tensor& running_mean,
           const at::Tensor& running_var) {
  const auto unbiased = moments.count / std::max(moments.count - 1, 1.0);
  const auto move = [momentum](T& running, double to) {
    running = static_cast<T>(running + momentum * (to - running));
  };
  for (int64_t channel = 0; channel < running_mean.numel(); channel++) {
    move(write<T>(running_mean)[channel], moments.mean(channel));
    move(write<T>(running_var)[channel], std::max(moments.variance(channel), 0.0) * unbiased);
  }
}

class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  // `moments` are those of all ranks.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& moments, const at::Tensor& weight,
                            const at::Tensor& bias, const std::optional<at::Tensor>& residual,
                            BatchNormCall call) {
    const auto out = at::empty_like(x);
    const auto maps = maps_of(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm", [&] {
      const Transform<scalar_t> transform(Moments(moments), weight, bias, call.eps);
      for_channels(maps, [&](const Maps& here) {
        kernels<scalar_t>().standardise(here, read<scalar_t>(x), transform.centre.data(),
                                        transform.scale.data(), transform.shift.data(),
                                        residual ? read<scalar_t>(*residual) : nullptr, call.relu,
                                        write<scalar_t>(out));
      });
    });
    context->saved_data["eps"] = call.eps;
    context->saved_data["has_residual"] = residual.has_value();
    context->save_for_backward({x, moments, weight, bias, call.relu ? out : at::Tensor()});
    return out;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &x = saved[0], &weight = saved[2], &out = saved[4];
    const auto eps = context->saved_data["eps"].toDouble();
    const auto has_residual = context->saved_data["has_residual"].toBool();
    const auto grad = gradients[0].contiguous(), dx = at::empty_like(x);
    const auto masked = has_residual && out.defined() ? at::empty_like(x) : at::Tensor();
    const auto maps = maps_of(x);
    const Moments moments(saved[1]);
    const auto sums = doubles({2, maps.channels}, x),
               dmoments = doubles({2 * maps.channels + 1}, x);
    const auto dweight = at::empty_like(weight), dbias = at::empty_like(weight);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "batch_norm_backward", [&] {
      const Transform<scalar_t> transform(moments, weight, saved[3], eps);
      for_channels(maps, [&](const Maps& here) {
        kernels<scalar_t>().standardise_backward(
            here, read<scalar_t>(x), out.defined() ? read<scalar_t>(out) : nullptr,
            read<scalar_t>(grad), transform.centre.data(), transform.scale.data(),
            write<scalar_t>(dx), masked.defined() ? write<scalar_t>(masked) : nullptr,
            write<double>(sums));
      });
      const auto *first = read<double>(sums), *second = first + maps.channels;
      auto *dfirst = write<double>(dmoments), *dsecond = dfirst + maps.channels;
      for (int64_t channel = 0; channel < maps.channels; channel++) {
        const auto mean = moments.mean(channel), variance = moments.variance(channel);
        const auto rstd = 1 / std::sqrt(std::max(variance, 0.0) + eps),
                   factor = read<scalar_t>(weight)[channel] * rstd;
        const auto centred =
            second[channel] +
            (static_cast<double>(transform.centre[channel]) - mean) * first[channel];
        const auto dvariance = variance < 0 ? 0 : -0.5 * factor * rstd * rstd * centred;
        write<scalar_t>(dweight)[channel] = static_cast<scalar_t>(centred * rstd);
        write<scalar_t>(dbias)[channel] = static_cast<scalar_t>(first[channel]);
        dfirst[channel] = (-factor * first[channel] - 2 * mean * dvariance) / moments.count;
        dsecond[channel] = dvariance / moments.count;
      }
      dfirst[2 * maps.channels] = 0;
    });
    const auto dresidual = has_residual ? (masked.defined() ? masked : grad) : at::Tensor();
    return {dx, dmoments, dweight, dbias, dresidual, at::Tensor()};
  }
};

}  // namespace thanos
