"""One street scene: weather, ground, houses, what stands and moves, and the photograph of it.

Shapes come from `objects`, drawn alike into picture and label by `canvas`; light, texture, blur and
noise then touch the picture alone.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

from pipeline.streetscenes import objects
from pipeline.streetscenes.canvas import (
    BUILDING,
    NEAR,
    PAVEMENT,
    ROAD,
    TREE,
    VOID,
    Canvas,
    Weather,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.streetscenes.canvas import Flat

_FAR: Final = 150.0
"""Where the street ends, in metres."""
_GRAIN: Final = np.array(
    [0.006, 0.05, 0.03, 0.05, 0.06, 0.22, 0.02, 0.06, 0.02, 0.05, 0.05, 0.02], np.float32
)
"""How strongly each class's surface varies from pixel to pixel, as a share of its brightness."""
_WEATHERS: Final = (
    Weather((84, 142, 214), (206, 224, 240), 420, 1.06, 0.52, (1.03, 1.0, 0.95), 0.5),
    Weather((120, 164, 214), (228, 234, 238), 300, 1.0, 0.62, clouds=0.9),
    Weather((176, 184, 194), (222, 224, 226), 220, 0.9, 0.9, (0.97, 1.0, 1.03), 0.6),
    Weather((196, 202, 206), (214, 217, 219), 70, 0.92, 1.0, clouds=0.15),
    Weather((74, 86, 134), (246, 190, 138), 240, 0.78, 0.72, (1.08, 0.98, 0.9), 0.8),
    Weather((58, 66, 86), (120, 122, 130), 200, 0.56, 0.95, (0.95, 0.98, 1.07), 0.5),
)
"""Clear, fair, overcast, fog, sunset, dusk."""
_OFTEN: Final = (0.3, 0.25, 0.18, 0.08, 0.12, 0.07)


def scene(
    seed: int | Sequence[int], height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the street of this seed: RGB uint8 [H,W,3] and its labels uint8 [H,W] in camvid-11.

    The same arguments give the same pixels, in any process and order.
    """
    view = _look(np.random.default_rng(seed), height, width)
    half, kerb = view.pick(3.2, 6.5), view.pick(1.8, 3.6)
    _sky(view)
    _ground(view, half, kerb)
    _skyline(view)
    plots = {side: _plots(view) for side in (-1, 1)}
    _shadows(view, half + kerb, plots[view.sunny * -1])
    _marks(view, half)
    for side in (-1, 1):
        _houses(view, side, half + kerb, plots[side])
    _furniture(view, half, kerb)
    _traffic(view, half)
    _people(view, half, kerb)
    for _, draw in sorted(view.things, key=lambda thing: -thing[0]):
        draw()
    _bonnet(view)
    return _expose(view), view.ids


def _look(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Set up an empty picture, a camera behind a windscreen and the weather of the day."""
    return Canvas(
        rng=rng,
        rgb=np.zeros((height, width, 3), np.uint8),
        ids=np.zeros((height, width), np.uint8),
        weather=_WEATHERS[int(rng.choice(len(_WEATHERS), p=_OFTEN))],
        focal=math.sqrt(height * width) * rng.uniform(0.75, 1.05),
        centre=(width * rng.uniform(0.38, 0.62) + 0.5, height * rng.uniform(0.42, 0.54) + 0.5),
        eye=(rng.uniform(-2.2, 0.6), rng.uniform(1.35, 1.9)),
        sunny=int(rng.choice((-1, 1))),
    )


def _sky(view: Canvas) -> None:
    """Fill the picture with sky: a gradient down to the horizon, and clouds."""
    height, width = view.ids.shape
    rows, columns = max(2, height // 4), max(2, width // 4)  # soft enough to be drawn small
    fall = np.clip(np.linspace(0, height / max(view.centre[1], 1), rows, dtype=np.float32), 0, 1)
    zenith, horizon = np.array((view.weather.zenith, view.weather.horizon), np.float32)
    gradient = zenith + (horizon - zenith) * fall[:, None, None] ** 0.8
    cloud = view.smooth(5, rows, columns) + 0.5 * view.smooth(12, rows, columns)
    cover = np.clip(cloud * 0.35 + 0.1, 0, 1)[..., None] * view.weather.clouds
    small = gradient + (np.minimum(horizon * 1.08 + 6, 255) - gradient) * cover
    view.rgb[:] = cv2.resize(small, (width, height))


def _ground(view: Canvas, half: float, kerb: float) -> None:
    """Lay the road between two pavements, with a kerb stone on each side."""
    grey, edge = view.pick(78, 122), (half + kerb) * 3
    asphalt = (grey, grey * view.pick(0.97, 1.02), grey * view.pick(0.97, 1.06))
    slab = view.one(((158, 150, 142), (146, 146, 148), (172, 150, 132), (132, 124, 118)))
    view.ground(PAVEMENT, slab, (-900, 900), (0.2, 900))
    steps = (0.2, 6, 12, 20, 32, 50, 90, 900)
    for near, far in zip(steps[-2::-1], steps[:0:-1], strict=True):  # in pieces, for the haze
        view.ground(PAVEMENT, slab, (-edge, edge), (near, far))
        view.ground(ROAD, asphalt, (-half, half), (near, far))
    joints = np.arange(3, 24, view.pick(1.2, 2.4)).tolist()
    for side in (-1, 1):
        for z in joints:
            view.ground(None, slab, (side * half, side * edge / 3), (z, z + 0.05), 0.85)
        view.ground(None, (186, 182, 176), (side * half, side * (half + 0.2)), (0.2, 60))


def _skyline(view: Canvas) -> None:
    """Close the street at its far end with roofs, towers and tree tops."""
    x, z = -_FAR * 1.6, _FAR
    scale = view.focal / z
    while x < _FAR * 1.6:
        span = view.pick(8, 30)
        top = view.pick(5, 20) if view.chance(0.88) else view.pick(25, 42)
        if view.chance(0.3):
            green = view.tone((62, 84, 52), z)
            for step in range(5):
                at = view.flat(x + span * step / 4, view.pick(2, 6), z)
                view.disc(TREE, green, at, scale * view.pick(4, 7))
        else:
            wall = view.one(objects.WALLS)
            view.wall(BUILDING, wall, z, (x, x + span), (0, top), view.pick(0.6, 0.95))
        x += span


def _plots(view: Canvas) -> list[tuple[Flat, float]]:
    """Divide one side of the street: spans in metres, near to far, and heights; 0 is a garden."""
    plots: list[tuple[Flat, float]] = []
    green, storeys = 0.75 if view.chance(0.3) else 0.12, view.pick(1.6, 4.6)
    z = view.pick(NEAR, 6)
    while z < _FAR * 0.9:
        end = z + view.pick(6, 16) * (1 + z / 80)
        height = 0.0 if view.chance(green) else max(3.6, (storeys + view.pick(-1, 1.6)) * 3.1)
        plots.append(((z, end), height))
        z = end
    return plots


def _houses(view: Canvas, side: int, edge: float, plots: list[tuple[Flat, float]]) -> None:
    """Build on one side of the street, from its far end to the near one."""
    for along, height in reversed(plots):
        if height:
            objects.building(view, side, edge, along, height)
        else:
            objects.garden(view, side, edge, along)


def _shadows(view: Canvas, edge: float, plots: list[tuple[Flat, float]]) -> None:
    """Darken the ground where the houses on the side away from the sun stand in its way."""
    mask, reach = np.zeros_like(view.ids), view.pick(0.3, 1.3)
    for (near, far), height in plots:
        inner = -view.sunny * (edge - (height or 2.5) * reach)
        outer, slant = -view.sunny * edge, height * 0.4
        span = ((outer, near), (inner, near + slant), (inner, far + slant), (outer, far))
        corners = [view.flat(x, 0, z) for x, z in span]
        cv2.fillPoly(mask, [np.array(corners, np.int32)], (255,))
    mask &= cv2.inRange(view.ids, (ROAD,), (PAVEMENT,))
    dark = cv2.convertScaleAbs(view.rgb, alpha=view.weather.shadow)
    cv2.copyTo(dark, mask, view.rgb)


def _marks(view: Canvas, half: float) -> None:
    """Paint the road: a broken centre line, lines at the edges, now and then a zebra crossing."""
    white, worn = (232, 230, 222), view.pick(0.75, 1.0)
    start = view.pick(0.6, 3)
    for k in range(9):
        z = start + k * 5.5
        view.ground(None, white, (-0.07, 0.07), (z, z + 2.4), worn)
    if view.chance(0.6):
        edge = view.one(((232, 230, 222), (222, 190, 70)))
        for side in (-1, 1):
            view.ground(
                None, edge, (side * (half - 0.45), side * (half - 0.33)), (0.2, 70), worn * 0.95
            )
    if view.chance(0.25):
        z, bars = view.pick(6, 16), int(half)
        for k in range(-bars, bars):
            view.ground(None, white, (k + 0.2, k + 0.75), (z, z + 2.8), worn)


def _furniture(view: Canvas, half: float, kerb: float) -> None:
    """Set trees, lamps, signs and rails on the pavements."""
    lane = half + 0.5
    for side in (-1, 1):
        if view.chance(0.45):
            gap, z = view.pick(8, 16), view.pick(7, 16)
            tall = view.pick(5, 9)
            while z < 90:
                _stand(view, z, objects.tree, side * (lane + 0.4), z, tall * view.pick(0.8, 1.2))
                z += gap
        gap, z = view.pick(16, 30), view.pick(5, 18)
        while z < 100:
            _stand(view, z, objects.lamp, side * lane, z)
            z += gap
        for _ in range(int(view.pick(0, 4))):
            z = view.pick(5, 40)
            _stand(view, z, objects.sign, side * (half + view.pick(0.4, max(0.5, kerb - 0.5))), z)
        if view.chance(0.2):
            z = view.pick(5, 20)
            _stand(view, z, objects.fence, side * (half + 0.15), (z, z + view.pick(4, 14)))


def _stand(view: Canvas, z: float, draw: Callable[..., None], *place: float | Flat) -> None:
    view.things.append((z, partial(draw, view, *place)))


def _traffic(view: Canvas, half: float) -> None:
    """Drive cars in both lanes, and park some at the kerb; nothing overlaps on the road."""
    lane = min(half * 0.5, 2.2)
    for side in (-1, 1):
        z = view.pick(6, 40)
        while z < 100:
            x = side * lane + view.pick(-0.3, 0.3)
            view.things.append((z, partial(objects.car, view, x, z, coming=side > 0)))
            z += view.pick(12, 55)
        if half > 4.4 and view.chance(0.6):
            z = view.pick(4, 14)
            while z < 70:
                x = side * (half - 1.0)
                view.things.append((z, partial(objects.car, view, x, z, coming=view.chance(0.5))))
                z += view.pick(5.2, 16) if view.chance(0.85) else 25


def _people(view: Canvas, half: float, kerb: float) -> None:
    """Let people walk on the pavements, some cross, some ride."""
    for _ in range(int(view.pick(1, 9))):
        side, z = 1 if view.chance(0.5) else -1, view.pick(4.5, 30)
        _stand(view, z, objects.walker, side * (half + view.pick(0.5, kerb)), z)
    if view.chance(0.2):
        z = view.pick(8, 22)
        for _ in range(int(view.pick(1, 3.5))):
            _stand(view, z, objects.walker, view.pick(-half, half), z)
    for _ in range(int(view.pick(0, 2.6))):
        side, z = 1 if view.chance(0.5) else -1, view.pick(5.5, 24)
        _stand(view, z, objects.cyclist, side * max(1.0, half - view.pick(0.5, 1.4)), z)


def _bonnet(view: Canvas) -> None:
    """Show the camera's own bonnet in some pictures, and a thin dark edge: both are void."""
    height, width = view.ids.shape
    if view.chance(0.3):
        rise, at = height * view.pick(0.02, 0.06), width * view.pick(0.35, 0.65)
        turns = [k * math.pi / 12 for k in range(13)]
        curve = [
            (at - width * 0.6 * math.cos(t), height - rise * 2.2 * math.sin(t) + rise)
            for t in turns
        ]
        view.patch(VOID, view.one(((30, 32, 36), (92, 96, 104), (60, 20, 24))), curve)
    if view.chance(0.3) and min(height, width) >= 64:
        edge = max(1, round(min(height, width) / 160))
        for strip in (np.s_[:, :edge], np.s_[:, -edge:]):
            view.rgb[strip], view.ids[strip] = 12, VOID


def _expose(view: Canvas) -> NDArray[np.uint8]:
    """Take the photograph: surface grain, uneven light, lens blur, exposure, sensor noise."""
    height, width = view.ids.shape
    light = cv2.LUT(view.ids, np.resize(_GRAIN, 256))
    light *= _noise(view, height * width).reshape(height, width)
    light += 1 + 0.035 * view.smooth(9, height, width)
    column = np.linspace(-1, 1, width, dtype=np.float32) ** 2
    row = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    light *= 1.03 - view.pick(0.04, 0.16) * (row + column)
    gain = view.weather.gain * view.pick(0.88, 1.12)
    bands = cv2.merge([light * np.float32(gain * tint) for tint in view.weather.tint])
    photo = cv2.multiply(view.rgb, bands, dtype=cv2.CV_32F)
    sigma = math.sqrt(height * width) / 277 * view.pick(0.35, 0.75)
    photo = cv2.GaussianBlur(photo, (0, 0), sigma) if sigma > 0.2 else photo
    noise = _noise(view, photo.size).reshape(photo.shape)
    shot: NDArray[np.uint8] = cv2.addWeighted(
        photo, 1, noise, view.pick(1.0, 4.5), 0, dtype=cv2.CV_8U
    )
    return shot


@cache
def _static() -> NDArray[np.float32]:
    """Return a store of normal noise: drawing it afresh cost a third of a scene's time."""
    return np.random.default_rng(0).standard_normal(1 << 20, np.float32)


def _noise(view: Canvas, count: int) -> NDArray[np.float32]:
    """Return `count` values of normal noise from a place of the store that the scene picks."""
    store = _static()
    start = int(view.pick(0, max(1, len(store) - count)))
    if start + count <= len(store):
        return store[start : start + count]
    return np.resize(store, count)
