"""What stands in a generated street: houses, gardens, trees, poles, signs, cars and people.

Sizes are metres; details drawn with what=None lie inside the shape below them, so that they never
leave its label.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.streetscenes.canvas import (
    BICYCLIST,
    BUILDING,
    CAR,
    FENCE,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    Canvas,
    Colour,
    Flat,
    Point,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

WALLS: Final = ((178, 132, 104), (201, 178, 140), (156, 92, 74), (196, 192, 184), (140, 134, 128),
                (214, 196, 160), (122, 84, 70), (168, 160, 150), (224, 218, 206))  # fmt: skip
_ROOFS: Final = ((96, 62, 54), (84, 84, 92), (120, 72, 56), (70, 66, 66))
_SHOPS: Final = ((150, 34, 40), (28, 66, 120), (30, 92, 62), (54, 48, 60), (196, 150, 52))
_LEAVES: Final = ((58, 88, 44), (76, 98, 46), (50, 76, 52), (96, 104, 54), (112, 92, 48))
_PAINTS: Final = ((236, 236, 238), (172, 176, 182), (32, 34, 40), (176, 24, 30), (28, 58, 132),
                  (24, 84, 66), (84, 88, 96), (206, 180, 60), (120, 20, 60))  # fmt: skip
_CLOTHES: Final = ((30, 34, 52), (140, 30, 36), (200, 196, 190), (46, 84, 52), (84, 62, 44),
                   (30, 80, 140), (226, 150, 40), (70, 70, 76), (120, 60, 120))  # fmt: skip
_SKINS: Final = ((226, 182, 152), (190, 140, 108), (134, 92, 66), (88, 60, 44))

# Outlines of a car seen from its side, from its near end to its far end: distance along the car,
# height, half its width there. Hatchback coming, hatchback going, van, bus.
_Profile = tuple[tuple[float, float, float], ...]
_COMING: Final[_Profile] = (
    (0.0, 0.3, 0.84), (0.05, 0.74, 0.88), (1.0, 0.96, 0.84), (1.75, 1.44, 0.66),
    (3.2, 1.44, 0.66), (3.9, 0.98, 0.84), (4.1, 0.3, 0.84),
)  # fmt: skip
_GOING: Final[_Profile] = (
    (0.0, 0.3, 0.84), (0.03, 0.92, 0.88), (0.65, 1.44, 0.68), (2.1, 1.44, 0.68),
    (2.9, 0.98, 0.84), (4.0, 0.74, 0.86), (4.1, 0.3, 0.84),
)  # fmt: skip
_VAN: Final[_Profile] = (
    (0.0, 0.35, 0.98), (0.03, 1.2, 1.0), (0.12, 2.1, 0.92), (3.8, 2.1, 0.92),
    (4.5, 1.2, 1.0), (5.2, 1.05, 1.0), (5.3, 0.35, 0.98),
)  # fmt: skip
_BUS: Final[_Profile] = (
    (0.0, 0.35, 1.22), (0.02, 1.3, 1.25), (0.08, 3.0, 1.2), (9.6, 3.0, 1.2),
    (9.8, 1.3, 1.25), (9.9, 1.0, 1.25), (10.0, 0.35, 1.22),
)  # fmt: skip


def building(view: Canvas, side: int, edge: float, along: Flat, height: float) -> None:
    """Put up a house: roof, the wall that faces the camera, the front along the street."""
    (near, far), x, back = along, side * edge, side * (edge + 12)
    colour, lit = view.one(WALLS), side == view.sunny
    light, end = (1.05, 0.8) if lit else (0.72, 0.88)
    if view.chance(0.5):
        _roof(view, (x, side * (edge + 6), back), along, height, colour, light)
    view.wall(BUILDING, colour, near, (x, back), (0, height), end)
    storeys, columns = max(1, int(height / 3)), 4
    if near < 60 and view.chance(0.6):
        _windows(view, _grid(storeys, columns, height, 0.3), (near, near), (x, back), end)
    # The front is drawn in pieces along the street, so that the haze grows along it.
    cuts = np.linspace(near, far, 4 if near < 30 else 2).tolist()
    for a, b in reversed(list(pairwise(cuts))):
        view.front(BUILDING, colour, x, (0, height), (a, b), light)
    view.front(None, colour, x, (height - 0.4, height), along, light * 1.14)
    columns = max(2, round((far - near) / view.pick(1.9, 3.0)))
    shop = view.chance(0.45)
    if near < 70:
        grid = _grid(storeys, columns, height, view.pick(0.22, 0.3), skip=int(shop))
        _windows(view, grid, along, (x, x), light)
    if shop:
        _shop(view, x, along, light)
    elif near < 70:
        middle = near + (far - near) * view.pick(0.2, 0.8)
        view.front(None, view.one(_SHOPS), x, (0, 2.2), (middle, middle + 1.1), light)


def _roof(
    view: Canvas, x: tuple[float, float, float], along: Flat, height: float, wall: Colour,
    light: float,
) -> None:  # fmt: skip
    """Lay a pitched roof over front, ridge and back, with its gable and a chimney."""
    (front, ridge, back), (near, far) = x, along
    top = height + view.pick(1.8, 3.6)
    slope = ((front, height, near), (ridge, top, near), (ridge, top, far), (front, height, far))
    view.quad(BUILDING, view.one(_ROOFS), slope, light)
    gable = ((front, height, near), (ridge, top, near), (back, height, near))
    view.quad(BUILDING, wall, gable, 0.8)
    if view.chance(0.6):
        across = ((front + ridge) / 2, (front + ridge) / 2 + 1.0)
        view.wall(BUILDING, wall, near + 0.5, across, (height, top + 1.0), 0.7)


def _grid(
    storeys: int, columns: int, height: float, share: float, skip: int = 0
) -> list[tuple[float, float, float, float]]:
    """Return windows as (left, right) in 0..1 of the wall's length and (bottom, top) in metres."""
    floor = height / storeys
    return [
        ((c + 0.5 - share) / columns, (c + 0.5 + share) / columns,
         (s + 0.3) * floor, (s + 0.78) * floor)
        for s in range(skip, storeys) for c in range(columns)
    ]  # fmt: skip


def _windows(
    view: Canvas, grid: list[tuple[float, float, float, float]], along: Flat, across: Flat,
    light: float,
) -> None:  # fmt: skip
    """Draw frames and glass on a wall that runs from (across[0], along[0]) to the other ends."""
    if not grid:
        return
    left, right, low, high = np.array(grid).T
    glass = view.one(((58, 68, 82), (76, 92, 112), (40, 44, 52), (126, 146, 166)))
    z = min(along)
    # Far away a frame is thinner than a pixel.
    for inset, colour in ((0.0, (226, 222, 214)), (0.12, glass))[z > 35 :]:
        a, b = left + (right - left) * inset, right - (right - left) * inset
        y0, y1 = low + (high - low) * inset, high - (high - low) * inset * 0.7
        t, corners = np.stack((a, a, b, b), -1), np.empty((len(grid), 4, 3))
        corners[..., 0] = across[0] + (across[1] - across[0]) * t
        corners[..., 1] = np.stack((y0, y1, y1, y0), -1)
        corners[..., 2] = along[0] + (along[1] - along[0]) * t
        view.panes(view.tone(colour, z, light * 0.95), corners)


def _shop(view: Canvas, x: float, along: Flat, light: float) -> None:
    """Draw a shop on the ground floor: dark glass between posts under a coloured board."""
    near, far = along
    paint = view.one(_SHOPS)
    view.front(None, paint, x, (0.1, 3.0), (near + 0.3, far - 0.3), light * 0.9)
    step = (far - near - 0.8) / 3
    for k in range(3):
        start = near + 0.5 + k * step
        glass = (46, 52, 60) if view.chance(0.7) else (206, 188, 140)
        view.front(None, glass, x, (0.5, 2.4), (start, start + step * 0.86), light)
    view.front(None, (236, 230, 216), x, (2.6, 2.85), (near + 1, near + 1 + step), light)


def garden(view: Canvas, side: int, edge: float, along: Flat) -> None:
    """Plant a plot without a house: trees behind a hedge, often behind a fence."""
    near, far = along
    green = view.one(_LEAVES)
    for z in np.arange(far, near, -view.pick(3.5, 6)).tolist():
        tree(view, side * (edge + view.pick(2, 6)), max(z, near), view.pick(5, 11))
    view.front(TREE, green, side * (edge + 0.6), (0, view.pick(1.3, 2.4)), along, 0.85)
    if view.chance(0.75):
        fence(view, side * edge, along)


def fence(view: Canvas, x: float, along: Flat) -> None:
    """Put up a fence along the street: boards or rails on a low wall."""
    near, far = along
    top, colour = view.pick(0.9, 1.5), view.one(((122, 92, 66), (64, 70, 74), (150, 144, 136)))
    view.front(FENCE, colour, x, (0, top), along, 0.9)
    posts = np.arange(near, min(far, 45), view.pick(0.35, 1.2))
    if len(posts):
        width = 0.1
        corners = [
            np.stack((np.full_like(posts, x), np.full_like(posts, y), posts + dz), -1)
            for y, dz in ((0.1, 0), (top * 0.96, 0), (top * 0.96, width), (0.1, width))
        ]
        view.panes(view.tone(colour, near, 0.6), np.stack(corners, axis=1))


def tree(view: Canvas, x: float, z: float, height: float) -> None:
    """Grow a tree: a trunk, and a crown of dark leaves with lit ones inside it."""
    s, green = view.focal / z, view.one(_LEAVES)
    u, v = view.flat(x, height * 0.62, z)
    foot = view.flat(x, 0, z)
    view.stroke(TREE, view.tone((74, 58, 46), z), foot, (u, v), s * height * 0.045)
    radius = s * height * view.pick(0.2, 0.28)
    if not -2 * radius < u < view.ids.shape[1] + 2 * radius:
        return
    rolls = view.rng.random((13 if radius > 8 else 6, 3)).tolist()
    leaves = [
        (u + (a - 0.5) * radius * 2.3, v + (b - 0.6) * radius * 2.2, radius * (0.4 + 0.35 * c))
        for a, b, c in rolls
    ]
    shades = ((0.62, 1.0), (0.92, 0.72), (1.22, 0.4))
    for shade, shrink in shades if radius > 5 else shades[:2]:
        tone = view.tone(green, z, shade)
        for cu, cv, r in leaves:
            shift = r * (1 - shrink) * 0.55
            at = (cu + shift * view.sunny, cv - shift)
            view.disc(TREE if shrink == 1.0 else None, tone, at, r * shrink)


def lamp(view: Canvas, x: float, z: float) -> None:
    """Put up a lamp post whose arm reaches over the road."""
    s, height = view.focal / z, view.pick(6, 8.5)
    colour = view.tone((92, 96, 98), z)
    foot, top = view.flat(x, 0, z), view.flat(x, height, z)
    arm = view.flat(x - math.copysign(1.6, x), height + 0.2, z)
    view.stroke(POLE, colour, foot, top, s * 0.14)
    view.stroke(POLE, colour, top, arm, s * 0.09)
    view.stroke(POLE, view.tone((196, 196, 190), z), arm, (arm[0] + s * 0.25, arm[1]), s * 0.14)


def sign(view: Canvas, x: float, z: float) -> None:
    """Put up a traffic sign, a board or a traffic light on its pole."""
    s, height = view.focal / z, view.pick(2.3, 3.2)
    foot, (u, v) = view.flat(x, 0, z), view.flat(x, height, z)
    view.stroke(POLE, view.tone((128, 130, 132), z), foot, (u, v), s * 0.09)
    kind, r = view.rng.random(), s * view.pick(0.3, 0.42)
    red, white = view.tone((196, 30, 36), z), view.tone((238, 236, 230), z)
    if kind < 0.35:
        view.disc(SIGN, red, (u, v), r)
        view.disc(None, white, (u, v), r * 0.66)
    elif kind < 0.55:
        view.patch(SIGN, red, ((u, v - r), (u + r, v + r * 0.8), (u - r, v + r * 0.8)))
        inner = ((u, v - r * 0.4), (u + r * 0.5, v + r * 0.5), (u - r * 0.5, v + r * 0.5))
        view.patch(None, white, inner)
    elif kind < 0.8:
        blue = view.tone(view.one(((30, 78, 168), (28, 110, 70), (226, 176, 40))), z)
        _box(view, SIGN, blue, (u - r * 1.2, v - r), (u + r * 1.2, v + r))
        _box(view, None, white, (u - r * 0.8, v - r * 0.15), (u + r * 0.8, v + r * 0.15))
    else:
        _box(
            view,
            SIGN,
            view.tone((26, 28, 30), z),
            (u - r * 0.5, v - r * 1.2),
            (u + r * 0.5, v + r * 1.2),
        )
        lit = int(view.rng.random() * 3)
        for k, colour in enumerate(((230, 40, 36), (236, 170, 40), (60, 220, 110))):
            glow = colour if k == lit else (52, 52, 52)
            view.disc(None, glow, (u, v + (k - 1) * r * 0.75), r * 0.26)


def _box(view: Canvas, what: int | None, colour: Colour, low: Flat, high: Flat) -> None:
    """Fill an upright rectangle in pixels."""
    view.patch(what, colour, (low, (high[0], low[1]), high, (low[0], high[1])))


def car(view: Canvas, x: float, z: float, *, coming: bool) -> None:
    """Park or drive a car, a van or a bus: the side that shows, its near end, its glass."""
    kind = view.rng.random()
    shape = _BUS if kind < 0.04 else _VAN if kind < 0.16 else _COMING if coming else _GOING
    paint, light = view.one(_PAINTS), view.pick(0.85, 1.05)
    long, half = shape[-1][0], shape[0][2]
    shade = ((x - half - 0.15, 0, z - 0.1), (x + half + 0.15, 0, z - 0.1),
             (x + half + 0.3, 0, z + long), (x - half - 0.3, 0, z + long))  # fmt: skip
    view.quad(None, (34, 34, 38), shade)
    side = 1 if view.eye[0] > x else -1
    if abs(view.eye[0] - x) > half:
        _car_side(view, shape, x, z, side, paint, light * (1.0 if side == -view.sunny else 0.72))
    for a, b in reversed(list(pairwise(shape[:6]))):
        view.quad(CAR, paint, _strip(x, z, a, b), light * (1.1 if b[1] < 1.0 else 0.96))
    glass = (shape[2], shape[3]) if shape is _COMING else (shape[1], shape[2])
    if z < 60:
        view.quad(None, (44, 52, 62), _strip(x, z, *glass, inset=0.13))
        _car_end(view, shape, x, z, coming=coming)


def _strip(
    x: float, z: float, a: Sequence[float], b: Sequence[float], inset: float = 0.0
) -> tuple[Point, Point, Point, Point]:
    """Return the panel across the car between two points of its outline."""
    a0, b0 = a, b
    if inset:
        a, b = (
            tuple(p + (q - p) * t for p, q in zip(a0, b0, strict=True)) for t in (inset, 1 - inset)
        )
    wa, wb = a[2] * (1 - inset), b[2] * (1 - inset)
    return (
        (x - wa, a[1], z + a[0]), (x - wb, b[1], z + b[0]),
        (x + wb, b[1], z + b[0]), (x + wa, a[1], z + a[0]),
    )  # fmt: skip


def _car_side(
    view: Canvas, shape: _Profile, x: float, z: float, side: int, paint: Colour, light: float
) -> None:
    """Draw the side of the car that the camera sees, with its wheels and windows."""
    outline = [(x + side * w, y, z + d) for d, y, w in shape]
    view.quad(CAR, paint, outline, light)
    long, half = shape[-1][0], shape[0][2]
    rims = ((0.33, (24, 24, 26)), (0.18, (132, 134, 138)))
    for d in (long * 0.19, long * 0.79) if z < 60 else ():
        for radius, colour in rims[: 1 + (z < 25)]:
            turn = (k * math.pi / 5 for k in range(10))
            wheel = [
                (x + side * half, 0.33 + radius * math.sin(t), z + d + radius * math.cos(t))
                for t in turn
            ]
            view.quad(CAR if radius > 0.2 else None, colour, wheel)
    if z > 45:
        return
    belt = [p for p in shape if p[1] >= 0.9][:4] if shape in (_COMING, _GOING) else shape[1:5]
    roof, sill = max(p[1] for p in belt) - 0.08, min(p[1] for p in belt) + 0.06
    d0, d1, d2, d3 = belt[0][0], belt[1][0], belt[2][0], belt[3][0]
    w0, w1 = belt[0][2], belt[1][2]
    pane = (
        (x + side * w0, sill, z + d0 + 0.28), (x + side * w1, roof, z + d1 + 0.1),
        (x + side * w1, roof, z + d2 - 0.1), (x + side * w0, sill, z + d3 - 0.28),
    )  # fmt: skip
    view.quad(None, (40, 46, 54), pane)
    middle = (d1 + d2) / 2
    pillar = ((w0, sill, middle - 0.05), (w1, roof, middle - 0.05),
              (w1, roof, middle + 0.05), (w0, sill, middle + 0.05))  # fmt: skip
    view.quad(None, paint, [(x + side * w, y, z + d) for w, y, d in pillar], light)


def _car_end(view: Canvas, shape: _Profile, x: float, z: float, *, coming: bool) -> None:
    """Draw what the near end carries: tyres, bumper, lamps, number plate."""
    half, low, high = shape[0][2], shape[0][1], shape[1][1]
    for at in (-half + 0.04, half - 0.26):
        view.wall(CAR, (22, 22, 24), z, (x + at, x + at + 0.22), (0.0, low + 0.02))
    view.wall(CAR, (38, 38, 42), z, (x - half, x + half), (low - 0.12, low + 0.06))
    lamps = (250, 246, 220) if coming else (206, 24, 28)
    rise = low + (high - low) * 0.62
    for at in (-half * 0.94, half * 0.94 - 0.3):
        view.wall(None, lamps, z, (x + at, x + at + 0.3), (rise, min(high, rise + 0.15)))
    if coming:
        view.wall(None, (46, 46, 50), z, (x - half * 0.5, x + half * 0.5), (rise, rise + 0.1))
    plate = (240, 240, 236) if coming else (238, 208, 70)
    view.wall(None, plate, z, (x - 0.26, x + 0.26), (low + 0.12, low + 0.24))


def walker(view: Canvas, x: float, z: float) -> None:
    """Let someone stand or walk: head, coat, arms, two legs, a shadow at the feet."""
    u, v = view.flat(x, 0, z)
    tall = view.focal / z * (view.pick(1.55, 1.9) if view.chance(0.88) else view.pick(1.0, 1.4))
    coat, legs, skin = (
        view.tone(view.one(c), z, 0.95)
        for c in (_CLOTHES, ((34, 36, 48), (62, 54, 46), (20, 20, 24)), _SKINS)
    )
    stride, lean = tall * view.pick(0.02, 0.13), tall * view.pick(-0.03, 0.03)
    hip = (u + lean * 0.5, v - tall * 0.48)
    for foot in (-stride, stride):
        view.stroke(PEDESTRIAN, legs, hip, (u + foot, v), tall * 0.08)
    w = tall * 0.115
    body = [(u + lean + dx * w, v - tall * y)
            for dx, y in ((-1, 0.82), (1, 0.82), (0.95, 0.44), (-0.95, 0.44))]  # fmt: skip
    view.patch(PEDESTRIAN, coat, body)
    for dx in (-1, 1):
        hand = (u + dx * (w * 1.2 + stride * 0.3), v - tall * 0.46)
        view.stroke(PEDESTRIAN, coat, (u + lean + dx * w, v - tall * 0.79), hand, tall * 0.05)
    head = (u + lean, v - tall * 0.91)
    view.disc(PEDESTRIAN, skin, head, tall * 0.075)
    hair = ((30, 24, 22), (88, 62, 40), (170, 150, 120))
    view.disc(None, view.tone(view.one(hair), z), (head[0], head[1] - tall * 0.03), tall * 0.045)


def cyclist(view: Canvas, x: float, z: float) -> None:
    """Let someone ride: two wheels, a frame, a rider; seen from behind or from the side."""
    (u, v), s = view.flat(x, 0, z), view.focal / z
    dark, coat, skin = (
        view.tone(c, z) for c in ((28, 28, 32), view.one(_CLOTHES), view.one(_SKINS))
    )
    side_on = view.chance(0.4)
    gap, bar, r = s * (0.52 if side_on else 0.06), s * 0.07, s * 0.34
    if side_on:
        for wheel in (-gap, gap):
            view.disc(BICYCLIST, dark, (u + wheel, v - r), r)
            view.disc(None, view.tone((120, 120, 124), z), (u + wheel, v - r), r * 0.72)
        seat, grip = (u - gap * 0.4, v - s * 0.95), (u + gap * 0.75, v - s * 1.0)
        for a, b in (((u - gap, v - r), seat), (seat, (u, v - r)), ((u, v - r), grip),
                     (grip, (u + gap, v - r)), ((u - gap, v - r), (u, v - r))):  # fmt: skip
            view.stroke(BICYCLIST, coat, a, b, bar)
        shoulder = (u + gap * 0.25, v - s * 1.5)
        view.stroke(BICYCLIST, dark, seat, (u + gap * 0.1, v - s * 0.2), s * 0.15)
    else:
        view.stroke(BICYCLIST, dark, (u, v), (u, v - r * 2), s * 0.08)
        seat, shoulder = (u, v - s * 0.98), (u, v - s * 1.5)
        grip = (u + s * 0.26, v - s * 1.0)
        for leg in (-1, 1):
            foot = (u + leg * s * 0.12, v - s * view.pick(0.15, 0.45))
            view.stroke(BICYCLIST, dark, (seat[0] + leg * s * 0.1, seat[1]), foot, s * 0.13)
        view.stroke(BICYCLIST, dark, (u - s * 0.26, v - s), grip, bar)
        view.stroke(BICYCLIST, coat, (u - s * 0.2, v - s * 1.42), (u - s * 0.26, v - s), s * 0.09)
    view.stroke(BICYCLIST, coat, seat, shoulder, s * 0.34)
    view.stroke(BICYCLIST, coat, (shoulder[0] + s * 0.1, shoulder[1] + s * 0.08), grip, s * 0.1)
    head = (shoulder[0] + gap * 0.2, shoulder[1] - s * 0.22)
    view.disc(BICYCLIST, skin, head, s * 0.13)
    helmet = view.tone(view.one(_PAINTS), z)
    view.disc(None, helmet, (head[0], head[1] - s * 0.04), s * 0.09)
