"""Runs tests of the Rust test binary, `rust_tests.py BINARY FILTER...`, and sums them up in one
line."""

import re
import subprocess
import sys


def main():
    binary, *filters = sys.argv[1:]
    command = [binary, "--test-threads=1", "--nocapture", *filters]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout)
    ran = re.search(r"(\d+) passed; (\d+) failed", done.stdout)
    # A filter that matches nothing passes, too.
    if ran is None or int(ran[1]) + int(ran[2]) == 0:
        sys.exit(f"figures: no test ran; the exit code is {done.returncode}")
    figures = [f"{ran[1]} tests passed", f"{ran[2]} failed"]
    on_device = re.findall(r"cases, worst relative error (\S+), on (?!the CPU)(\S+)", done.stdout)
    if on_device:
        worst = max(float(error) for error, _ in on_device)
        figures.append(
            f"worst relative error {worst:.1e} on {on_device[0][1]} in {len(on_device)} files"
        )
    figures += re.findall(r"^(?:views made|blocks in bfloat16) on .*$", done.stdout, re.MULTILINE)
    print("figures: " + ", ".join(figures))
    sys.exit(0 if done.returncode == 0 else 1)


if __name__ == "__main__":
    main()
