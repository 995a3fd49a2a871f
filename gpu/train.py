"""Sections that train: they start `thanos-coord`, disturb it, and compare run directories.
`train.py SECTION ...`.

Only files of a run directory and exit codes are looked at, so that nothing here depends on how the
programs work."""

import argparse
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SKIPPED = 77
# A launch's exit code when it was stopped and can be resumed.
STOPPED = 75
MAX_LOSS_DIFFERENCE = 1e-3
POLL_SECONDS = 0.002
WEIGHTS = ("model.safetensors", "best.safetensors", "optimizer.safetensors")
HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """What the section shows to be wrong."""


class Runs:
    """Launches of this section, each in a folder of its own."""

    def __init__(self, arguments):
        self.coord, self.device, self.work = arguments.coord, arguments.device, Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)

    def folder(self, name):
        return self.work / name

    def start(self, name, *target, workers=1, collectives=None, device=None):
        """On the CPU without options: run.sh hides the GPUs then."""
        options = [
            "--nodes",
            str(workers),
            "--threads-per-worker",
            "1",
            "--run-dir",
            self.folder(name),
        ]
        device = device or self.device
        if self.device == "cuda":
            options += ["--device", "cuda:0" if device == "cuda" else "cpu"]
            options += ["--collectives", collectives] if collectives else []
        return self._spawn("launch", *options, *target)

    def resume(self, name):
        return self._spawn("launch", "--resume", "--run-dir", self.folder(name))

    def _spawn(self, *words):
        command = [str(word) for word in (self.coord, *words)]
        print("$", *command, flush=True)
        return subprocess.Popen(command, cwd=self.work)

    def finish(self, process, code=0):
        if process.wait() != code:
            for log in sorted(self.work.glob("*/logs/*.log")):
                print(f"== {log}\n{log.read_text(errors='replace')[-3000:]}")
            raise Failed(f"thanos-coord ended with exit code {process.returncode}, expected {code}")

    def verify(self, *names):
        """`verify-run` finds each run sound and, of two, no difference."""
        command = [self.coord, "verify-run", *(str(self.folder(name)) for name in names)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if done.returncode != 0 or "every step exactly once and in order" not in done.stdout:
            raise Failed(
                f"verify-run ended with exit code {done.returncode}: {done.stdout.strip()[-200:]}"
            )
        if len(names) == 2 and "identical in all " not in done.stdout:
            raise Failed(f"verify-run: {done.stdout.strip().splitlines()[-1]}")

    def json_lines(self, name, file):
        """Whole lines: the last one may still be in writing."""
        path = self.folder(name) / file
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def losses(self, name, stage):
        return [
            line["loss"] for line in self.json_lines(name, "steps.jsonl") if line["stage"] == stage
        ]

    def wait_for_steps(self, process, name, steps):
        while len(self.json_lines(name, "steps.jsonl")) < steps:
            if process.poll() is not None:
                raise Failed(
                    f"thanos-coord ended with exit code {process.returncode} before step {steps}"
                )
            time.sleep(POLL_SECONDS)

    def weights(self, name, stage):
        """SHA-256 of the files of a stage's last checkpoint."""
        folders = sorted((self.folder(name) / "checkpoints" / stage).iterdir())
        return {
            file: hashlib.sha256((folders[-1] / file).read_bytes()).hexdigest() for file in WEIGHTS
        }

    def require_equal_weights(self, one, other, stage):
        left, right = self.weights(one, stage), self.weights(other, stage)
        different = [file for file in WEIGHTS if left[file] != right[file]]
        if different:
            raise Failed(f"stage {stage}: {', '.join(different)} differ")


def digits(runs, short):
    """Past step 100, where ranks compare their replicas, then a probe: losses are finite and
    fall."""
    steps = 110 if short else 210
    runs.finish(runs.start("run", "digits_cnce", f"train.max_steps={steps}", "transfer.epochs=2"))
    runs.verify("run")
    losses = runs.losses("run", "cnce")
    if len(losses) != steps or not all(
        isinstance(loss, float) and math.isfinite(loss) for loss in losses
    ):
        raise Failed(f"{len(losses)} losses of {steps}, or not all are finite")
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    if last >= first:
        raise Failed(f"the loss rose from {first:.4f} to {last:.4f}")
    return f"{steps} steps and a probe, loss {first:.4f} to {last:.4f}"


def cifar(runs, short):
    """The preset of the benchmarks at its real size, from files on the disk: packed, trained,
    evaluated."""
    if runs.device == "cpu":
        return None, "needs CUDA: a step of this preset takes seconds on a CPU"
    images, steps = (5000, 10) if short else (20_000, 110)
    data = runs.folder("data")
    subprocess.run([sys.executable, HERE / "cifar_like.py", data, str(images)], check=True)
    target = [f"data.dir={data}", f"train.max_steps={steps}", "transfer.max_steps=10"]
    runs.finish(runs.start("run", "cifar10_thanos", *target))
    runs.verify("run")
    count = len(runs.json_lines("run", "steps.jsonl"))
    return f"{count} steps of cifar10_thanos on {images} random images"


def losses(runs, short):
    """The same steps on the CPU and on the device. Dropout is off: its random numbers differ
    between devices.

    The autoencoder is compared in float64. Its batch normalisation amplifies rounding: in float32
    even one and two ranks on one CPU are 6e-3 apart within 50 steps, and float32 and float64 1e-2,
    where the encoder's are 1e-7 apart."""
    steps, figures = 20 if short else 50, []
    for stage, precision in (("cnce", "float32"), ("cae", "float64")):
        target = [f"digits_{stage}", f"train.max_steps={steps}", f"model.precision={precision}"]
        for name, device in (("cpu", "cpu"), ("device", runs.device)):
            runs.finish(
                runs.start(f"{stage}-{name}", *target, "model.dropout=0", "rows=[]", device=device)
            )
        pairs = list(
            zip(*(runs.losses(f"{stage}-{name}", stage) for name in ("cpu", "device")), strict=True)
        )
        if len(pairs) != steps:
            raise Failed(f"stage {stage}: {len(pairs)} losses of {steps}")
        apart = [abs(device - cpu) / max(1.0, abs(cpu)) for cpu, device in pairs]
        for step, ((cpu, device), difference) in enumerate(zip(pairs, apart)):
            print(
                f"{stage} step {step}: cpu {cpu!r}, device {device!r}, difference {difference:.2e}"
            )
        figures.append(f"{stage} {precision}: first {apart[0]:.1e}, largest {max(apart):.1e}")
        if not max(apart) <= MAX_LOSS_DIFFERENCE:
            raise Failed(f"{figures[-1]}, allowed {MAX_LOSS_DIFFERENCE:.0e}")
    return f"{steps} losses against the CPU's, {'; '.join(figures)}"


def resume(runs, short):
    """Stopped by SIGTERM within an epoch and resumed, against a run that was not stopped."""
    steps = 30 if short else 60
    target = ["digits_thanos", f"train.max_steps={steps}", "model.dropout=0.1", "rows=[]"]
    runs.finish(runs.start("whole", *target))
    process = runs.start("parts", *target)
    runs.wait_for_steps(process, "parts", 13)
    process.send_signal(signal.SIGTERM)
    runs.finish(process, STOPPED)
    stopped_after = len(runs.json_lines("parts", "steps.jsonl"))
    runs.finish(runs.resume("parts"))
    runs.verify("whole", "parts")
    for stage in ("cnce", "cae"):
        runs.require_equal_weights("whole", "parts", stage)
    return (
        f"stopped after step {stopped_after} of {2 * steps} and resumed: "
        "weights and losses bit-equal"
    )


def ranks(runs, short, collectives):
    """Two ranks, one of them killed by SIGKILL, against a run that was not disturbed."""
    steps = 40 if short else 120
    target = ["digits_cnce", f"train.max_steps={steps}", "model.dropout=0.1", "rows=[]"]
    runs.finish(runs.start("whole", *target, workers=2, collectives=collectives))
    process = runs.start("disturbed", *target, workers=2, collectives=collectives)
    runs.wait_for_steps(process, "disturbed", steps // 4)
    joined = [
        event
        for event in runs.json_lines("disturbed", "events.jsonl")
        if event["event"] == "joined"
    ]
    os.kill(next(event["pid"] for event in joined if event["worker"] == "worker-1"), signal.SIGKILL)
    runs.finish(process)
    runs.verify("whole", "disturbed")
    runs.require_equal_weights("whole", "disturbed", "cnce")
    recovered = [
        event
        for event in runs.json_lines("disturbed", "events.jsonl")
        if event["event"] == "recovered"
    ]
    if not recovered:
        raise Failed("no recovery is recorded: the worker was killed too late")
    return (
        f"2 ranks, 1 killed, in training again after {recovered[0]['seconds']:.2f} s: "
        "weights and losses bit-equal"
    )


def nccl(runs, short):
    if runs.device == "cpu":
        return None, "needs CUDA: NCCL has no CPU form"
    return ranks(runs, short, "nccl")


SECTIONS = {
    "digits": digits,
    "cifar": cifar,
    "losses": losses,
    "resume": resume,
    "gloo": lambda runs, short: ranks(runs, short, "gloo"),
    "nccl": nccl,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--coord", required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    try:
        figures = SECTIONS[arguments.section](Runs(arguments), arguments.short)
    except (Failed, OSError, ValueError) as error:
        print(f"figures: {error}")
        sys.exit(1)
    if isinstance(figures, tuple):
        print(f"figures: {figures[1]}")
        sys.exit(SKIPPED)
    print(f"figures: {figures}")


if __name__ == "__main__":
    main()
