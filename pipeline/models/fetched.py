"""Model files from a bucket or a web server, fetched once a node however many actors ask.

Files lie in SEGMILL_CACHE (default: ~/.cache/segmill) under the URL and its checksum, so that a
changed file is fetched again and an unchanged one costs a request. A file lock makes one process
fetch while the others wait; the folder appears by a rename, whole or not at all. It may be deleted
whenever no model is being loaded.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from pipeline.errors import ModelError, SegmillError
from pipeline.files import local_path, locate, open_tree
from pipeline.trees.remote import RemoteTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.files import Entry, Tree

CACHE: Final = "SEGMILL_CACHE"
_CACHE_ERRORS: Final = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS}
)
_PIECE: Final = 64 << 20
"""Bytes in one request for a large file: each is asked for again when it fails."""


def local_file(url: str, beside: Sequence[str] = ()) -> str:
    """Return the path of a file on this machine, fetched if it lies elsewhere.

    `beside` names files of the same folder that are brought along where they exist.

    Raises:
        ModelError: it is not there, cannot be read, or the cache has no room.
    """
    path = local_path(url)
    if path is not None:
        if not os.path.isfile(path):
            raise ModelError(f"{url}: no such file; check the path")
        return path
    with _explained(url):
        tree, name = locate(url)
        entries = [tree.entry(name)]
        entries += [tree.entry(other) for other in beside if tree.exists(other)]
        return os.path.join(_fetched(url, tree, entries), name)


def local_folder(url: str, suffixes: tuple[str, ...]) -> str:
    """Return the path of a folder on this machine; of one elsewhere, its files by suffix.

    Raises:
        ModelError: it is not there, cannot be read, or the cache has no room.
    """
    path = local_path(url)
    if path is not None:
        return path
    with _explained(url):
        tree = open_tree(url)
        entries = [e for e in tree.walk(suffixes=suffixes) if "/" not in e.name]
        if not entries:
            raise ModelError(f"{url}: holds no model files ({', '.join(suffixes)})")
        return _fetched(url, tree, entries)


@contextmanager
def node_lock(name: str) -> Iterator[str]:
    """Hold a lock between the processes of this node; give the cache's folder.

    The lock goes with its process, however that ends.
    """
    folder = os.path.join(_root(), "models")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{name}.lock"), "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def _root() -> str:
    chosen = os.environ.get(CACHE)
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "segmill")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what goes wrong between here and there into one line."""
    try:
        yield
    except ModelError:
        raise
    except OSError as error:
        if error.errno in _CACHE_ERRORS:
            raise ModelError(
                f"{url}: cannot be kept in {_root()} ({error.strerror}); make room, or set {CACHE} "
                "to another folder"
            ) from error
        raise ModelError(f"{url}: cannot be fetched: {error}") from error
    except SegmillError as error:
        raise ModelError(f"{url}: cannot be fetched: {error}") from error


def _fetched(url: str, tree: Tree, entries: Sequence[Entry]) -> str:
    """Return the folder that holds the files, fetched if no process of this node has yet."""
    stamp = "\n".join(f"{e.name}\t{e.size}\t{e.fingerprint}" for e in entries)
    key = f"{_short(url)}-{_short(stamp)}"
    with node_lock(key) as cache:
        folder = os.path.join(cache, key)
        if os.path.isdir(folder) and _tells(entries):
            return folder
        part = f"{folder}.part"  # of a process that was killed, if it is there
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        try:
            for entry in entries:
                _copy(tree, entry, os.path.join(part, entry.name))
            if not os.path.isdir(folder):
                os.rename(part, folder)
            for name in os.listdir(part) if os.path.isdir(part) else ():
                os.replace(os.path.join(part, name), os.path.join(folder, name))  # may be in use
            shutil.rmtree(part, ignore_errors=True)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(part)
            raise
        return folder


def _tells(entries: Iterable[Entry]) -> bool:
    """Whether the fingerprints tell a change: a server may give neither checksum nor time."""
    return all(not entry.fingerprint.endswith("-") for entry in entries)


def _copy(tree: Tree, entry: Entry, path: str) -> None:
    """Write a file whole; one that changes meanwhile is an error."""
    with open(path, "wb") as file:
        for piece in _pieces(tree, entry):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        written = file.tell()
    now = tree.entry(entry.name)
    if (entry.size and written != entry.size) or now.fingerprint != entry.fingerprint:
        raise ModelError(f"{tree.url_of(entry.name)}: changed while it was fetched; try again")


def _pieces(tree: Tree, entry: Entry) -> Iterator[bytes]:
    """Yield a file's bytes; a large one's by ranges, unless the server only sends all of it."""
    if entry.size <= _PIECE or not isinstance(tree, RemoteTree):
        yield tree.read(entry.name)
        return
    whole = RemoteTree(tree.url_of(entry.name), tree.options)
    for start in range(0, entry.size, _PIECE):
        piece = whole.read_range(start, min(_PIECE, entry.size - start))
        yield piece
        if len(piece) == entry.size:
            return


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
