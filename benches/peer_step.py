"""One training step for `peer.py`: losses, candidates of all ranks, gradients, update; eager,
compiled or captured.

Shapes: b images of this rank, B = world x b of all, C channels, S x S pixels, d width. The two
views of an image are neighbours: row 2i is view 0 (a candidate), row 2i + 1 is view 1 (an anchor).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config as inductor

from peer_model import Decoder, Rates, Resnet18, Vit, VitShape, at_least_float32

METHODS = ("supcon", "cnce", "cae")
MODELS = ("vit", "resnet18")
MODES = ("eager", "compile", "max-autotune", "graph", "compile-graph")
PRECISIONS = ("float32", "tf32", "bf16")
COARSE_CLASSES = 2
TEMPERATURE = 0.5
# Of DDP on the capturing stream before a capture; PyTorch's notes on CUDA graphs ask for 11.
STEPS_BEFORE_CAPTURE = 11

# Elements of the trainer's own parameters, with the linear head: of the tensors in
# `optimizer.safetensors` under `exp_avg/` after one step of `cifar10_cnce` and `cifar10_cae`, with
# model.encoder.resnet18.stem=cifar for the latter.
PARAMETERS = {
    ("vit", False): 3_255_298,
    ("vit", True): 11_880_898,
    ("resnet18", False): 11_169_858,
    ("resnet18", True): 21_892_610,
}


class GatherRows(torch.autograd.Function):
    """[b, d] of every rank as [B, d]; a row's gradient is the sum over the ranks, which all
    contrast with it.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:  # noqa: ANN001
        gathered = rows.new_empty((dist.get_world_size() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # noqa: ANN001
        gradient = gradient.contiguous()
        own = gradient.new_empty((gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(own, gradient)
        return own


def gathered(rows: Tensor) -> Tensor:
    """[b, ...] of every rank in rank order, [B, ...]; differentiable where `rows` is."""
    if not dist.is_initialized():
        return rows
    return GatherRows.apply(rows)


def contrastive_loss(pairs: Tensor, labels: Tensor, spread: float, temperature: float) -> Tensor:
    """The recipe's loss of this rank's anchors with all ranks' candidates, a float32 scalar.

    `pairs` [b, view, d], `labels` [b]. SupCon with `spread` 0; otherwise (SupCon + spread x
    class-conditional InfoNCE) / (1 + spread). Dense: it holds the [b, B] matrix of logits. Cosine
    similarity, no clamp, one direction.
    """
    units = F.normalize(at_least_float32(pairs), dim=2)
    candidates, all_labels = gathered(units[:, 0]), gathered(labels)  # [B, d], [B]
    # Not under autocast: logits of 1 / temperature at most, but their differences are what is
    # learned from.
    with torch.autocast(pairs.device.type, enabled=False):
        logits = units[:, 1] @ candidates.T / temperature  # [b, B]
    positive = labels[:, None] == all_labels
    negatives = logits.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)  # [b, 1]
    each = (torch.logaddexp(logits, negatives) - logits).masked_fill(~positive, 0)
    attract = each.sum(1) / positive.sum(1)
    if spread == 0:
        return attract.mean()
    own = (units[:, 1] * units[:, 0]).sum(1) / temperature
    within = logits.masked_fill(~positive, -torch.inf).logsumexp(1) - own
    return (attract + spread * within).mean() / (1 + spread)


class TrainingLoss(nn.Module):
    """Views to this rank's loss. The mean over the ranks is the global loss, so DDP's mean is its
    gradient.
    """

    def __init__(
        self, encoder: nn.Module, method: str, bf16: bool, decoder: nn.Module | None
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.head = nn.Linear(encoder.width, COARSE_CLASSES)
        self.method, self.bf16 = method, bf16

    def forward(self, views: Tensor, labels: Tensor) -> Tensor:
        """Views [2b, C, S, S] float32, coarse labels [b] int64, to a float32 scalar."""
        with torch.autocast(views.device.type, torch.bfloat16, enabled=self.bf16):
            z = self.encoder(views)  # [2b, d]
            logits = self.head(z)  # [2b, classes]
            reconstructed = None if self.decoder is None else self.decoder(z)  # [2b, C, S, S]
        loss = F.cross_entropy(at_least_float32(logits), labels.repeat_interleave(2))
        if reconstructed is not None:
            return loss + F.mse_loss(at_least_float32(reconstructed), views)
        spread = 1.0 if self.method == "cnce" else 0.0
        pairs = z.view(len(labels), 2, -1)
        return loss + contrastive_loss(pairs, labels, spread, TEMPERATURE)


@dataclass(frozen=True)
class Build:
    """What to build; `rates` are those of the ViT."""

    model: str
    method: str
    mode: str
    precision: str
    device: torch.device
    rates: Rates = Rates()
    all_tokens: bool = False


def training_loss(build: Build) -> TrainingLoss:
    """The networks and the loss on the device, with initial weights of torch's generator; in
    training mode.
    """
    encoder = (
        Resnet18() if build.model == "resnet18" else Vit(VitShape(), build.rates, build.all_tokens)
    )
    decoder = Decoder(encoder.width) if build.method == "cae" else None
    module = TrainingLoss(encoder, build.method, build.precision == "bf16", decoder)
    count = sum(parameter.numel() for parameter in module.parameters())
    expected = PARAMETERS[build.model, decoder is not None]
    if count != expected:
        raise AssertionError(f"the trainer's model has {expected} parameters, this one has {count}")
    module.to(build.device).train()
    if build.device.type == "cuda":
        if build.precision != "float32":
            # Tensor cores convolve in this layout; without it every convolution would transpose.
            module.to(memory_format=torch.channels_last)
        if dist.is_initialized() and build.mode in ("eager", "graph"):
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module


def set_precision(precision: str) -> None:
    """Turns TF32 on or off, in matrix products and in convolutions; bf16 leaves it on for what
    autocast leaves.
    """
    tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


Batch = Callable[[], tuple[Tensor, Tensor]]


def training_step(build: Build, module: TrainingLoss, batch: Batch) -> Callable[[], Tensor]:
    """A function that makes one step and returns its loss, a detached scalar on the device,
    without waiting for it.

    `batch` gives views [2b, C, S, S] and labels [b]; it is part of the step, so it is compiled and
    captured, too. AdamW is fused. With several ranks DDP averages the gradients, in one bucket or
    more, beside the backward pass.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=3e-4,
        weight_decay=0.01,
        fused=True,
        capturable=build.mode in ("graph", "compile-graph"),
    )
    trained = replicated(module)
    # Inductor draws dropout masks on the CPU element by element: eager's generator makes a
    # compiled step a third faster.
    inductor.fallback_random = build.device.type == "cpu"

    def forward() -> Tensor:
        views, labels = batch()
        return trained(views, labels)

    if build.mode in ("compile", "compile-graph"):
        forward = torch.compile(forward)
    elif build.mode == "max-autotune":
        forward = torch.compile(forward, mode="max-autotune")

    def step() -> Tensor:
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return captured(step) if build.mode in ("graph", "compile-graph") else step


def replicated(module: nn.Module) -> nn.Module:
    """With several processes: the module under DDP, which averages gradients beside the backward
    pass. On CUDA it is made on a side stream, without which its collectives cannot be captured.
    """
    if not dist.is_initialized():
        return module
    if not next(module.parameters()).is_cuda:
        return with_ddp(module)
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        trained = with_ddp(module)
    main.wait_stream(side)
    return trained


def with_ddp(module: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(
        module, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as one CUDA graph: views, forward, loss, backward, collectives, update.

    Gradients are None when the capture starts, so that they live in the graph's own memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(STEPS_BEFORE_CAPTURE):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
