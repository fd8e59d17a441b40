"""Several sources as one tree: a dataset that is handed out as several archives.

    open_source("leftImg8bit_trainvaltest.zip,gtFine_trainvaltest.zip")
    open_source("downloads")        # a directory that holds nothing but archives

What each archive holds lies at the root of the union, as if all had been unpacked into one
directory. An archive without any folder lies in one of its own name, as it would have to be
unpacked: CamVid's `LabeledApproved_full.zip` holds bare files. Of a file that several hold, the
first's counts.
"""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

from pipeline.errors import LayoutError, MissingFile
from pipeline.files import ARCHIVE_URL, HEAD, LOG, TAIL, Entry, Tree, is_junk, open_tree, safe_name
from pipeline.trees.archives import ArchiveTree
from pipeline.trees.local import LocalTree
from pipeline.trees.remote import RemoteTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")

SEPARATOR: Final = ","
_MOST_FOLDERS: Final = 10_000
"""Folders of which a process remembers the parts that have them."""
_PIECE: Final = 1 << 20
_ARCHIVE: Final = re.compile(r"\.(zip|tar|tgz|tbz2|txz|tar\.\w+)$", re.IGNORECASE)
_BESIDE: Final = re.compile(
    r"(^(readme|licen[cs]e|copying|terms|changelog|citation|(md5|sha\d+)sums?)"
    r"|\.(md5|sha1|sha256|sha512|sfv|asc|sig|md|pdf|url)$)",
    re.IGNORECASE,
)
"""What may lie beside archives without being a part of the dataset."""


_GLOBAL: Final = re.compile(
    r"(^|/)((classes|splits)\.tsv|annotations/[^/]+\.json|label_colors\.txt"
    r"|((train|val|test|trainval|unlabelled)|image_?sets/.+)\.txt)$",
    re.IGNORECASE,
)
"""Files that speak for a whole dataset: of two that differ neither can count."""


@dataclass(frozen=True, slots=True)
class UnionTree(Tree):
    """The union of several trees; `url` is what `open_source` opens it by again."""

    url: str
    parts: tuple[Tree, ...]
    _holders: dict[str, tuple[Tree, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[type[UnionTree], tuple[str, tuple[Tree, ...]]]:
        return UnionTree, (self.url, self.parts)

    @property
    def far(self) -> bool:
        """Whether a question may be a request."""
        return any(part.far for part in self.parts)

    def walk(self, under: str = "", suffixes: tuple[str, ...] | None = None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted; of several with one name the first's."""
        walks = [_placed(part.walk(under, suffixes), part) for part in self._holding(under)]
        last: Entry | None = None
        kind = example = ""
        differing = 0
        for name, entry, found in merge(*walks, key=itemgetter(0)):
            if last is None or name != last.name:
                last, kind = entry, found
                yield entry
            elif entry.size != last.size or (
                kind == found == "zip" and entry.fingerprint != last.fingerprint  # CRC and size
            ):
                differing, example = differing + 1, name
        if differing:
            LOG.warning(
                "%s: %d files differ between its sources, the first source's counts; one is %s",
                self.url,
                differing,
                example,
            )

    def _holding(self, under: str) -> list[Tree]:
        """Return the parts that have a directory, in their order.

        Raises:
            LayoutError: none has it.
        """
        found = [part for part in self.parts if part.isdir(under)]
        if not found:
            raise LayoutError(f"{self.url}: none of its sources has a directory {under!r}")
        return found

    def names(self, under: str = "") -> list[str]:
        """Return the names of the direct children of `under` in any part, sorted."""
        return sorted({name for part in self._holding(under) for name in part.names(under)})

    def _ask(self, name: str, ask: Callable[[Tree], T]) -> T:
        """Return the answer of the first part that has a file."""
        parts = self._parts_of(name)
        for part in parts:
            with suppress(MissingFile):
                return ask(part)
        return ask(parts[0])

    def _parts_of(self, name: str) -> tuple[Tree, ...]:
        """Return the parts that have a file's directory; all of them where none has it.

        Where one part alone has a folder, all below it is that part's: this is asked level by
        level and remembered, so that a directory of a bucket takes few requests, not one a file.
        """
        folders = safe_name(name, self.url).split("/")[:-1]
        parts, path = self.parts, ""
        for folder in folders:
            path = f"{path}/{folder}" if path else folder
            held = self._holders.get(path)
            if held is None:
                held = tuple(part for part in parts if part.isdir(path))
                if len(self._holders) >= _MOST_FOLDERS:
                    self._holders.clear()
                self._holders[path] = held
            if not held:
                return parts
            parts = held
            if len(parts) == 1:
                break
        return parts

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        _check(self.parts, name)
        return self._ask(name, lambda part: part.read(name))

    def open(self, name: str) -> BinaryIO:
        """Return a file open for reading and seeking."""
        _check(self.parts, name)
        return self._ask(name, lambda part: part.open(name))

    def header_bytes(self, name: str, head: int = HEAD, tail: int = TAIL) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of a file."""
        return self._ask(name, lambda part: part.header_bytes(name, head, tail))

    def entry(self, name: str) -> Entry:
        """Return one file's entry."""
        return self._ask(name, lambda part: part.entry(name))

    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""
        return any(part.exists(name) for part in self.parts)

    def isdir(self, name: str) -> bool:
        """Tell whether a directory is there."""
        return any(part.isdir(name) for part in self.parts)

    def url_of(self, name: str) -> str:
        """Return the URL that a file has in the first part that holds it.

        Archives answer by their index. A file takes a request only where its directory lies in
        several parts, and in buckets.
        """
        if not name:
            return self.url
        parts = self._parts_of(name)
        if len(parts) == 1:
            return parts[0].url_of(name)
        return next((part for part in parts if part.exists(name)), parts[0]).url_of(name)

    def sub(self, prefix: str) -> Tree:
        """Return the union of what the parts hold below `prefix`."""
        if not safe_name(prefix, self.url):
            return self
        parts = [part.sub(prefix) for part in self.parts if part.isdir(prefix)]
        return _union(parts or [self.parts[0].sub(prefix)])


@dataclass(frozen=True, slots=True)
class FolderTree(Tree):
    """A tree whose files lie in one folder, which its source has not."""

    folder: str
    inner: Tree

    @property
    def url(self) -> str:  # type: ignore[override]
        """The source's URL."""
        return self.inner.url

    @property
    def kind(self) -> str:
        """The archive's kind."""
        return str(getattr(self.inner, "kind", ""))

    def _below(self, name: str) -> str:
        """Return a name in the source.

        Raises:
            MissingFile: the name is not below the folder.
        """
        name = safe_name(name, self.url)
        first, _, rest = name.partition("/")
        if first != self.folder or not rest:
            raise MissingFile(
                f"{self.url}: {name}", "no such member", "restore it or take it off the list"
            )
        return rest

    def walk(self, under: str = "", suffixes: tuple[str, ...] | None = None) -> Iterator[Entry]:
        """Yield the files below `under`, sorted."""
        if not self.isdir(under):
            raise LayoutError(f"{self.url}: no directory {under!r}")
        for entry in self.inner.walk("", suffixes):
            yield replace(entry, name=f"{self.folder}/{entry.name}")

    def names(self, under: str = "") -> list[str]:
        """Return the names of the direct children of `under`, sorted."""
        if not self.isdir(under):
            raise LayoutError(f"{self.url}: no directory {under!r}")
        return self.inner.names() if safe_name(under, self.url) else [self.folder]

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return self.inner.read(self._below(name))

    def open(self, name: str) -> BinaryIO:
        """Return a file open for reading and seeking."""
        return self.inner.open(self._below(name))

    def header_bytes(self, name: str, head: int = HEAD, tail: int = TAIL) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of a file."""
        return self.inner.header_bytes(self._below(name), head, tail)

    def exists(self, name: str) -> bool:
        """Tell whether a file or directory is there."""
        if self.isdir(name):
            return True
        with suppress(MissingFile):
            return self.inner.exists(self._below(name))
        return False

    def isdir(self, name: str) -> bool:
        """Tell whether a directory is there."""
        return safe_name(name, self.url) in ("", self.folder)

    def entry(self, name: str) -> Entry:
        """Return one file's entry."""
        return replace(self.inner.entry(self._below(name)), name=name)

    def url_of(self, name: str) -> str:
        """Return the file's URL in the source."""
        return self.inner.url_of(self._below(name)) if not self.isdir(name) else self.url

    def sub(self, prefix: str) -> Tree:
        """Return the tree below `prefix`."""
        return self.inner if safe_name(prefix, self.url) else self


def _in_its_folder(tree: Tree) -> Tree:
    """Put an archive of bare files into a folder of its name."""
    if not _is_bare(tree):
        return tree
    kind = getattr(tree, "kind", "")
    stem = posixpath.basename(tree.url)[: -len(kind) - 1]
    return FolderTree(stem, tree)


def _check(parts: tuple[Tree, ...], name: str) -> None:
    if _GLOBAL.search(name):
        _check_equal(parts, name)


@lru_cache(maxsize=256)
def _check_equal(parts: tuple[Tree, ...], name: str) -> None:
    """Make sure that all parts which hold a file hold the same one.

    Raises:
        LayoutError: two differ; the message names both.
    """
    held = [part for part in parts if part.exists(name)]
    for other in held[1:]:
        if not _equal(held[0], other, name):
            raise LayoutError(
                f"{held[0].url_of(name)} and {other.url_of(name)} differ, and speak for the whole "
                "dataset; convert one source at a time, or leave one of the files out"
            )


def _equal(one: Tree, other: Tree, name: str) -> bool:
    if one.entry(name).size != other.entry(name).size:
        return False
    with one.open(name) as first, other.open(name) as second:
        while piece := first.read(_PIECE):
            while piece:  # a read may give less than was asked for
                more = second.read(len(piece))
                if not more or not piece.startswith(more):
                    return False
                piece = piece[len(more) :]
    return True


def _placed(walk: Iterator[Entry], part: Tree) -> Iterator[tuple[str, Entry, str]]:
    kind = getattr(part, "kind", "")  # an archive's
    for entry in walk:
        yield entry.name, entry, kind


def _union(parts: Sequence[Tree], url: str | None = None) -> Tree:
    """Return the union of trees; the one tree itself where no other is and its URL says it all."""
    if len(parts) == 1 and not isinstance(parts[0], FolderTree):
        return parts[0]
    if url is None:
        urls = [_part_url(part) for part in parts]
        for one in urls:
            if SEPARATOR in one:
                raise LayoutError(f"{one}: a comma in a source's name; rename it")
        url = SEPARATOR.join(urls)
    return UnionTree(url, tuple(parts))


def _part_url(part: Tree) -> str:
    """Return the URL by which `open_source` opens a part of several as it is."""
    if _is_bare(part):  # by its path alone it would lie in a folder of its name
        return f"{getattr(part, 'kind', '')}://::{part.url}"
    return part.url


def _is_bare(tree: Tree) -> bool:
    """Tell whether a tree is a whole archive of files without any folder."""
    whole = isinstance(tree, ArchiveTree) and not tree.prefix
    return whole and not any(tree.isdir(name) for name in tree.names())


def open_source(url: str) -> Tree:
    """Open a dataset's source: what `open_tree` opens, or several of these as one.

    Several are given with commas between them, or as a directory that holds archives and nothing
    else but notes and checksums.

    Raises:
        LayoutError: one is not there, or is a compressed tar.
        UsageError: a URL holds credentials.
    """
    try:
        tree = open_tree(url)
    except LayoutError:
        sources = [source.strip() for source in url.split(SEPARATOR)]
        if len(sources) < 2 or not all(sources):
            raise
        return _union([_open_part(source) for source in sources])
    archives = _archives(tree)
    if not archives:
        return tree
    parts = [open_tree(tree.url_of(name)) for name in archives]
    return _union([_in_its_folder(part) for part in parts], tree.url)


def _open_part(source: str) -> Tree:
    """Open one of several; what is named as a place in an archive is taken as it is."""
    tree = open_tree(source)
    return tree if ARCHIVE_URL.fullmatch(source) else _in_its_folder(tree)


def _archives(tree: Tree) -> list[str]:
    """Return the names of a directory's archives; none where it holds anything else."""
    names: Iterable[tuple[str, bool]]
    if isinstance(tree, LocalTree) and not tree.only:
        names = _local_files(tree.url)
    elif isinstance(tree, RemoteTree):
        names = tree.children()
    else:
        return []
    found = []
    for name, is_dir in names:  # a dataset's directory ends this at its first entry
        if is_junk(name) or _BESIDE.search(name):
            continue
        if is_dir or not _ARCHIVE.search(name):
            return []
        found.append(name)
    return sorted(found)


def _local_files(path: str) -> Iterator[tuple[str, bool]]:
    with os.scandir(path) as items:
        for item in items:
            yield item.name, item.is_dir()
