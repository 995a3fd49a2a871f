"""What `torchrun_faults.py` has torchrun start: the digits' SupCon stage as a user of PyTorch
writes it, DDP on Gloo.

The layers, parameters, global batch, loss and update of the preset `digits_supcon`, without
evaluation and without an epoch's last partial batch. It makes --steps steps, saves every --every of
them, resumes from what is saved, and appends a line a step to --folder's steps.jsonl. Shapes: b
images of this rank, B of all, t tokens, d width, h heads."""

import argparse
import gzip
import json
import math
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, SIDE, PATCH, WIDTH, DEPTH, HEADS, MLP, COARSE = 64, 8, 2, 48, 3, 4, 96, 2
LEARNING_RATE, WEIGHT_DECAY, TEMPERATURE, SEED = 0.002, 0.01, 0.5, 0


class Block(nn.Module):
    """Pre-norm, no bias in qkv, no projection after the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, MLP), nn.GELU(), nn.Linear(MLP, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        n, t, d = tokens.shape
        parts = self.qkv(self.attention_norm(tokens)).view(n, t, 3, HEADS, d // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [n, h, t, d/h] each
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        return tokens + self.mlp(self.mlp_norm(tokens))


class Encoder(nn.Module):
    """Images [n, 1, 8, 8] to embeddings [n, d] and coarse logits."""

    def __init__(self) -> None:
        super().__init__()
        patches = (SIDE // PATCH) ** 2
        self.patches = nn.Sequential(nn.Linear(PATCH * PATCH, WIDTH), nn.LayerNorm(WIDTH))
        self.cls_token = nn.Parameter(0.1 * torch.randn(1, 1, WIDTH))
        # Two rows more than tokens, as in the published code and in the preset.
        self.positions = nn.Parameter(0.1 * torch.randn(patches + 3, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, COARSE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)  # [n, 16, 4]
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patches(patches)], 1)
        z = self.norm(self.blocks(tokens + self.positions[: tokens.shape[1]]))[:, 0]  # [n, d]
        return z, self.head(z)


def supcon(z: Tensor, labels: Tensor, own: Tensor) -> Tensor:
    """Embeddings [b, view, d], labels [B], this rank's [b]: view 1's anchors with all ranks' view
    0."""
    candidates, anchors = F.normalize(z, dim=2).unbind(1)
    gathered = torch.cat(differentiable.all_gather(candidates.contiguous()))  # [B, d]
    s = anchors @ gathered.T / TEMPERATURE  # [b, B]
    positive = own[:, None] == labels
    negatives = s.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
    return ((torch.logaddexp(s, negatives) - s) * positive).sum(1).div(positive.sum(1)).mean()


def digits(path: str) -> tuple[Tensor, Tensor]:
    """The training images [1293, 1, 8, 8] in 0..1, and their coarse labels."""
    with gzip.open(path, "rt") as file:
        rows = torch.tensor([[float(value) for value in line.split(",")] for line in file])
    for keep in (1437, 1293):
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(42))[:keep]]
    return rows[:, :64].view(-1, 1, SIDE, SIDE) / 16, (rows[:, 64] >= 5).long()


def view(images: Tensor) -> Tensor:
    """Random resized crops and brightness, of the whole batch at once."""
    n = len(images)
    area, ratio = (
        torch.empty(n).uniform_(0.7, 1),
        torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)).exp(),
    )
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w, h
    theta[:, 0, 2], theta[:, 1, 2] = (
        (1 - w) * torch.empty(n).uniform_(-1, 1),
        (1 - h) * torch.empty(n).uniform_(-1, 1),
    )
    crops = F.grid_sample(
        images, F.affine_grid(theta, [n, 1, SIDE, SIDE], align_corners=False), align_corners=False
    )
    brightness = torch.where(torch.rand(n) < 0.8, torch.empty(n).uniform_(0.6, 1.4), 1.0)
    return (crops * brightness[:, None, None, None]).clamp(0, 1)


def train(folder: Path, data: str, steps: int, every: int) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    images, labels = digits(data)
    mean, std = images.mean(), images.std()
    torch.manual_seed(SEED)
    encoder = Encoder()
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    saved, first = folder / "checkpoint.pt", 0
    if saved.exists():
        state = torch.load(saved)
        first = state["step"]
        encoder.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    model = nn.parallel.DistributedDataParallel(encoder)
    generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    in_epoch = len(images) // BATCH
    with (folder / "steps.jsonl").open("a", buffering=1) as ledger:
        for step in range(first, steps):
            epoch, place = divmod(step, in_epoch)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
            batch = order[place * BATCH : (place + 1) * BATCH]
            own = batch.tensor_split(world)[rank]
            torch.manual_seed(step * world + rank)
            views = (view(images[own].repeat_interleave(2, 0)) - mean) / std  # [2b, 1, 8, 8]
            z, logits = model(views)
            contrastive = supcon(z.view(len(own), 2, WIDTH), labels[batch], labels[own])
            loss = contrastive + F.cross_entropy(logits, labels[own].repeat_interleave(2))
            optimizer.zero_grad()
            loss.backward()
            lr = LEARNING_RATE * (1 + math.cos(math.pi * epoch / math.ceil(steps / in_epoch))) / 2
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            if rank == 0:
                made = {
                    "step": step,
                    "generation": generation,
                    "time": time.time(),
                    "loss": loss.item(),
                }
                ledger.write(json.dumps({**made, "parameters": parameters}) + "\n")
                if (step + 1) % every == 0:
                    state = {
                        "step": step + 1,
                        "model": encoder.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                    torch.save(state, folder / "checkpoint.new")
                    (folder / "checkpoint.new").rename(saved)


def main() -> None:
    # When the agent says so, leave at once: a forked worker inherits the agent's own handler, which
    # only raises.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", required=True, help="digits.csv.gz")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--timeout-s", type=float, required=True, help="of a collective")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=arguments.timeout_s))
    train(arguments.folder, arguments.data, arguments.steps, arguments.every)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
