"""The recipe's views made on the device, for whole batches and without waiting for the device, for
`peer.py`.

Random resized crop, flip, jitter in an order of each view's own, grayscale, normalise: what
`thanos-views` does, in plain tensor operations of fixed shapes, so that they can be compiled and
captured. Every draw is made on the device.

Shapes: n views, C = 3 channels, S x S pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.49139968, 0.48215841, 0.44653091)
STD = (0.24703223, 0.24348513, 0.26158784)
LUMA = (0.2989, 0.587, 0.114)
CROP_SCALE, CROP_RATIO, CROP_TRIES = (0.2, 1.0), (3 / 4, 4 / 3), 10
FLIP, JITTER, GRAYSCALE = 0.5, 0.8, 0.2
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.1


def uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device) * (high - low) + low


def per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """[1, C, 1, 1], filled on the device: a tensor of Python numbers would be copied from the
    host.
    """
    channels = [torch.full((1, 1, 1, 1), value, device=device) for value in values]
    return torch.cat(channels, 1)


def random_boxes(n: int, side: int, device: torch.device) -> Tensor:
    """Crops as [n, 4] (top, left, height, width) in whole pixels; the whole image after ten
    misfits.
    """
    tries = (n, CROP_TRIES)
    area = uniform(tries, *CROP_SCALE, device) * side * side
    ratio = uniform(tries, math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), device).exp()
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 2).round()  # [n, tries, 2]
    fits = ((sizes > 0) & (sizes <= side)).all(2)
    first = fits.int().argmax(1, keepdim=True)  # [n, 1]
    chosen = sizes.gather(1, first[:, :, None].expand(-1, -1, 2))[:, 0]  # [n, 2]
    chosen = torch.where(fits.any(1, keepdim=True), chosen, float(side))
    corner = (torch.rand(n, 2, device=device) * (side - chosen + 1)).floor()
    return torch.cat([corner, chosen], 1)


def cropped(images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
    """Images [n, C, S, S] cut to `boxes` [n, 4], resized to S x S (bilinear), and mirrored where
    `flip` [n].
    """
    side = images.shape[3]
    places = torch.arange(side, device=images.device)
    columns = torch.where(flip[:, None], side - 1 - places, places)  # [n, S]
    rows = places.expand_as(columns)

    def sampled(place: Tensor, start: Tensor, length: Tensor) -> Tensor:
        """Where grid_sample must look, -1 to 1 from the first pixel's centre to the last's; [n,
        S].
        """
        start, length = start[:, None], length[:, None]
        within = ((place + 0.5) * length / side - 0.5).clamp(min=0)
        return (start + torch.minimum(within, length - 1)) * (2 / (side - 1)) - 1

    top, left, height, width = boxes.unbind(1)
    y = sampled(rows, top, height)[:, :, None].expand(-1, -1, side)
    x = sampled(columns, left, width)[:, None, :].expand(-1, side, -1)
    return F.grid_sample(images, torch.stack([x, y], 3), align_corners=True, padding_mode="border")


def gray(images: Tensor) -> Tensor:
    """[n, 3, S, S] to [n, 1, S, S]."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def blended(images: Tensor, others: Tensor | float, factor: Tensor) -> Tensor:
    """`factor` [n, 1, 1, 1] of the images, the rest of the others; 1 changes nothing."""
    return (images * factor + others * (1 - factor)).clamp(0, 1)


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    return blended(images, 0.0, factor)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    return blended(images, gray(images).mean((1, 2, 3), keepdim=True), factor)


def saturated(images: Tensor, factor: Tensor) -> Tensor:
    return blended(images, gray(images), factor)


def hue_turned(images: Tensor, turns: Tensor) -> Tensor:
    """The hue moved by `turns` [n, 1, 1, 1] of the circle."""
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    extent = high - low
    divisor = torch.where(extent > 0, extent, 1.0)
    after_red = (green - blue) / divisor
    after_green = (blue - red) / divisor + 2
    after_blue = (red - green) / divisor + 4
    sixths = torch.where(
        high == red, after_red, torch.where(high == green, after_green, after_blue)
    )
    sixths = torch.remainder(sixths + 6 * turns[:, 0], 6.0)

    def channel(ramp: Tensor) -> Tensor:
        return low + extent * ramp.clamp(0, 1)

    channels = [(sixths - 3).abs() - 1, 2 - (sixths - 2).abs(), 2 - (sixths - 4).abs()]
    return torch.stack([channel(ramp) for ramp in channels], 1)


def jittered(images: Tensor) -> Tensor:
    """Four adjustments of [n, 3, S, S], in an order that each view draws; some views are left as
    they are.
    """
    n, device = len(images), images.device
    jitter = torch.rand(n, 1, 1, 1, device=device) < JITTER

    def amount(spread: float, nothing: float) -> Tensor:
        drawn = uniform((n, 1, 1, 1), nothing - spread, nothing + spread, device)
        return torch.where(jitter, drawn, nothing)

    factors = [amount(spread, 1.0) for spread in (BRIGHTNESS, CONTRAST, SATURATION)]
    turns = amount(HUE, 0.0)
    order = torch.rand(n, 4, device=device).argsort(1)[
        :, :, None, None, None
    ]  # [n, place, 1, 1, 1]
    for place in range(4):
        kind = order[:, place]  # [n, 1, 1, 1]
        # Three of the four are blends with something, so that one blend does for all of them.
        shade = gray(images)  # [n, 1, S, S]
        mean = shade.mean((1, 2, 3), keepdim=True)
        others = torch.where(kind == 0, 0.0, torch.where(kind == 1, mean, shade))
        factor = torch.where(kind == 0, factors[0], torch.where(kind == 1, factors[1], factors[2]))
        images = torch.where(kind == 3, hue_turned(images, turns), blended(images, others, factor))
    return images


def random_views(images: Tensor) -> Tensor:
    """One normalised view of each image: [n, 3, S, S] uint8 to [n, 3, S, S] float32."""
    n, device = len(images), images.device
    boxes = random_boxes(n, images.shape[3], device)
    flip = torch.rand(n, device=device) < FLIP
    views = jittered(cropped(images.float() / 255, boxes, flip))
    to_gray = torch.rand(n, 1, 1, 1, device=device) < GRAYSCALE
    views = torch.where(to_gray, gray(views), views)
    return (views - per_channel(MEAN, device)) / per_channel(STD, device)
