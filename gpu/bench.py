"""One batch size: ours and PyTorch's in turn (ours, a peer, ours, the next peer, ...), a process
each. Every measurement is a line of bench.jsonl as soon as it is there; the ratio to a peer is to
the mean of ours before and after it."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

SKIPPED = 77
# A peer: its mode and precision. The slowest to start is last.
PEERS = [
    ("eager", "bf16"),
    ("compile", "bf16"),
    ("graph", "bf16"),
    ("eager", "tf32"),
    ("max-autotune", "bf16"),
]
PEERS_SHORT = [("eager", "float32")]
# What `model.precision` calls a peer's precision.
PRECISIONS = {"bf16": "bfloat16", "tf32": "tf32", "float32": "float32"}
# A measurement needs at most this; what cannot be had in the time that is left is named, and is no
# failure.
OURS_SECONDS, PEER_SECONDS = 40, 110


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.ends_at = time.monotonic() + arguments.seconds
        self.out = Path(arguments.out)
        self.failed, self.skipped = [], []
        self.drop_old_rows()

    def drop_old_rows(self):
        rows = self.out.read_text().splitlines() if self.out.exists() else []
        rows = [row for row in rows if json.loads(row)["section"] != self.arguments.batch]
        self.out.write_text("".join(row + "\n" for row in rows))

    def measure(self, name, command, most_seconds):
        """The JSON line that a command prints, recorded; None if there is none."""
        left = self.ends_at - time.monotonic()
        if left < most_seconds / 4:
            self.skipped.append(f"{name}: no time left")
            return None
        command = [str(word) for word in command]
        print("$", *command, flush=True)
        try:
            limit = min(left, most_seconds)
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            self.skipped.append(f"{name}: took more than {limit:.0f} s")
            return None
        except OSError as error:
            self.failed.append(f"{name}: {error}")
            return None
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        print(done.stdout, flush=True)
        if done.returncode != 0 or not lines:
            self.failed.append(f"{name}: exit code {done.returncode}")
            return None
        row = {
            "section": self.arguments.batch,
            "name": name,
            "command": command,
            **json.loads(lines[-1]),
        }
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def ours(self, precision):
        a = self.arguments
        command = [
            a.coord,
            "bench",
            preset_of(a),
            f"train.batch_size={batch_of(a)}",
            f"model.precision={precision}",
        ]
        command += ["--workers", 1, "--warmup", warmup_of(a), "--steps", steps_of(a)]
        return self.measure(f"ours {precision}", command, OURS_SECONDS)

    def peer(self, mode, precision):
        a = self.arguments
        command = [
            sys.executable,
            a.peer,
            "--mode",
            mode,
            "--precision",
            precision,
            "--backend",
            "none",
            "--world",
            1,
        ]
        command += [
            "--device",
            a.device,
            "--batch",
            batch_of(a),
            "--method",
            "cnce",
            "--views",
            "device",
        ]
        command += ["--warmup", warmup_of(a), "--steps", steps_of(a)]
        return self.measure(f"{mode} {precision}", command, PEER_SECONDS)


def preset_of(arguments):
    return "digits_cnce" if arguments.short else "cifar10_cnce"


def batch_of(arguments):
    return 8 if arguments.short else arguments.batch


def warmup_of(arguments):
    return 1 if arguments.short else 20


def steps_of(arguments):
    return 2 if arguments.short else 100


def compare(bench, peers):
    """Ratios of images a second, ours to a peer's."""
    ratios, before = {}, {}
    for mode, theirs_in in peers:
        ours_in = PRECISIONS[theirs_in]
        if ours_in not in before:
            before[ours_in] = bench.ours(ours_in)
        theirs = bench.peer(mode, theirs_in)
        after = bench.ours(ours_in) if theirs else None
        pair = [row for row in (before[ours_in], after) if row]
        if theirs and pair:
            name = f"{mode} {theirs_in}"
            ratios[f"{name} (ours {ours_in})"] = put_ratio(bench, (ours_in, name), pair, theirs)
        before[ours_in] = after or before[ours_in]
    return ratios


def put_ratio(bench, names, ours, theirs):
    """Records and returns the ratio of medians, and records the range that the least and the
    greatest times of both leave."""
    median = sum(row["images_per_s"]["median"] for row in ours) / len(ours)
    least = min(row["images_per_s"]["min"] for row in ours) / theirs["images_per_s"]["max"]
    most = max(row["images_per_s"]["max"] for row in ours) / theirs["images_per_s"]["min"]
    ratio = {"median": median / theirs["images_per_s"]["median"], "min": least, "max": most}
    row = {"section": bench.arguments.batch, "ours": names[0], "peer": names[1], "ratio": ratio}
    row |= {"ours_images_per_s": median, "peer_images_per_s": theirs["images_per_s"]["median"]}
    with bench.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return ratio["median"]


def figures(bench, ratios):
    texts = [f"{ratio:.2f} x {name}" for name, ratio in ratios.items()]
    return "; ".join(texts + bench.failed + bench.skipped) or "nothing was measured"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("batch", type=int, help="images a step")
    parser.add_argument("--coord", required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--work")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", required=True, help="bench.jsonl")
    parser.add_argument(
        "--seconds", type=float, required=True, help="for all measurements together"
    )
    parser.add_argument("--peer", required=True, help="peer.py")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and (arguments.batch > 128 or not arguments.short):
        print("figures: needs CUDA: a step of this size takes seconds to minutes on a CPU")
        sys.exit(SKIPPED)
    bench = Bench(arguments)
    peers = PEERS_SHORT if arguments.device == "cpu" else PEERS
    if arguments.device == "cpu" and importlib.util.find_spec("torch") is None:
        ours = bench.ours("float32")
        print(f"figures: python3 has no torch for the peers; ours {'ran' if ours else 'failed'}")
        sys.exit(SKIPPED if ours else 1)
    ratios = compare(bench, peers)
    print(f"figures: {figures(bench, ratios)}")
    sys.exit(1 if bench.failed or not ratios else 0)


if __name__ == "__main__":
    main()
