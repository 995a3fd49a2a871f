"""`make bench`: ours and PyTorch's in turn (A B A B ...) in one run; prints ratios as tables.

Absolute times on a shared machine drift, so the figure is the median of the ratios pair by pair, with the minimum and
the maximum. Nothing else should run meanwhile. Views and packing run on one core each; training on --threads cores a
process, with one process and with two, the same number of images a process on both sides.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def lines(command, **more):
    """The JSON lines that a command prints, on one core."""
    on_one_core = {"preexec_fn": lambda: os.sched_setaffinity(0, {0})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **on_one_core, **more)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def last_line(command: list[str], environment: dict[str, str]) -> dict:
    """The JSON line that a benchmark of training prints, or the end of this program with what it said instead."""
    command = [str(part) for part in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode} of: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def ours_of(arguments: argparse.Namespace, world: int) -> list[str]:
    batch = f"train.batch_size={arguments.batch * world}"
    size = ["--workers", world, "--threads-per-worker", arguments.threads]
    steps = ["--steps", arguments.steps, "--warmup", arguments.warmup]
    return [arguments.coord, "bench", f"cifar10_{arguments.method}", batch, *arguments.ours, *size, *steps]


def peer_of(arguments: argparse.Namespace, world: int, precision: str, mode: str) -> list[str]:
    backend = ("nccl" if arguments.device.startswith("cuda") else "gloo") if world > 1 else "none"
    size = ["--world", world, "--backend", backend, "--threads", arguments.threads, "--batch", arguments.batch]
    steps = ["--steps", arguments.steps, "--warmup", arguments.warmup]
    what = ["--method", arguments.method, "--precision", precision, "--mode", mode, "--device", arguments.device]
    return [sys.executable, HERE / "peer.py", *what, *size, *steps, "--views", arguments.peer_views]


def training(arguments: argparse.Namespace) -> None:
    """Ours in float32 against the same step in plain PyTorch; PyTorch's other precisions have no pair of ours."""
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    print("\n| training | ours, images/s | PyTorch, images/s | ours / PyTorch: median (min to max) |\n|---|---|---|---|")
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
            what = f"cifar10_{arguments.method}, {world} x {arguments.batch} images, PyTorch {precision} {mode}"
            training_row(what, ours if precision == arguments.ours_precision else None, found)


def training_row(what: str, ours: list[float] | None, theirs: list[float]) -> None:
    """`ours` is None where the precisions differ: a ratio would compare two different computations."""
    their = f"{statistics.median(theirs):,.1f} ({min(theirs):,.1f} to {max(theirs):,.1f})"
    if ours is None:
        print(f"| {what} | | {their} | |", flush=True)
        return
    ratios = [one / other for one, other in zip(ours, theirs)]
    our = f"{statistics.median(ours):,.1f} ({min(ours):,.1f} to {max(ours):,.1f})"
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {what} | {our} | {their} | {ratio} |", flush=True)


def row(what, ours, theirs, unit):
    ratios = [our / their for our, their in zip(ours, theirs)]
    medians = [statistics.median(values) for values in (ours, theirs, ratios)]
    print(
        f"| {what} | {medians[0]:,.0f} {unit} | {medians[1]:,.0f} {unit} "
        f"| {medians[2]:.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |",
        flush=True,
    )


def views(arguments):
    found = {}
    for _ in range(arguments.pairs):
        for line in lines([arguments.views]):
            found.setdefault(("ours", line["side"]), []).append(line["views_per_s_per_core"])
        for line in lines([sys.executable, HERE / "torchvision_views.py"]):
            found.setdefault((line["pipeline"], line["side"]), []).append(line["views_per_s_per_core"])
    for side in (32, 64):
        for pipeline, name in (("pil", "PIL path"), ("tensor", "tensor path")):
            what = f"views of {side} x {side}, torchvision's {name}"
            row(what, found["ours", side], found[pipeline, side], "/s")


def packing(arguments):
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "tiny-imagenet-200.zip"
        subprocess.run([sys.executable, HERE / "tinyimagenet_like.py", archive, str(arguments.per_class)], check=True)
        ours, theirs, starts = [], {"memory": [], "zip": []}, []
        for _ in range(arguments.pairs):
            packs = Path(folder) / "packs"
            command = [arguments.coord, "data", "pack", "tinyimagenet", "--dir", folder, "--packs-dir", packs]
            for line in lines([sys.executable, HERE / "pil_decode.py", archive]):
                theirs[line["from"]].append(line["images_per_s_per_core"])
            one_thread = {"env": {**os.environ, "RAYON_NUM_THREADS": "1"}}
            # Once for the page cache: on a virtual machine, memory that is fresh from the host costs as much as half
            # of the work, and PIL's program writes nothing.
            lines(command, **one_thread)
            shutil.rmtree(packs)
            started = time.perf_counter()
            lines(command, **one_thread)
            images = 200 * (arguments.per_class + 5)
            ours.append(images / (time.perf_counter() - started))
            started = time.perf_counter()
            lines(command)
            starts.append(time.perf_counter() - started)
            shutil.rmtree(packs)
        row("packing of TinyImageNet from its .zip; PIL decodes from it", ours, theirs["zip"], "images/s")
        row("the same; PIL decodes from memory", ours, theirs["memory"], "images/s")
        size = archive.stat().st_size / 1e6
        print(f"\nStart from a pack of {images:,} images ({size:.0f} MB of .zip): {statistics.median(starts):.2f} s.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--views", help="the benchmark of views, built")
    parser.add_argument("--coord", required=True, help="thanos-coord, built")
    parser.add_argument("--only", choices=["views", "packing", "training"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--per-class", type=int, default=50, help="pictures a class; TinyImageNet has 500")
    group = parser.add_argument_group("training")
    group.add_argument("--method", choices=["supcon", "cnce", "cae"], default="cnce")
    group.add_argument("--device", default="cpu", help="of PyTorch's processes; ours: --ours")
    group.add_argument("--worlds", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    group.add_argument("--batch", type=int, default=128, help="images a process")
    group.add_argument("--threads", type=int, default=1, help="of a process")
    group.add_argument("--steps", type=int, default=4)
    group.add_argument("--warmup", type=int, default=1)
    group.add_argument("--precisions", nargs="+", default=["float32", "bf16"], help="of PyTorch's processes")
    group.add_argument("--modes", nargs="+", default=["eager", "compile"], help="of PyTorch's processes")
    group.add_argument("--peer-views", choices=["none", "device"], default="none", help="see peer.py; ours makes them")
    group.add_argument("--ours", nargs="+", default=[], help="further options and key=value of `thanos-coord bench`")
    group.add_argument("--ours-precision", default="float32", help="PyTorch's precision that ours is compared with")
    arguments = parser.parse_args()
    if arguments.views is None and arguments.only in (None, "views"):
        parser.error("--views is needed for the benchmark of views")
    if arguments.only != "training":
        heads = "| one core each | ours | theirs | ours / theirs: median (min to max) |"
        print(f"{heads}\n|---|---|---|---|", flush=True)
    for part in (views, packing, training):
        if arguments.only in (None, part.__name__):
            part(arguments)


if __name__ == "__main__":
    main()
