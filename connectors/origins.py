"""Which image of a store an exported one was: corrected labels then come back as that image's.

    ["train/0001.png", "frames", "s3://bucket/frames/0001.png", "5f3a..."]

A line of `segmill-origins.jsonl` for each image of a store that was put into a labelling tool's
files: its name below images/, and the row's dataset, path and fingerprint. Rows that are read with
it have the same identity, so that a store of corrected labels replaces, joins and scores the rows
that it came from. The tools never see the file. Without it, rows are of the copies below images/.

    origins = Origins(tree, root)
    origins.find("train/0001.png")
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.layout import lines_of
from pipeline.errors import LayoutError
from pipeline.trees.temporary import temporary_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from numpy.typing import NDArray

    from pipeline.files import Tree
    from pipeline.record import Record
    from pipeline.trees.sinks import Sink

NAME: Final = "segmill-origins.jsonl"
_FIELDS: Final = 4


@dataclass(frozen=True, slots=True)
class Origin:
    """The identity of a store's row."""

    dataset: str
    path: str
    fingerprint: str


def origin_of(record: Record, name: str) -> list[str] | None:
    """Return the line of an image written as `name`; None for a record that no store holds.

    Only rows of a store are looked for again; a dataset that was converted stands for itself.
    """
    if record.provenance.run is None or record.image.path is None:
        return None
    return [name, record.dataset, record.image.path, record.fingerprint]


def write_origins(sink: Sink, prefix: str, lines: Iterable[list[str] | None]) -> None:
    """Write the lines there are; without one, remove what an earlier run left."""
    known = (line for line in lines if line is not None)
    first = next(known, None)
    if first is None:
        sink.remove(prefix + NAME)
        return
    with sink.stream(prefix + NAME) as file:
        file.write(_text(first))
        for line in known:
            file.write(_text(line))


def _text(line: list[str]) -> bytes:
    return json.dumps(line).encode() + b"\n"


class Origins:
    """The lines by name, on disk; held are 16 bytes an image."""

    def __init__(self, tree: Tree, root: str) -> None:
        """Read the file, if there is one.

        Raises:
            LayoutError: a line is none of ours.
        """
        self._file: BinaryIO | None = None
        self._marks: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._places = self._marks
        if tree.exists(root + NAME):
            self._file = temporary_file("origins")
            self._read(tree, root + NAME, self._file)

    def _read(self, tree: Tree, name: str, file: BinaryIO) -> None:
        marks, places = array("q"), array("q")
        for number, text in enumerate(lines_of(tree, name), 1):
            if not text.strip():
                continue
            line = _parsed(text)
            if line is None:
                raise LayoutError(
                    f"{tree.url_of(name)}, line {number}: expected a list of {_FIELDS} texts; "
                    "restore the file, or remove it to name images by their copies"
                )
            marks.append(hash(line[0]))
            places.append(file.tell())
            file.write(_text(line))
        held = np.array(marks, dtype=np.int64)
        order = np.argsort(held, kind="stable")
        self._marks, self._places = held[order], np.array(places, dtype=np.int64)[order]

    def find(self, name: str) -> Origin | None:
        """Return what an image was in the store."""
        if self._file is None:
            return None
        mark = hash(name)
        at = int(np.searchsorted(self._marks, mark))
        while at < len(self._marks) and self._marks[at] == mark:
            self._file.seek(int(self._places[at]))
            line = json.loads(self._file.readline())
            if line[0] == name:
                return Origin(*line[1:])
            at += 1
        return None


def _parsed(text: str) -> list[str] | None:
    try:
        line: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = isinstance(line, list) and len(line) == _FIELDS
    return line if good and all(isinstance(part, str) for part in line) else None
