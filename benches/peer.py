"""The training step of a CIFAR-shaped preset in plain PyTorch, measured: what the trainer is
compared with.

    PYTHON benches/peer.py --method cnce --mode compile --precision bf16 --device cuda
    PYTHON benches/peer.py --world 2 --backend gloo --threads 1
    PYTHON benches/peer.py --self-test

It prints one JSON line. `peer_step.py` has the step, `peer_model.py` the networks, `peer_views.py`
the views.

What is timed: a whole step of the preset `cifar10_supcon`, `cifar10_cnce` or `cifar10_cae`
(`--method`): forward pass of two views of each of --batch images a process, cross-entropy on the
coarse labels, contrastive loss with the candidates of all processes or reconstruction, backward
pass, gradients averaged over the processes, AdamW. With `--views device`, also drawing a batch of
images, which lie on the device, and making their views there; with `--views none`, the default,
the step is fed the same random normalised views again and again. Not timed: reading data,
evaluation, checkpoints, --warmup steps (at least one, so that a compilation or capture is not
timed).

How: nothing in the timed loop waits for the device. On CUDA an event is recorded between each two
steps, and the events are read after the loop, so a step's time includes the gaps in which the
device waits for Python. On the CPU operations are synchronous, so the clock is read between each
two steps. Times are those of process 0: with several processes every step ends in a collective of
all of them.

Modes: `eager`; `compile`: views, forward pass and loss in one function under `torch.compile`,
which compiles their backward pass with them; the update stays PyTorch's fused kernel, as
`torch.compile` refuses to trace into it; `max-autotune`: the same with mode="max-autotune", which
also replays CUDA graphs of the compiled parts; `graph`: the whole eager step, update included,
captured as one CUDA graph; `compile-graph`: the whole step of `compile` captured so. Gradients are
averaged by DDP, which sends them beside the backward pass.

`--last-block all` computes every token in the ViT's last block; by default the peer computes the
CLS token alone there, as the trainer does, so that both do the same arithmetic.

Peak memory is of the process that needs most: on CUDA what tensors held at most, including warm-up
and, where a mode has them, tuning and capture; on the CPU the largest resident set.
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from peer_step import METHODS, MODELS, MODES, PRECISIONS, Batch, Build
from peer_step import set_precision, training_loss, training_step
from peer_views import random_views

IMAGES = 10_000
SIDE = 32
# A compilation, a warm-up and a recording of the forward and of the backward pass, and one more.
WARMUP_OF_AUTOTUNE = 4
# Longer than a compilation, which one process may finish before another.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


class Refused(Exception):
    """What is asked for cannot be had here."""


def arguments() -> argparse.Namespace:
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=METHODS, default="cnce")
    parser.add_argument("--model", choices=MODELS, default="vit")
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda (one a process) or cuda:N")
    parser.add_argument("--backend", choices=["none", "gloo", "nccl"], default="none")
    parser.add_argument("--world", type=int, default=1, help="processes, started by this program")
    parser.add_argument("--batch", type=int, default=128, help="images a process")
    parser.add_argument("--views", choices=["none", "device"], default="none")
    parser.add_argument("--last-block", choices=["cls", "all"], default="cls")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of a process, on the CPU")
    parser.add_argument(
        "--self-test", action="store_true", help="check against tests/parity, measure nothing"
    )
    return parser.parse_args()


def check(a: argparse.Namespace) -> None:
    """Raises `Refused` for what cannot be measured here."""
    device = torch.device(a.device)
    for name in ("world", "batch", "steps", "warmup", "threads"):
        if getattr(a, name) < 1:
            raise Refused(f"--{name} {getattr(a, name)}: at least 1")
    if (a.world > 1) != (a.backend != "none"):
        raise Refused(
            f"--world {a.world} with --backend {a.backend}: two or more need gloo or nccl"
        )
    if a.mode == "max-autotune" and a.warmup < WARMUP_OF_AUTOTUNE:
        raise Refused(
            f"--mode max-autotune records graphs in its first steps: --warmup {WARMUP_OF_AUTOTUNE}"
        )
    if device.type == "cpu":
        if a.mode in ("graph", "compile-graph"):
            raise Refused(f"--mode {a.mode} needs CUDA, and the device is the CPU")
        if a.backend == "nccl":
            raise Refused("--backend nccl needs CUDA, and the device is the CPU")
        if a.precision == "tf32":
            raise Refused("--precision tf32 needs CUDA, and the device is the CPU")
        return
    if not torch.cuda.is_available():
        raise Refused(f"--device {a.device}: PyTorch finds no CUDA device")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise Refused(f"--device {a.device}: this machine has {count} CUDA devices")
    if a.backend == "nccl" and (device.index is not None or count < a.world):
        raise Refused(
            f"--backend nccl needs {a.world} CUDA devices, one a process, and --device cuda"
        )
    if a.backend == "gloo" and a.mode in ("max-autotune", "graph", "compile-graph"):
        raise Refused(f"--mode {a.mode} captures collectives, which Gloo does not support")


def batches(a: argparse.Namespace, device: torch.device) -> Batch:
    """A function that gives views [2b, 3, S, S] float32 and coarse labels [b], made from what lies
    on the device.
    """
    if a.views == "none":
        views = torch.randn(2 * a.batch, 3, SIDE, SIDE, device=device)
        labels = torch.randint(0, 2, (a.batch,), device=device)
        return lambda: (views, labels)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    coarse = torch.randint(0, 2, (IMAGES,), device=device)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, IMAGES, (a.batch,), device=device)
        return random_views(images[chosen].repeat_interleave(2, 0)), coarse[chosen]

    return batch


def timed(
    step: Callable[[], Tensor], steps: int, device: torch.device
) -> tuple[list[float], float]:
    """The duration of each step in ms, and the last step's loss."""
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        events[0].record()
        for event in events[1:]:
            loss = step()
            event.record()
        torch.cuda.synchronize()
        return [
            before.elapsed_time(after) for before, after in zip(events, events[1:])
        ], loss.item()
    clock = [time.perf_counter()]
    for _ in range(steps):
        loss = step()
        clock.append(time.perf_counter())
    return [1e3 * (after - before) for before, after in zip(clock, clock[1:])], loss.item()


def peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def spread(values: list[float], digits: int) -> dict[str, float]:
    three = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in three.items()}


def measured(a: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Trains, and says how fast and at what cost in memory; a process's own figures."""
    set_precision(a.precision)
    # The same initial weights on every process, but other views.
    torch.manual_seed(0)
    build = Build(a.model, a.method, a.mode, a.precision, device, all_tokens=a.last_block == "all")
    module = training_loss(build)
    torch.manual_seed(1 + (dist.get_rank() if dist.is_initialized() else 0))
    step = training_step(build, module, batches(a, device))
    for _ in range(a.warmup):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    milliseconds, loss = timed(step, a.steps, device)
    if not math.isfinite(loss):
        raise Refused(f"the loss is {loss} after {a.warmup + a.steps} steps")
    images_per_s = [1e3 * a.world * a.batch / value for value in milliseconds]
    return {
        "program": "pytorch",
        "torch": torch.__version__,
        "device": str(device),
        "device_name": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **{
            name: getattr(a, name)
            for name in ("mode", "precision", "backend", "world", "batch", "method", "model")
        },
        **{
            name: getattr(a, name) for name in ("views", "last_block", "threads", "steps", "warmup")
        },
        "ms_per_step": spread(milliseconds, 3),
        "images_per_s": spread(images_per_s, 1),
        "peak_memory_bytes": peak_memory_bytes(device),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "loss": loss,
    }


def device_of(a: argparse.Namespace, rank: int) -> torch.device:
    device = torch.device(a.device)
    if device.type == "cuda":
        device = torch.device(
            "cuda", rank % torch.cuda.device_count() if device.index is None else device.index
        )
        torch.cuda.set_device(device)
    return device


def process(rank: int, a: argparse.Namespace, folder: str) -> None:
    """One of several processes; it leaves its figures in a file of its own."""
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    # PyTorch's notes ask for it where collectives are captured.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    torch.set_num_threads(a.threads)
    device = device_of(a, rank)
    dist.init_process_group(
        a.backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=a.world,
        timeout=COLLECTIVE_TIMEOUT,
    )
    found = measured(a, device)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def run(a: argparse.Namespace) -> dict[str, object]:
    """The figures of process 0, with the peak memory of the process that needs most."""
    if a.world == 1:
        torch.set_num_threads(a.threads)
        return measured(a, device_of(a, 0))
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        multiprocessing.start_processes(process, (a, folder), a.world, start_method="spawn")
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(a.world)]
    return {**found[0], "peak_memory_bytes": max(one["peak_memory_bytes"] for one in found)}


def main() -> None:
    a = arguments()
    if a.self_test:
        from peer_self_test import self_test

        sys.exit(self_test())
    try:
        check(a)
        print(json.dumps(run(a)))
    except Refused as why:
        print(f"peer.py: {why}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
