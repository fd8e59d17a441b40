"""Local directories as trees: the hot path, nothing but os.scandir, stat, open and read."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import LayoutError, UnsafePath
from pipeline.files import (
    FILE_ERRORS,
    HEAD,
    LOG,
    TAIL,
    Entry,
    Tree,
    fingerprint_of,
    is_junk,
    open_local,
    open_regular,
    safe_name,
    unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class LocalTree(Tree):
    """A directory of this machine, `root`; `only` makes it a tree of that single file.

    No link is followed out of `limit`, the real path of the directory that was opened first.
    """

    root: str
    limit: str
    only: str = ""
    _safe: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[LocalTree], tuple[str, str, str]]:
        return LocalTree, (self.root, self.limit, self.only)

    @property
    def url(self) -> str:  # type: ignore[override]
        """The directory, or the single file."""
        return self._join(self.only)

    def walk(self, under: str = "", suffixes: tuple[str, ...] | None = None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted; one directory's names are held at a time."""
        top = self._path(under)
        if self.only:
            yield self.entry(self.only)
            return
        outside: list[str] = []
        prefix = safe_name(under, self.root)
        yield from self._walk(top, prefix + "/" if prefix else "", suffixes, (), outside)
        if outside:
            _tell_left_out(self.root, outside[0], len(outside))

    def _walk(
        self,
        directory: str,
        prefix: str,
        suffixes: tuple[str, ...] | None,
        above: tuple[str, ...],
        outside: list[str],
    ) -> Iterator[Entry]:
        """Yield one directory's files; `above` holds the real directories that links led from."""
        for key in self._children(directory, above, outside):
            if key[-1] == "/":
                below = directory + "/" + key[:-1]
                chain = above
                if os.path.islink(below):
                    chain = (*above, os.path.realpath(directory))
                yield from self._walk(below, prefix + key, suffixes, chain, outside)
            elif suffixes is None or key.lower().endswith(suffixes):
                yield walked_entry(directory + "/" + key, prefix + key)

    def _children(self, directory: str, above: tuple[str, ...], outside: list[str]) -> list[str]:
        """Return the names in a directory, a slash behind directories, in the walk's order."""
        keys = []
        for item in _scan(directory):
            name = item.name
            if item.is_symlink():
                key = self._follow(item.path, name, directory, above)
                if key is None:
                    outside.append(item.path)
                    continue
                keys.append(key)
            elif item.is_dir():
                keys.append(name + "/")
            elif item.is_file():  # no pipes, sockets or devices: opening one may wait for ever
                keys.append(name)
        keys = [key for key in keys if not is_junk(key)]
        keys.sort()
        return keys

    def _follow(self, path: str, name: str, directory: str, above: tuple[str, ...]) -> str | None:
        """Return a link's key; None when it leads outside the tree or to a directory above it."""
        target = os.path.realpath(path)
        if not _within(target, self.limit):
            return None
        if not os.path.isdir(target):
            return name if os.path.isfile(target) or not os.path.exists(target) else None
        chain = (*above, os.path.realpath(directory))
        return None if any(_within(real, target) for real in chain) else name + "/"

    def names(self, under: str = "") -> list[str]:
        """Return the names of the direct children of `under`, sorted; see `walk` for links."""
        if self.only:
            return [self.only]
        outside: list[str] = []
        keys = self._children(self._path(under), (), outside)
        if outside:
            _tell_left_out(self.root, outside[0], len(outside))
        return sorted(key.rstrip("/") for key in keys)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise unreadable(self.url_of(name), error) from None

    def open(self, name: str) -> BinaryIO:
        """Return a file open for reading, unbuffered."""
        path = self._path(name)
        try:
            return open(path, "rb", buffering=0, opener=_nofollow)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise unreadable(path, error) from None
        if not _within(os.path.realpath(path), self.limit):
            raise _leads_outside(path, self.limit)
        return open_local(path)

    def header_bytes(self, name: str, head: int = HEAD, tail: int = TAIL) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of a file; (all of it, b"") when it is small."""
        with self.open(name) as file:
            return _ends(file.fileno(), self.url_of(name), head, tail)

    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""
        return os.path.exists(self._path(name))

    def isdir(self, name: str) -> bool:
        """Tell whether a directory is there."""
        return os.path.isdir(self._path(name))

    def entry(self, name: str) -> Entry:
        """Return one file's entry."""
        path = self._path(name)
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                if not _within(os.path.realpath(path), self.limit):
                    raise _leads_outside(path, self.limit)
                status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from None
        if stat.S_ISDIR(status.st_mode):
            raise unreadable(path, IsADirectoryError(errno.EISDIR, ""))
        return Entry(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def url_of(self, name: str) -> str:
        """Return the file's absolute path."""
        return self._join(name) if name else self.url

    def sub(self, prefix: str) -> LocalTree:
        """Return the tree below `prefix`."""
        if not safe_name(prefix, self.root):
            return self
        return LocalTree(self._path(prefix), self.limit)

    def _join(self, name: str) -> str:
        if not name:
            return self.root
        return f"{self.root}/{name}" if self.root != "/" else "/" + name

    def _path(self, name: str) -> str:
        """Return the absolute path of a name, checked to stay inside the tree."""
        name = safe_name(name, self.root)
        path = self._join(name)
        directory = name.rpartition("/")[0]
        if self.limit != "/" and directory not in self._safe:
            real = os.path.realpath(f"{self.root}/{directory}")
            if not _within(real, self.limit):
                raise _leads_outside(path, self.limit)
            self._safe.add(directory)
        return path


def _nofollow(path: str, flags: int) -> int:
    return open_regular(path, flags | os.O_NOFOLLOW)


def _ends(handle: int, path: str, head: int, tail: int) -> tuple[bytes, bytes]:
    """Return an open file's first and last bytes; (all of it, b"") when it is small."""
    try:
        size = os.fstat(handle).st_size
        if size <= head + tail:
            return os.pread(handle, head + tail, 0), b""
        return os.pread(handle, head, 0), os.pread(handle, tail, size - tail)
    except OSError as error:
        raise unreadable(path, error) from None


def _scan(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as items:
            return list(items)
    except OSError as error:
        cause = FILE_ERRORS.get(error.errno or 0)
        if cause is None:
            raise
        cause = cause.replace("no such file", "no such directory")
        raise LayoutError(f"{directory}: cannot be listed: {cause}") from None


def walked_entry(path: str, name: str) -> Entry:
    """Return a walked file's entry; fingerprint "" when it cannot be inspected."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a NUL, or bytes that are no UTF-8
        return Entry(_printable(name), 0, "")
    size = status.st_size
    try:
        name.encode()
    except UnicodeEncodeError:
        return Entry(_printable(name), size, "")
    return Entry(name, size, fingerprint_of(status))


def _printable(name: str) -> str:
    """Return a name that Arrow and JSON can hold: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=1024)  # once: a listing asks for a folder again and again
def _tell_left_out(url: str, first: str, count: int) -> None:
    LOG.warning(
        "%s: left out %d links that lead outside it or in a circle, the first: %s; name the "
        "directory that holds both, or copy the files",
        url,
        count,
        first,
    )


def _leads_outside(path: str, root: str) -> UnsafePath:
    return UnsafePath(
        path,
        f"a symbolic link leads outside {root}",
        "name the directory that holds both, or copy the files",
    )


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
