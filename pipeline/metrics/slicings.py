"""The ways to cut images into slices: by a column, by what the image is like, by what is known.

A slicing names the slice of each image of a chunk; None leaves an image out of all its slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from pipeline.errors import InputError, UnknownName, UsageError
from pipeline.metrics.tally_measure import TRUTH
from pipeline.metrics.units import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.metrics.attributes import Attributes
    from pipeline.metrics.confusion import Counts
    from pipeline.metrics.resample import Keys
    from pipeline.store import Store

UNKNOWN: Final = "(unknown)"
"""The slice of images without a value, or whose image file cannot be read."""

_KEY: Final = ("dataset", "split", "image_id")
_SMALL: Final = (64, 64)
"""Height and width that an image is at least decoded at, for its brightness."""
_WEIGHTS: Final = (0.299, 0.587, 0.114)  # luma of RGB, ITU-R BT.601


class Slicing(Protocol):
    """One way to cut the images; a picklable description."""

    @property
    def by(self) -> str:
        """What the report calls it."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The record's columns that it needs from truth."""
        ...

    def values(
        self, tallies: Counts, rows: Mapping[str, Sequence[Any]], names: Sequence[str]
    ) -> list[str | None]:
        """Return the slice of each image, [n]; `names` are the classes of the tallies."""
        ...


@dataclass(frozen=True, slots=True)
class ByColumn:
    """One slice for each value of a column."""

    by: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.by,)

    def values(
        self, tallies: Counts, rows: Mapping[str, Sequence[Any]], names: Sequence[str]
    ) -> list[str | None]:
        """Return the cells as text."""
        return [UNKNOWN if cell is None else str(cell) for cell in rows[self.by]]


@dataclass(frozen=True, slots=True)
class ByClass:
    """The images whose truth holds a class."""

    name: str
    by: str = "class"
    columns: tuple[str, ...] = ()

    def values(
        self, tallies: Counts, rows: Mapping[str, Sequence[Any]], names: Sequence[str]
    ) -> list[str | None]:
        """Return the class's name for those images."""
        if self.name not in names:
            raise UnknownName("class", self.name, names)
        held = tallies[:, TRUTH, list(names).index(self.name)] > 0
        return [self.name if holds else None for holds in held.tolist()]


@dataclass(frozen=True, slots=True)
class ByBand:
    """Bands of a number that an image's row gives."""

    by: str
    columns: tuple[str, ...]
    edges: tuple[float, ...]
    """Ascending; a number on an edge lies above it."""
    bands: tuple[str, ...]
    """One more than edges."""

    def values(
        self, tallies: Counts, rows: Mapping[str, Sequence[Any]], names: Sequence[str]
    ) -> list[str | None]:
        """Return the bands."""
        number = _NUMBERS[self.by]
        found = [number(*cells) for cells in zip(*(rows[c] for c in self.columns), strict=True)]
        places = np.searchsorted(self.edges, [0.0 if f is None else f for f in found], "right")
        return [
            UNKNOWN if n is None else self.bands[place]
            for n, place in zip(found, places.tolist(), strict=True)
        ]


def _pixels(height: int | None, width: int | None) -> float | None:
    return None if height is None or width is None else float(height * width)


def _aspect(height: int | None, width: int | None) -> float | None:
    return None if not height or width is None else width / height


def _brightness(path: str | None, data: bytes | None) -> float | None:
    """Return an image's mean luma, 0..255; None if it cannot be read."""
    from pipeline.files import read_url
    from pipeline.images import decode

    if data is None and path is None:
        return None
    try:
        held = data if data is not None else read_url(path or "")
        pixels = decode(held, path or "image", orient=False, at_least=_SMALL)
    except (InputError, OSError):
        return None
    step = max(1, min(pixels.shape[:2]) // _SMALL[0])
    some = pixels[::step, ::step].reshape(-1, 3)
    return float(some.mean(axis=0) @ np.array(_WEIGHTS))


_NUMBERS: Final[Mapping[str, Callable[..., float | None]]] = {
    "size": _pixels,
    "aspect": _aspect,
    "brightness": _brightness,
}
BANDS: Final = {
    "size": ByBand(
        "size",
        ("height", "width"),
        (1e5, 3e5, 1e6, 3e6, 1e7),
        (
            "under 0.1 megapixels", "0.1 to 0.3 megapixels", "0.3 to 1 megapixels",
            "1 to 3 megapixels", "3 to 10 megapixels", "10 megapixels and more",
        ),
    ),
    "aspect": ByBand(
        "aspect",
        ("height", "width"),
        (0.7, 1.4, 1.9),
        ("tall (under 0.7)", "squarish (0.7 to 1.4)", "wide (1.4 to 1.9)", "very wide (1.9 on)"),
    ),
    "brightness": ByBand(
        "brightness",
        ("image.path", "image.bytes"),
        (40.0, 80.0, 120.0, 160.0),
        ("darkest (under 40)", "dark (40 to 80)", "middling (80 to 120)", "bright (120 to 160)",
         "brightest (160 on)"),
    ),
}  # fmt: skip
"""Fixed bands, so that slices of two reports are the same; aspect is width over height, brightness
is mean luma, 0 to 255."""


@dataclass(frozen=True, slots=True, eq=False)
class ByCondition:
    """The rows that meet an SQL condition, and the others: eight bytes for each that does."""

    by: str
    met: Keys
    """Hashes of those rows' identities, ascending."""
    columns: tuple[str, ...] = _KEY

    def values(
        self, tallies: Counts, rows: Mapping[str, Sequence[Any]], names: Sequence[str]
    ) -> list[str | None]:
        """Return yes or no."""
        wanted = _row_hashes(*(rows[c] for c in _KEY))
        at = np.searchsorted(self.met, wanted)
        met = at < len(self.met)
        met[met] = self.met[at[met]] == wanted[met]
        return ["yes" if m else "no" for m in met.tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class ByAttribute:
    """The values of one column of a user's table."""

    by: str
    attribute: int
    table: Attributes
    columns: tuple[str, ...] = ("image_id",)

    def values(
        self, tallies: Counts, rows: Mapping[str, Sequence[Any]], names: Sequence[str]
    ) -> list[str | None]:
        """Return the values, and what says that an image is not in the table."""
        return list(self.table.named(self.attribute, self.table.rows(rows["image_id"])))


def parse_slicing(text: str, truth: Store | None) -> Iterator[Slicing]:
    """Yield what an option `--slice` asks for.

    A column (`split`, `dataset`, `provenance.model`); `size`, `aspect` or `brightness`;
    `class:NAME`; `NAME: SQL CONDITION` on the columns of `truth`; or the path of a CSV file.

    Raises:
        UsageError: none of these, or the condition is no SQL.
        InputError: the CSV file is missing or broken.
    """
    if text in BANDS:
        yield BANDS[text]
    elif text in COLUMNS:
        yield ByColumn(text)
    elif text.startswith("class:"):
        yield ByClass(text.removeprefix("class:").strip())
    elif text.lower().endswith(".csv"):
        yield from _attributes(text)
    elif ":" in text:
        name, condition = (part.strip() for part in text.split(":", 1))
        if not name:
            raise UsageError(f"--slice {text!r}: name the slices, as 'night: {condition}'")
        yield ByCondition(name, _meeting(condition, truth))
    else:
        raise UnknownName("slicing", text, (*BANDS, *COLUMNS, "class:NAME", "NAME: SQL", "*.csv"))


def _attributes(path: str) -> Iterator[ByAttribute]:
    from pipeline.metrics.attributes import read_attributes

    table = read_attributes(path)
    for number, name in enumerate(table.names):
        yield ByAttribute(name, number, table)


def _meeting(condition: str, truth: Store | None) -> Keys:
    """Return the hashes of the rows that meet a condition."""
    if truth is None:
        raise UsageError(f"--slice: {condition!r} needs the store of truth to ask")
    try:
        found = [
            _row_hashes(*(batch[c].to_pylist() for c in _KEY))
            for batch in truth.scan(_KEY, condition, batch_rows=16384)
        ]
    except UsageError as error:
        raise UsageError(str(error).replace("--where", "--slice", 1)) from None
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _row_hashes(*columns: Sequence[str | None]) -> Keys:
    import pyarrow as pa

    from pipeline.runs.keys import spread

    texts = ["\0".join(cell or "" for cell in row) for row in zip(*columns, strict=True)]
    return spread(pa.array(texts, pa.string()), "slices")
