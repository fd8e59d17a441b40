"""Pieces that several architectures share: normalised convolutions, up-sampling, borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

Size = tuple[int, int]
"""Height and width."""

UNPOOL_STRIDE: Final = 2


def one_of(what: str, value: Any, choices: Collection[Any]) -> None:
    """Raise TypeError unless an architecture's option is one of those that there are."""
    if isinstance(value, bool) or value not in choices:
        named = ", ".join(map(str, choices))
        raise TypeError(f"{what} is one of {named}, not {value!r}")


def size_of(x: Tensor) -> Size:
    """Return height and width of a batch [N, C, H, W]."""
    return int(x.shape[2]), int(x.shape[3])


def resized(x: Tensor, size: Size) -> Tensor:
    """Return x [N, C, h, w] at another size, bilinear."""
    if size_of(x) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def cropped(x: Tensor, size: Size, offset: int = 0) -> Tensor:
    """Return the part of x [N, C, h, w] that begins `offset` pixels from above and left."""
    return x[:, :, offset : offset + size[0], offset : offset + size[1]]


def mirrored(x: Tensor, before: Size, after: Size) -> Tensor:
    """Return x with borders mirrored at its edge: above and left, then below and right.

    Unlike `F.pad`, borders may be wider than the image.
    """
    rows, columns = (
        _reflected(n, start, end, x.device)
        for n, start, end in zip(size_of(x), before, after, strict=True)
    )
    return x.index_select(2, rows).index_select(3, columns)


def _reflected(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Return the indices of a mirrored line: 2 1 0 1 2 1 0 for a length of 3, 2 before, 2 after."""
    period = max(1, 2 * (length - 1))
    places = torch.arange(-before, length + after, device=device) % period
    return torch.where(places < length, places, period - places)


def unpool(x: Tensor, where: Tensor, size: Size) -> Tensor:
    """Put the values of x [N, C, h, w] where a 2x2 max-pool of maps of `size` found its maxima."""
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        # Exporters have no max_unpool2d, or none whose size is known to them.
        flat = x.new_zeros((x.shape[0], x.shape[1], size[0] * size[1]))
        filled = flat.scatter(2, where.flatten(2), x.flatten(2))
        return filled.reshape(x.shape[0], x.shape[1], *size)
    return F.max_unpool2d(x, where, [UNPOOL_STRIDE, UNPOOL_STRIDE], output_size=list(size))


def conv_norm(
    fan_in: int,
    out: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
    act: bool = True,
) -> nn.Sequential:
    """Return convolution, batch norm and ReLU, padded to keep the size (or divide it)."""
    conv = nn.Conv2d(
        fan_in, out, kernel, stride, kernel // 2 * dilation, dilation=dilation, bias=bias
    )
    last = [nn.ReLU(inplace=True)] if act else []
    return nn.Sequential(conv, nn.BatchNorm2d(out), *last)


def bilinear_deconv(
    classes: int, stride: int, *, groups: int = 1, padding: int = 0, learned: bool = False
) -> nn.ConvTranspose2d:
    """Return a transposed convolution that up-samples each class by itself, bilinearly."""
    kernel = 2 * stride
    conv = nn.ConvTranspose2d(
        classes, classes, kernel, stride, padding=padding, groups=groups, bias=False
    )
    ramp = 1 - (torch.arange(kernel) - (stride - 0.5)).abs() / stride
    with torch.no_grad():
        conv.weight.zero_()
        for i in range(classes):
            conv.weight[i, 0 if groups == classes else i] = torch.outer(ramp, ramp)
    conv.weight.requires_grad_(learned)
    return conv


def he_normal(module: nn.Module) -> None:
    """Draw the weights of all convolutions from He's normal distribution; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.requires_grad:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
