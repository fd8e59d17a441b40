"""A picture of a street in the making: its pixels, its label, its camera and its light.

World axes in metres: x right, y up from the road, z ahead of the camera. Every shape is filled once
into the picture and once, with the same corner points, into the label, so that the two agree to the
pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Colour: TypeAlias = tuple[float, float, float]
Point: TypeAlias = tuple[float, float, float]
"""x, y, z in metres."""
Flat: TypeAlias = tuple[float, float]
"""Column and row in pixels; or the two ends of a span in metres."""

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = range(12)
"""The ids of label space camvid-11."""
NEAR: Final = 2.5
"""Nothing that stands is nearer to the camera than this, in metres: no shape crosses the lens."""


@dataclass(frozen=True, slots=True)
class Weather:
    """Sky colours from zenith to horizon, how far one sees (m), brightness, depth of shadows."""

    zenith: Colour
    horizon: Colour
    visibility: float
    gain: float
    shadow: float
    tint: Colour = (1.0, 1.0, 1.0)
    clouds: float = 0.5


@dataclass(slots=True)
class Canvas:
    """The picture [H,W,3] and label [H,W], both uint8, and how to draw metres on them."""

    rng: np.random.Generator
    rgb: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    weather: Weather
    focal: float
    """Pixels that a metre spans at a distance of one metre."""
    centre: Flat
    """The vanishing point, in pixels; corners are cut to whole pixels, so it holds the half."""
    eye: Flat
    """The camera's x and y in metres."""
    sunny: int
    """The side of the street that the sun lights, -1 or 1."""
    things: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    """What stands in the street, each with its distance; drawn from far to near."""

    def pick(self, low: float, high: float) -> float:
        """Return a number between low and high."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, share: float) -> bool:
        """Return True in this share of all cases."""
        return float(self.rng.random()) < share

    def one(self, colours: Sequence[Colour]) -> Colour:
        """Return one of the colours."""
        return colours[int(self.rng.random() * len(colours))]

    def flat(self, x: float, y: float, z: float) -> Flat:
        """Project a point to pixels."""
        s = self.focal / z
        return self.centre[0] + s * (x - self.eye[0]), self.centre[1] - s * (y - self.eye[1])

    def tone(self, colour: Colour, z: float, light: float = 1.0) -> Colour:
        """Return the colour in this light, fading into the horizon's with distance."""
        r, g, b = colour
        hr, hg, hb = self.weather.horizon
        clear = math.exp(-z / self.weather.visibility)
        rest, light = 1 - clear, light * clear
        # OpenCV saturates what is over 255.
        return r * light + hr * rest, g * light + hg * rest, b * light + hb * rest

    def patch(self, what: int | None, colour: Colour, corners: Sequence[Flat]) -> None:
        """Fill a polygon given in pixels; with what=None it is a detail of the shape below it."""
        points = np.array(corners, np.int32)
        cv2.fillPoly(self.rgb, [points], colour)
        if what is not None:
            cv2.fillPoly(self.ids, [points], (what,))

    def quad(
        self, what: int | None, colour: Colour, corners: Sequence[Point], light: float = 1.0
    ) -> None:
        """Fill a polygon given in metres; its nearest corner sets the haze."""
        (u0, v0), (x0, y0), focal = self.centre, self.eye, self.focal
        flat = [(u0 + focal / z * (x - x0), v0 - focal / z * (y - y0)) for x, y, z in corners]
        near = min([p[2] for p in corners])
        self.patch(what, self.tone(colour, near, light), flat)

    def front(
        self, what: int | None, colour: Colour, x: float, up: Flat, along: Flat, light: float = 1.0
    ) -> None:
        """Fill an upright rectangle that runs along the street at x."""
        (y0, y1), (z0, z1) = up, along
        self.quad(what, colour, ((x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)), light)

    def wall(
        self, what: int | None, colour: Colour, z: float, across: Flat, up: Flat, light: float = 1.0
    ) -> None:
        """Fill an upright rectangle that faces the camera at distance z."""
        (x0, x1), (y0, y1) = across, up
        self.quad(what, colour, ((x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)), light)

    def ground(
        self, what: int | None, colour: Colour, across: Flat, along: Flat, light: float = 1.0
    ) -> None:
        """Fill a rectangle that lies on the road's level."""
        (x0, x1), (z0, z1) = across, along
        self.quad(what, colour, ((x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)), light)

    def panes(self, colour: Colour, corners: NDArray[np.float64]) -> None:
        """Fill many details of one colour, none over another: corners [N,K,3] in metres."""
        s = self.focal / corners[..., 2]
        u = self.centre[0] + s * (corners[..., 0] - self.eye[0])
        v = self.centre[1] - s * (corners[..., 1] - self.eye[1])
        cv2.fillPoly(self.rgb, list(np.stack((u, v), -1).astype(np.int32)), colour)

    def disc(self, what: int | None, colour: Colour, at: Flat, radius: float) -> None:
        """Fill a circle given in pixels."""
        spot, size = (int(at[0]), int(at[1])), int(radius + 0.5)
        cv2.circle(self.rgb, spot, size, colour, -1)
        if what is not None:
            cv2.circle(self.ids, spot, size, (what,), -1)

    def stroke(self, what: int | None, colour: Colour, a: Flat, b: Flat, width: float) -> None:
        """Draw a straight bar of this width in pixels, at least one."""
        # OpenCV draws no line wider than 255.
        size = max(1, min(255, int(width + 0.5)))
        p, q = (int(a[0]), int(a[1])), (int(b[0]), int(b[1]))
        cv2.line(self.rgb, p, q, colour, size)
        if what is not None:
            cv2.line(self.ids, p, q, (what,), size)

    def smooth(self, cells: int, height: int, width: int) -> NDArray[np.float32]:
        """Return smooth noise float32 [H,W] of deviation about 1, with `cells` waves across."""
        rows = max(2, round(cells * height / width))
        coarse = self.rng.standard_normal((rows, max(2, cells)), np.float32)
        noise: NDArray[np.float32] = cv2.resize(
            coarse, (width, height), interpolation=cv2.INTER_CUBIC
        )
        return noise
