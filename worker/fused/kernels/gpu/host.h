// The kernels by name, as `THANOS_LAUNCH` starts them.
#pragma once

#include "launch.h"

void draw_mask(thanos::gpu::MaskArguments);
void norm_forward_256(thanos::gpu::NormArguments);
void norm_forward_512(thanos::gpu::NormArguments);
void norm_backward_256(thanos::gpu::NormBackwardArguments);
void norm_backward_512(thanos::gpu::NormBackwardArguments);
void activation_forward(thanos::gpu::ActivationArguments);
void activation_backward(thanos::gpu::ActivationBackwardArguments);
void residual_forward(thanos::gpu::ResidualArguments);
void residual_backward(thanos::gpu::ResidualBackwardArguments);
void attention_forward_16(thanos::gpu::AttentionForwardArguments);
void attention_forward_32(thanos::gpu::AttentionForwardArguments);
void attention_forward_64(thanos::gpu::AttentionForwardArguments);
void attention_backward_16(thanos::gpu::AttentionBackwardArguments);
void attention_backward_32(thanos::gpu::AttentionBackwardArguments);
void attention_backward_64(thanos::gpu::AttentionBackwardArguments);
void make_views(thanos::gpu::ViewsArguments);

namespace thanos::gpu {

template <auto kernel, typename Arguments>
void launch(const char* name, const at::Tensor& like, const Work& work,
            const Arguments& arguments) {
  if (work.count == 0) return;
  if (like.is_cuda()) {
    launch_on_device(name, like.device(), work, &arguments);
  } else {
    launch_on_host(
        work, [](const void* given) { kernel(*static_cast<const Arguments*>(given)); }, &arguments);
  }
}

}  // namespace thanos::gpu

// Starts a kernel where `like` is.
#define THANOS_LAUNCH(kernel, like, work, arguments) \
  ::thanos::gpu::launch<&::kernel>(#kernel, like, work, arguments)
