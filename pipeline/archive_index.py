"""The members of zip and tar archives, and where in the file each lies."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from typing import BinaryIO, Final

from pipeline.errors import LayoutError
from pipeline.files import LOG, safe_name

Member = tuple[int, int, int, int, int]
"""Offset, stored bytes, bytes, CRC-32 or modification time in seconds, compression method.

A zip's offset is that of its local header, a tar's that of the data."""

ENCRYPTED: Final = -1
"""The compression method of a member that cannot be read without a password."""

_BLOCK: Final = 512
_FILE_TYPES: Final = (b"0", b"\0")
_DIRECTORY: Final = b"5"


def zip_members(file: BinaryIO, path: str) -> dict[str, Member]:
    """Return a zip's members by name; of two with one name the later.

    Raises:
        LayoutError: it is no whole zip.
    """
    members: dict[str, Member] = {}
    links, inner = [], []
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if stat.S_ISLNK(info.external_attr >> 16):
                    links.append(info.filename)
                    continue
                if info.filename.lower().endswith((".zip", ".tar")):
                    inner.append(info.filename)
                method = ENCRYPTED if info.flag_bits & 1 else info.compress_type
                members[_member_name(info.filename)] = (
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                    method,
                )
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
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
    return members


def tar_members(file: BinaryIO, path: str) -> dict[str, Member]:
    """Return a tar's members by name; of two with one name the later.

    Raises:
        LayoutError: it is no whole tar, or a compressed one.
    """
    if file.read(2) == b"\x1f\x8b":
        raise LayoutError(f"{path}: a compressed tar named .tar; gunzip it")
    members = _plain_tar(file)
    if members is not None:
        return members
    members, links = {}, []
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                name = _member_name(info.name)
                if info.isreg() and not info.issparse():
                    members[name] = (info.offset_data, info.size, info.size, int(info.mtime), 0)
                elif info.islnk() and _member_name(info.linkname) in members:
                    members[name] = members[_member_name(info.linkname)]
                elif not info.isdir():
                    links.append(info.name)
    except (tarfile.TarError, EOFError) as error:
        raise LayoutError(f"{path}: not a whole tar ({error}); fetch it again") from None
    _report_links(path, links)
    return members


def _plain_tar(file: BinaryIO) -> dict[str, Member] | None:
    """Return the members of a tar of short-named files and directories; None for other tars.

    Such are the data sets' own; `tarfile` takes three times as long for them.
    """
    members: dict[str, Member] = {}
    size, at = file.seek(0, 2), 0
    while at < size:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            return members if at else None
        member = _plain_header(block, at + _BLOCK)
        if member is None:
            return None
        name, place = member
        if block[156:157] != _DIRECTORY:
            members[_member_name(name)] = place
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
