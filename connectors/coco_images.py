"""What COCO's formats share of images: their entries, their numbers, what is said of all."""

from __future__ import annotations

import json
import posixpath
import re
from array import array
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.coco_categories import is_name
from connectors.coco_layout import split_of
from pipeline.errors import UnknownName
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from connectors.coco_sort import Grouped
    from pipeline.image_header import Header
    from pipeline.record import Record

FORMATS: Final = ("coco-instances", "coco-panoptic", "coco-stuff")
"""Whose records keep their image's own entry under "image" in `extra`."""

_TOP: Final = (1 << 53) - 1  # numbers in JSON are exact up to here in most readers
_LARGE: Final = 1 << 31
_NO_CLAIMS: Final = np.empty(0, dtype=np.int64)


def check_splits(splits: Collection[str]) -> None:
    """Make sure that the splits asked for are some.

    Raises:
        UnknownName: one of them is none.
    """
    for split in splits:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)


def said_of(facts: Mapping[str, Any], format: str, split: str) -> dict[str, Any]:
    """Return what the sources' files of a split say beside images and annotations.

    Without one of the format, info and licences of `coco-instances` serve: images name a licence.
    """
    own: dict[str, dict[str, Any]] = facts.get(format) or {}
    if own:
        return own.get(split) or next(iter(own.values()))
    for stem, pairs in sorted((facts.get("coco-instances") or {}).items()):
        if split_of(stem) == split:
            return {key: value for key, value in pairs if key in ("info", "licenses")}
    return {}


# Images


def place_of(group: Grouped) -> str:
    """Return what a message calls an image, or annotation, that is malformed."""
    name = (group.image or {}).get("file_name")
    text = name if is_name(name) else (group.text or group.annotations[0])[:80]
    return str(text).encode("ascii", "backslashreplace").decode()


def stem_of(file_name: str) -> str:
    """Return an image's name without its suffix."""
    return posixpath.splitext(file_name)[0]


def image_of(record: Record, file_name: str) -> dict[str, Any]:
    """Return the image to write; what a COCO file said of it beyond the record's columns stays."""
    said = {"file_name": file_name, "height": record.height, "width": record.width}
    more = record.own(*FORMATS).get("image")
    if not isinstance(more, dict):
        return said
    return said | {key: value for key, value in more.items() if key != "file_name"}


def claim_of(image: Mapping[str, Any], image_id: str) -> int | None:
    """Return the number that an image goes by: its own, or that of its name; None without one."""
    number = image.get("id")
    if type(number) is int and abs(number) <= _TOP:
        return number
    return int(image_id) if re.fullmatch(r"[0-9]{1,15}", image_id) else None


class ImageIds:
    """Numbers images, or annotations: each has what it claims unless another had that first.

    All others get the lowest that are free. Holds 4 bytes for a claim below 2**31 and 8 for one
    above. `add` every claim, then give `assign` the same ones in the same order, as often as is
    needed.
    """

    def __init__(self) -> None:
        self._claims, self._is_ranked = (array("i"), array("q")), False

    def add(self, claim: int | None) -> None:
        """Book a claim."""
        if claim is not None:
            self._claims[_is_large(claim)].append(claim)

    def _ranked(self) -> list[NDArray[np.signedinteger[Any]]]:
        """Return the small and the large claims in order of size, sorted in place."""
        ranked = [np.frombuffer(a, a.typecode) if a else _NO_CLAIMS for a in self._claims]
        if not self._is_ranked:
            for claims in ranked:
                claims.sort()
            self._is_ranked = True
        return ranked

    def assign(self) -> Callable[[int | None], int]:
        """Return a function that takes the claims, in their order, and gives the numbers."""
        ranked = self._ranked()
        twice = np.unique(np.concatenate([r[1:][r[1:] == r[:-1]] for r in ranked]))
        had = np.zeros(len(twice), dtype=np.bool_)
        free = 0

        def give(claim: int | None) -> int:
            nonlocal free
            if claim is not None:
                at = int(np.searchsorted(twice, claim)) if len(twice) else 0
                if at == len(twice) or twice[at] != claim:
                    return claim
                if not had[at]:
                    had[at] = True
                    return claim
            free += 1
            while _holds(ranked[_is_large(free)], free):
                free += 1
            return free

        return give

    def changed(self) -> int:
        """Return how many get another number than they claim."""
        return sum(int(np.count_nonzero(r[1:] == r[:-1])) for r in self._ranked())


def _is_large(claim: int) -> bool:
    return not -_LARGE <= claim < _LARGE


def _holds(ranked: NDArray[np.signedinteger[Any]], value: int) -> bool:
    at = int(np.searchsorted(ranked, value))
    return at < len(ranked) and int(ranked[at]) == value


def entry_of(claim: int | None, head: Any, image: Mapping[str, Any], annotation: str) -> bytes:
    """Return an index entry: claim, a note, the image without its id, and annotation text."""
    lines = (json.dumps([claim, head]), json.dumps(image, ensure_ascii=False), annotation)
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def of_image(entry: Mapping[str, Any], size: tuple[int, int], head: Header) -> dict[str, Any]:
    """Return what a record's extra keeps of an image: all that its columns do not say."""
    columns = {"file_name": entry.get("file_name"), "height": size[0], "width": size[1]}
    kept = {key: value for key, value in entry.items() if columns.get(key, ...) != value}
    extra: dict[str, Any] = {"image": kept}
    if size != (head.height, head.width):
        extra["orientation"] = head.orientation
    return extra
