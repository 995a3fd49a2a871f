"""The same kills against this trainer and against torchrun with DDP, in turn: how long each takes
to resume, and what it loses. `torchrun_train.py` is the other side's script: the same layers,
global batch, loss and number of steps.

    PYTHON benches/torchrun_faults.py --coord target/release/thanos-coord --results faults.jsonl

PYTHON has torch (only torchrun needs it). A try is, side after side, an undisturbed run and a
disturbed one: SIGKILL to a random worker at moments of a Poisson process, whose clock starts with
the side's first step. Tries of earlier calls in --results count into the table, so that a
comparison can be made in pieces. Nothing else should run meanwhile. Both sides' steps are timed
alike: their files with a line a step are read every 5 ms."""

import argparse
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORKERS = 4
POLL_S = 0.005
# A side that has made no new step for so long after a kill does not come back.
TIMEOUT_S = 60.0
# Every process of a run carries the run's folder under this name in its environment: so they are
# all found at the end.
MARK = "FAULTS_FOLDER"


@dataclass
class Kill:
    """Seconds since the launch; `back_s` is when the first new step of a newer group than the one
    hit was seen."""

    at_s: float
    group: int
    back_s: float | None = None
    steps_lost: int = 0


@dataclass(frozen=True)
class Run:
    """`wall_s`: from the launch until the last step was seen; None: it never was."""

    wall_s: float | None
    kills: list[Kill]
    failed: str | None


@dataclass(frozen=True)
class Size:
    steps: int
    every: int


@dataclass(frozen=True)
class Side:
    """`command` starts a run in a folder; `victims` are its workers now, by the folder and the
    started process."""

    command: Callable[[Path, Size], list[str]]
    victims: Callable[[Path, int], list[int]]
    environment: dict[str, str] = field(default_factory=dict)


def ours(coord: Path) -> Side:
    def command(folder: Path, size: Size) -> list[str]:
        launch = [
            str(coord),
            "launch",
            "--nodes",
            str(WORKERS),
            "--threads-per-worker",
            "1",
            "--run-dir",
            str(folder),
        ]
        # No probe, and no evaluation but the one after the last step: the other side has neither.
        recipe = ["rows=[]", f"train.max_steps={size.steps}", f"train.epochs={size.steps}"]
        # As often as the other side saves, and not by the clock as well.
        saves = [f"checkpoint.every_steps={size.every}", "checkpoint.every_seconds=null"]
        return [*launch, "digits_supcon", *recipe, f"train.evaluate_every={size.steps}", *saves]

    def victims(folder: Path, _: int) -> list[int]:
        pids: dict[str, int] = {}
        for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines()):
            if event["event"] == "joined":
                pids[event["worker"]] = event["pid"]
            elif event["event"] == "lost":
                pids.pop(event["worker"], None)
        return [pid for pid in pids.values() if parent(pid) is not None]

    return Side(command, victims)


def torchrun(start: list[str], environment: dict[str, str]) -> Side:
    """With what makes it fast. --standalone: the rendezvous has one node and waits for no other.
    --monitor-interval: the agent looks after its workers every 0.1 s, and stops the others with
    SIGTERM, at which the script leaves at once. A collective's time limit is short, should a
    survivor wait for a dead peer; mostly Gloo sees the closed connection before. The agent and Gloo
    stay on the loopback device, without looking up names."""

    def command(folder: Path, size: Size) -> list[str]:
        agent = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr",
            "127.0.0.1",
        ]
        agent += [
            "--nproc-per-node",
            str(WORKERS),
            "--max-restarts",
            "100",
            "--monitor-interval",
            "0.1",
            *start,
        ]
        data = HERE.parent / "coordinator" / "data" / "digits.csv.gz"
        script = [
            str(HERE / "torchrun_train.py"),
            "--folder",
            str(folder),
            "--data",
            str(data),
            "--timeout-s",
            "10",
        ]
        return [*agent, *script, "--steps", str(size.steps), "--every", str(size.every)]

    def victims(_: Path, agent: int) -> list[int]:
        return [pid for pid in processes() if parent(pid) == agent]

    return Side(command, victims, {"GLOO_SOCKET_IFNAME": "lo", **environment})


def sides(coord: Path) -> dict[str, Side]:
    # In torch 2.11 the agent lends its workers one key-value store for all restarts, and Gloo finds
    # the addresses of dead processes in it: a restarted group does not find together. With a store
    # of its own it does (pytorch/pytorch#135712); what happens without is the last side, which only
    # `--sides` names.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    # A worker is a new interpreter by default, which imports torch; one that is forked from the
    # agent has it already.
    forked = ["--run-path", "--start-method", "fork"]
    return {
        "ours": ours(coord),
        "torchrun": torchrun([], own_store),
        "torchrun-forked": torchrun(forked, own_store),
        "torchrun-shared-store": torchrun([], {}),
    }


def processes() -> list[int]:
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def parent(pid: int) -> int | None:
    """A process's parent; None: it does not live."""
    try:
        state, above = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(above)


def end(folder: Path) -> None:
    """Ends every process of a run, in whatever state it is and whatever its parent is by now."""
    mark, left = f"{MARK}={folder}".encode(), [0]
    while left:
        left = []
        for pid in processes():
            try:
                if (
                    mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    and parent(pid) is not None
                ):
                    left.append(pid)
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(POLL_S)


class Watch:
    """Follows one run's file of steps, sends its kills, and knows what they cost."""

    def __init__(self, ledger: Path) -> None:
        self.ledger, self.read, self.started = ledger, 0, time.monotonic()
        self.made, self.last, self.group = 0, -1, -1
        self.first_s: float | None = None
        self.newest_s = 0.0
        self.kills: list[Kill] = []

    def now_s(self) -> float:
        return time.monotonic() - self.started

    def look(self) -> None:
        if not self.ledger.exists():
            return
        with self.ledger.open("rb") as file:
            file.seek(self.read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.read += len(whole + newline)
        for line in map(json.loads, whole.splitlines()):
            self.step(line["step"], line["generation"])

    def step(self, step: int, group: int) -> None:
        now_s = self.now_s()
        self.first_s = now_s if self.first_s is None else self.first_s
        if group > self.group and self.kills:
            self.kills[-1].steps_lost += self.last + 1 - step
        self.last, self.group = step, group
        if step < self.made:
            return
        self.made, self.newest_s = step + 1, now_s
        for kill in self.unanswered():
            # A step that the old group still finished is no answer.
            if group > kill.group:
                kill.back_s = now_s

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(self.now_s(), self.group))

    def unanswered(self) -> list[Kill]:
        return [kill for kill in self.kills if kill.back_s is None]

    def overdue(self) -> bool:
        return (
            self.now_s() - min([kill.at_s for kill in self.unanswered()] or [self.newest_s])
            > TIMEOUT_S
        )


def disturb(
    side: Side, process: subprocess.Popen[bytes], watch: Watch, steps: int, schedule: list
) -> str | None:
    """Until the last step was seen (None), or it is known why it will not come."""
    while True:
        code = process.poll()
        watch.look()
        if watch.made == steps:
            return None
        if code is not None:
            return f"ended with exit code {code} at step {watch.made}"
        if watch.overdue():
            return f"did not come back within {TIMEOUT_S:.0f} s"
        if (
            schedule
            and watch.first_s is not None
            and watch.now_s() >= watch.first_s + schedule[0][0]
        ):
            # No process is there, as between two starts: the kill waits for one.
            if victims := side.victims(watch.ledger.parent, process.pid):
                watch.kill(victims[int(schedule.pop(0)[1] * len(victims))])
        time.sleep(POLL_S)


def run(side: Side, size: Size, schedule: list[tuple[float, float]]) -> Run:
    """One run; the schedule's kills are (seconds since the first step, which of the workers, in
    0..1)."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as name,
        (Path(name) / "log").open("w+b") as log,
    ):
        folder = Path(name) / "run"
        folder.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **side.environment, MARK: str(folder)}
        watch = Watch(folder / "steps.jsonl")
        process = subprocess.Popen(
            side.command(folder, size),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            failed = disturb(side, process, watch, size.steps, list(schedule))
            wall_s = watch.now_s() if failed is None else None
            if failed is None and (code := process.wait(TIMEOUT_S)) != 0:
                failed = f"exit code {code} after the last step"
        except subprocess.TimeoutExpired:
            failed = f"did not end within {TIMEOUT_S:.0f} s of its last step"
        finally:
            end(folder)
            process.wait()
        if failed is not None:
            log.seek(0)
            tail = log.read().decode(errors="replace").splitlines()[-25:]
            print(f"{failed}; the end of its output:", *tail, sep="\n")
    # A kill after the last step, but before that was seen, disturbed nothing.
    kills = [kill for kill in watch.kills if wall_s is None or kill.back_s is not None]
    return Run(wall_s, kills, failed)


def column(pairs: list[tuple[Run, Run]]) -> dict[str, str]:
    kills = [kill for _, disturbed in pairs for kill in disturbed.kills]
    back_s = sorted(kill.back_s - kill.at_s for kill in kills if kill.back_s is not None)
    lost = [kill.steps_lost for kill in kills if kill.back_s is not None]
    failures = [disturbed.failed for _, disturbed in pairs if disturbed.failed is not None]
    whole = [(quiet.wall_s, loud.wall_s) for quiet, loud in pairs if quiet.wall_s and loud.wall_s]

    def spread(values: list[float]) -> str:
        return (
            f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            if values
            else "-"
        )

    return {
        "tries": str(len(pairs)),
        "tries that did not end well": "; ".join([str(len(failures)), *sorted(set(failures))]),
        "kills sent": str(len(kills)),
        "kills that it came back from": str(len(back_s)),
        "s from a kill to the next new step: median (least to most)": spread(back_s),
        "the same, 95 %": f"{back_s[round(0.95 * (len(back_s) - 1))]:.2f}" if back_s else "-",
        "steps lost a kill: mean (most)": f"{statistics.mean(lost):.1f} ({max(lost)})"
        if lost
        else "-",
        "undisturbed run, s": spread([quiet.wall_s for quiet, _ in pairs if quiet.wall_s]),
        "disturbed run, s": spread([loud for _, loud in whole]),
        "goodput, undisturbed / disturbed": spread([quiet / loud for quiet, loud in whole]),
    }


def table(results: Path) -> str:
    def one(saved: dict) -> Run:
        return Run(saved["wall_s"], [Kill(**kill) for kill in saved["kills"]], saved["failed"])

    found: dict[str, list[tuple[Run, Run]]] = {}
    for line in map(json.loads, results.read_text().splitlines()):
        found.setdefault(line["side"], []).append(
            (one(line["undisturbed"]), one(line["disturbed"]))
        )
    columns = [column(pairs) for pairs in found.values()]
    lines = [["", *found], ["---"] * (len(found) + 1)]
    lines += [[what, *(column[what] for column in columns)] for what in columns[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--coord",
        type=Path,
        required=True,
        help="thanos-coord, built, with thanos-worker beside it",
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="a line a side and try is appended"
    )
    parser.add_argument("--sides", nargs="+", default=["ours", "torchrun", "torchrun-forked"])
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first try; the next has the next"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--kills", type=int, default=4, help="at most, a try")
    parser.add_argument("--pause-s", type=float, default=5.0, help="mean time between kills")
    arguments = parser.parse_args()
    known = sides(arguments.coord)
    if not known.keys() >= set(arguments.sides):
        parser.error(f"the sides are {', '.join(known)}")
    # So that a stopped comparison leaves as an interrupted one does: with its processes ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    size = Size(arguments.steps, arguments.every)
    for seed in range(arguments.seed, arguments.seed + arguments.tries):
        stream, at_s, schedule = random.Random(seed), 0.0, []
        for _ in range(arguments.kills):
            at_s += stream.expovariate(1 / arguments.pause_s)
            schedule.append((at_s, stream.random()))
        for name in arguments.sides:
            runs = {
                "undisturbed": run(known[name], size, []),
                "disturbed": run(known[name], size, schedule),
            }
            made = {what: dataclasses.asdict(run) for what, run in runs.items()}
            line = json.dumps({"seed": seed, "side": name, **dataclasses.asdict(size), **made})
            print(line, flush=True)
            with arguments.results.open("a") as results:
                results.write(line + "\n")
    print(table(arguments.results))


if __name__ == "__main__":
    main()
