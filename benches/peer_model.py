"""The networks of the presets as a user of PyTorch writes them, for `peer.py`.

Sizes and parameters are exactly those of `worker/src/model`: a pre-norm ViT without a projection
after the attention, ResNet-18 with a stem for small images, and the decoder of the autoencoder.
`peer_self_test.py` checks values and gradients against the golden vectors of `tests/parity`.

Shapes: n views, C channels, S x S pixels, p x p pixels a patch, T patches, t = T + 1 tokens, d
width, h heads.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VitShape:
    """Sizes of a ViT; the defaults are those of the preset `cifar10_cnce`."""

    channels: int = 3
    side: int = 32
    patch: int = 4
    width: int = 256
    depth: int = 7
    heads: int = 8
    mlp: int = 512


@dataclass(frozen=True)
class Rates:
    """Probabilities of everything random in a ViT; `Rates(0, 0, 0)` makes it deterministic.

    `block` is the rate of dropout in the blocks and the stochastic depth of the last one.
    """

    embedding: float = 0.1
    query: float = 0.1
    block: float = 0.05


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 in float32, for sums and losses; float64 as it is, for checks."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def keep_mask(like: Tensor, shape: list[int], rate: float) -> Tensor:
    """1 / (1 - rate) with probability 1 - rate, else 0; of the type and device of `like`."""
    keep = 1 - rate
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """A pre-norm transformer block; an image skips a branch with probability `depth_rate`."""

    def __init__(self, shape: VitShape, rates: Rates, depth_rate: float) -> None:
        super().__init__()
        d = shape.width
        self.heads, self.rates, self.depth_rate = shape.heads, rates, depth_rate
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(d, shape.mlp), nn.Linear(shape.mlp, d)

    def forward(self, tokens: Tensor, queries: int) -> Tensor:
        """Tokens [n, t, d] to the first `queries` of them [n, queries, d]; every token is attended
        to.
        """
        attended = self.attention(self.attention_norm(tokens), queries)
        tokens = tokens[:, :queries] + self.skipped(self.dropout(attended))
        hidden = self.dropout(F.gelu(self.mlp_in(self.mlp_norm(tokens))))
        return tokens + self.skipped(self.dropout(self.mlp_out(hidden)))

    def attention(self, tokens: Tensor, queries: int) -> Tensor:
        """Normalised tokens [n, t, d] to [n, queries, d]."""
        n, t, d = tokens.shape
        h = self.heads
        if queries == t:
            q, k, v = self.qkv(tokens).view(n, t, 3, h, d // h).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = F.linear(tokens[:, :queries], self.qkv.weight[:d])
            q = q.view(n, queries, h, d // h).transpose(1, 2)
            keys_values = F.linear(tokens, self.qkv.weight[d:])
            k, v = keys_values.view(n, t, 2, h, d // h).permute(2, 0, 3, 1, 4).unbind(0)
        if self.training and self.rates.query > 0:
            # A query whose logits are zero attends uniformly; the same for all heads.
            q = q * keep_mask(q, [n, 1, queries, 1], self.rates.query)
        rate = self.rates.block if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)  # [n, h, queries, d/h]
        return mixed.transpose(1, 2).reshape(n, queries, d)

    def dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.rates.block, self.training)

    def skipped(self, branch: Tensor) -> Tensor:
        """Stochastic depth: a branch [n, t, d] is dropped for some images and scaled up for the
        others.
        """
        if not self.training or self.depth_rate == 0:
            return branch
        return branch * keep_mask(branch, [len(branch), 1, 1], self.depth_rate)


class Vit(nn.Module):
    """Images [n, C, S, S] to the CLS token's embedding [n, d].

    `all_tokens`: compute every token's output in the last block, too, as code that does not know
    that only the CLS token is read. The trainer computes only the CLS token there, so by default
    this does as well.
    """

    def __init__(self, shape: VitShape, rates: Rates, all_tokens: bool) -> None:
        super().__init__()
        d, patches = shape.width, (shape.side // shape.patch) ** 2
        self.width, self.patch, self.rates, self.all_tokens = d, shape.patch, rates, all_tokens
        self.patches = nn.Linear(shape.channels * shape.patch**2, d)
        self.patches_norm = nn.LayerNorm(d)
        self.cls_token = nn.Parameter((0.1 * torch.randn(1, 1, d)).clamp_(-1, 1))
        # Two rows more than tokens, as in the published code and in the presets.
        self.positions = nn.Parameter((0.1 * torch.randn(patches + 3, d)).clamp_(-1, 1))
        last = max(1, shape.depth - 1)
        rising = [rates.block * k / last for k in range(shape.depth)]
        self.blocks = nn.ModuleList(Block(shape, rates, depth_rate) for depth_rate in rising)
        self.norm = nn.LayerNorm(d)

    def forward(self, images: Tensor) -> Tensor:
        n, c, side, _ = images.shape
        p = self.patch
        # A patch is flattened as (row, column, channel).
        patches = images.reshape(n, c, side // p, p, side // p, p).permute(0, 2, 4, 3, 5, 1)
        tokens = self.patches_norm(self.patches(patches.reshape(n, -1, p * p * c)))  # [n, T, d]
        tokens = F.dropout(tokens, self.rates.embedding, self.training)
        tokens = torch.cat([self.cls_token.expand(n, -1, -1).to(tokens.dtype), tokens], 1)
        t = tokens.shape[1]  # T + 1
        tokens = tokens + self.positions[:t]
        for block in self.blocks[:-1]:
            tokens = block(tokens, t)
        tokens = self.blocks[-1](tokens, t if self.all_tokens else 1)
        return self.norm(tokens[:, 0])


class SumOverRanks(torch.autograd.Function):
    """The sum of the ranks' tensors; the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:  # noqa: ANN001
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # noqa: ANN001
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batch of all ranks, as the trainer's: `nn.SyncBatchNorm` exists for CUDA
    alone.

    With one process it is `nn.BatchNorm2d` and nothing else. All ranks hold the same number of
    images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] to the same shape."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        axes = (0, 2, 3)
        values, channels = at_least_float32(x), len(self.weight)
        count = dist.get_world_size() * x.numel() // channels
        moments = torch.cat([values.sum(axes), values.square().sum(axes)])  # [2C]
        mean, square = (SumOverRanks.apply(moments) / count).split(channels)  # [C] each
        variance = square - mean.square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        shape = (1, channels, 1, 1)
        return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias; padding keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """torchvision's: two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 3, stride), GlobalBatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), GlobalBatchNorm2d(planes)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != planes:
            shortcut = conv(inputs, planes, 1, stride)
            self.downsample = nn.Sequential(shortcut, GlobalBatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Resnet18(nn.Module):
    """Images [n, C, S, S] to embeddings [n, 512]; `model.encoder.resnet18.stem=cifar`: 3 x 3 stem,
    no pooling.
    """

    width = 512

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, 64, 3), GlobalBatchNorm2d(64)
        stages, inputs = [], 64
        for stage, planes in enumerate([64, 128, 256, 512]):
            first = BasicBlock(inputs, planes, 2 if stage > 0 else 1)
            stages.append(nn.Sequential(first, BasicBlock(planes, planes, 1)))
            inputs = planes
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(F.relu(self.bn1(self.conv1(images)))).mean((2, 3))


class UpBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; with `upsample` the second follows a doubling of
    the map's side.
    """

    def __init__(self, inputs: int, planes: int, upsample: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, inputs, 3), GlobalBatchNorm2d(inputs)
        self.conv2: nn.Module = conv(inputs, planes, 3)
        self.bn2 = GlobalBatchNorm2d(planes)
        self.upsample: nn.Module = nn.Identity()
        if upsample:
            double = nn.Upsample(scale_factor=2, mode="nearest")
            self.conv2 = nn.Sequential(double, self.conv2)
            shortcut = nn.Sequential(double, conv(inputs, planes, 1))
            self.upsample = nn.Sequential(shortcut, GlobalBatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.upsample(x))


class Decoder(nn.Module):
    """Embeddings [n, d] to images [n, C, S, S], normalised as the encoder's input is. S is a
    multiple of 8.
    """

    def __init__(self, d: int, channels: int = 3, side: int = 32, width: int = 512) -> None:
        super().__init__()
        self.start, self.width = side // 8, width
        self.linear = nn.Linear(d, width * 16)
        inputs = width
        for stage, planes in enumerate([width // 2, width // 4, width // 8, width // 8]):
            first = UpBlock(inputs, planes, stage < 3)
            stage_blocks = nn.Sequential(first, UpBlock(planes, planes, False))
            self.add_module(f"layer{stage + 1}", stage_blocks)
            inputs = planes
        self.conv1 = conv(inputs, channels, 3)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = self.linear(embeddings).view(-1, self.width, 4, 4)
        if self.start != 4:
            x = F.interpolate(x, size=self.start, mode="nearest")  # [n, w, S/8, S/8]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.conv1(x)
