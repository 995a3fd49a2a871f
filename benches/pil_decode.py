"""Images a second of PIL on one core: every JPEG of a .zip to an array of RGB. Prints two JSON
lines: from files in memory, and from the archive itself."""

import io
import json
import sys
import time
import zipfile

import numpy as np
from PIL import Image


def main():
    with zipfile.ZipFile(sys.argv[1]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")]
        files = [archive.read(name) for name in names]
        for source, read in (("memory", files), ("zip", map(archive.read, names))):
            started = time.perf_counter()
            for file in read:
                np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
            seconds = time.perf_counter() - started
            print(json.dumps({"from": source, "images_per_s_per_core": len(names) / seconds}))


if __name__ == "__main__":
    main()
