"""The part of `run.py` that compares training steps: `thanos-coord bench` and `peer.py` in turn.

Each try runs ours once and each of PyTorch's variants once, with the same number of images and of
threads a process on both sides. Ours makes its views within the step; PyTorch's are ready unless
--peer-views says device. A ratio is given where the precisions are the same, a line of PyTorch's
alone elsewhere.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    group = parser.add_argument_group("training")
    group.add_argument("--method", choices=["supcon", "cnce", "cae"], default="cnce")
    group.add_argument("--device", default="cpu", help="of PyTorch's processes; ours: --ours")
    group.add_argument(
        "--worlds", type=int, nargs="+", default=[1, 2], help="numbers of processes"
    )
    group.add_argument("--batch", type=int, default=128, help="images a process")
    group.add_argument("--threads", type=int, default=1, help="of a process")
    group.add_argument("--steps", type=int, default=4)
    group.add_argument("--warmup", type=int, default=1, help="max-autotune needs 4")
    group.add_argument(
        "--precisions", nargs="+", default=["float32", "bf16"], help="of PyTorch's processes"
    )
    group.add_argument(
        "--modes", nargs="+", default=["eager", "compile"], help="of PyTorch's processes"
    )
    group.add_argument(
        "--peer-views",
        choices=["none", "device"],
        default="none",
        help="see peer.py; ours makes them",
    )
    group.add_argument(
        "--ours",
        default="",
        help="more for `thanos-coord bench`, as --ours='model.dropout=0 --images 512'",
    )
    group.add_argument(
        "--ours-precision",
        default="float32",
        help="PyTorch's precision that ours is compared with",
    )


def last_line(command: list[str], environment: dict[str, str]) -> dict:
    """The JSON line that a benchmark of training prints. Exits if the benchmark failed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode} of: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def ours_of(a: argparse.Namespace, world: int) -> list[str]:
    size = f"train.batch_size={a.batch * world} --workers {world} --threads-per-worker {a.threads}"
    steps = f"--steps {a.steps} --warmup {a.warmup}"
    return [a.coord, "bench", f"cifar10_{a.method}", *shlex.split(f"{size} {steps} {a.ours}")]


def peer_of(a: argparse.Namespace, world: int, precision: str, mode: str) -> list[str]:
    backend = ("nccl" if a.device.startswith("cuda") else "gloo") if world > 1 else "none"
    what = f"--method {a.method} --precision {precision} --mode {mode} --device {a.device}"
    size = f"--world {world} --backend {backend} --threads {a.threads} --batch {a.batch}"
    steps = f"--steps {a.steps} --warmup {a.warmup} --views {a.peer_views}"
    return [sys.executable, str(HERE / "peer.py"), *f"{what} {size} {steps}".split()]


def training(arguments: argparse.Namespace) -> None:
    """Ours against the same step in plain PyTorch, for each number of processes."""
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    print(
        "\n| training | ours, images/s | PyTorch, images/s | ours / PyTorch: median (min to max) |"
        "\n|---|---|---|---|"
    )
    peers = [(precision, mode) for precision in arguments.precisions for mode in arguments.modes]
    for world in arguments.worlds:
        ours: list[float] = []
        theirs: dict[tuple[str, str], list[float]] = {peer: [] for peer in peers}
        for _ in range(arguments.pairs):
            ours.append(last_line(ours_of(arguments, world), threads)["images_per_s"]["median"])
            for peer, found in theirs.items():
                line = last_line(peer_of(arguments, world, *peer), threads)
                found.append(line["images_per_s"]["median"])
        for (precision, mode), found in theirs.items():
            size = f"{world} x {arguments.batch} images"
            what = f"cifar10_{arguments.method}, {size}, PyTorch {precision} {mode}"
            training_row(what, ours if precision == arguments.ours_precision else None, found)


def training_row(what: str, ours: list[float] | None, theirs: list[float]) -> None:
    """`ours` is None where the precisions differ: a ratio would compare two computations."""
    their = f"{statistics.median(theirs):,.1f} ({min(theirs):,.1f} to {max(theirs):,.1f})"
    if ours is None:
        print(f"| {what} | | {their} | |", flush=True)
        return
    ratios = [one / other for one, other in zip(ours, theirs)]
    our = f"{statistics.median(ours):,.1f} ({min(ours):,.1f} to {max(ours):,.1f})"
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {what} | {our} | {their} | {ratio} |", flush=True)
