"""Objects: COCO run-length codes, polygons, and maps of objects and classes made from each other.

Run lengths go down the columns (column-major) and start with a run of zeros. They are coded and
decoded here in NumPy, so that a malformed string is refused before any memory is written; polygons
are drawn by pycocotools, whose rule at the border is the one that COCO's areas follow.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import BadAnnotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Instance

    Runs = NDArray[np.int64]

_GROUPS: Final = 7  # 5 bits each: runs below 2**34, and no overflow from a hostile string
_LOT_RUNS: Final = 1 << 15  # coded together: some megabytes
_KEPT_LETTERS: Final = 4096  # of a text whose run lengths are kept: 16 MiB are the most for all
_MOST_KEPT: Final = 512
_KEPT: Final[dict[str, Runs]] = {}
"""Run lengths of the texts coded or decoded last, read-only: on its way through a worker, an object
is looked at several times. Threads share it; each step on it is one of the interpreter's."""
_NO_CODE: Final = "the run lengths are not COCO's compressed text"
_FAR: Final = 16  # a polygon may leave the image by this many image sides; see _points


def _runs_of(binary: NDArray[np.bool_ | np.uint8]) -> Runs:
    """Return the run lengths of [H, W], looking only at the box that holds its pixels."""
    height, width = binary.shape
    rows = np.flatnonzero(binary.any(axis=1))
    if not len(rows):
        return np.array([height * width], dtype=np.int64)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(binary[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return _runs_at(binary[top:bottom, left:right], top, left, height, width)


def _runs_at(
    crop: NDArray[np.bool_ | np.uint8], top: int, left: int, height: int, width: int
) -> Runs:
    """Return the run lengths in an image [height, width] of what a crop of it holds."""
    rows, columns = crop.shape
    # A zero below each column ends its run; a box of full height must not cut runs that go on.
    step = height if rows == height else rows + 1
    box = np.zeros((columns, step), dtype=np.bool_)
    box[:, :rows] = crop.T != 0
    flat = np.concatenate(([False], box.ravel(), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(edges, step)
    edges = (column + left) * height + row + top
    # Closing an image-high run at the end of the box's last column is one edge, not two.
    runs: Runs = np.diff(edges, prepend=0, append=height * width)
    return runs[:-1] if runs[-1] == 0 else runs


def _pack(runs: Runs) -> str:
    """Code run lengths as COCO's text: differences to the run before the last, 5 bits a letter."""
    [text] = _pack_all([runs])
    return text


def _pack_all(objects: Sequence[Runs]) -> list[str]:
    """Code the run lengths of several objects, in a third of the time."""
    texts: list[str] = []
    for some in _lots(objects):
        sizes = np.array([len(runs) for runs in some])
        texts += _packed(np.concatenate(some).astype(np.int64), sizes)
    for text, runs in zip(texts, objects, strict=True):
        runs = runs.view()
        runs.flags.writeable = False
        _keep(text, runs)
    return texts


def _lots(objects: Sequence[Runs]) -> Iterator[list[Runs]]:
    """Yield objects together as long as they are small: coding takes 200 bytes a run."""
    held: list[Runs] = []
    size = 0
    for runs in objects:
        if held and size + len(runs) > _LOT_RUNS:
            yield held
            held, size = [], 0
        held.append(runs)
        size += len(runs)
    if held:
        yield held


def _packed(runs: Runs, sizes: Runs) -> list[str]:
    ends = np.cumsum(sizes)
    number = np.arange(len(runs)) - np.repeat(ends - sizes, sizes)  # of each run in its object
    deltas = np.where(number < 3, runs, runs - np.roll(runs, 2))
    groups = np.ones(len(deltas), dtype=np.int64)
    for bits in range(5, 5 * _GROUPS, 5):
        half = 1 << (bits - 1)
        groups += (deltas >= half) | (deltas < -half)
    place = np.arange(int(groups.max()))
    letters = (deltas[:, None] >> (5 * place)) & 31
    letters |= (place < groups[:, None] - 1) * 32
    kept = letters[place < groups[:, None]] + 48
    text = kept.astype(np.uint8).tobytes().decode("ascii")
    edges = np.cumsum(groups)[ends - 1].tolist()
    return [text[low:high] for low, high in zip([0, *edges[:-1]], edges, strict=True)]


def _keep(text: str, runs: Runs) -> None:
    if len(text) > _KEPT_LETTERS:
        return
    while len(_KEPT) >= _MOST_KEPT:
        with suppress(StopIteration, RuntimeError):  # another thread was quicker
            _KEPT.pop(next(iter(_KEPT)), None)
    _KEPT[text] = runs


def _unpack(counts: str, path: str) -> Runs:
    """Decode COCO's text to run lengths; they are checked to be letters of the code, not to fit."""
    runs = _KEPT.get(counts)
    if runs is None:
        try:
            [runs] = _unpacked([counts])
        except ValueError as error:
            raise _bad(path, str(error)) from None
        _keep(counts, runs)
    return runs


def rle_unpack_ahead(texts: Sequence[str]) -> None:
    """Decode the texts of an image's objects in one go, which takes a third of the time.

    They are kept for the functions that ask for one of them. A malformed text is left to those.
    """
    fresh = [text for text in dict.fromkeys(texts) if text not in _KEPT][: _MOST_KEPT // 4]
    with suppress(ValueError):
        for text, runs in zip(fresh, _unpacked(fresh), strict=True):
            _keep(text, runs)


def _unpacked(texts: Sequence[str]) -> list[Runs]:
    """Return the run lengths of each text, read-only; ValueError where one has none."""
    if not texts:
        return []
    coded = [text.encode("utf-8") for text in texts]
    if not all(coded):
        raise ValueError(_NO_CODE)
    letters = np.frombuffer(b"".join(coded), dtype=np.uint8) - np.uint8(48)
    ends = np.cumsum([len(text) for text in coded])
    ending = letters < 32
    if letters.max() > 63 or not ending[ends - 1].all():  # below 48 wraps around
        raise ValueError(_NO_CODE)
    last = np.flatnonzero(ending)
    first = np.empty_like(last)
    first[0], first[1:] = 0, last[:-1] + 1
    bits = 5 * (last - first + 1)  # of each run
    if bits.max() > 5 * _GROUPS:
        raise ValueError("a run length is out of all proportion")
    shift = 5 * np.arange(len(letters)) - np.repeat(5 * first, bits // 5)
    deltas = np.add.reduceat((letters & 31).astype(np.int64) << shift, first)
    deltas -= ((letters[last] & 16) != 0).astype(np.int64) << bits
    found, start = [], 0
    for stop in np.searchsorted(last, ends).tolist():
        runs = deltas[start:stop]
        np.cumsum(runs[1::2], out=runs[1::2])
        np.cumsum(runs[2::2], out=runs[2::2])
        found.append(runs)
        start = stop
    if deltas.min() < 0:
        raise ValueError("a run length is negative")
    deltas.flags.writeable = False
    for runs in found:
        runs.flags.writeable = False
    return found


def _bad(path: str, cause: str) -> BadAnnotation:
    return BadAnnotation(path, cause, "correct the annotation or leave the object out")


def _fitting(runs: Runs, height: int, width: int, path: str) -> Runs:
    if int(runs.sum()) != height * width:
        raise _bad(path, f"run lengths of {int(runs.sum())} pixels for an image {width}x{height}")
    return runs


def rle_check(counts: str, height: int, width: int, path: str = "run lengths") -> None:
    """Make sure that a text holds the run lengths of an image of this size.

    Raises:
        BadAnnotation: it is malformed, or of another size.
    """
    _fitting(_unpack(counts, path), height, width, path)


def rle_encode(binary: NDArray[np.bool_ | np.uint8]) -> str:
    """Return the compressed run lengths of [H, W], where every value but zero is the object."""
    return _pack(_runs_of(binary))


def rle_decode(
    counts: str, height: int, width: int, path: str = "run lengths"
) -> NDArray[np.uint8]:
    """Return the mask [H, W] of 0 and 1, column-major in memory.

    Raises:
        BadAnnotation: the text is malformed, or of another size.
    """
    runs = _fitting(_unpack(counts, path), height, width, path)
    flat = np.repeat((np.arange(len(runs)) & 1).astype(np.uint8), runs)
    return flat.reshape(width, height).T


def rle_encode_at(
    crop: NDArray[np.bool_ | np.uint8], corner: tuple[int, int], shape: tuple[int, int]
) -> str:
    """Return the compressed run lengths, in an image [H, W] of `shape`, of a crop of it.

    `corner` is (row, column) of the crop's first pixel: the rest of the image is not looked at.
    """
    return _pack(_runs_at(crop, *corner, *shape))


def rle_crop(
    counts: str, height: int, width: int, path: str = "run lengths"
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the object's pixels in its box, bool [h, w], and the box's (row, column).

    An object without pixels has a crop of no size.

    Raises:
        BadAnnotation: the text is malformed, or of another size.
    """
    runs = _fitting(_unpack(counts, path), height, width, path)
    x, y, w, h = map(int, _box(runs, height))
    flat = np.zeros(w * height, dtype=np.bool_)
    if w:
        here = _here(runs)
        first = int(runs[0]) - x * height
        flat[first : first + len(here)] = here
    return flat.reshape(w, height).T[y : y + h], (y, x)


def rle_runs(counts: str, path: str = "run lengths") -> list[int]:
    """Return the run lengths as numbers: COCO's uncompressed form.

    Raises:
        BadAnnotation: the text is malformed.
    """
    return [int(run) for run in _unpack(counts, path)]


def rle_from_runs(runs: Sequence[int], height: int, width: int, path: str = "run lengths") -> str:
    """Return the compressed text of uncompressed run lengths.

    Raises:
        BadAnnotation: the runs are not whole numbers from 0, or do not add up to the image.
    """
    if not runs or not all(isinstance(run, int) and 0 <= run <= height * width for run in runs):
        raise _bad(path, f"run lengths are not whole numbers in 0..{height * width}")
    return _pack(_fitting(np.array(runs, dtype=np.int64), height, width, path))


def rle_area(counts: str, path: str = "run lengths") -> int:
    """Return the object's pixels."""
    return int(_unpack(counts, path)[1::2].sum())


def rle_bbox(
    counts: str, height: int, width: int, path: str = "run lengths"
) -> tuple[float, float, float, float]:
    """Return the object's box (x, y, w, h) in pixels; all zeros when it has none.

    Raises:
        BadAnnotation: the text is malformed, or of another size.
    """
    return _box(_fitting(_unpack(counts, path), height, width, path), height)


def _box(runs: Runs, height: int) -> tuple[float, float, float, float]:
    ends = np.cumsum(runs)
    start, stop = ends[:-1:2], ends[1::2]
    start, stop = start[stop > start], stop[stop > start] - 1
    if not len(start):
        return 0.0, 0.0, 0.0, 0.0
    left, right = int(start[0]) // height, int(stop[-1]) // height
    if (start // height != stop // height).any():  # a run over a column's end touches both sides
        top, bottom = 0, height - 1
    else:
        top, bottom = int((start % height).min()), int((stop % height).max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def polygons_to_rle(
    polygons: Sequence[Sequence[float]], height: int, width: int, path: str = "polygon"
) -> str:
    """Return the union of COCO polygons, flat x, y lists in pixels, as compressed run lengths.

    Raises:
        BadAnnotation: a polygon has fewer than 3 points, or a coordinate is no number or far out.
    """
    from pycocotools import mask as coco

    parts = [_points(polygon, height, width, path) for polygon in polygons]
    if not parts:
        raise _bad(path, "an object without a polygon")
    drawn = coco.frPyObjects(parts, height, width)
    whole = drawn[0] if len(drawn) == 1 else coco.merge(drawn)
    return str(whole["counts"], "ascii")


def _points(polygon: Sequence[float], height: int, width: int, path: str) -> list[float]:
    """Check a polygon before C code sees it: its memory grows with the length of the outline."""
    points = np.asarray(polygon, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        raise _bad(path, f"a polygon of {points.size} numbers; it needs x, y of 3 points or more")
    far = _FAR * max(height, width)
    if not (points.min() >= -far and points.max() <= far):  # nor NaN
        raise _bad(path, f"a polygon far outside the image {width}x{height}")
    values: list[float] = points.tolist()
    return values


def _here(runs: Runs) -> NDArray[np.bool_]:
    """Tell for each pixel from an object's first to its last whether it is the object's."""
    inside = runs[1 : len(runs) // 2 * 2]
    return np.repeat((np.arange(len(inside)) & 1) == 0, inside)


@dataclass(frozen=True)
class Drawing:
    """Objects drawn over one another, larger ones first; parts of objects are left out.

    `objects` are those that may be drawn: the k-th is number k of the map, from 1, and 0 is none.
    """

    objects: tuple[Instance, ...]
    _places: LabelMap  # [W, H]: columns lie in one piece, as run lengths go
    _drawn: tuple[tuple[int, Runs], ...]

    @classmethod
    def of(
        cls, instances: Iterable[Instance], height: int, width: int, path: str = "instances"
    ) -> Drawing:
        """Draw objects; those without run lengths are not seen.

        Raises:
            BadAnnotation: run lengths are malformed, or of another size; or over 65,535 objects.
        """
        objects = tuple(i for i in instances if i.part_of is None)
        if len(objects) > 65535:
            raise _bad(path, f"{len(objects)} objects do not fit a 16-bit object map")
        drawn = []
        for number, instance in enumerate(objects, 1):
            if instance.rle:
                runs = _fitting(_unpack(instance.rle, path), height, width, path)
                drawn.append((number, runs))
        dtype = np.uint8 if len(objects) < 256 else np.uint16
        places: LabelMap = np.zeros((width, height), dtype=dtype)
        flat = places.reshape(-1)
        for number, runs in sorted(drawn, key=lambda item: (-int(item[1][1::2].sum()), item[0])):
            here = _here(runs)
            np.copyto(flat[runs[0] : runs[0] + len(here)], number, where=here)
        return cls(objects, places, tuple(drawn))

    def covered(self) -> int:
        """Return how many of the drawn objects are hidden by others, in part or wholly."""
        areas = np.array([int(runs[1::2].sum()) for _, runs in self._drawn], dtype=np.int64)
        if int(areas.sum()) == int(np.count_nonzero(self._places)):
            return 0
        shown = np.bincount(self._places.reshape(-1), minlength=len(self.objects) + 1)
        return int((shown[[number for number, _ in self._drawn]] < areas).sum())

    @cached_property
    def _upright(self) -> LabelMap:
        """The numbers as [H, W]."""
        import cv2  # its transpose takes a quarter of NumPy's time, and so does its look-up

        return np.asarray(cv2.transpose(self._places))

    def map(self, values: Iterable[int], ground: int, dtype: type[Any]) -> LabelMap:
        """Return the map [H, W] in which each object has its value, and all else is `ground`."""
        import cv2

        table = np.array([ground, *values], dtype=dtype)
        if self._places.dtype != np.uint8 or dtype is not np.uint8:
            return np.take(table, self._upright)
        if np.array_equal(table, np.arange(len(table))):
            return self._upright.copy()
        table.resize(256, refcheck=False)
        return np.asarray(cv2.LUT(self._upright, table))


def paint(
    instances: Iterable[Instance],
    height: int,
    width: int,
    space: LabelSpace,
    background: int | None = None,
    path: str = "instances",
) -> LabelMap:
    """Return the class map [H, W] of objects, larger ones drawn first, in the space's pixel type.

    `background` fills the rest; the ignore index when it is None. Parts of objects, and objects
    without run lengths, are left out.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size; or over 65,535 objects.
    """
    drawing = Drawing.of(instances, height, width, path)
    fill = space.ignore_index if background is None else background
    return drawing.map((i.category for i in drawing.objects), fill, space.dtype)


def object_map_from_instances(
    instances: Iterable[Instance], height: int, width: int, path: str = "instances"
) -> LabelMap:
    """Return the object map [H, W]: 0 is none, objects have their id, larger ones drawn first.

    When ids repeat or are not in 1..65535, objects are numbered from 1 in order. uint8 when all
    numbers are below 255, so that 255 is left for a border; uint16 otherwise. Parts of objects are
    left out.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size; or over 65,535 objects.
    """
    drawing = Drawing.of(instances, height, width, path)
    numbers = [i.id for i in drawing.objects]
    if len(set(numbers)) < len(numbers) or not all(0 < n < 65536 for n in numbers):
        numbers = list(range(1, len(numbers) + 1))
    narrow = max(numbers, default=0) < 255
    return drawing.map(numbers, 0, np.uint8 if narrow else np.uint16)
