"""Who a row is, in some 45 bytes: hashes by which the same image is found among millions of rows.

Hashes have 63 bits: of ten million rows two differing ones share one with a chance of 1 in 200,000.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.tables.rows import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Hashes = NDArray[np.int64]

HASHES: Final = ("path", "name", "print", "content", "look")
"""The path; dataset, and image_id; fingerprint; bytes; looks. 0 stands for unknown."""
_ROUNDS: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Identities:
    """The hashes of some rows, with codes of their dataset and split."""

    hashes: dict[str, Hashes]
    datasets: NDArray[np.int32]
    splits: NDArray[np.int32]
    names: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    """What the codes mean: datasets, splits."""

    @classmethod
    def of(cls, columns: dict[str, Sequence[Any]], **seen: Hashes) -> Identities:
        """Hash the columns image_id, dataset, split, path and fingerprint of some rows."""
        rows = len(columns["image_id"])
        plain = {name: [v or "" for v in values] for name, values in columns.items()}
        names = map("\0".join, zip(plain["dataset"], plain["image_id"], strict=True))
        hashes = {
            "path": _hashes(plain["path"]),
            "name": np.fromiter(map(place_of, names), np.int64, rows),
            "print": _hashes(plain["fingerprint"]),
        }
        nothing = np.zeros(0, np.int64)
        hashes |= {name: seen.get(name, nothing) for name in ("content", "look")}
        coded = [_codes(plain[name]) for name in ("dataset", "split")]
        return cls(hashes, coded[0][0], coded[1][0], (coded[0][1], coded[1][1]))

    @classmethod
    def joined(cls, parts: Sequence[Identities]) -> Identities:
        """Put parts one behind the other."""
        names: tuple[dict[str, int], dict[str, int]] = ({}, {})
        codes: tuple[list[Any], list[Any]] = ([], [])
        for part in parts:
            for side, values in enumerate((part.datasets, part.splits)):
                numbers = [names[side].setdefault(n, len(names[side])) for n in part.names[side]]
                codes[side].append(np.array(numbers, np.int32)[values])
        empty = np.zeros(0, np.int64)
        hashes = {}
        for name in HASHES:
            # A part whose images were not opened knows nothing of them.
            held = any(len(part.hashes[name]) for part in parts)
            columns = [
                part.hashes[name]
                if len(part.hashes[name])
                else np.zeros(len(part.splits), np.int64)
                for part in parts
            ]
            hashes[name] = np.concatenate(columns) if held else empty
        both = [np.concatenate(c) if c else np.zeros(0, np.int32) for c in codes]
        return cls(hashes, both[0], both[1], (list(names[0]), list(names[1])))

    def mixed(self, name: str, *codes: NDArray[np.int32]) -> Hashes:
        """Return a hash of each row mixed with codes; unknown ones stay 0."""
        values = self.hashes[name]
        mix = values.astype(np.uint64)
        for code in codes:
            mix = (mix ^ (code.astype(np.uint64) + np.uint64(1))) * _ROUNDS
            mix ^= mix >> np.uint64(29)
        return np.where(values == 0, 0, (mix >> np.uint64(1)).astype(np.int64))


def _hashes(texts: Sequence[str]) -> Hashes:
    return np.fromiter((place_of(t or None) for t in texts), np.int64, len(texts))


def _codes(texts: Sequence[str]) -> tuple[NDArray[np.int32], list[str]]:
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(t, len(known)) for t in texts), np.int32, len(texts))
    return codes, list(known)


def equal_runs(hashes: Hashes) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each hash that more than one row has, ascending, by their first row."""
    if not len(hashes):
        return
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.concatenate(([False], (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0), [False]))
    starts = np.flatnonzero(same[1:] & ~same[:-1])
    stops = np.flatnonzero(~same[1:] & same[:-1]) + 1
    for at in np.argsort(order[starts], kind="stable").tolist():
        yield order[starts[at] : stops[at]]
