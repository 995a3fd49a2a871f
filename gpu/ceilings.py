"""What this device can do at best, in PyTorch: memory copies, matrix products, those of our
encoder, a kernel's launch, and a wait for the device. One JSON line each; the figures of the
verdict come last."""

import argparse
import json
import statistics
import sys
import time

SKIPPED = 77
# The encoder of the CIFAR presets: images of 32 x 32 in patches of 4 x 4, and the class token.
TOKENS, WIDTH, MLP = 65, 256, 512
REPEATS = 5


def seconds(torch, device, work, inner):
    """The median time of `work`, of `REPEATS` measurements of `inner` calls each, after a
    warm-up."""
    for _ in range(3):
        work()
    times = []
    for _ in range(REPEATS):
        synchronize(torch, device)
        started = time.perf_counter()
        for _ in range(inner):
            work()
        synchronize(torch, device)
        times.append((time.perf_counter() - started) / inner)
    return statistics.median(times)


def synchronize(torch, device):
    if device == "cuda":
        torch.cuda.synchronize()


def put(what, value, unit):
    print(json.dumps({"what": what, "value": value, "unit": unit}))
    return value


def copy_bandwidth(torch, device, size_bytes, inner):
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = seconds(torch, device, lambda: target.copy_(source), inner)
    return put("copy, bytes read and written", 2 * size_bytes / taken / 1e9, "GB/s")


def product(torch, device, what, shape, kind, inner):
    """[m, k] x [k, n] on random data: zeros are faster, as they switch fewer transistors."""
    (m, k, n), (name, dtype, tf32) = shape, kind
    torch.backends.cuda.matmul.allow_tf32 = tf32
    left = torch.randn(m, k, device=device, dtype=dtype)
    right = torch.randn(k, n, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    taken = seconds(torch, device, lambda: torch.matmul(left, right, out=out), inner)
    return put(f"{what} {name} [{m}, {k}] x [{k}, {n}]", 2 * m * k * n / taken / 1e12, "TFLOP/s")


def launch_overhead(torch, device, inner):
    x = torch.zeros(1, device=device)
    return put("kernel launch", seconds(torch, device, lambda: x.add_(1), inner) * 1e6, "us")


def synchronisation(torch, device, inner):
    """A kernel and a wait for its result on the host, as `.item()` does."""
    x = torch.zeros(1, device=device)
    return put(
        "kernel, copy to the host and wait",
        seconds(torch, device, lambda: x.add_(1).item(), inner) * 1e6,
        "us",
    )


def encoder_products(torch, device, kinds, batches, inner):
    for batch in batches:
        rows = 2 * batch * TOKENS
        for what, k, n in (
            ("qkv", WIDTH, 3 * WIDTH),
            ("proj", WIDTH, WIDTH),
            ("mlp", WIDTH, MLP),
            ("mlp back", MLP, WIDTH),
        ):
            for kind in kinds:
                product(torch, device, f"{batch} images, {what}", (rows, k, n), kind, inner)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    device = arguments.device
    try:
        import torch
    except ImportError as error:
        print(f"figures: python3 cannot import torch: {error}")
        sys.exit(SKIPPED if device == "cpu" else 1)
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("figures: torch sees no GPU")
    on_gpu = device == "cuda"
    small = arguments.short or not on_gpu
    kinds = [
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ]
    kinds = kinds if on_gpu else kinds[2:]
    side, inner = (512, 2) if small else (8192, 10)
    copied = copy_bandwidth(torch, device, 2**24 if small else 2**32, inner)
    square = {
        kind[0]: product(torch, device, "square", (side, side, side), kind, inner) for kind in kinds
    }
    launch = launch_overhead(torch, device, 10 if small else 2000)
    wait = synchronisation(torch, device, 10 if small else 500)
    encoder_products(torch, device, kinds, [2] if small else [128, 512, 2048], inner)
    squares = ", ".join(f"{name} {value:.1f}" for name, value in square.items())
    print(
        f"figures: copy {copied:,.0f} GB/s; {side}^3 products {squares} TFLOP/s; "
        f"launch {launch:.1f} us, wait {wait:.1f} us"
    )


if __name__ == "__main__":
    main()
