"""Zip and tar archives as trees: an index of members, each read by its offset, no link followed.

A member is one positioned read, so threads share an archive without a lock. The index takes a
member's name and 42 bytes, twice that while it is made; it is kept once for each process and never
pickled with the tree.
"""

from __future__ import annotations

import bz2
import io
import os
import tempfile
import threading
import zlib
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from pipeline.errors import InputError, LayoutError, MissingFile, UnsafePath
from pipeline.files import (
    HEAD,
    TAIL,
    Entry,
    Tree,
    archive_kind,
    is_junk,
    local_path,
    safe_name,
    unreadable,
)
from pipeline.trees import ranges
from pipeline.trees.ahead import held_files
from pipeline.trees.archive_index import ENCRYPTED, tar_members, zip_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.trees.archive_index import Index

_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_LOCAL_HEADER: Final = 30
_NAME_ROOM: Final = 1024
"""Bytes read beside a member for its local name and extra field, to save a second read."""
_MOST_OPEN: Final = 32
_MOST_INFLATED: Final = 8
_AT_ONCE: Final = 4 << 20
WHOLE: Final = 64 << 20
"""Bytes of the biggest member that `open` holds in memory."""


@dataclass(frozen=True, slots=True)
class ArchiveTree(Tree):
    """A .zip or .tar; `prefix` is the directory in it that names are relative to."""

    archive: str
    kind: str
    prefix: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @staticmethod
    def open_archive(archive: str, kind: str, prefix: str, options: dict[str, Any]) -> ArchiveTree:
        """Return the tree of an archive that is there and has a readable index."""
        path = local_path(archive) or archive
        archive_kind(path)
        if "::" in path:
            raise LayoutError(f"{path}: '::' in an archive's path means a member; rename it")
        tree = ArchiveTree(path, kind, safe_name(prefix, archive), options)
        if prefix and not tree.isdir(""):
            raise LayoutError(f"{path}: the archive has no directory {prefix!r}")
        tree._index()
        return tree

    @property
    def url(self) -> str:  # type: ignore[override]
        """The archive's path, or the URL of the directory in it."""
        return self.url_of("") if self.prefix else self.archive

    def _index(self) -> _Archive:
        return _opened(self.archive, self.kind, self.options)

    def walk(self, under: str = "", suffixes: tuple[str, ...] | None = None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted."""
        top = self._full(under)
        index = self._index()
        first, last = index.span(top)
        if first == last and top:
            raise LayoutError(f"{self.archive}: the archive has no directory {top!r}")
        skip = len(self.prefix) + 1 if self.prefix else 0
        for row in range(first, last):
            name = index.names[row]
            if is_junk(name[skip:]) or (
                suffixes is not None and not name.lower().endswith(suffixes)
            ):
                continue
            yield Entry(name[skip:], index.size(row), index.fingerprint(row))

    def names(self, under: str = "") -> list[str]:
        """Return the names of the direct children of `under`, sorted."""
        top = self._full(under)
        children = self._index().children(top)
        if not children and top:
            raise LayoutError(f"{self.archive}: the archive has no directory {top!r}")
        return children

    def read(self, name: str) -> bytes:
        """Return a member's bytes; its CRC is checked where the archive has one."""
        index = self._index()
        row = self._row(index, name)
        url = self.url_of(name)
        return index.blob.once(url, lambda: index.read(row, url))

    def open(self, name: str) -> BinaryIO:
        """Return a member open for reading and seeking.

        Of one above 64 MB no more is held than what is read: a stored one is read in its place,
        without a check of its CRC; a compressed one is inflated once a process, into a temporary
        file without a name.
        """
        index = self._index()
        row = self._row(index, name)
        if index.size(row) <= WHOLE:
            return io.BytesIO(self.read(name))
        return index.open(row, self.url_of(name))

    def header_bytes(self, name: str, head: int = HEAD, tail: int = TAIL) -> tuple[bytes, bytes]:
        """Return the first and the last bytes; (all of it, b"") for a compressed member."""
        index = self._index()
        row = self._row(index, name)
        offset, _, size, _, method = index.member(row)
        kept = index.blob.far and held_files() is not None
        if kept or self.kind == "zip" or size <= head + tail or method != _STORED:
            return self.read(name), b""
        return index.blob.read(offset, head), index.blob.read(offset + size - tail, tail)

    def exists(self, name: str) -> bool:
        """Tell whether a member or directory is there."""
        full = self._full(name)
        return self._index().find(full) is not None or self.isdir(name)

    def isdir(self, name: str) -> bool:
        """Tell whether a directory is there; directories without files don't count."""
        full = self._full(name)
        first, last = self._index().span(full)
        return first < last or not full

    def entry(self, name: str) -> Entry:
        """Return one member's entry."""
        index = self._index()
        row = self._row(index, name)
        return Entry(name, index.size(row), index.fingerprint(row))

    def url_of(self, name: str) -> str:
        """Return `zip://member::archive`."""
        full = f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name
        return f"{self.kind}://{full}::{self.archive}"

    def sub(self, prefix: str) -> ArchiveTree:
        """Return the tree below `prefix`."""
        return ArchiveTree(self.archive, self.kind, self._full(prefix), self.options)

    def _full(self, name: str) -> str:
        """Return a member's name in the archive."""
        if ".." in name.split("/"):  # tidied up it would name another member
            raise UnsafePath(
                self.url_of(name),
                "the member's name leads outside the archive",
                "rebuild the archive without '..' in its names",
            )
        name = safe_name(name, self.archive)
        return f"{self.prefix}/{name}" if self.prefix and name else self.prefix or name

    def _row(self, index: _Archive, name: str) -> int:
        row = index.find(self._full(name))
        if row is None:
            cause = "is a directory, not a file" if self.isdir(name) else "no such member"
            raise MissingFile(self.url_of(name), cause, "restore it or take it off the list")
        return row


class _Blob:
    """An archive's bytes, local or remote."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.far = "://" in path
        self._local: ranges.Read
        if not self.far:
            try:
                self.file: BinaryIO = open(path, "rb")  # noqa: SIM115 - as long as the index lives
            except OSError as error:
                raise LayoutError(f"{path}: {error.strerror or error}") from None
            self._local = ranges.of_file(self.file)
            return
        from pipeline.trees.remote import RemoteTree

        self._tree = RemoteTree(path, options)
        try:
            self.file = self._tree.open("")
        except MissingFile:
            raise LayoutError(f"{path}: no such file") from None
        try:
            self.file.seek(0, 2)
            self.file.seek(0)
        except (ValueError, OSError):
            raise LayoutError(
                f"{path}: its server sends no parts of files (ranges); download the archive"
            ) from None

    def once(self, url: str, fetch: Callable[[], bytes]) -> bytes:
        """Return a member's bytes, those that are held already if it lies far away."""
        if not self.far:
            return fetch()
        from pipeline.trees.remote import once

        return once(url, fetch)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`."""
        if self.far:
            part = self._tree.read_range(offset, length)
            if len(part) > length:
                raise LayoutError(
                    f"{self._tree.url}: its server ignores ranges; download the archive"
                )
            return part
        return self._local(offset, length)


class _Archive:
    """One archive's bytes and sorted index."""

    def __init__(self, blob: _Blob, kind: str, index: Index) -> None:
        self.blob, self.kind = blob, kind
        self.names, self.find, self.member, self.size = (
            index.names,
            index.find,
            index.member,
            index.size,
        )
        self._inflated: OrderedDict[int, BinaryIO] = OrderedDict()
        self._inflating = threading.Lock()

    def span(self, directory: str) -> tuple[int, int]:
        """Return the rows, from and to, that lie below a directory."""
        if not directory:
            return 0, len(self.names)
        # "0" is the character after "/".
        return (
            bisect_left(self.names, directory + "/"),
            bisect_left(self.names, directory + "0"),
        )

    def children(self, directory: str) -> list[str]:
        """Return the names directly below a directory."""
        row, last = self.span(directory)
        skip = len(directory) + 1 if directory else 0
        found = []
        while row < last:
            child, slash, _ = self.names[row][skip:].partition("/")
            if child and child != ".." and not is_junk(child + slash):
                found.append(child)
            full = self.names[row][:skip] + child
            row = bisect_left(self.names, full + "0", lo=row) if slash else row + 1
        return sorted(found)

    def fingerprint(self, row: int) -> str:
        """Return what changes when the member changes."""
        offset, _, size, stamp, _ = self.member(row)
        return f"{stamp:08x}-{size}" if self.kind == "zip" else f"{size}-{stamp}-{offset}"

    def read(self, row: int, url: str) -> bytes:
        """Return a member's bytes."""
        try:
            if self.kind == "tar":
                return self._read_tar(row, url)
            return self._read_zip(row, url)
        except OSError as error:
            raise unreadable(url, error) from None

    def open(self, row: int, url: str) -> BinaryIO:
        """Return a member open for reading and seeking, not held in memory."""
        offset, stored, size, crc, method = self.member(row)
        if self.kind == "zip":
            if method == ENCRYPTED:
                raise _encrypted(url)
            offset += _local_header(self.blob.read(offset, _LOCAL_HEADER), url)
        if method == _STORED:
            if len(self.blob.read(offset + size - 1, 1)) != 1:
                raise _damaged(url, "the archive ends inside this member")
            return ranges.opened(self.blob.read, offset, size, far=self.blob.far)
        with self._inflating:
            file = self._inflated.get(row)
            if file is None:
                parts = ranges.parts(self.blob.read, offset, stored)
                file = _inflate_to_file(parts, method, size, crc, url)
                self._inflated[row] = file
                while len(self._inflated) > _MOST_INFLATED:
                    self._inflated.popitem(last=False)
        return ranges.opened(ranges.of_file(file), 0, size, far=False)

    def _read_tar(self, row: int, url: str) -> bytes:
        offset, _, size, _, _ = self.member(row)
        data = self.blob.read(offset, size)
        if len(data) != size:
            raise _damaged(url, "the archive ends inside this member")
        return data

    def _read_zip(self, row: int, url: str) -> bytes:
        offset, stored, size, crc, method = self.member(row)
        if method == ENCRYPTED:
            raise _encrypted(url)
        data = self.blob.read(offset, _LOCAL_HEADER + _NAME_ROOM + stored)
        start = _local_header(data, url)
        if len(data) < start + stored:
            data += self.blob.read(offset + len(data), start + stored - len(data))
        content = _inflate(data[start : start + stored], method, size, url)
        if len(content) != size or zlib.crc32(content) != crc:
            raise _damaged(url, "the member's checksum does not match")
        return content


def _local_header(data: bytes, url: str) -> int:
    """Return the length of a member's local header, with its name and extra field."""
    if data[:4] != b"PK\3\4" or len(data) < _LOCAL_HEADER:
        raise _damaged(url, "no member starts where the index says")
    lengths = (int.from_bytes(data[at : at + 2], "little") for at in (26, 28))
    return _LOCAL_HEADER + sum(lengths)


def _inflate_to_file(
    parts: Iterable[bytes], method: int, size: int, crc: int, url: str
) -> BinaryIO:
    """Return a temporary file with a member's content, its CRC checked."""
    if method not in (_DEFLATED, _BZIP2):
        raise _unknown(url, method)
    file = cast("BinaryIO", tempfile.TemporaryFile(prefix="segmill-"))  # noqa: SIM115 - is kept
    found = done = 0
    try:
        for content in _contents(parts, method):
            found, done = zlib.crc32(content, found), done + len(content)
            if done > size:
                break
            file.write(content)
    except (zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # no room for the file
            raise
        raise _damaged(url, f"the member does not inflate ({error})") from None
    if done != size or found != crc:
        raise _damaged(url, "the member's checksum does not match")
    file.flush()
    return file


def _contents(parts: Iterable[bytes], method: int) -> Iterator[bytes]:
    """Yield what parts inflate to, some megabytes at a time, however well they are compressed."""
    if method == _BZIP2:
        unzip = bz2.BZ2Decompressor()
        for part in parts:
            yield unzip.decompress(part, _AT_ONCE)
            while not unzip.needs_input and not unzip.eof:
                yield unzip.decompress(b"", _AT_ONCE)
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for part in parts:
        yield inflate.decompress(part, _AT_ONCE)
        while inflate.unconsumed_tail:
            yield inflate.decompress(inflate.unconsumed_tail, _AT_ONCE)
    yield inflate.flush()


def _encrypted(url: str) -> InputError:
    return InputError(url, "the member is encrypted", "rebuild the archive unencrypted")


def _unknown(url: str, method: int) -> InputError:
    return InputError(
        url, f"compression method {method} is unknown here", "rebuild the archive with deflate"
    )


def _inflate(data: bytes, method: int, size: int, url: str) -> bytes:
    """Return a member's content, at most one byte more than the index promises."""
    try:
        if method == _STORED:
            return data
        if method == _DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if method == _BZIP2:
            return bz2.BZ2Decompressor().decompress(data, size + 1)
    except (zlib.error, OSError) as error:
        raise _damaged(url, f"the member does not inflate ({error})") from None
    raise _unknown(url, method)


def _damaged(url: str, cause: str) -> InputError:
    return InputError(url, cause, "the archive is damaged: fetch it again")


_CACHE: OrderedDict[tuple[str, str], tuple[tuple[int, int, int], _Archive]] = OrderedDict()
_LOCK: Final = threading.Lock()


def _opened(path: str, kind: str, options: dict[str, Any]) -> _Archive:
    """Return this process's index of an archive, read again when the file was replaced."""
    stamp = (0, 0, 0)
    if "://" not in path:
        try:
            status = os.stat(path)
        except OSError as error:
            raise LayoutError(f"{path}: {error.strerror}") from None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
    found = _CACHE.get((path, kind))
    if found is not None and found[0] == stamp:
        return found[1]
    with _LOCK:
        found = _CACHE.get((path, kind))
        if found is None or found[0] != stamp:
            blob = _Blob(path, options)
            read = zip_members if kind == "zip" else tar_members
            found = stamp, _Archive(blob, kind, read(blob.file, path))
            _CACHE[path, kind] = found
            while len(_CACHE) > _MOST_OPEN:
                _CACHE.popitem(last=False)
        return found[1]
