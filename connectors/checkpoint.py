"""The finished chunks of a conversion, each in a file of a hidden folder below the target.

A worker writes a chunk's files and then the chunk's own file: its index entries, its failures, what
it lost. `finish` reads the entries from there, so nothing grows in memory with the dataset; and the
same command, run again after a crash, takes every chunk whose file is there for done. The folder's
name is a hash of the command, a chunk's that of its samples: nothing else's chunks are taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from connectors.base import Written
from pipeline.errors import LayoutError, MissingFile, SegmillError
from pipeline.files import open_tree, read_url
from pipeline.loss import Loss
from pipeline.runs.failures import Failure
from pipeline.trees.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.trees.sinks import Sink

LOG = logging.getLogger("segmill")
FOLDER: Final = ".segmill"
_VERSION: Final = 1
_BEGUN: Final = "begun.json"
_SIGNED: Final = "writer-"
_AT_ONCE: Final = 8
"""Chunks that are read at once from a target far away, and so held in memory."""
_MAY_PASS: Final = {"InputError", "MissingFile", "PoisonInput"}
"""Failures that may have had other causes than the file's content: they are tried again."""


@dataclass(slots=True)
class Exported:
    """What writing a chunk came to; `files` are the names of what was written."""

    done: int = 0
    failures: list[Failure] = field(default_factory=list)
    loss: Loss = field(default_factory=Loss)
    written: list[Written] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Booked:
    """The sum of a chunk whose entries and failures lie in the file `name`."""

    name: str
    done: int
    failed: int
    loss: Loss
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """The files of finished chunks in one folder of a sink; picklable."""

    sink: Sink
    folder: str

    def put(self, name: str, chunk: Exported) -> Booked:
        """Keep a finished chunk."""
        entries = b"".join(
            json.dumps([w.image_id, w.split, len(w.entry)]).encode() + b"\n" + w.entry
            for w in chunk.written
        )
        head = {
            "bytes": len(entries),
            "done": chunk.done,
            "failures": [f.to_dict() for f in chunk.failures],
            "loss": asdict(chunk.loss),
            "files": chunk.files,
        }
        self.sink.write(f"{self.folder}/{name}", json.dumps(head).encode() + b"\n" + entries)
        return Booked(name, chunk.done, len(chunk.failures), chunk.loss)

    def read(self, name: str) -> bytes:
        """Return a chunk's file."""
        return read_url(self.sink.url_of(f"{self.folder}/{name}"))

    def find(self, name: str) -> Booked | None:
        """Return the sum of a chunk that an earlier run finished; None where it must be redone."""
        try:
            head = _head(self.read(name))
        except MissingFile:
            return None
        if head is None or any(f["error"] in _MAY_PASS for f in head["failures"]):
            return None
        files = head["files"]
        if self.sink.far:  # a request for each would cost as much as to write them again
            files = files[:1] + files[-1:]
        if not all(map(self.sink.exists, files)):
            return None
        return Booked(name, head["done"], len(head["failures"]), Loss(**head["loss"]), True)


def _head(data: bytes) -> dict[str, Any] | None:
    """Return the first line of a chunk's file; None when the file is torn."""
    line, _, entries = data.partition(b"\n")
    try:
        head: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return head if len(entries) == head["bytes"] else None


def _entries(data: bytes) -> Iterator[Written]:
    at = data.index(b"\n") + 1
    while at < len(data):
        end = data.index(b"\n", at)
        image_id, split, size = json.loads(data[at:end])
        at = end + 1 + size
        yield Written(image_id, split, data[end + 1 : at])


class Spool:
    """The entries of finished chunks, in the chunks' order, as often as asked."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._names: list[str] = []
        self._failed: list[str] = []

    def add(self, chunk: Booked) -> None:
        """Take a chunk in; chunks may come in any order."""
        if chunk.done:
            self._names.append(chunk.name)
        if chunk.failed:
            self._failed.append(chunk.name)

    def __iter__(self) -> Iterator[Written]:
        for data in self._read(self._names):
            yield from _entries(data)

    def failures(self) -> Iterator[Failure]:
        """Yield the failures, in the order of the listing."""
        for data in self._read(self._failed):
            for failure in json.loads(data.partition(b"\n")[0])["failures"]:
                yield Failure(**failure)

    def _read(self, names: list[str]) -> Iterator[bytes]:
        names.sort()
        far, ahead, feed = self._kept.sink.far, Ahead(), iter(names)
        while group := list(islice(feed, _AT_ONCE)):
            yield from ahead.map(self._read_one, group, far=far)

    def _read_one(self, name: str) -> bytes:
        try:
            return self._kept.read(name)
        except MissingFile as error:
            raise SegmillError(
                f"{error.path}: a worker wrote this, and it is not here: workers on several "
                "machines need a target that all of them share, and no two commands the same one"
            ) from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The folder of one command's finished chunks, from the driver's side."""

    kept: Kept
    resumed: bool
    signed: frozenset[str]
    """The processes that wrote here before this run began."""
    begun: float

    @classmethod
    def begin(cls, sink: Sink, identity: Sequence[str]) -> Checkpoint:
        """Take up the folder of an earlier run of the same command, or make a new one."""
        text = json.dumps([_VERSION, *identity])
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        folder = f"{FOLDER}/convert-{key}"
        resumed = sink.exists(f"{folder}/{_BEGUN}")
        if not resumed:
            with suppress(OSError):  # what lies there is not looked at, only in the way
                sink.remove_folder(folder)
        _disown(sink, folder)
        signed = frozenset[str]()
        if resumed and not sink.far:
            names = os.listdir(sink.url_of(folder))
            signed = frozenset(n[len(_SIGNED) :] for n in names if n.startswith(_SIGNED))
        sink.write(f"{folder}/{_BEGUN}", text.encode())
        begun = 0.0 if sink.far else os.stat(sink.url_of(f"{folder}/{_BEGUN}")).st_mtime
        return cls(Kept(sink, folder), resumed, signed, begun)

    def end(self) -> None:
        """Remove the folder, and what a killed writer left unfinished."""
        try:
            if self.signed:
                self._sweep()
            self.kept.sink.remove_folder(self.kept.folder)
        except OSError as error:  # the dataset is whole
            LOG.warning("%s: cannot be removed (%s)", self.kept.folder, error)

    def _sweep(self) -> None:
        """Remove temporary files of processes that signed here, if older than this run."""
        for folder, _, names in os.walk(self.kept.sink.url_of("")):
            for name in names:
                parts = name.split("-")
                if parts[0] != ".segmill" or name[-4:] != ".tmp" or parts[1] not in self.signed:
                    continue
                path = f"{folder}/{name}"
                with suppress(FileNotFoundError):
                    if os.stat(path).st_mtime < self.begun:
                        os.unlink(path)


def sign(kept: Kept) -> None:
    """Note that this process writes here, so that what it leaves when killed is known for ours."""
    if not kept.sink.far:
        kept.sink.write(f"{kept.folder}/{_SIGNED}{os.getpid()}", b"")


def _disown(sink: Sink, own: str) -> None:
    """Let no other command go on where it stopped: this one may write over its files."""
    try:
        names = open_tree(f"{sink.url}/{FOLDER}").names()
    except LayoutError:
        return
    for name in names:
        if f"{FOLDER}/{name}" != own:
            sink.remove(f"{FOLDER}/{name}/{_BEGUN}")
