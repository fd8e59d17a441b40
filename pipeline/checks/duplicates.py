"""Rows that are the same image, look alike, or share a name: within a split, and across splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from pipeline.checks.identities import equal_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.checks.identities import Identities

_LEARNT: Final = frozenset({"train", "val", "test"})


class Twins(NamedTuple):
    """Two rows, the kind of finding that they are, and what they share."""

    kind: str
    row: int
    other: int
    shared: str
    rows: int
    """How many rows share it."""


def find_twins(known: Identities) -> Iterator[Twins]:
    """Yield, for each set of rows that share something, its later rows beside the first.

    Rows twice in the store come first, then equal paths, bytes (or, where no bytes were read,
    fingerprints), looks, and names. What equal paths explain is not told again.
    """
    by_path = known.hashes["path"]
    for rows in equal_runs(known.mixed("path", known.datasets)):
        yield from _each("row-repeated", rows, "the same dataset and path")
    for rows in equal_runs(by_path):
        if len(np.unique(known.datasets[rows])) > 1:
            yield from _each(_kind(known, rows, "", "shared-image"), rows, "the same path")
    sources = [("content", "", "the same bytes")]
    if not known.hashes["content"].any():
        sources = [("print", "fingerprint-", "the same fingerprint")]
    sources.append(("look", "near-", "the same perceptual hash"))
    told = np.zeros(len(by_path), np.bool_)
    for name, prefix, shared in sources:
        for rows in equal_runs(known.hashes[name]):
            first = by_path[rows[0]]
            if told[rows].all() or (first and (by_path[rows] == first).all()):
                continue
            told[rows] |= name == "content"  # equal bytes look alike
            yield from _each(_kind(known, rows, prefix), rows, shared)
    yield from _names(known)


def _kind(known: Identities, rows: NDArray[np.int64], prefix: str, shared: str = "") -> str:
    splits = {known.names[1][code] for code in np.unique(known.splits[rows]).tolist()}
    if len(splits & _LEARNT) > 1:
        return f"{prefix}leakage"
    if not prefix and len(np.unique(known.datasets[rows])) > 1:
        return "shared-image"
    return shared or f"{prefix}duplicate"


def _each(kind: str, rows: NDArray[np.int64], shared: str) -> Iterator[Twins]:
    first, *later = rows.tolist()
    for row in later:
        yield Twins(kind, row, first, shared, len(rows))


def _names(known: Identities) -> Iterator[Twins]:
    by_path = known.hashes["path"]
    for rows in equal_runs(known.mixed("name", known.splits)):
        if len(np.unique(by_path[rows])) > 1:
            yield from _each("id-repeated", rows, "the same dataset, split and image_id")
    for rows in equal_runs(known.hashes["name"]):
        different = len(np.unique(by_path[rows])) > 1
        if different and _kind(known, rows, "id-") == "id-leakage":
            yield from _each("id-leakage", rows, "the same dataset and image_id")
