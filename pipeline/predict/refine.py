"""Refinement: class probabilities moved onto the image's edges.

Guided filter: He, Sun and Tang, TPAMI 2013, with the RGB image as guide: within a window around
each pixel every class's probability is fitted as an affine function of the colour, and the fits of
all windows that cover the pixel are averaged. Dense CRF: `crf.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

if TYPE_CHECKING:
    from torch import Tensor

RADIUS: Final = 6
EPSILON: Final = 1e-4
"""Regularises the fits; against the variance of colours in 0..1."""


class Refiner(Protocol):
    """Turns probabilities into better ones."""

    @property
    def reach(self) -> int:
        """How many rows away an answer looks."""

    def __call__(self, p: Tensor, images: Tensor) -> Tensor:
        """Refine p float32 [N, C, H, W] by RGB images uint8 [N, 3, H, W]; classes add up to 1."""


def refiner(name: str) -> Refiner | None:
    """Return the refiner of that name, None for `none`.

    Raises:
        MissingExtra: its package is not installed.
    """
    if name == "guided":
        return GuidedFilter()
    if name == "densecrf":
        from pipeline.predict.crf import DenseCrf

        return DenseCrf()
    return None


@dataclass(frozen=True, slots=True)
class GuidedFilter:
    """Guided filter with a colour guide; windows are cut off at the image's border."""

    radius: int = RADIUS
    epsilon: float = EPSILON

    @property
    def reach(self) -> int:
        """Fits look `radius` away, their averages as far again."""
        return 2 * self.radius

    def __call__(self, p: Tensor, images: Tensor) -> Tensor:
        """Refine probabilities; what the fits overshoot below 0 is cut off."""
        q = guided(p, images.float() / 255, self.radius, self.epsilon).clamp_min_(0)
        return q.div_(q.sum(dim=1, keepdim=True))


def guided(p: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Return the guided filter's output for each channel of p [N, C, H, W].

    `guide` is float32 [N, 3, H, W], 0..1. Windows are (2 radius + 1) squared.
    """
    # float32 holds a window's variance as a difference of squares; around 0 those are small.
    guide = guide - guide.mean(dim=(2, 3), keepdim=True)
    mean = _box(guide, radius)
    inverse = _inverse(guide.double(), radius, epsilon).to(p.dtype)
    found = torch.empty_like(p)
    for channel in range(p.shape[1]):  # one at a time: a fit takes seven maps
        one = p[:, channel : channel + 1]
        level = _box(one, radius)
        covariance = _box(guide * one, radius) - mean * level
        slope = torch.einsum("nijhw,njhw->nihw", inverse, covariance)
        offset = level - (slope * mean).sum(dim=1, keepdim=True)
        fits = _box(torch.cat([slope, offset], dim=1), radius)
        found[:, channel] = (fits[:, :3] * guide).sum(dim=1) + fits[:, 3]
    return found


def _inverse(guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Return the inverse of each window's colour covariance + epsilon, [N, 3, 3, H, W].

    In float64: in a grey window the determinant is a small difference of large products, of which
    float32 keeps two digits.
    """
    mean = _box(guide, radius)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    products = torch.stack([guide[:, i] * guide[:, j] for i, j in pairs], dim=1)
    spread = _box(products, radius)
    rr, rg, rb, gg, gb, bb = (
        spread[:, k] - mean[:, i] * mean[:, j] + (epsilon if i == j else 0)
        for k, (i, j) in enumerate(pairs)
    )
    # A symmetric 3x3 matrix by its cofactors: torch.linalg.inv takes 20 times as long.
    cofactors = [
        gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb,
        rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg,
    ]  # fmt: skip
    determinant = rr * cofactors[0] + rg * cofactors[1] + rb * cofactors[2]
    a, b, c, d, e, f = (part / determinant for part in cofactors)
    rows = [torch.stack(row, dim=1) for row in ((a, b, c), (b, d, e), (c, e, f))]
    return torch.stack(rows, dim=1)


def _box(maps: Tensor, radius: int) -> Tensor:
    """Return the mean of each pixel's window, of maps [N, K, H, W]."""
    return (_box_on_cpu if maps.device.type == "cpu" else _box_by_torch)(maps, radius)


def _box_by_torch(maps: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    # Rows first, then columns: each counts the pixels inside the image only, so does the product.
    maps = F.avg_pool2d(maps, (1, side), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(maps, (side, 1), 1, (radius, 0), count_include_pad=False)


def _box_on_cpu(maps: Tensor, radius: int) -> Tensor:
    """The same by OpenCV, which keeps running sums in float64: 13 times as fast as torch."""
    import cv2
    import numpy as np

    height, width = maps.shape[2:]
    planes = maps.detach().contiguous().numpy().reshape(-1, height, width)
    side = (2 * radius + 1,) * 2
    ones = np.ones((height, width), planes.dtype)
    share = 1 / cv2.boxFilter(ones, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT)
    found = np.empty_like(planes)
    for plane, out in zip(planes, found, strict=True):
        cv2.boxFilter(plane, -1, side, dst=out, normalize=False, borderType=cv2.BORDER_CONSTANT)
        out *= share
    return torch.from_numpy(found).view(maps.shape)
