"""Augmentation: scale, crop, mirror and colours of an image, its labels and its depth.

The window of the source that a crop will show is cut out first and only that is resized: the cost
follows the crop, not the image. Depth moves with its pixels and stays in metres.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np

from pipeline.training.example import Example

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.training.example import Image, Labels
    from pipeline.training.recipe import Augment, Jitter

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float64)


def augmented(example: Example, how: Augment, void: int, rng: np.random.Generator) -> Example:
    """Return one random crop, void and without depth where it is padded."""
    low, high = how.scale
    scale = math.exp(rng.uniform(math.log(low), math.log(high)))
    centre = _focus(example.labels, void, rng) if rng.random() < how.focus else None
    top, left, rows, columns = _window(example.labels.shape, how.crop, scale, centre, rng)
    part = example.map(lambda a: a[top : top + rows, left : left + columns])
    size = (min(how.crop[0], round(rows * scale)), min(how.crop[1], round(columns * scale)))
    part = resized(part, max(1, size[0]), max(1, size[1]))
    if rng.random() < how.flip:
        part = part.map(lambda a: cv2.flip(a, 1))
    part = Example(jittered(part.image, how.jitter, rng), part.labels, part.depth)
    return _padded(part, how.crop, void, rng)


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


def pasted(example: Example, other: Example, classes: Labels) -> Example:
    """Return the sample with the other's pixels of some classes over it; sizes are equal."""
    over = np.isin(other.labels, classes)
    image = np.where(over[..., None], other.image, example.image)
    depth = example.depth
    if depth is not None and other.depth is not None:
        depth = np.where(over, other.depth, depth)
    return Example(image, np.where(over, other.labels, example.labels), depth)


def resized(example: Example, height: int, width: int) -> Example:
    """Return it at another size: the image averaged when it shrinks, labels and depth by nearest.

    A mean of depths is no depth: across an edge nothing is there, and 0 is no measurement.
    """
    image = example.image
    if image.shape[:2] == (height, width):
        return example
    shrinks = height * width < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR

    def to_size(array: NDArray[Any]) -> NDArray[Any]:
        # INTER_NEAREST takes the top left pixel of each cell; the exact kind the one at its centre.
        kind = how if array is image else cv2.INTER_NEAREST_EXACT
        out: NDArray[Any] = cv2.resize(
            np.ascontiguousarray(array), (width, height), interpolation=kind
        )
        return out

    return example.map(to_size)


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
    example: Example, crop: tuple[int, int], void: int, rng: np.random.Generator
) -> Example:
    """Put a part smaller than the crop somewhere in it; the border is its mean colour and void."""
    image, labels, depth = example.image, example.labels, example.depth
    down, right = crop[0] - image.shape[0], crop[1] - image.shape[1]
    if not (down or right):
        return example
    top, left = int(rng.integers(down + 1)), int(rng.integers(right + 1))
    border = (top, down - top, left, right - left, cv2.BORDER_CONSTANT)
    colour = [round(v) for v in cv2.mean(image)[:3]]
    return Example(
        cv2.copyMakeBorder(image, *border, value=colour),
        cv2.copyMakeBorder(labels, *border, value=[void]),
        None if depth is None else cv2.copyMakeBorder(depth, *border, value=[0.0]),
    )
