"""Writes a .zip with the names and sizes of TinyImageNet, and pictures of its kind: 64 x 64, about
2 KB, one in fifty grey. The pictures are smooth noise, so nothing can be learned from them; they
take as long to decode."""

import io
import sys
import zipfile

import numpy as np
from PIL import Image

CLASSES, SIDE, OF_TEST = 200, 64, 5


def picture(generator):
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.BICUBIC
    )
    fine = generator.normal(0, 6, (SIDE, SIDE, 3))
    image = Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))
    if generator.integers(50) == 0:
        image = image.convert("L")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return file.getvalue()


def main():
    path, per_class = sys.argv[1], int(sys.argv[2])
    generator = np.random.default_rng(1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        put = lambda name, content: archive.writestr("tiny-imagenet-200/" + name, content)
        wnids = [f"n{number:08}" for number in range(CLASSES)]
        put("wnids.txt", "".join(wnid + "\n" for wnid in wnids))
        for wnid in wnids:
            for number in range(per_class):
                put(f"train/{wnid}/images/{wnid}_{number}.JPEG", picture(generator))
        lines = ""
        for number in range(CLASSES * OF_TEST):
            put(f"val/images/val_{number}.JPEG", picture(generator))
            lines += f"val_{number}.JPEG\t{wnids[number % CLASSES]}\t0\t0\t63\t63\n"
        put("val/val_annotations.txt", lines)


if __name__ == "__main__":
    main()
