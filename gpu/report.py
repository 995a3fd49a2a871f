"""Writes report.md: where and with what it was measured, a verdict a section, and ours against the
peers."""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output(*command):
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def commit():
    """`make gpu-bundle` writes it down; in the repository git knows."""
    written = ROOT / "COMMIT"
    text = (
        written.read_text().strip()
        if written.exists()
        else output("git", "describe", "--always", "--dirty", "--abbrev=40")
    )
    return text or "unknown"


def torch_version():
    """Without importing it, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return "not installed"
    version = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "version.py"))
    return f"{version['__version__']}, CUDA {version['cuda']}"


def processor():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [
        line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores"


def facts(device, short):
    card = output(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
    )
    return {
        "Device": device + (", shortened" if short else ""),
        "Card, driver, memory": card.replace("\n", "; ") or "none",
        "Processor": processor(),
        "Date (UTC)": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "Commit": commit(),
        "PyTorch": torch_version(),
    }


def verdicts(out, sections):
    """Also of sections that no call has selected yet."""
    path = out / "verdicts.tsv"
    rows = [line.split("\t", 3) for line in path.read_text().splitlines()] if path.exists() else []
    found = {name: rest for name, *rest in rows}
    lines = ["| section | verdict | seconds | key figures |", "|---|---|---:|---|"]
    for name in sections:
        verdict, seconds, figures = found.get(name, ("not run", "", ""))
        lines.append(f"| {name} | {verdict} | {seconds} | {figures.replace('|', '/')} |")
    return lines


def bench(out):
    path = out / "bench.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if "ratio" in row]
    if not rows:
        return ["No peer was measured."]
    lines = [
        "| images a step | ours | peer | ours, images/s | peer, images/s | ratio (range) |",
        "|---:|---|---|---:|---:|---|",
    ]
    for row in rows:
        ratio = row["ratio"]
        spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        ours, theirs = row["ours_images_per_s"], row["peer_images_per_s"]
        lines.append(
            f"| {row['section']} | {row['ours']} | {row['peer']} | {ours:,.0f} | "
            f"{theirs:,.0f} | {spread} |"
        )
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", required=True, help="all there are, separated by commas")
    parser.add_argument("--device", required=True)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    lines = ["# Report", ""]
    lines += [
        f"- {name}: {value}" for name, value in facts(arguments.device, arguments.short).items()
    ]
    lines += ["", "## Verdicts", "", *verdicts(arguments.out, arguments.sections.split(","))]
    lines += ["", "## Ours against PyTorch", "", *bench(arguments.out)]
    (arguments.out / "report.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
