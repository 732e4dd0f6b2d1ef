"""Operations on the values of images, a whole batch at once: Pillow's formulas (ImageEnhance, ImageOps), on values from 0 to 1.

An image's result does not depend on its batch: sums over an image are over whole numbers, where the order of adding
cannot change the rounding. Draws no random numbers: each amount is an argument, one per image.

Shape legend: B batch, C channels (1 or 3), H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["autocontrast", "blend", "brightness", "contrast", "equalize", "grey", "hue", "posterize", "saturation", "sharpness", "solarize"]


def _each(amount_B: Tensor) -> Tensor:
    return amount_B.view(-1, 1, 1, 1)


def blend(x: Tensor, plain: Tensor, factor_B: Tensor) -> Tensor:
    """Return plain + factor (x - plain), clipped to [0, 1]: 1 leaves the image, 0 gives the plain one, above 1 exaggerates."""
    import torch

    return torch.lerp(plain.expand_as(x), x, _each(factor_B)).clamp_(0, 1)


def grey(x: Tensor) -> Tensor:
    """(B, 1, H, W): luma 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2); grey images unchanged."""
    return x if x.shape[1] == 1 else (x[:, :1] * 0.299).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


def brightness(x: Tensor, factor_B: Tensor) -> Tensor:
    """Return factor x, clipped to [0, 1]."""
    return (x * _each(factor_B)).clamp_(0, 1)


def contrast(x: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the image's mean grey, which is rounded to a byte like in Pillow."""
    bytes_ = (grey(x) * 255).round_().long()
    n = bytes_[0].numel()
    mean_B = (2 * bytes_.flatten(1).sum(1) + n) // (2 * n)  # whole numbers: the mean does not depend on the order of adding
    return blend(x, _each(mean_B.float() / 255), factor_B)


def saturation(x: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the grey image."""
    return blend(x, grey(x), factor_B)


def hue(x: Tensor, turn_B: Tensor) -> Tensor:
    """Rotate the hue by a share of the circle, -0.5 to 0.5: to HSV, and back (Smith 1978)."""
    import torch

    r, g, b = x.unbind(1)
    top, low = x.amax(1), x.amin(1)
    spread = top - low
    safe = torch.where(spread > 0, spread, 1.0)
    angle = torch.where(top == r, (g - b) / safe, torch.where(top == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    angle = (angle / 6 + turn_B.view(-1, 1, 1)) % 1.0
    sector = angle * 6
    # Each channel is the top value less the spread, by a trapezoid of the angle shifted by thirds.
    channels = [top - spread * (2 - (((sector + n) % 6).clamp(max=4) - 2).abs()).clamp(0, 1) for n in (5, 3, 1)]
    return torch.stack(channels, 1)


def sharpness(x: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the smoothed image: the mean of 3 x 3 pixels with weight five for the centre. Edges are unchanged."""
    if min(x.shape[2:]) < 3:
        return x
    down = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    box = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = (box + 4 * x[:, :, 1:-1, 1:-1]) / 13
    return blend(x, smooth, factor_B)


def solarize(x: Tensor, threshold_B: Tensor) -> Tensor:
    """1 - x if x is at least the threshold."""
    import torch

    return torch.where(x >= _each(threshold_B), 1 - x, x)


def posterize(x: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits of each byte."""
    import torch

    mask = torch.bitwise_left_shift(torch.full_like(bits_B, 255), 8 - bits_B) & 255
    return (_bytes(x) & _each(mask)).float() / 255


def autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel from its darkest to its lightest value; a channel of one value stays."""
    import torch

    low, top = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    spread = top - low
    return torch.where(spread > 0, (x - low) / torch.where(spread > 0, spread, 1.0), x).clamp_(0, 1)


def equalize(x: Tensor) -> Tensor:
    """Equalise each channel's histogram of bytes by Pillow's rule: steps of the count of all but the lightest value / 255."""
    import torch

    B, C, H, W = x.shape
    bytes_ = _bytes(x).view(B * C, H * W)
    offset = torch.arange(B * C).view(-1, 1) * 256
    histogram = torch.bincount((bytes_ + offset).view(-1), minlength=B * C * 256).view(B * C, 256)
    lightest = bytes_.amax(1, keepdim=True)
    step = (H * W - histogram.gather(1, lightest)) // 255
    before = histogram.cumsum(1) - histogram
    table = ((step // 2 + before) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256))
    return (table.gather(1, bytes_).float() / 255).view(B, C, H, W)


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round_().long()
