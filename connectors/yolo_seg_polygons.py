"""YOLO's polygons: traced from pixels, drawn to pixels, parts of an object joined to one outline.

Ultralytics draws a polygon by cutting its points, in pixels, to whole numbers and filling it with
OpenCV, outline included. So points are written at the middles of the outline's pixels: what
OpenCV traces it fills again, to the pixel, but for holes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline import masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Points = NDArray[np.float64]
    """Corners [N, 2] as x, y."""

_LEAST: Final = 3


@dataclass(frozen=True, slots=True)
class Outlines:
    """The outer outlines of a shape, whole numbers [N, 2] each, and how many holes they lose."""

    parts: list[NDArray[np.int64]]
    holes: int


def trace(rle: str, size: tuple[int, int], path: str) -> Outlines:
    """Return the outlines of a shape's pixels in an image [H, W].

    Raises:
        BadAnnotation: the run lengths are malformed, or of another size.
    """
    import cv2

    crop, (row, column) = masks.rle_crop(rle, *size, path)
    if not crop.size:
        return Outlines([], 0)
    pieces, nesting = cv2.findContours(
        np.ascontiguousarray(crop).view(np.uint8),
        cv2.RETR_CCOMP,
        cv2.CHAIN_APPROX_SIMPLE,
        offset=(column, row),
    )
    outer = [
        np.asarray(piece[:, 0], dtype=np.int64)
        for piece, place in zip(pieces, nesting[0], strict=True)
        if place[3] < 0  # holes have a parent
    ]
    return Outlines(outer, len(pieces) - len(outer))


def join(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the parts of one object as one closed outline, as Ultralytics' converter joins them.

    Each part is bound to the next one where the two are nearest, by a line there and back.
    """
    links = [_nearest(one, two) for one, two in pairwise(parts)]
    forth: list[NDArray[np.int64]] = []
    back: list[NDArray[np.int64]] = []
    for number, part in enumerate(parts):
        entry = links[number - 1][1] if number else 0
        ring = np.roll(part, -entry, axis=0)
        ring = np.concatenate((ring, ring[:1])) if len(parts) > 1 else ring
        if number < len(links):
            leave = (links[number][0] - entry) % len(part)
            forth.append(ring[: leave + 1])
            back.append(ring[leave:])
        else:
            forth.append(ring)
    return np.concatenate([*forth, *back[::-1]])


def _nearest(one: NDArray[np.int64], two: NDArray[np.int64]) -> tuple[int, int]:
    """Return the places of the nearest two points."""
    from scipy.spatial import cKDTree

    distances, places = cKDTree(two).query(one)
    at = int(np.argmin(distances))
    return at, int(places[at])


def text_of(points: NDArray[np.int64], size: tuple[int, int]) -> str:
    """Return whole pixels as a line's coordinates, each 0..1, of an image [H, W]."""
    if len(points) < _LEAST:
        points = np.concatenate((points, np.repeat(points[-1:], _LEAST - len(points), axis=0)))
    shares = (points + 0.5) / np.array(size[::-1])
    return " ".join(f"{value:.6f}" for value in shares.ravel().tolist())


def draw(points: Points, size: tuple[int, int]) -> str:
    """Return the pixels of a polygon, coordinates 0..1, as compressed run lengths [H, W]."""
    import cv2

    corners = (points * np.array(size[::-1])).astype(np.int32)
    low = np.maximum(corners.min(axis=0), 0)
    high = np.minimum(corners.max(axis=0), np.array(size[::-1]) - 1)
    if (low > high).any():
        return masks.rle_encode(np.zeros(size, dtype=np.uint8))
    inside = bool((corners >= 0).all() and (corners < np.array(size[::-1])).all())
    if not inside:
        low, high = np.zeros_like(low), np.array(size[::-1]) - 1
    canvas: NDArray[Any] = np.zeros((high - low + 1)[::-1], dtype=np.uint8)
    cv2.fillPoly(canvas, [(corners - low).astype(np.int32)], 1)
    return masks.rle_encode_at(canvas, (int(low[1]), int(low[0])), size)
