"""A user's table of attributes: a CSV file of image ids and what is known about each image.

    image_id,weather,daytime
    frankfurt/frankfurt_000000_000294,rain,night

Held as one number an image and a small one an attribute: ten bytes a row and column.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final, NoReturn, TextIO

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.runs.keys import spread

if TYPE_CHECKING:
    from _csv import Reader
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.metrics.resample import Keys

ID: Final = "image_id"
MOST_ROWS: Final = 10_000_000
MOST_VALUES: Final = 200
"""Values of an attribute that are told apart: the most frequent; the rest is `OTHER`."""
OTHER: Final = "other"
EMPTY: Final = "(empty)"
NOT_LISTED: Final = "(not listed)"

_MOST_DIFFERENT: Final = 10_000
_BATCH: Final = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """The rows of a file, sorted by a hash of the id."""

    path: str
    names: tuple[str, ...]
    ids: Keys
    """uint64 [n], ascending."""
    codes: NDArray[np.uint16]
    """[attributes, n]: places in `values`."""
    values: tuple[tuple[str, ...], ...]

    def rows(self, images: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each image id, -1 where the file has none."""
        wanted = id_hashes(images)
        at = np.searchsorted(self.ids, wanted)
        found = at < len(self.ids)
        found[found] = self.ids[at[found]] == wanted[found]
        return np.where(found, at, -1)

    def named(self, attribute: int, rows: NDArray[np.int64]) -> list[str]:
        """Return an attribute's value in rows; `NOT_LISTED` where there is no row."""
        values = self.values[attribute]
        codes = self.codes[attribute]
        return [values[codes[row]] if row >= 0 else NOT_LISTED for row in rows.tolist()]


def id_hashes(images: Sequence[str]) -> Keys:
    """Return 64 bits of each image id."""
    return spread(pa.array(images, pa.string()), "attributes")


def read_attributes(path: str) -> Attributes:
    """Read a CSV file, by its path or URL; cells are split at commas, or else semicolons or tabs.

    Raises:
        InputError: the file is missing or no such table; the line is named. An attribute with more
            than ten thousand values names images, and makes no slices.
    """
    from pipeline.files import locate

    tree, name = locate(path)
    with tree.open(name) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        return _Reader(path).read(text)


class _Reader:
    """Reads one file's rows into columns of numbers."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ids: list[Keys] = []
        self._lines = array("I")
        self._codes: list[array[int]] = []
        self._seen: list[dict[str, int]] = []

    def read(self, text: TextIO) -> Attributes:
        """Read the whole file, as a stream."""
        try:
            first = text.readline()
        except UnicodeDecodeError:
            self._fail(1, *_NO_TEXT)
        delimiter = next((d for d in ",;\t" if d in first), ",")
        rows = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
        heading = [cell.strip() for cell in next(self._checked(rows), [])]
        at, names = self._heading(heading)
        self._codes = [array("H") for _ in names]
        self._seen = [{} for _ in names]
        self._rows(rows, at, len(heading))
        return self._table(names)

    def _heading(self, heading: list[str]) -> tuple[int, tuple[str, ...]]:
        if ID not in heading:
            self._fail(1, f"the heading has no column {ID!r}", f"name the ids' column {ID}")
        twice = [name for name, count in Counter(heading).items() if count > 1 or not name]
        if twice:
            self._fail(
                1, f"a column has no name, or that of another: {twice[0]!r}", "name each column"
            )
        if len(heading) < 2:
            self._fail(1, "there is no column beside the ids", "add an attribute")
        return heading.index(ID), tuple(name for name in heading if name != ID)

    def _checked(self, rows: Reader) -> Iterator[list[str]]:
        """Yield rows; what is no CSV names its line."""
        while True:
            try:
                yield next(rows)
            except StopIteration:
                return
            except UnicodeDecodeError:  # somewhere in the next kilobytes
                self._fail(rows.line_num + 1, *_NO_TEXT)
            except csv.Error as error:
                self._fail(rows.line_num, str(error), "quote cells as a spreadsheet does")

    def _rows(self, rows: Reader, at: int, width: int) -> None:
        ids: list[str] = []
        for row in self._checked(rows):
            if not row:
                continue  # an empty line, as many files end with
            if len(row) != width:
                self._fail(rows.line_num, f"{len(row)} cells, the heading has {width}", _MEND)
            if len(self._lines) == MOST_ROWS:
                self._fail(rows.line_num, f"more than {MOST_ROWS:,} rows", "list fewer images")
            self._lines.append(rows.line_num)
            ids.append(row.pop(at))
            for place, cell in enumerate(row):
                self._code(place, cell.strip() or EMPTY, rows.line_num)
            if len(ids) == _BATCH:
                self._ids.append(id_hashes(ids))
                ids = []
        self._ids.append(id_hashes(ids))

    def _code(self, place: int, cell: str, line: int) -> None:
        seen = self._seen[place]
        if len(seen) == _MOST_DIFFERENT and cell not in seen:
            self._fail(
                line,
                f"column {place + 1} beside the ids has more than {_MOST_DIFFERENT:,} values",
                "leave out columns that name images, and cut numbers into bands",
            )
        self._codes[place].append(seen.setdefault(cell, len(seen)))

    def _table(self, names: tuple[str, ...]) -> Attributes:
        ids = np.concatenate(self._ids)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if twice.size:
            lines = [self._lines[int(order[int(twice[0]) + k])] for k in (0, 1)]
            self._fail(lines[1], f"the image of line {lines[0]} is listed again", _ONE_ROW)
        columns = [self._frequent(place) for place in range(len(names))]
        codes = np.stack([c[order] for c, _ in columns])
        return Attributes(self._path, names, ids, codes, tuple(v for _, v in columns))

    def _frequent(self, place: int) -> tuple[NDArray[np.uint16], tuple[str, ...]]:
        """Return a column's codes and values, of the most frequent values only."""
        codes, values = np.frombuffer(self._codes[place], np.uint16), list(self._seen[place])
        counts = np.bincount(codes, minlength=len(values)).tolist()
        ranked = sorted(range(len(values)), key=lambda code: (-counts[code], values[code]))
        table = np.full(len(values), min(len(values), MOST_VALUES), np.uint16)
        table[ranked[:MOST_VALUES]] = np.arange(len(ranked[:MOST_VALUES]))
        return table[codes], (*(values[code] for code in ranked[:MOST_VALUES]), OTHER)

    def _fail(self, line: int, cause: str, mend: str) -> NoReturn:
        raise InputError(self._path, f"line {line}: {cause}", mend)


_MEND: Final = "give each row all cells, and quote a cell that holds a comma"
_NO_TEXT: Final = ("here, or soon after, is no UTF-8 text", "save the file as UTF-8")
_ONE_ROW: Final = "keep one row an image"
