"""Where a dataset's files lie: its root a level more or less up, its folders, its split lists."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING, Final, cast

from connectors.incomplete import refuse_incomplete
from pipeline.errors import InputError, LayoutError, UnsafePath
from pipeline.files import is_junk, safe_name
from pipeline.tables.fingerprints import FingerprintTable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pipeline.files import Entry, Tree

MISSING: Final = "missing"
"""The fingerprint of a file that is not there; `read` says so when its turn comes."""

_LEVELS: Final = 3
_BREADTH: Final = 200
"""Folders of one level that are looked into: a wrong root must not cost a walk of all it holds."""
_FILE_NAME: Final = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # "v1.0" may be a directory


def find_root(tree: Tree, expected: str, fits: Callable[[Collection[str]], bool]) -> str:
    """Return the prefix, "" or "a/b/", of the one directory whose names fit.

    It may lie three levels down; the highest level that has one counts.

    Raises:
        LayoutError: none fits, or more than one on the same level, or it is not written to its end.
    """
    level, seen = [""], dict[str, list[str]]()
    for depth in range(_LEVELS + 1):
        listed = [(prefix, tree.names(prefix.rstrip("/"))) for prefix in level]
        found = [prefix for prefix, names in listed if fits(names)]
        seen |= listed
        if len(found) == 1:
            refuse_incomplete(tree, found[0], seen)
            return found[0]
        if found:
            several = ", ".join(found)
            raise LayoutError(f"{tree.url}: holds several datasets ({several}); name one of them")
        if depth < _LEVELS:
            level = [
                f"{prefix}{name}/"
                for prefix, names in listed
                for name in names
                if not _FILE_NAME.search(name) and tree.isdir(prefix + name)
            ][:_BREADTH]
    refuse_incomplete(tree, "", seen)
    raise LayoutError(f"{tree.url}: expected {expected}, here or up to {_LEVELS} folders down")


def digest(format: str, version: int, *parts: str) -> str:
    """Return the identity of a sample's labels: 16 hex digits of all that they come from."""
    text = "\0".join((format, str(version), *parts))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Fingerprints:
    """The fingerprints of one folder's files.

    Files are inspected one by one, only those that are needed. In a bucket each would be a request,
    so there the folder is listed once: in step with the questions as long as their names ascend,
    to its end when one goes back.
    """

    def __init__(self, tree: Tree, folder: str) -> None:
        self._tree, self._folder = tree, folder.rstrip("/")
        self._walk: Iterator[Entry] | None = None
        if tree.far:
            self._walk = tree.walk(self._folder) if tree.isdir(self._folder) else iter(())
        self._passed = FingerprintTable()
        self._before = ""
        self._at: Entry | None = None

    def of(self, name: str) -> str:
        """Return a file's fingerprint, `MISSING` when it is not there or its name is unsafe."""
        return self.find(name) or MISSING

    def find(self, name: str) -> str | None:
        """Return a file's fingerprint, None when it is not there.

        A link out of the tree is `MISSING`: labels behind one are not left out, but fail at `read`.
        """
        if self._walk is None or not self._is_listed(name):
            try:
                return self._tree.entry(name).fingerprint
            except UnsafePath:
                return MISSING
            except InputError:
                return None
        while (self._at is None or self._at.name < name) and self._step():
            pass
        if self._at is not None and self._at.name == name:
            return self._at.fingerprint or None
        if name > self._before:  # between the last two that were listed
            return None
        while self._step():
            pass
        return self._passed.find(name) or None

    def _is_listed(self, name: str) -> bool:
        """Tell whether the walk gives a file by this very name, if it is there."""
        if self._folder and not name.startswith(self._folder + "/"):
            return False
        try:
            return safe_name(name, self._tree.url) == name and not is_junk(name)
        except InputError:
            return False

    def _step(self) -> bool:
        """Go one file on; tell whether there was one."""
        entry = next(self._walk or iter(()), None)
        if entry is None:
            return False
        if self._at is not None:
            self._before = self._at.name
        self._passed.add(entry.name, entry.fingerprint)
        self._at = entry
        return True


def read_list(tree: Tree, name: str) -> list[str]:
    """Return the lines of a list file that hold something, once each, in order."""
    lines = (line.strip() for line in tree.read_text(name).split("\n"))
    return list(dict.fromkeys(line for line in lines if line))


def lines_of(tree: Tree, name: str) -> Iterator[str]:
    """Yield a text file's lines, streaming; UTF-8, else Latin-1."""
    with tree.open(name) as file:
        for number, raw in enumerate(io.BufferedReader(cast("io.RawIOBase", file))):
            line = raw.rstrip(b"\r\n")
            try:
                yield line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError:
                yield line.decode("latin-1")


def is_sorted(lines: list[str]) -> bool:
    """Tell whether a list is in the order in which it would be written anyway."""
    return all(map(str.__le__, lines, lines[1:]))


def position(line_number: int, in_order: bool) -> int | None:
    """Return what a record has to remember of its place in a list: nothing in a sorted one."""
    return None if in_order else line_number
