"""Writes pillow.zip: small pictures of every kind, and what Pillow makes of each.

    pip install pillow==13.0.0 numpy && python pillow.py

NAME.rgb is `Image.open(NAME).convert("RGB")`, row after row. A picture that Pillow refuses has no
such file. sizes.txt has a line `NAME WIDTH HEIGHT` for each picture, `NAME 0 0` for a refused
one."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

W, H = 31, 22
y, x = np.mgrid[0:H, 0:W]
waves = [
    128 + 100 * np.sin(x / 9),
    128 + 100 * np.cos(y / 7),
    128 + 90 * np.sin((x + y) / 11),
    40 + 6 * x,
]
pixels = np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)
rgb, rgba, grey = (
    Image.fromarray(pixels[..., :3]),
    Image.fromarray(pixels),
    Image.fromarray(pixels[..., 0]),
)
files = {}


def save(name, image, format, **options):
    out = io.BytesIO()
    image.save(out, format=format, **options)
    files[name] = out.getvalue()
    return files[name]


def exif(orientation):
    data = Image.Exif()
    data[0x112] = orientation
    return data


# JPEG
for subsampling in range(3):
    save(f"subsampling{subsampling}.jpg", rgb, "JPEG", quality=90, subsampling=subsampling)
base = save("base.jpg", rgb, "JPEG", quality=90)
progressive = save("progressive.jpg", rgb, "JPEG", quality=90, progressive=True)
save("grey.jpg", grey, "JPEG")
save("cmyk.jpg", rgb.convert("CMYK"), "JPEG", quality=95)
save("restarts.jpg", rgb, "JPEG", restart_marker_blocks=2)
save("comment.jpg", rgb, "JPEG", comment=b"\xff\xd9 hello")
save("exif6.jpg", rgb, "JPEG", exif=exif(6))
save("preview.mpo.jpg", rgb, "MPO", save_all=True, append_images=[grey])
tables = base.index(b"\xff\xdb")
scan = base.index(b"\xff\xda") + 14
files |= {
    "tail_newline.jpg": base + b"\n",
    "tail_zeros.jpg": base + bytes(100),
    "tail_motion_photo.jpg": base + b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 4,
    "tail_jpeg.jpg": progressive + base,
    "fill_bytes.jpg": base[:tables] + b"\xff\xff\xff" + base[tables:],
    "between_segments.jpg": base[:tables] + b"\1\2\3" + base[tables:],
    "no_jfif.jpg": base[:2] + base[20:],
    "adobe_rgb.jpg": base[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + base[20:],
    "hole.jpg": base[: scan + 150] + base[scan + 170 :],
    "early_end.jpg": base[: scan + 150] + b"\xff\xd9" + base[scan + 152 :],
    "cut_end.jpg": base[:-2],
    "cut_half.jpg": base[: scan + 60],
    "cut_progressive.jpg": progressive[:-40],
    "start_only.jpg": b"\xff\xd8\xff",
    "newline_first.jpg": b"\n" + base,
}

# PNG
kinds = dict(rgb=rgb, grey=grey, rgba=rgba, grey_alpha=rgba.convert("LA"), palette=rgb.quantize(60))
for name, image in (kinds | dict(bilevel=grey.convert("1"))).items():
    save(f"{name}.png", image, "PNG")
for bits in (1, 2, 4):
    save(f"palette{bits}.png", rgb.quantize(2**bits), "PNG", bits=bits)
save("palette_transparent.png", rgb.quantize(16), "PNG", transparency=3)
save("rgb_transparent.png", rgb, "PNG", transparency=(1, 2, 3))
save("exif6.png", rgb, "PNG", exif=exif(6))
save("animated.png", rgb, "PNG", save_all=True, append_images=[grey.convert("RGB")])
deep = pixels.astype(np.uint16) * 251 + 13
save("grey16.png", Image.fromarray(deep[..., 0]), "PNG")


def png16(values, colour):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", W, H, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


files["rgb16.png"], files["rgba16.png"] = png16(deep[..., :3], 2), png16(deep, 6)
files["grey_alpha16.png"] = png16(deep[..., [0, 3]], 4)
png = files["rgb.png"]
files |= {"tail.png": png + b"more\n", "no_end.png": png[:-12], "cut.png": png[: len(png) // 2]}

# WebP, BMP, TIFF and others
save("lossy.webp", rgb, "WEBP", quality=85)
save("lossless.webp", rgb, "WEBP", lossless=True)
save("rgba.webp", rgba, "WEBP", lossless=True, exact=True)
save(
    "animated.webp", rgb, "WEBP", save_all=True, append_images=[grey.convert("RGB")], lossless=True
)
files |= {
    "tail.webp": files["lossless.webp"] + b"\0\0more",
    "cut.webp": files["lossless.webp"][:-40],
}
for name, image in (kinds | dict(bilevel=grey.convert("1"))).items():
    if name != "grey_alpha":
        save(f"{name}.bmp", image, "BMP")
    save(f"{name}.tif", image, "TIFF")
save("cmyk.tif", rgb.convert("CMYK"), "TIFF")
for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
    save(f"{compression}.tif", rgb, "TIFF", compression=compression)
save("group4.tif", grey.convert("1"), "TIFF", compression="group4")
save("grey16.tif", Image.fromarray(deep[..., 0]), "TIFF")
save("pages.tif", rgb, "TIFF", save_all=True, append_images=[grey])
save("orientation6.tif", rgb, "TIFF", exif=exif(6))
files |= {
    "tail.bmp": files["rgb.bmp"] + b"x",
    "cut.bmp": files["rgb.bmp"][:-200],
    "cut.tif": files["rgb.tif"][:-300],
}
save("colours.ppm", rgb, "PPM")
save("grey.pgm", grey, "PPM")
files["gif_inside.jpg"] = save("colours.gif", rgb, "GIF")
files["png_inside.jpg"] = png
files["empty.jpg"], files["html.jpg"] = b"", b"<html></html>"

sizes = []
with zipfile.ZipFile(Path(__file__).with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as out:

    def put(name, content):
        out.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)

    for name, content in files.items():
        put(name, content)
        try:
            with Image.open(io.BytesIO(content)) as image:
                decoded = image.convert("RGB")
            put(f"{name}.rgb", decoded.tobytes())
            sizes.append(f"{name} {decoded.width} {decoded.height}\n")
        except (OSError, SyntaxError):
            sizes.append(f"{name} 0 0\n")
    put("sizes.txt", "".join(sizes))
