"""Trees to read from and sinks to write to, on any file system.

A `Tree` is a directory, a .zip, a .tar or an fsspec URL, read by posix names relative to it. A
`Sink` is a directory or an fsspec URL to write to. Both are small, picklable and thread-safe: what
they hold open is opened again in each process. Local directories, the hot path, never touch fsspec.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import re
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pipeline.errors import InputError, LayoutError, MissingFile, UnsafePath, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.trees.sinks import Sink

__all__ = ["Entry", "Tree", "locate", "open_sink", "open_tree", "read_url"]

HEAD: Final = 65_536
"""Bytes of a file's start that hold an image's header, metadata and thumbnail nearly always."""
TAIL: Final = 64
"""Bytes of a file's end that hold the closing marker of a whole JPEG or PNG nearly always."""

LOG = logging.getLogger("segmill")
ARCHIVE_URL: Final = re.compile(r"(zip|tar)://(.*)::(.+)", re.DOTALL)
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SECRET: Final = re.compile(
    r"://[^/@]*:[^/@]*@|[?&](x-amz-[^=]*|signature|sig|token|access_token)=", re.IGNORECASE
)
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_ODD: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|\0")
# What desktop systems leave behind; `.` covers .DS_Store, ._x.jpg and our own temporary files.
_JUNK: Final = re.compile(r"(?:^|/)(?:\.(?!\.?/)|__MACOSX/|[Tt]humbs\.db$|desktop\.ini$)")
# Errors that are one file's own; others (too many open files, no memory) must end the job.
FILE_ERRORS: Final = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EISDIR: "is a directory, not a file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk cannot read it (input/output error)",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "a chain of symbolic links without an end",
    errno.ENXIO: "is a pipe, socket or device, not a file",
    errno.ESTALE: "the file changed on the server (stale handle)",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a tree: posix name relative to it, bytes, and what changes when it changes."""

    name: str
    size: int
    fingerprint: str


class Tree(ABC):
    """Files below one root, by posix names relative to it; hidden files are never listed.

    Sorted means by code points of the whole name, so that every kind of tree lists alike.
    """

    __slots__ = ()
    url: str

    @property
    def far(self) -> bool:
        """Whether each question is a request to another machine: listing a folder beats asking."""
        return False

    @abstractmethod
    def walk(self, under: str = "", suffixes: tuple[str, ...] | None = None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted, streaming.

        `suffixes` are lower-case (".jpg") and match any case. A file that vanished or cannot be
        inspected comes with fingerprint "": reading it says why. Links that leave the root, and
        links in archives, are left out with a warning.

        Raises:
            LayoutError: `under` is no directory of the tree, or cannot be listed.
        """

    @abstractmethod
    def names(self, under: str = "") -> list[str]:
        """Return the names of the direct children of `under`, sorted.

        Raises:
            LayoutError: `under` is no directory of the tree.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            MissingFile: it is absent or cannot be read.
            UnsafePath: the name leads outside the tree.
        """

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Return a file open for reading and seeking, for what is too big for `read`."""

    @abstractmethod
    def header_bytes(self, name: str, head: int = HEAD, tail: int = TAIL) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of a file; (all of it, b"") when it is small."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""

    @abstractmethod
    def isdir(self, name: str) -> bool:
        """Tell whether a directory is there."""

    @abstractmethod
    def entry(self, name: str) -> Entry:
        """Return one file's entry, without reading it; MissingFile when it is absent."""

    @abstractmethod
    def url_of(self, name: str) -> str:
        """Return what `read_url` reads the file by."""

    @abstractmethod
    def sub(self, prefix: str) -> Tree:
        """Return the tree below `prefix`; nothing is checked until it is read."""

    def read_text(self, name: str) -> str:
        """Return a file's text: UTF-8 without its byte order mark, else Latin-1."""
        data = self.read(name)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("latin-1")


def without_secrets(url: str) -> str:
    """Return a URL as it is; URLs are written into stores, plans and messages.

    Raises:
        UsageError: it holds a password, a signature or a token.
    """
    if _SECRET.search(url):
        place = url.partition("://")[0]
        raise UsageError(
            f"a {place}:// URL holds credentials, which would end up in the store; "
            f"give them by the environment"
        )
    return url


def open_tree(url: str, **storage_options: Any) -> Tree:
    """Open a directory, .zip, .tar or fsspec URL for reading; any other file is a tree of one.

    Raises:
        LayoutError: nothing is there, or it is a compressed tar.
        UsageError: the URL holds credentials.
    """
    without_secrets(url)
    archive = ARCHIVE_URL.fullmatch(url)
    if archive:
        from pipeline.trees.archives import ArchiveTree

        return ArchiveTree.open_archive(archive[3], archive[1], archive[2], storage_options)
    path = local_path(url)
    if path is None:
        return _open_remote(url, storage_options)
    from pipeline.trees.local import LocalTree

    if os.path.isdir(path):
        return LocalTree(path, os.path.realpath(path))
    if not os.path.exists(path):
        raise LayoutError(f"{url}: no such file or directory")
    kind = archive_kind(path)
    if kind:
        from pipeline.trees.archives import ArchiveTree

        return ArchiveTree.open_archive(path, kind, "", {})
    parent, name = os.path.split(path)
    return LocalTree(parent, os.path.realpath(parent), name)


def _open_remote(url: str, options: dict[str, Any]) -> Tree:
    from pipeline.trees.remote import RemoteTree

    tree = RemoteTree(_trim(url), options)
    # A web server has no directories: asked for one, fsspec fetches the whole archive as a page.
    packed = url.lower().startswith(("http:", "https:")) and archive_kind(url) is not None
    if not packed and tree.isdir(""):
        return tree
    if not tree.exists(""):
        raise LayoutError(f"{url}: no such file or directory")
    kind = archive_kind(url)
    if kind is None:
        raise LayoutError(f"{url}: a file, but neither a .zip nor a .tar; name its directory")
    from pipeline.trees.archives import ArchiveTree

    return ArchiveTree.open_archive(url, kind, "", options)


def _trim(url: str) -> str:
    """Return a URL without slashes at its end, but for those of its scheme."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rstrip('/')}"


def open_sink(url: str, *, durable: bool = False, **storage_options: Any) -> Sink:
    """Open a directory (made if absent) or an fsspec URL for writing.

    `durable` makes every write survive a power cut (fsync), at some milliseconds each.
    """
    from pipeline.trees.sinks import LocalSink, RemoteSink

    path = local_path(url)
    if path is None:
        return RemoteSink(_trim(url), storage_options)
    os.makedirs(path, exist_ok=True)
    return LocalSink(path, durable)


def read_url(url: str, **storage_options: Any) -> bytes:
    """Return the bytes behind an absolute path, an fsspec URL or `zip://member::/archive.zip`.

    Raises:
        MissingFile: it is absent or cannot be read.
        UnsafePath: an archive's member has a name that leads outside it.
    """
    if url[:1] == "/":
        with open_local(url) as file:
            try:
                return file.read()
            except OSError as error:
                raise unreadable(url, error) from None
    tree, name = locate(url, **storage_options)
    return tree.read(name)


def read_listed(path: str, fingerprint: str) -> bytes:
    """Return a local file's bytes, which are those that a walk listed under a fingerprint.

    Raises:
        MissingFile: it is absent or cannot be read.
        InputError: it was written to since.
    """
    with open_local(path) as file:
        try:
            data = file.read()
            # Of what was opened: a file that was put in its place meanwhile is another one.
            now = fingerprint_of(os.fstat(file.fileno()))
            if now != fingerprint:  # some mounts tell another time of an open file
                now = fingerprint_of(os.stat(path))
        except OSError as error:
            raise unreadable(path, error) from None
    if now != fingerprint:
        mend = "run the same command again when nothing writes to it"
        raise InputError(path, "changed after it was listed", mend)
    return data


def fingerprint_of(status: os.stat_result) -> str:
    """Return what changes when a local file changes."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def locate(url: str, **storage_options: Any) -> tuple[Tree, str]:
    """Return the tree that a file's URL lies in and its name there.

    Raises:
        MissingFile: the URL is of an archive that is not there or not whole.
    """
    archive = ARCHIVE_URL.fullmatch(url)
    if archive:
        from pipeline.trees.archives import ArchiveTree

        try:
            return ArchiveTree.open_archive(archive[3], archive[1], "", storage_options), archive[2]
        except LayoutError as error:  # of one image among many: data, not the end of the job
            raise MissingFile(url, f"its archive cannot be read ({error})", "restore it") from None
    path = local_path(url)
    if path is not None:
        from pipeline.trees.local import LocalTree

        parent, name = os.path.split(path)
        return LocalTree(parent, "/"), name
    scheme, _, rest = url.partition("://")
    parent, _, name = rest.rpartition("/")
    return _remote(f"{scheme}://{parent}", tuple(storage_options.items())), name


@lru_cache(maxsize=256)
def _remote(url: str, options: tuple[tuple[str, Any], ...]) -> Tree:
    from pipeline.trees.remote import RemoteTree

    return RemoteTree(url, dict(options))


def local_path(url: str) -> str | None:
    """Return the absolute path that a path or file: URL names; None for other URLs."""
    match = None if url[:1] == "/" else _URL.fullmatch(url)
    if match is None:
        return os.path.abspath(os.path.expanduser(url))
    return os.path.abspath(match[2]) if match[1].lower() == "file" else None


def archive_kind(path: str) -> str | None:
    """Return "zip" or "tar" by a file's suffix; None for other files.

    Raises:
        LayoutError: it is a compressed tar, which has no random access.
    """
    lower = path.lower()
    if lower.endswith(_COMPRESSED):
        raise LayoutError(
            f"{path}: a compressed tar can only be read from its start; "
            "unpack it, or turn it into a plain .tar (gunzip, bunzip2, unxz)"
        )
    return {".zip": "zip", ".tar": "tar"}.get(lower[-4:])


def safe_name(name: str, where: str) -> str:
    """Return a relative name without empty or dot parts.

    Raises:
        UnsafePath: it is absolute, leads above its root, or holds a NUL.
    """
    if not _ODD.search(name):
        return name
    normal = posixpath.normpath(name) if name else ""
    if normal[:1] == "/" or normal == ".." or normal.startswith("../") or "\0" in name:
        raise UnsafePath(
            f"{where}: {name!r}", "the name leads outside its root", "rename it or leave it out"
        )
    return "" if normal == "." else normal


def is_junk(name: str) -> bool:
    """Tell whether a name is hidden, or litter of a desktop system, in any of its parts."""
    return _JUNK.search(name) is not None


def unreadable(path: str, error: OSError) -> Exception:
    """Return the error to raise when a file cannot be read: MissingFile if it is the file's own."""
    cause = FILE_ERRORS.get(error.errno or 0)
    if cause is None:
        return error
    if "\\udc" in path:
        return MissingFile(path, "the file's name is not UTF-8", "rename it (convmv does)")
    if cause == "no such file" and os.path.islink(path):
        return MissingFile(path, "a link to a file that is gone", "restore it or remove the link")
    if cause == "no such file":
        return MissingFile(path, cause, "restore it or take it off the list")
    return MissingFile(path, cause, "make it a readable file or take it off the list")


def open_regular(path: str, flags: int) -> int:
    """Open a file for `open`: a pipe would be waited for without end, a device read without end.

    Raises:
        OSError: ENXIO, it is a pipe, a socket or a device.
    """
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of a directory, `open` says so itself
        return handle
    os.close(handle)
    raise OSError(errno.ENXIO, FILE_ERRORS[errno.ENXIO], path)


def open_local(path: str) -> BinaryIO:
    """Open a local file for reading, unbuffered; links are followed."""
    try:
        return open(path, "rb", buffering=0, opener=open_regular)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:
        raise UnsafePath(repr(path), "the name holds a NUL", "rename it") from None
