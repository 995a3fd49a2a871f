"""Draws the loss of a stage in two runs, one over the other, with a mark where the second recovered
from a loss: an SVG.

python3 benches/loss_curve.py UNDISTURBED_RUN_DIR DISTURBED_RUN_DIR STAGE curve.svg
"""

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BELOW = 880, 340, 60, 50
ABOVE, RIGHT = 36, 20


def lines(run_dir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def losses(run_dir: Path, stage: str) -> list[float]:
    return [line["loss"] for line in lines(run_dir, "steps.jsonl") if line["stage"] == stage]


def recoveries(run_dir: Path, stage: str) -> list[int]:
    """The steps after which training continued."""
    events = lines(run_dir, "events.jsonl")
    return [
        event["step"]
        for event in events
        if event["event"] == "recovered" and event["stage"] == stage
    ]


def main(undisturbed: Path, disturbed: Path, stage: str, target: Path) -> None:
    whole, hit, marks = (
        losses(undisturbed, stage),
        losses(disturbed, stage),
        recoveries(disturbed, stage),
    )
    least, most = min(whole + hit), max(whole + hit)
    x = lambda step: LEFT + step / (len(whole) - 1) * (WIDTH - LEFT - RIGHT)
    y = lambda loss: ABOVE + (most - loss) / (most - least) * (HEIGHT - ABOVE - BELOW)
    curve = lambda values: " ".join(
        f"{x(step):.1f},{y(loss):.1f}" for step, loss in enumerate(values)
    )
    apart = max(abs(one - other) for one, other in zip(whole, hit, strict=True))
    text = lambda at, up, words, anchor="middle": (
        f'<text x="{at}" y="{up}" text-anchor="{anchor}">{words}</text>'
    )
    bottom = HEIGHT - BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *(
            f'<line x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{ABOVE}" y2="{bottom}" '
            'stroke="#f0b8a8"/>'
            for step in marks
        ),
        f'<polyline points="{curve(whole)}" fill="none" stroke="#9ecae9" stroke-width="5"/>',
        f'<polyline points="{curve(hit)}" fill="none" stroke="#12344d" stroke-width="1"/>',
        f'<path d="M{LEFT},{ABOVE} V{bottom} H{WIDTH - RIGHT}" fill="none" stroke="black"/>',
        *(
            text(f"{x(step):.1f}", bottom + 18, step)
            for step in range(0, len(whole), max(1, len(whole) // 6))
        ),
        *(
            text(LEFT - 6, f"{y(loss) + 4:.1f}", f"{loss:.2f}", "end")
            for loss in (least, (least + most) / 2, most)
        ),
        text((LEFT + WIDTH) / 2, HEIGHT - 10, f"step of stage {stage}"),
        text(
            LEFT,
            20,
            f"loss: undisturbed (broad), and with {len(marks)} recoveries (thin; each a line). "
            f"Greatest difference: {apart:g}",
            "start",
        ),
        "</svg>",
    ]
    target.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
