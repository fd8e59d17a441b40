"""The fingerprints of a folder's files by name, in some 40 bytes a file."""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MD5: Final = re.compile(r"[0-9a-f]{32}")
_WORD: Final = (1 << 64) - 1
_MD5_MARK, _LONGEST = 0, 255


class FingerprintTable:
    """Fingerprints by name; names are kept as 64-bit hashes, checksums as their bytes.

    Of ten million names asked for, one gets another's fingerprint with a chance of 1 in 200,000.
    """

    def __init__(self) -> None:
        self._hashes, self._starts = array("Q"), array("Q")
        self._texts = bytearray()
        self._order: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None = None

    def add(self, name: str, fingerprint: str) -> None:
        """Keep a file's fingerprint."""
        self._order = None
        self._hashes.append(hash(name) & _WORD)
        self._starts.append(len(self._texts))
        self._texts += _packed(fingerprint)

    def find(self, name: str) -> str | None:
        """Return a file's fingerprint; None when the name was not added.

        The first question after `add` sorts the table: add all first.
        """
        if self._order is None:
            columns = (
                np.frombuffer(self._hashes, np.uint64),
                np.frombuffer(self._starts, np.uint64),
            )
            order = np.argsort(columns[0], kind="stable")
            for column in columns:
                column[:] = column[order]
            self._order = columns
        hashes, starts = self._order
        wanted = np.uint64(hash(name) & _WORD)
        row = int(np.searchsorted(hashes, wanted))
        if row == len(hashes) or hashes[row] != wanted:
            return None
        return _unpacked(self._texts, int(starts[row]))


def _packed(fingerprint: str) -> bytes:
    """Return a mark and an MD5's 16 bytes, or any other text's length and UTF-8."""
    if _MD5.fullmatch(fingerprint):
        return bytes((_MD5_MARK,)) + bytes.fromhex(fingerprint)
    text = fingerprint.encode()
    if len(text) < _LONGEST and text:
        return bytes((len(text),)) + text
    return bytes((_LONGEST,)) + len(text).to_bytes(8, "little") + text


def _unpacked(texts: bytearray, start: int) -> str:
    mark, start = texts[start], start + 1
    if mark == _MD5_MARK:
        return texts[start : start + 16].hex()
    if mark == _LONGEST:
        mark, start = int.from_bytes(texts[start : start + 8], "little"), start + 8
    return texts[start : start + mark].decode()
