"""Trees on fsspec file systems: buckets, web servers, memory."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

from pipeline.errors import LayoutError, MissingExtra, MissingFile, UsageError
from pipeline.files import HEAD, LOG, TAIL, Entry, Tree, is_junk, safe_name
from pipeline.trees.ahead import IN_FLIGHT, held_files, waiting
from pipeline.trees.s3 import Objects, is_s3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.trees.s3 import Listed

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure",
                  "abfss": "azure", "az": "azure"}  # fmt: skip
_CHECKSUMS: Final = ("md5Hash", "ETag", "etag", "checksum", "content_md5")
_STAMPS: Final = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_WAITS: Final = (0.5, 1.0, 2.0)
"""Seconds before a request is made again; the file systems' own retries come first."""
_OPENING: Final = threading.Lock()
T = TypeVar("T")


def _is_refusal(error: Exception) -> bool:
    """Tell whether asking again cannot help: no permission, no credentials."""
    return isinstance(error, PermissionError) or "credential" in str(error).lower()


class Remote:
    """A file system and a root path on it, opened on first use."""

    __slots__ = ("_objects", "_opened", "_options", "url")

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url, self._options = url, options
        self._opened: tuple[Any, str] | None = None
        self._objects: Objects | None = None

    def at(self, name: str) -> tuple[Any, str]:
        """Return the fsspec file system and a name's path on it.

        Raises:
            UnsafePath: the name leads outside the root.
            UsageError: no file system is of this kind; MissingFile when a file is asked for.
        """
        if self._opened is None:
            with _OPENING:  # a second connection would cost as much as a hundred requests
                if self._opened is None:
                    opened = self._connected(name)
                    self._objects = Objects.of(*opened, self._options)
                    self._opened = opened
        fs, root = self._opened
        name = safe_name(name, self.url)
        if not name:
            return fs, root or fs.root_marker
        return fs, f"{root.rstrip('/')}/{name}" if root.rstrip("/") else fs.root_marker + name

    def _connected(self, name: str) -> tuple[Any, str]:
        try:
            return _connect(self.url, self._options)
        except UsageError as error:
            if not name:
                raise
            # Of one image among many: data, not the end of the job.
            raise MissingFile(f"{self.url}/{name}", str(error), "correct its path") from None

    @property
    def objects(self) -> Objects | None:
        """What reads an S3 bucket faster, once `at` has been asked."""
        return self._objects

    def get(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes, from `start` to before `end`, by one request."""
        fs, path = self.at(name)
        if self._objects is not None:
            data = self._objects.get(path, start, end)
            if data is not None:
                return data
        options: dict[str, Any] = {}
        if start is None and end is None and is_s3(fs):
            options["max_concurrency"] = 1  # else s3fs asks for the size first
        return bytes(fs.cat_file(path, start=start, end=end, **options))

    def put(self, name: str, data: bytes) -> None:
        """Write a file by one request."""
        fs, path = self.at(name)
        if self._objects is not None and self._objects.put(path, data):
            return
        try:
            fs.pipe_file(path, data)
        except FileNotFoundError:  # a file system with real directories
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, data)


def _connect(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0]
    # Listings go stale in a process that lives for nights, and a bucket's fill the memory.
    defaults: dict[str, Any] = {"use_listings_cache": False}
    if _EXTRAS.get(scheme) == "s3":  # boto keeps ten connections, whatever the threads
        defaults["config_kwargs"] = {"max_pool_connections": IN_FLIGHT}
    try:
        fs, root = fsspec.core.url_to_fs(url, **{**defaults, **options})
    except ImportError:
        if scheme not in _EXTRAS:
            raise
        raise MissingExtra(f"{scheme}:// paths", _EXTRAS[scheme]) from None
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None
    return fs, root


@dataclass(frozen=True, slots=True)
class RemoteTree(Tree):
    """An fsspec URL as a tree; one read request a file."""

    url: str
    options: dict[str, Any] = field(default_factory=dict, repr=False, hash=False)
    _remote: Remote = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_remote", Remote(self.url, self.options))

    def __reduce__(self) -> tuple[type[RemoteTree], tuple[str, dict[str, Any]]]:
        return RemoteTree, (self.url, self.options)

    @property
    def far(self) -> bool:
        """Each question is a request."""
        return True

    def walk(self, under: str = "", suffixes: tuple[str, ...] | None = None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted.

        In S3 through obstore it is one listing by keys, a thousand entries held at a time;
        elsewhere a listing for each directory, whose entries are all held.
        """
        under = safe_name(under, self.url)
        prefix = under + "/" if under else ""
        last = ""
        fs, path = self._remote.at(under)
        objects = self._remote.objects
        if objects is not None and objects.in_order:
            try:
                for key, size, fingerprint in listed_by_keys(fs, objects, path):
                    last = prefix + key
                    if not is_junk(key) and (suffixes is None or key.lower().endswith(suffixes)):
                        yield Entry(last, size, fingerprint)
                if last:
                    return
            except NotByKeys as error:
                LOG.warning("%s: listed directory by directory, slower: %s", self.url, error)
        for entry in self._walk(under, suffixes):
            if entry.name > last:
                yield entry

    def _walk(self, under: str, suffixes: tuple[str, ...] | None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted, by a listing for each directory."""
        prefix = under + "/" if under else ""
        for key, size, fingerprint in self._children(under):
            if key[-1] == "/":
                yield from self._walk(prefix + key[:-1], suffixes)
            elif suffixes is None or key.lower().endswith(suffixes):
                yield Entry(prefix + key, size, fingerprint)

    def _children(self, under: str) -> list[tuple[str, int, str]]:
        """Return a directory's (name, bytes, fingerprint), a slash behind directories, sorted."""
        fs, path = self._remote.at(under)
        try:
            items = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            raise LayoutError(f"{self.url_of(under)}: no such directory") from None
        except Exception as error:  # each file system has its own classes for refusals
            raise LayoutError(f"{self.url_of(under)}: cannot be listed: {say(error)}") from error
        children = []
        for item in items:
            base = item["name"].rstrip("/").rpartition("/")[2]
            if not base or item["name"].strip("/") == path.strip("/"):
                continue  # the marker object of the directory itself
            key = base + "/" if item["type"] == "directory" else base
            if not is_junk(key):
                children.append((key, item.get("size") or 0, _fingerprint(item)))
        return sorted(children)

    def children(self) -> Iterator[tuple[str, bool]]:
        """Yield the root's children by name, sorted, and whether each is a directory.

        In a bucket they come from the first page on; a directory once for each file below it.
        """
        self._remote.at("")
        if self._remote.objects is None:
            yield from ((key.rstrip("/"), key[-1] == "/") for key, _, _ in self._children(""))
            return
        for entry in self.walk():
            name, slash, _ = entry.name.partition("/")
            yield name, bool(slash)

    def names(self, under: str = "") -> list[str]:
        """Return the names of the direct children of `under`, sorted."""
        return sorted(key.rstrip("/") for key, _, _ in self._children(safe_name(under, self.url)))

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return once(self.url_of(name), lambda: self._cat(name))

    def _cat(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        self._remote.at(name)  # a name that leads outside is refused once and for all
        return patiently(
            lambda: self._remote.get(name, start, end), lambda error: self._unreadable(name, error)
        )

    def read_range(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset` of the file that the tree's URL names."""
        return self._cat("", offset, offset + length)

    def _unreadable(self, name: str, error: Exception) -> Exception:
        """Return the error to raise; each file system has its own classes for refusals."""
        url = self.url_of(name)
        if isinstance(error, FileNotFoundError | NotADirectoryError | FileExistsError):
            return MissingFile(url, "no such file", "restore it or take it off the list")
        if isinstance(error, IsADirectoryError):
            return MissingFile(url, "is a directory, not a file", "take it off the list")
        return OSError(f"{url}: cannot be read: {say(error)}")

    def open(self, name: str) -> BinaryIO:
        """Return a file open for reading and seeking."""
        fs, path = self._remote.at(name)
        try:
            file: BinaryIO = fs.open(path, "rb")
        except Exception as error:
            raise self._unreadable(name, error) from error
        return file

    def header_bytes(self, name: str, head: int = HEAD, tail: int = TAIL) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of a file by two requests.

        Where files are kept (`fetched_once`), by one request for all of it.
        """
        if held_files() is not None:
            return self.read(name), b""
        first = self._cat(name, 0, head)
        if len(first) < head:
            return first, b""
        return first, self._cat(name, -tail)

    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""
        return self._ask("exists", name)

    def isdir(self, name: str) -> bool:
        """Tell whether a directory is there."""
        _, path = self._remote.at(name)
        objects = self._remote.objects
        with waiting():
            if objects is not None and objects.holds(path):
                return True
        return self._ask("isdir", name)

    def _ask(self, question: str, name: str) -> bool:
        fs, path = self._remote.at(name)
        try:
            with waiting():
                return bool(getattr(fs, question)(path))
        except Exception as error:  # no such bucket, no credentials, no network
            raise LayoutError(f"{self.url_of(name)}: cannot be reached: {say(error)}") from error

    def entry(self, name: str) -> Entry:
        """Return one file's entry by one request."""
        fs, path = self._remote.at(name)
        try:
            with waiting():
                info = fs.info(path)
        except Exception as error:
            raise self._unreadable(name, error) from error
        if info["type"] == "directory":
            raise self._unreadable(name, IsADirectoryError())
        return Entry(name, info.get("size") or 0, _fingerprint(info))

    def url_of(self, name: str) -> str:
        """Return the file's URL."""
        if not name:
            return self.url
        return self.url + name if self.url.endswith("/") else f"{self.url}/{name}"

    def sub(self, prefix: str) -> RemoteTree:
        """Return the tree below `prefix`."""
        return RemoteTree(self.url_of(safe_name(prefix, self.url)), self.options)


def once(url: str, fetch: Callable[[], bytes]) -> bytes:
    """Return a file's bytes, those held by `fetched_once` if they are."""
    held = held_files()
    if held is None:
        return fetch()
    if url not in held:
        held[url] = fetch()
    return held[url]


def patiently(ask: Callable[[], T], known: Callable[[Exception], Exception]) -> T:
    """Return an answer; a request that fails by chance is made again, some seconds long.

    Raises:
        Exception: the last error, as what `known` calls it.
    """
    with waiting():
        for wait in (*_WAITS, None):
            try:
                return ask()
            except Exception as error:
                named = known(error)
                if wait is None or isinstance(named, MissingFile) or _is_refusal(error):
                    raise named from error
            time.sleep(wait * (1 + random.random()))
    raise AssertionError("unreachable")


class NotByKeys(Exception):
    """A bucket that cannot be listed by its keys, from here on."""


def listed_by_keys(fs: Any, objects: Objects, path: str) -> Iterator[tuple[str, int, str]]:
    """Yield (name below `path`, bytes, fingerprint) of a bucket's objects, sorted, no markers.

    Raises:
        NotByKeys: obstore cannot list it: a key with `//` or `..`, no permission, or no answer for
            some minutes. What follows the last name is still to come.
        LayoutError: its keys do not ascend.
    """
    skip = len(path) - path.find("/") if "/" in path else 0
    last, held = "", None
    for key, size, tag, changed in _keys(objects, path):
        name = key[skip:]
        if held is not None and not name.startswith(held[0] + "/"):
            yield from _unless_marker(fs, f"{path}/{held[0]}", held)
        held = None
        if not name or (name <= last and not size):  # a marker, whose key ends with a slash
            continue
        if name <= last:
            raise LayoutError(  # another way to list could not tell what has come already
                f"{path}: the server lists its keys out of order ({name!r} after {last!r}); "
                "uninstall obstore, s3fs sorts them"
            )
        last = name
        entry = name, size, _fingerprint({"ETag": tag, "size": size, "LastModified": changed})
        if size:
            yield entry
        else:
            held = entry
    if held is not None:
        yield from _unless_marker(fs, f"{path}/{held[0]}", held)


def _unless_marker(
    fs: Any, path: str, entry: tuple[str, int, str]
) -> Iterator[tuple[str, int, str]]:
    """Yield an empty object, but not the marker of an empty directory; obstore shows both alike."""
    with suppress(FileNotFoundError):
        if fs.info(path)["type"] != "directory":
            yield entry


def _keys(objects: Objects, path: str) -> Iterator[Listed]:
    """Yield a bucket's objects by their keys; a listing that breaks off is taken up again."""
    last: str | None = None
    pages: Iterator[list[Listed]] | None = None

    def fetch() -> list[Listed] | None:
        nonlocal pages
        try:
            if pages is None:
                pages = objects.pages(path, last)
            return next(pages, None)
        except Exception as error:
            pages = None
            if isinstance(error, FileNotFoundError) or "InvalidPath" in type(error).__name__:
                raise MissingFile(path, say(error), "") from error  # asking again is no use
            raise

    while True:
        try:
            page = patiently(fetch, lambda error: error)
        except Exception as error:
            raise NotByKeys(say(error)[:300]) from error
        if page is None:
            return
        for item in page:
            if last is None or item[0] > last:
                last = item[0]
            yield item


def say(error: Exception) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _fingerprint(info: dict[str, Any]) -> str:
    """Return a file's checksum where its file system keeps one, else size and time."""
    for key in _CHECKSUMS:
        if info.get(key):
            value = info[key]
            return value.hex() if isinstance(value, bytes | bytearray) else str(value).strip('"')
    stamp = next((info[key] for key in _STAMPS if info.get(key)), "")
    if isinstance(stamp, datetime):  # one file system's ls and info may differ in this
        stamp = stamp.timestamp()
    return f"{info.get('size') or 0}-{stamp}"
