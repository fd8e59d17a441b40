"""The images that a source names: a directory, pattern, manifest, archive or bucket prefix.

A listing is sorted by name and streams. What is listed may still turn out to be missing or bad:
reading it fails then, and the job counts it.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.errors import InputError, LayoutError
from pipeline.files import ARCHIVE_URL, local_path, locate, open_tree, without_secrets
from pipeline.record import Sample
from pipeline.trees.local import walked_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from pipeline.files import Tree

IMAGE_SUFFIXES: Final = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".jxl",
)  # fmt: skip
"""What is listed; some kinds have no decoder everywhere, and fail with a word about that."""
_MANIFESTS: Final = (".txt", ".csv", ".parquet")
_MAGIC: Final = re.compile(r"[*?[]")
_ASKED_AT_ONCE: Final = 32
_CHUNK: Final = 1024

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
    """
    without_secrets(source)
    label = dataset or _title(source)
    kind = _kind(source, opts)
    if kind == "manifest":
        return _samples(_manifest(source, opts), label)
    if kind == "pattern":
        return _samples(_matches(source, opts), label)
    tree = open_tree(source, **opts)
    entries = tree.walk(suffixes=IMAGE_SUFFIXES)
    return _samples(((e.name, tree.url_of(e.name), e.fingerprint) for e in entries), label)


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


def _samples(found: Iterable[Found], dataset: str) -> Iterator[Sample]:
    """Yield samples for sorted (name below the root, path, fingerprint)."""
    # In sorted order all names that begin "a." are neighbours, so few ids must be remembered.
    taken: list[str] = []
    for name, path, fingerprint in found:
        taken = [i for i in taken if name.startswith(i)]
        stem = posixpath.splitext(name)[0]
        image_id = stem if stem not in taken else name
        count = 1
        while image_id in taken:
            count += 1
            image_id = f"{name}~{count}"
        taken.append(image_id)
        yield Sample(image_id, path, fingerprint, dataset=dataset)


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


def _manifest(source: str, opts: dict[str, Any]) -> Iterator[Found]:
    """Yield (name, path, fingerprint) of a manifest's images, sorted, each path once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _columns(source, opts)
    base = posixpath.dirname(local_path(source) or source)
    # Arrow holds a path in its own length; Python's strings would double it.
    paths = pa.array((_resolve(base, p.as_py()) for p in table["path"]), pa.large_string())
    names = pa.array((_name_of(base, p.as_py()) for p in paths), pa.large_string())
    order = pc.sort_indices(
        pa.table({"name": names, "path": paths}), [("name", "ascending"), ("path", "ascending")]
    )
    table = table.drop_columns("path").append_column("name", names).append_column("path", paths)
    return _listed(table, order, opts)


def _listed(table: pa.Table, order: pa.Array, opts: dict[str, Any]) -> Iterator[Found]:
    """Yield a manifest's rows in order; fingerprints that it lacks are asked for."""
    last = None
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for start in range(0, len(order), _CHUNK):
            rows = table.take(order[start : start + _CHUNK]).to_pylist()
            fresh = []
            for row in rows:
                if row["path"] != last:
                    fresh.append(row)
                last = row["path"]
            if "fingerprint" in table.column_names:
                prints: Iterable[str] = (row["fingerprint"] or "" for row in fresh)
            else:
                ask = pool.map if any("://" in row["path"] for row in fresh) else map
                prints = ask(lambda row: _fingerprint(row["path"], opts), fresh)
            for row, fingerprint in zip(fresh, prints, strict=True):
                yield row["name"], row["path"], fingerprint


def _columns(source: str, opts: dict[str, Any]) -> pa.Table:
    """Return a manifest's columns `path` and, where it has one, `fingerprint`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tree, name = locate(source, **opts)
    if name.lower().endswith(".parquet"):
        with tree.open(name) as file:
            parquet = pq.ParquetFile(file)
            found = [c for c in ("path", "fingerprint") if c in parquet.schema_arrow.names]
            _check_columns(source, parquet.schema_arrow.names)
            table = parquet.read(found)
    elif name.lower().endswith(".csv"):
        reader = csv.DictReader(io.StringIO(tree.read_text(name), newline=""))
        _check_columns(source, reader.fieldnames or [])
        found = [c for c in ("path", "fingerprint") if c in (reader.fieldnames or [])]
        rows = [tuple(row[c] for c in found) for row in reader]
        table = pa.table(
            {c: pa.array([r[i] for r in rows], pa.large_string()) for i, c in enumerate(found)}
        )
    else:
        lines = (line.rstrip("\r") for line in tree.read_text(name).split("\n"))
        table = pa.table({"path": pa.array(lines, pa.large_string())})
    return table.filter([bool(path.as_py()) for path in table["path"]])


def _check_columns(source: str, columns: Iterable[str]) -> None:
    if "path" not in columns:
        raise LayoutError(f"{source}: no column 'path' among {', '.join(columns) or 'none'}")


def _resolve(base: str, text: str) -> str:
    """Return the absolute path or URL of what a manifest in directory `base` names."""
    if "://" in text:
        return local_path(text) or without_secrets(text)
    if text.startswith("/") or "://" not in base:
        return os.path.normpath(posixpath.join(base, text))
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, text)).lstrip('/')}"


def _name_of(base: str, path: str) -> str:
    """Return a path below the manifest's directory; elsewhere all of it but scheme and root."""
    prefix = base.rstrip("/") + "/"
    if path.startswith(prefix):
        return path[len(prefix) :]
    archive = ARCHIVE_URL.fullmatch(path)
    if archive:
        return archive[2]
    return path.partition("://")[2] or path.lstrip("/")


def _fingerprint(path: str, opts: dict[str, Any]) -> str:
    """Return a file's fingerprint; "" when it is missing, so that reading it says so."""
    if path[:1] == "/":
        return walked_entry(path, path).fingerprint
    try:
        tree, name = locate(path, **opts)
        return tree.entry(name).fingerprint
    except (InputError, LayoutError):
        return ""
