"""`make bench`: ours and PyTorch's in turn (A B A B ...) in one run; prints ratios as tables.

Absolute times on a shared machine drift, so the figure is the median of the ratios pair by pair,
with the minimum and the maximum. Nothing else should run meanwhile. Views and packing run on one
core each; `run_training.py` has the training step.
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

from run_training import training, training_options

HERE = Path(__file__).parent


def lines(command, **more):
    """The JSON lines that a command prints, on one core."""
    on_one_core = {"preexec_fn": lambda: os.sched_setaffinity(0, {0})}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, **on_one_core, **more
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


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
            found.setdefault((line["pipeline"], line["side"]), []).append(
                line["views_per_s_per_core"]
            )
    for side in (32, 64):
        for pipeline, name in (("pil", "PIL path"), ("tensor", "tensor path")):
            what = f"views of {side} x {side}, torchvision's {name}"
            row(what, found["ours", side], found[pipeline, side], "/s")


def packing(arguments):
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "tiny-imagenet-200.zip"
        subprocess.run(
            [sys.executable, HERE / "tinyimagenet_like.py", archive, str(arguments.per_class)],
            check=True,
        )
        ours, theirs, starts = [], {"memory": [], "zip": []}, []
        for _ in range(arguments.pairs):
            packs = Path(folder) / "packs"
            command = [
                arguments.coord,
                "data",
                "pack",
                "tinyimagenet",
                "--dir",
                folder,
                "--packs-dir",
                packs,
            ]
            for line in lines([sys.executable, HERE / "pil_decode.py", archive]):
                theirs[line["from"]].append(line["images_per_s_per_core"])
            one_thread = {"env": {**os.environ, "RAYON_NUM_THREADS": "1"}}
            # Once for the page cache: on a virtual machine, memory that is fresh from the host
            # costs as much as half of the work, and PIL's program writes nothing.
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
        row(
            "packing of TinyImageNet from its .zip; PIL decodes from it",
            ours,
            theirs["zip"],
            "images/s",
        )
        row("the same; PIL decodes from memory", ours, theirs["memory"], "images/s")
        size = archive.stat().st_size / 1e6
        print(
            f"\nStart from a pack of {images:,} images ({size:.0f} MB of .zip): "
            f"{statistics.median(starts):.2f} s."
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--views", help="the benchmark of views, built")
    parser.add_argument("--coord", required=True, help="thanos-coord, built")
    parser.add_argument("--only", choices=["views", "packing", "training"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--per-class", type=int, default=50, help="pictures a class; TinyImageNet has 500"
    )
    training_options(parser)
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
