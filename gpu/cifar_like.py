"""Writes random images in the form of CIFAR-10's binary version: for speed alone, as nothing can be
learned from them."""

import argparse
import random
from pathlib import Path

PIXELS, CLASSES, PARTS, TEST_SHARE = 3072, 10, 5, 5


def write(path, images, chance):
    records = (bytes([image % CLASSES]) + chance.randbytes(PIXELS) for image in range(images))
    path.write_bytes(b"".join(records))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "images", type=int, nargs="?", default=50_000, help="training images [50000]"
    )
    arguments = parser.parse_args()
    folder, images = arguments.folder, arguments.images
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    for part in range(1, PARTS + 1):
        write(folder / f"data_batch_{part}.bin", images // PARTS, chance)
    write(folder / "test_batch.bin", images // TEST_SHARE, chance)


if __name__ == "__main__":
    main()
