"""Writes random images in the form of CIFAR-10's binary version, `cifar_like.py FOLDER [IMAGES]`: for speed alone, as
nothing can be learned from them."""

import random
import sys
from pathlib import Path

PIXELS, CLASSES, PARTS, TEST_SHARE = 3072, 10, 5, 5


def write(path, images, chance):
    records = (bytes([image % CLASSES]) + chance.randbytes(PIXELS) for image in range(images))
    path.write_bytes(b"".join(records))


def main():
    folder, images = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50_000
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    for part in range(1, PARTS + 1):
        write(folder / f"data_batch_{part}.bin", images // PARTS, chance)
    write(folder / "test_batch.bin", images // TEST_SHARE, chance)


if __name__ == "__main__":
    main()
