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

# PyTorch's name of a precision, and ours.
PRECISIONS = {"float32": "float32", "tf32": "tf32", "bf16": "bfloat16"}


def training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    group = parser.add_argument_group("training")
    group.add_argument("--method", choices=["supcon", "cnce", "cae"], default="cnce")
    group.add_argument("--device", default="cpu", help="of PyTorch's processes; ours: --ours")
    group.add_argument("--worlds", type=int, nargs="+", default=[1, 2], help="numbers of processes")
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
        "--ours-precisions",
        nargs="+",
        choices=list(PRECISIONS),
        default=["float32"],
        help="of our processes, named as PyTorch's",
    )


def last_line(command: list[str], environment: dict[str, str]) -> dict:
    """The JSON line that a benchmark of training prints. Exits if the benchmark failed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode} of: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def ours_of(a: argparse.Namespace, world: int, precision: str) -> list[str]:
    size = f"train.batch_size={a.batch * world} --workers {world} --threads-per-worker {a.threads}"
    steps = f"--steps {a.steps} --warmup {a.warmup} model.precision={PRECISIONS[precision]}"
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
        ours: dict[str, list[dict]] = {precision: [] for precision in arguments.ours_precisions}
        theirs: dict[tuple[str, str], list[dict]] = {peer: [] for peer in peers}
        for _ in range(arguments.pairs):
            for precision, found in ours.items():
                found.append(last_line(ours_of(arguments, world, precision), threads))
            for peer, found in theirs.items():
                found.append(last_line(peer_of(arguments, world, *peer), threads))
        for (precision, mode), found in theirs.items():
            size = f"{world} x {arguments.batch} images"
            what = f"cifar10_{arguments.method}, {size}, PyTorch {precision} {mode}"
            training_row(what, ours.get(precision), found)


def rates_of(lines: list[dict]) -> list[float]:
    return [line["images_per_s"]["median"] for line in lines]


def described(lines: list[dict]) -> str:
    """Images a second, and the memory of the process that used most."""
    rates, bytes_ = rates_of(lines), [line["peak_memory_bytes"] for line in lines]
    rate = f"{statistics.median(rates):,.1f} ({min(rates):,.1f} to {max(rates):,.1f})"
    return f"{rate}, {statistics.median(bytes_) / 1e9:.1f} GB"


def training_row(what: str, ours: list[dict] | None, theirs: list[dict]) -> None:
    """`ours` is None where the precisions differ: a ratio would compare two computations."""
    if ours is None:
        print(f"| {what} | | {described(theirs)} | |", flush=True)
        return
    ratios = [one / other for one, other in zip(rates_of(ours), rates_of(theirs))]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {what} | {described(ours)} | {described(theirs)} | {ratio} |", flush=True)
