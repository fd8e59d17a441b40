"""The members of zip and tar archives, and where in the file each lies, in columns.

An index takes a member's name and 42 bytes; Python's own objects would take ten times that.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from pipeline.errors import LayoutError
from pipeline.files import LOG, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Member = tuple[int, int, int, int, int]
"""Offset, stored bytes, bytes, CRC-32 or modification time in seconds, compression method.

A zip's offset is that of its local header, a tar's that of the data."""

ENCRYPTED: Final = -1
"""The compression method of a member that cannot be read without a password."""

_BLOCK: Final = 512
_FILE_TYPES: Final = (b"0", b"\0")
_DIRECTORY: Final = b"5"


class Names:
    """Sorted names by row: their UTF-8 in one buffer, `ends` int64 [N + 1], first 0."""

    def __init__(self, text: Any, ends: NDArray[np.int64]) -> None:
        self._text, self._ends = memoryview(text), ends.data  # its items are ints at once

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(row)
        return str(self._text[self._ends[row] : self._ends[row + 1]], "utf-8")


class Index:
    """An archive's members sorted by name, each name once."""

    def __init__(self, names: Names, columns: list[NDArray[Any]]) -> None:
        self.names, self._columns = names, columns

    def member(self, row: int) -> Member:
        """Return a member's place and size."""
        offset, stored, size, stamp, method = (int(column[row]) for column in self._columns)
        return offset, stored, size, stamp, method

    def size(self, row: int) -> int:
        """Return a member's bytes."""
        return int(self._columns[2][row])

    def find(self, name: str) -> int | None:
        """Return the row of a member; None when it is absent."""
        row = bisect_left(self.names, name)
        return row if row < len(self.names) and self.names[row] == name else None


class _Members:
    """Takes members in any order; of two with one name the later counts."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])
        self._columns = [array(code) for code in "qqqqh"]
        self._last, self._sorted = "", True

    def add(self, name: str, member: Member) -> None:
        """Add a member."""
        self._sorted = self._sorted and (name > self._last or len(self._ends) == 1)
        self._last = name
        self._text += name.encode()
        self._ends.append(len(self._text))
        for column, value in zip(self._columns, member, strict=True):
            column.append(value)

    def index(self) -> Index:
        """Return the index; nothing is to be added afterwards."""
        ends = np.frombuffer(self._ends, np.int64)
        columns = [np.frombuffer(column, column.typecode) for column in self._columns]
        self._columns = []
        if self._sorted:
            return Index(Names(self._text, ends), columns)
        import pyarrow as pa
        import pyarrow.compute as pc

        buffers = [None, pa.py_buffer(ends), pa.py_buffer(self._text)]
        names = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, buffers)
        order = pc.sort_indices(names)  # stable: of equal names the last is the later
        names = names.take(order)
        rows = order.to_numpy()
        again = pc.equal(names[:-1], names[1:])
        if pc.any(again).as_py():
            keep = np.append(~again.to_numpy(zero_copy_only=False), True)
            names, rows = names.filter(pa.array(keep)), rows[keep]
        for place, column in enumerate(columns):  # one by one: both copies take their room
            columns[place] = column[rows]
        _, bounds, text = names.buffers()
        return Index(Names(text, np.frombuffer(bounds, np.int64)[: len(names) + 1]), columns)


class _Each(list[Any]):
    """A list of zipfile's that hands its items on and stays empty."""

    def __init__(self, take: Callable[[zipfile.ZipInfo], None]) -> None:
        self._take = take

    def append(self, item: zipfile.ZipInfo) -> None:
        self._take(item)


class _Nowhere(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        pass


class _Streamed(zipfile.ZipFile):
    """A zip whose members are handed on one by one as zipfile parses them, and not kept."""

    def __init__(self, file: BinaryIO, take: Callable[[zipfile.ZipInfo], None]) -> None:
        self._take = take
        super().__init__(file)
        for info in self.filelist:  # of a Python that has no such hook
            take(info)

    def _RealGetContents(self) -> None:  # noqa: N802 - zipfile's name
        self.filelist, self.NameToInfo = _Each(self._take), _Nowhere()
        super()._RealGetContents()  # type: ignore[misc]


def zip_members(file: BinaryIO, path: str) -> Index:
    """Return a zip's index.

    Raises:
        LayoutError: it is no whole zip.
    """
    members = _Members()
    links: list[str] = []
    inner: list[str] = []

    def take(info: zipfile.ZipInfo) -> None:
        if info.is_dir():
            return
        if stat.S_ISLNK(info.external_attr >> 16):
            links.append(info.filename)
            return
        if info.filename.lower().endswith((".zip", ".tar")):
            inner.append(info.filename)
        method = ENCRYPTED if info.flag_bits & 1 else info.compress_type
        members.add(
            _member_name(info.filename),
            (info.header_offset, info.compress_size, info.file_size, info.CRC, method),
        )

    try:
        with _Streamed(file, take):
            pass
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OverflowError) as error:
        raise LayoutError(f"{path}: not a whole zip ({error}); fetch it again") from None
    _report_links(path, links)
    if inner:
        LOG.warning(
            "%s: holds archives, which are not looked into: %s; take them out "
            "(unzip -j %s '*.zip') and name them beside it",
            path,
            ", ".join(inner[:3]),
            path,
        )
    return members.index()


def tar_members(file: BinaryIO, path: str) -> Index:
    """Return a tar's index.

    Raises:
        LayoutError: it is no whole tar, or a compressed one.
    """
    if file.read(2) == b"\x1f\x8b":
        raise LayoutError(f"{path}: a compressed tar named .tar; gunzip it")
    index = _plain_tar(file)
    if index is not None:
        return index
    members = _Members()
    links: list[str] = []
    hard: list[tuple[str, str]] = []
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                name = _member_name(info.name)
                if info.isreg() and not info.issparse():
                    members.add(name, (info.offset_data, info.size, info.size, int(info.mtime), 0))
                elif info.islnk():
                    hard.append((name, _member_name(info.linkname)))
                elif not info.isdir():
                    links.append(info.name)
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise LayoutError(f"{path}: not a whole tar ({error}); fetch it again") from None
    index = members.index()
    if hard:
        index = _with_hard_links(index, hard, links)
    _report_links(path, links)
    return index


def _with_hard_links(index: Index, hard: list[tuple[str, str]], links: list[str]) -> Index:
    """Return the index with hard links as members; those that lead nowhere join `links`."""
    members = _Members()
    for row in range(len(index.names)):
        members.add(index.names[row], index.member(row))
    followed: dict[str, Member] = {}
    for name, target in hard:
        found = index.find(target)
        place = followed.get(target) or (index.member(found) if found is not None else None)
        if place is None:
            links.append(name)
            continue
        followed[name] = place
        members.add(name, place)
    return members.index()


def _plain_tar(file: BinaryIO) -> Index | None:
    """Return the index of a tar of short-named files and directories; None for other tars.

    Such are the data sets' own; `tarfile` takes three times as long for them.
    """
    members = _Members()
    size, at = file.seek(0, 2), 0
    while at < size:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            return members.index() if at else None
        member = _plain_header(block, at + _BLOCK)
        if member is None:
            return None
        name, place = member
        if block[156:157] != _DIRECTORY:
            members.add(_member_name(name), place)
        at += _BLOCK + -(-place[1] // _BLOCK) * _BLOCK
    return None  # without its end mark: let tarfile judge


def _plain_header(block: bytes, start: int) -> tuple[str, Member] | None:
    """Return a header's name and member whose data starts at `start`; None for special ones."""
    if len(block) < _BLOCK or block[156:157] not in (*_FILE_TYPES, _DIRECTORY):
        return None
    try:
        checksum, size, mtime = (
            int(block[a:b].strip(b" \0") or b"0", 8)
            for a, b in ((148, 156), (124, 136), (136, 148))
        )
    except ValueError:  # numbers too big for octal digits
        return None
    if checksum != sum(block) - sum(block[148:156]) + 8 * 32:
        return None
    raw = block[:100].rstrip(b"\0")
    if block[257:263] == b"ustar\0" and block[345]:
        raw = block[345:500].rstrip(b"\0") + b"/" + raw
    elif block[257:262] != b"ustar":
        return None
    name = raw.decode("utf-8", "backslashreplace")
    if b"\0" in raw or (name.endswith("/") and block[156:157] != _DIRECTORY):
        return None
    return name, (start, size, size, mtime, 0)


def _member_name(name: str) -> str:
    """Return a member's name without empty and single-dot parts; unsafe names stay as they are."""
    name = name.encode(
        "utf-8", "backslashreplace"
    ).decode()  # tarfile gives odd bytes as surrogates
    if ".." in name.split("/") or name[:1] == "/" or "\0" in name:
        return name
    return safe_name(name, "")


def _report_links(path: str, links: list[str]) -> None:
    if links:
        LOG.warning(
            "%s: left out %d links and special files, the first: %s", path, len(links), links[0]
        )
