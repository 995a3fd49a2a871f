"""Views a second of torchvision on one core: the recipe's augmentation, on images in memory.

Prints a JSON line for each pipeline and side: `pil` is the classic path over PIL images, `tensor`
the v2 transforms over tensors."""

import json
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

MEAN, STD = [0.491, 0.482, 0.447], [0.247, 0.243, 0.262]
IMAGES = 512
MIN_SECONDS = 1.0


def recipe(kit, side, last):
    jitter = kit.RandomApply([kit.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = kit.RandomResizedCrop(side, scale=(0.2, 1.0))
    return kit.Compose([kit.RandomHorizontalFlip(), crop, jitter, kit.RandomGrayscale(0.2), *last])


def rate(pipeline, images):
    for image in images[:64]:
        pipeline(image)
    made, started = 0, time.perf_counter()
    while time.perf_counter() - started < MIN_SECONDS:
        for image in images:
            pipeline(image)
        made += len(images)
    return made / (time.perf_counter() - started)


def main():
    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    for side in (32, 64):
        arrays = generator.integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
        pil = [Image.fromarray(array) for array in arrays]
        tensors = [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays]
        classic = recipe(transforms, side, [transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        modern = recipe(v2, side, [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
        for name, pipeline, images in (("pil", classic, pil), ("tensor", modern, tensors)):
            print(
                json.dumps(
                    {"pipeline": name, "side": side, "views_per_s_per_core": rate(pipeline, images)}
                )
            )


if __name__ == "__main__":
    main()
