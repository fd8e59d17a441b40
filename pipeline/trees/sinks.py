"""Sinks: where files are written, each whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Final

from pipeline.errors import NoSpace, UnsafePath
from pipeline.files import safe_name
from pipeline.trees.remote import Remote, patiently, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_SERIAL = count()
_NAME_ERRORS: Final = {
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.EISDIR: "a directory is in its place",
    errno.ENOTDIR: "a file is in the place of its directory",
    errno.EEXIST: "a file is in the place of its directory",
}
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEND: Final = "rename the image, or write into an empty directory"


class Sink(ABC):
    """A root to write below, by posix names; picklable, and safe to share between threads."""

    __slots__ = ()
    url: str
    far: ClassVar[bool] = False
    """Whether it is on another machine, so that many writes at once are worth their threads."""

    @abstractmethod
    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file whole or not at all, its directories made, an older one replaced.

        Raises:
            UnsafePath: the name leads outside the sink, or the file system has no place for it.
        """

    @abstractmethod
    def stream(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to write piece by piece; it appears when the block ends without an error.

        The file can be read and sought in meanwhile.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    @abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a directory with all below it, and its parent when that is empty then."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""

    @abstractmethod
    def url_of(self, name: str) -> str:
        """Return what `read_url` reads the file by."""


@dataclass(frozen=True, slots=True)
class LocalSink(Sink):
    """A directory of this machine; `durable` makes every write survive a power cut."""

    url: str
    durable: bool = False

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file through a temporary one beside it."""
        target = self.url_of(name)
        part = _part_of(target)
        with _named(target):
            handle = _create(part)
        try:
            try:
                _write_all(handle, data)
                if self.durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
            self._place(part, target)
        except BaseException as error:
            os.unlink(part)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise no_space(target, error) from error
            raise

    def _place(self, part: str, target: str) -> None:
        """Give a finished temporary file its name."""
        with _named(target):
            os.replace(part, target)
        if self.durable:
            _sync_directory(os.path.dirname(target))

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Open a temporary file that takes the name when the block ends without an error."""
        target = self.url_of(name)
        part = _part_of(target)
        with _named(target):
            opened = os.fdopen(_create(part), "w+b")
        try:
            with opened as file:
                yield file
                if self.durable:
                    file.flush()
                    os.fsync(file.fileno())
            self._place(part, target)
        except BaseException as error:
            os.unlink(part)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise no_space(target, error) from error
            raise

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        with suppress(FileNotFoundError):
            os.unlink(self.url_of(name))

    def remove_folder(self, name: str) -> None:
        """Remove a directory with all below it, and its parent when that is empty then."""
        import shutil

        path = self.url_of(name)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
            if "/" in name:
                with suppress(OSError):
                    os.rmdir(os.path.dirname(path))

    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""
        return os.path.exists(self.url_of(name))

    def url_of(self, name: str) -> str:
        """Return the file's absolute path."""
        return f"{self.url}/{safe_name(name, self.url)}"


@contextmanager
def _named(target: str) -> Iterator[None]:
    """Tell errors that are one name's own from those that must end the job, as a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(target, error) from error
        if error.errno not in _NAME_ERRORS:
            raise
        raise UnsafePath(target, f"cannot be written: {_NAME_ERRORS[error.errno]}", _MEND) from None


def no_space(path: str, error: OSError) -> NoSpace:
    """Return the error to raise when a disk has no room for a file."""
    cause = (error.strerror or str(error)).lower()
    return NoSpace(
        f"{path}: cannot be written: {cause}; nothing half-written is left; "
        "make room, then run the same command again"
    )


def _part_of(target: str) -> str:
    """Return a temporary file's path beside its target.

    Hidden, so that no listing shows what a crash left; short, as the name may be 255 bytes.
    """
    parent = os.path.dirname(target)
    return f"{parent}/.segmill-{os.getpid()}-{threading.get_ident()}-{next(_SERIAL)}.tmp"


def _create(path: str) -> int:
    """Create a file, and its directories if they are not there yet; return its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, flags, 0o666)


def _write_all(handle: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(handle, left) :]  # Linux takes 2 GiB at once


def _sync_directory(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class RemoteSink(Sink):
    """An fsspec URL: one PUT a file on object stores; elsewhere as atomic as the file system."""

    far: ClassVar[bool] = True
    url: str
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)
    _remote: Remote = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_remote", Remote(self.url, self.options))

    def __reduce__(self) -> tuple[type[RemoteSink], tuple[str, dict[str, Any]]]:
        return RemoteSink, (self.url, self.options)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file by one request."""
        self._remote.at(name)
        content = bytes(data)
        self._patiently(name, lambda: self._remote.put(name, content))

    def _patiently(self, name: str, ask: Callable[[], None]) -> None:
        """Make a request, again when it fails by chance."""

        def known(error: Exception) -> OSError:
            return OSError(f"{self.url_of(name)}: cannot be written: {say(error)}")

        patiently(ask, known)

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Collect the file on this machine and upload it when the block ends without an error.

        fsspec's own files publish what they hold when an error closes them.
        """
        import tempfile

        fs, path = self._remote.at(name)
        with tempfile.NamedTemporaryFile(prefix="segmill-") as part:
            yield part.file  # type: ignore[misc]
            part.flush()

            def upload() -> None:
                try:
                    fs.put_file(part.name, path)
                except FileNotFoundError:  # a file system with real directories
                    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                    fs.put_file(part.name, path)

            self._patiently(name, upload)

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        fs, path = self._remote.at(name)

        def delete() -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(path)

        self._patiently(name, delete)

    def remove_folder(self, name: str) -> None:
        """Remove all files below a prefix."""
        fs, path = self._remote.at(name)

        def delete() -> None:
            with suppress(FileNotFoundError):
                fs.rm(path, recursive=True)

        self._patiently(name, delete)

    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""
        fs, path = self._remote.at(name)
        return bool(fs.exists(path))

    def url_of(self, name: str) -> str:
        """Return what `read_url` reads the file by."""
        return f"{self.url}/{safe_name(name, self.url)}"
