"""Augmentation: scale, crop, mirror and colours of one image and its labels, in one pass each.

The window of the source that a crop will show is cut out first and only that is resized: the cost
follows the crop, not the image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.training.recipe import Augment, Jitter

    Image = NDArray[np.uint8]
    Labels = NDArray[np.uint8] | NDArray[np.uint16]

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float64)


def augmented(
    image: Image, labels: Labels, how: Augment, void: int, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """Return one random crop: uint8 [h, w, 3] and its labels [h, w], void where it is padded."""
    low, high = how.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    centre = _focus(labels, void, rng) if rng.random() < how.focus else None
    top, left, rows, columns = _window(image.shape[:2], how.crop, scale, centre, rng)
    part, ids = image[top : top + rows, left : left + columns], labels[top : top + rows]
    ids = ids[:, left : left + columns]
    size = (min(how.crop[0], round(rows * scale)), min(how.crop[1], round(columns * scale)))
    part, ids = resized(part, max(1, size[0]), max(1, size[1]), ids)
    if rng.random() < how.flip:
        part, ids = cv2.flip(part, 1), cv2.flip(ids, 1)
    part = jittered(part, how.jitter, rng)
    return _padded(part, ids, how.crop, void, rng)


def _window(
    shape: tuple[int, ...],
    crop: tuple[int, int],
    scale: float,
    centre: tuple[int, int] | None,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Return top, left, height, width of the part of the image that the crop will show.

    Anywhere, or with a pixel somewhere in it.
    """
    rows, columns = (min(n, max(1, round(c / scale))) for n, c in zip(shape, crop, strict=True))
    corner = []
    for axis, size in enumerate((rows, columns)):
        low, high = 0, shape[axis] - size
        if centre is not None:
            low, high = max(low, centre[axis] - size + 1), min(high, centre[axis])
        corner.append(int(rng.integers(low, high + 1)))
    return corner[0], corner[1], rows, columns


def _focus(labels: Labels, void: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Return a pixel of a class drawn evenly from those in the labels; None where all is void."""
    shown = np.flatnonzero(np.bincount(labels.ravel()))
    shown = shown[shown != void]
    if not len(shown):
        return None
    places = np.flatnonzero(labels.ravel() == rng.choice(shown))
    row, column = divmod(int(rng.choice(places)), labels.shape[1])
    return row, column


def pasted(
    image: Image, labels: Labels, other: tuple[Image, Labels], classes: Labels
) -> tuple[Image, Labels]:
    """Return the sample with the other's pixels of some classes over it; sizes are equal."""
    over = np.isin(other[1], classes)
    return np.where(over[..., None], other[0], image), np.where(over, other[1], labels)


def resized(image: Image, height: int, width: int, labels: Labels) -> tuple[Image, Labels]:
    """Return image and labels at another size: averaged when it shrinks, labels by nearest."""
    if image.shape[:2] == (height, width):
        return image, labels
    shrinks = height * width < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    pixels = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)
    # INTER_NEAREST takes the top left pixel of each cell; the exact kind the one at its centre.
    ids = cv2.resize(
        np.ascontiguousarray(labels), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return pixels, ids


def jittered(image: Image, how: Jitter, rng: np.random.Generator) -> Image:
    """Return the image with its brightness, contrast and saturation changed: one affine map."""
    if not (how.brightness or how.contrast or how.saturation):
        return image
    bright, contrast, saturation = (
        rng.uniform(1 - x, 1 + x) for x in (how.brightness, how.contrast, how.saturation)
    )
    matrix = np.zeros((3, 4))
    matrix[:, :3] = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix *= bright * contrast
    grey = float(np.asarray(cv2.mean(image)[:3]) @ _LUMA)
    matrix[:, 3] = bright * (1 - contrast) * grey
    changed: Image = cv2.transform(image, matrix)
    return changed


def _padded(
    image: Image, labels: Labels, crop: tuple[int, int], void: int, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """Put a part smaller than the crop somewhere in it; the border is its mean colour and void."""
    down, right = crop[0] - image.shape[0], crop[1] - image.shape[1]
    if not (down or right):
        return image, labels
    top, left = int(rng.integers(down + 1)), int(rng.integers(right + 1))
    border = (top, down - top, left, right - left, cv2.BORDER_CONSTANT)
    colour = [round(v) for v in cv2.mean(image)[:3]]
    return (
        cv2.copyMakeBorder(image, *border, value=colour),
        cv2.copyMakeBorder(labels, *border, value=[void]),
    )
