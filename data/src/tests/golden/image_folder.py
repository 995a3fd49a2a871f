"""Writes image_folder.txt: a tree of files and links, and what torchvision's ImageFolder makes of
it.

    pip install torchvision==0.26.0 && python image_folder.py

`file NAME` and `link NAME TARGET` make the tree, whose files are never read here; `class NAME` and
`sample NAME LABEL` are ImageFolder's, in its order.
"""

import os
import tempfile
from pathlib import Path

from torchvision.datasets import ImageFolder

files = [
    # Names sort by code point: capitals first, "-" before "/", accents last.
    "b/2.png",
    "b/10.png",
    "b/1.PNG",
    "b-2/x.png",
    "B/z.png",
    "b/sub/a.png",
    "b/sub/deep/c.png",
    "b/sub-2/a.png",
    "b/zz.png",
    "b/sub/zz.png",
    "a b/1.png",
    "\u00e9t\u00e9/1.png",
    "10/x.png",
    "9/x.png",
    "b/a.b.png",
    "b/notes.txt",
    "b/Thumbs.db",
    "labels.csv",
    "loose.png",
    "9/x.png.bak",
]
links = {
    "linked": "../elsewhere",
    "b/linked.png": "../9/x.png",
    "b/linked_folder": "../../elsewhere/more",
}
elsewhere = ["1.png", "more/2.png"]

with tempfile.TemporaryDirectory() as root:
    for name in [f"train/{name}" for name in files] + [f"elsewhere/{name}" for name in elsewhere]:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, target in links.items():
        os.symlink(target, Path(root, "train", name))
    found = ImageFolder(Path(root, "train"))
    lines = [f"file train/{name}" for name in files] + [
        f"file elsewhere/{name}" for name in elsewhere
    ]
    lines += [f"link train/{name}\t{target}" for name, target in links.items()]
    lines += [f"class {name}" for name in found.classes]
    lines += [f"sample {os.path.relpath(name, root)}\t{label}" for name, label in found.samples]
Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")
