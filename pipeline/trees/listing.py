"""The images that a source names: a directory, pattern, manifest, archive or bucket prefix.

A listing is sorted by name and streams. What is listed may still turn out to be missing or bad:
reading it fails then, and the job counts it.
"""

from __future__ import annotations

import os
import posixpath
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import LayoutError, UsageError
from pipeline.files import ARCHIVE_URL, local_path, locate, open_tree, without_secrets
from pipeline.image_header import IMAGE_SUFFIXES
from pipeline.runs.keys import text_numbers
from pipeline.samples import MOST_ROWS, SCHEMA, coded, of_batch
from pipeline.trees.manifest import FOUND, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.files import Tree
    from pipeline.record import Sample

_MANIFESTS: Final = (".txt", ".csv", ".parquet")
_MAGIC: Final = re.compile(r"[*?[]")
# The name without its suffix, as `posixpath.splitext` has it: dots that begin a name are no suffix.
_STEM: Final = r"(?s)^(.*/)?(\.*[^/.][^/]*)\.[^/.]*$"
_SHORT_SUFFIX: Final = r"[^/.]\.[^/.]{3}$"

GIVEN: Final = '{"fingerprint": "given"}'
"""The note to a sample's reader that its fingerprint may be none of ours."""
Found = tuple[str, str, str]
"""Name below the root, path or URL, fingerprint."""


def list_images(source: str, *, dataset: str | None = None, **opts: Any) -> Iterator[Sample]:
    """Yield a sample for each image that `source` names, sorted by name, streaming.

    `source` is a directory, a pattern (*, ?, [], ** for any depth), a .txt (a path a line), .csv or
    .parquet manifest (column `path`; `fingerprint` too, if it has one), a .zip, a .tar, one image,
    or the same on any fsspec file system, `opts` being its options. Paths in a manifest are
    relative to it. An image's id is its path below the source without suffix; of two images that
    differ in nothing else (a.jpg, a.png), the later keeps its suffix.

    Raises:
        LayoutError: the source is not there, the manifest has no such column, or (when the listing
            ends) nothing matches the pattern.
        UsageError: the data set's name is not UTF-8, or a URL holds credentials.
    """
    batches = list_batches(source, dataset=dataset, **opts)
    return (sample for batch in batches for sample in of_batch(batch))


def list_batches(
    source: str, *, dataset: str | None = None, **opts: Any
) -> Iterator[pa.RecordBatch]:
    """Yield the same samples as batches (`pipeline.samples`), the first of which are small."""
    without_secrets(source)
    label = dataset or _title(source)
    if label.encode("utf-8", "replace").decode() != label:
        raise UsageError(f"the data set's name {label!r} is not UTF-8: give another by --dataset")
    kind = _kind(source, opts)
    if kind == "manifest":
        # Paths alone are asked for their fingerprints; other lists may have some of their own.
        payload = None if source.lower().endswith(".txt") else GIVEN
        return _named(read_manifest(source, opts), label, payload)
    if kind == "pattern":
        return _named(_in_batches(_matches(source, opts)), label)
    tree = open_tree(source, **opts)
    entries = tree.walk(suffixes=IMAGE_SUFFIXES)
    found = ((e.name, tree.url_of(e.name), e.fingerprint) for e in entries)
    return _named(_in_batches(found), label)


def _in_batches(found: Iterable[Found]) -> Iterator[pa.RecordBatch]:
    """Yield what was found in batches, each twice as long as the one before."""
    feed, rows = iter(found), 1
    while held := list(islice(feed, rows)):
        columns = [pa.array(column, pa.string()) for column in zip(*held, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=FOUND)
        rows = min(MOST_ROWS, 2 * rows)


def _kind(source: str, opts: dict[str, Any]) -> Literal["manifest", "pattern", "tree"]:
    """Tell what a source is; one that is there as it is written is no pattern."""
    manifest = source.lower().endswith(_MANIFESTS)
    pattern = _MAGIC.search(source) is not None
    if not manifest and not pattern:
        return "tree"
    path = local_path(source)
    if path is not None:
        exists, directory = os.path.exists(path), os.path.isdir(path)
    else:
        tree, name = locate(source, **opts)
        exists, directory = tree.exists(name), tree.isdir(name)
    if pattern and not exists:
        return "pattern"
    return "manifest" if manifest and exists and not directory else "tree"


def _title(source: str) -> str:
    """Return a data set's name for a source: its last part without wildcards and suffix."""
    parts = [p for p in re.split(r"/|::", local_path(source) or source) if p]
    plain = [p for p in parts if not _MAGIC.search(p) and not p.endswith(":")]
    stem, suffix = posixpath.splitext(plain[-1] if plain else "images")
    return (
        stem if suffix.lower() in (*_MANIFESTS, *IMAGE_SUFFIXES, ".zip", ".tar") else stem + suffix
    )


def _named(
    found: Iterable[pa.RecordBatch], dataset: str, payload: str | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield samples for what was found, sorted."""
    taken: list[str] = []
    for batch in found:
        ids, taken = _ids(batch["name"], taken)
        given = {"image_id": ids, "path": batch["path"], "fingerprint": batch["fingerprint"]}
        fixed = {"digest": "", "dataset": dataset, "split": "unlabelled", "payload": payload}
        columns = given | {name: coded(text, batch.num_rows) for name, text in fixed.items()}
        yield pa.RecordBatch.from_arrays([columns[n] for n in SCHEMA.names], schema=SCHEMA)


def _ids(names: pa.Array, taken: list[str]) -> tuple[pa.Array, list[str]]:
    """Return the ids of sorted names, and those that a later name may still meet.

    In sorted order all names that begin "a." are neighbours, so few ids must be remembered.
    """
    stems = _stems(names)
    numbers = np.sort(text_numbers(stems))
    known = pa.array(taken, pa.string())
    if not np.any(numbers[1:] == numbers[:-1]) and not pc.any(pc.is_in(stems, known)).as_py():
        last = names[-1].as_py()
        ends = pc.unique(pc.utf8_length(stems)).to_pylist()  # not all: a name may be a megabyte
        begins = pa.array([last[:end] for end in ends], pa.string())
        again = [i for i in taken if last.startswith(i)]
        return stems, again + stems.filter(pc.is_in(stems, begins)).to_pylist()
    ids = []
    for name, stem in zip(names.to_pylist(), stems.to_pylist(), strict=True):
        taken = [i for i in taken if name.startswith(i)]
        image_id, count = stem if stem not in taken else name, 1
        while image_id in taken:
            count += 1
            image_id = f"{name}~{count}"
        taken.append(image_id)
        ids.append(image_id)
    return pa.array(ids, pa.string()), taken


def _stems(names: pa.Array) -> pa.Array:
    """Return names without their suffix; three letters after a dot are cut off by columns."""
    stems = pc.utf8_slice_codeunits(names, 0, -4)
    other = pc.invert(pc.match_substring_regex(names, _SHORT_SUFFIX))
    if not pc.any(other).as_py():
        return stems
    rest = pc.replace_substring_regex(names.filter(other), _STEM, r"\1\2")
    return pc.replace_with_mask(stems, other, rest)


def _matches(pattern: str, opts: dict[str, Any]) -> Iterator[Found]:
    """Return (name, path, fingerprint) of what a pattern matches below its fixed part."""
    archive = ARCHIVE_URL.fullmatch(pattern)
    full = archive[2] if archive else local_path(pattern) or pattern
    magic = _MAGIC.search(full)
    cut = full.rfind("/", 0, magic.start() if magic else None)
    root, rest = full[: max(cut, 0)], full[cut + 1 :]
    if archive:
        root = f"{archive[1]}://{root}::{archive[3]}"
    elif root == "" or root.endswith(":/"):
        root += "/"
    tree = open_tree(root, **opts)
    suffix = posixpath.splitext(rest)[1]
    # *.img asks for just these; * asks for the images among what it matches.
    wanted = None if suffix and not _MAGIC.search(suffix) else IMAGE_SUFFIXES
    return _matching(tree, wanted, re.compile(_regex(rest)), pattern)


def _matching(
    tree: Tree, wanted: tuple[str, ...] | None, match: re.Pattern[str], pattern: str
) -> Iterator[Found]:
    """Yield what matches; a pattern without a match is a slip of the pen."""
    found = False
    for entry in tree.walk(suffixes=wanted):
        if match.fullmatch(entry.name):
            found = True
            yield entry.name, tree.url_of(entry.name), entry.fingerprint
    if not found:
        raise LayoutError(f"{pattern}: no image matches this pattern")


def _regex(pattern: str) -> str:
    """Return the regular expression of a pattern: * and ? stop at a slash, ** does not."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            chosen = pattern[at + 1 : end]
            negated = chosen[0] in "!^"
            chosen = re.sub(r"([\\\[\]^&~|])", r"\\\1", chosen[negated:])
            out, at = out + f"[{'^/' if negated else ''}{chosen}]", end + 1
        else:
            char = pattern[at]
            out += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char))
            at += 1
    return f"(?s:{out})"
