"""Lists of images in a file: .txt, .csv or .parquet, of any length, in the order of their names.

A manifest is read in batches of columns. One that is in order streams; one that is not is sorted
in pieces on disk (TMPDIR), so that memory does not grow with it.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import tempfile
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, LayoutError
from pipeline.files import ARCHIVE_URL, local_path, locate, without_secrets
from pipeline.trees.local import walked_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

FOUND: Final = pa.schema(
    [("name", pa.string()), ("path", pa.string()), ("fingerprint", pa.string())]
)
"""Name below the root, path or URL, fingerprint (null: to be asked for)."""
_ROWS: Final = 65_536
_RUN_ROWS: Final = 1 << 20
"""Rows that are sorted in memory: some hundred megabytes."""
_PIECE_ROWS: Final = 4096
_RANGE_ROWS: Final = 1 << 18
_ASKED_AT_ONCE: Final = 32
_ASKED: Final = 1024
_ORDER: Final = [("name", "ascending"), ("path", "ascending")]
# What normalising a path would change; see `pipeline.files.safe_name`.
_ODD_RELATIVE: Final = r"(?:^|/)\.{0,2}(?:/|$)|\x00"
_ODD_ABSOLUTE: Final = r"/\.{0,2}(?:/|$)|\x00"
_PLAIN_URL: Final = r"^[A-Za-z][A-Za-z0-9+.-]+://[^@?:]*$"


def read_manifest(source: str, opts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Return batches of `FOUND`, sorted, each path once; paths are relative to the manifest.

    It is read to its end at once, to see whether it is in order, and again for each batch.

    Raises:
        LayoutError: it has no column `path`, or is no such file.
        UsageError: a URL in it holds credentials.
    """
    for encoding in ("utf-8-sig", "latin-1"):
        try:
            batches = _sorted(source, opts, encoding)
            break
        except UnicodeDecodeError:
            continue
    return _once(batches, opts)


def _once(batches: Iterable[pa.RecordBatch], opts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of each path once, with its fingerprint."""
    last = None
    for batch in batches:
        paths = batch["path"]
        new = np.append(paths[0].as_py() != last, _mask(pc.not_equal(paths[1:], paths[:-1])))
        last = paths[-1].as_py()
        kept = batch if new.all() else batch.filter(pa.array(new))
        if kept.num_rows:
            yield from _with_fingerprints(kept, opts)


def _sorted(source: str, opts: dict[str, Any], encoding: str) -> Iterator[pa.RecordBatch]:
    """Read a manifest to its end, and return its batches in order."""
    held: list[pa.RecordBatch] = []
    rows, ordered, last = 0, True, None
    for batch in _batches(source, opts, encoding):
        rows += batch.num_rows
        ordered = ordered and _in_order(batch, last)
        last = (batch["name"][-1].as_py(), batch["path"][-1].as_py())
        if rows <= _RUN_ROWS:
            held.append(batch)
        elif ordered:
            held = []
        else:
            return _merged(_batches(source, opts, encoding))
    if rows > _RUN_ROWS:
        return _batches(source, opts, encoding)
    if not ordered:
        return iter(_in_pieces(_in_memory(held), _ROWS))
    return iter(held)


def _in_order(batch: pa.RecordBatch, last: tuple[str, str] | None) -> bool:
    """Tell whether the rows, and those after `last`, are in order."""
    names, paths = batch["name"], batch["path"]
    if last is not None and last > (names[0].as_py(), paths[0].as_py()):
        return False
    less = pc.less(names[:-1], names[1:])
    if pc.all(less, min_count=0).as_py():
        return True
    same = pc.and_(pc.equal(names[:-1], names[1:]), pc.less_equal(paths[:-1], paths[1:]))
    return bool(pc.all(pc.or_(less, same), min_count=0).as_py())


def _in_memory(batches: list[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(batches, schema=FOUND).combine_chunks()
    return table.take(pc.sort_indices(table, _ORDER))


def _in_pieces(table: pa.Table, rows: int) -> list[pa.RecordBatch]:
    return list(table.combine_chunks().to_batches(max_chunksize=rows))


def _merged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield rows in order: sorted runs are written to a file, and read back range by range."""
    with tempfile.TemporaryFile(prefix="segmill-list-") as file:
        runs: list[list[str]] = []  # the first name of each piece
        starts: list[int] = []
        with pa.ipc.new_file(pa.PythonFile(file, "w"), FOUND) as out:
            for run in _runs(batches):
                pieces = _in_pieces(_in_memory(run), _PIECE_ROWS)
                starts.append(sum(map(len, runs)))
                runs.append([piece["name"][0].as_py() for piece in pieces])
                for piece in pieces:
                    out.write_batch(piece)
        file.seek(0)
        reader = pa.ipc.open_file(pa.PythonFile(file, "r"))
        firsts = sorted(chain.from_iterable(runs))
        step = max(1, _RANGE_ROWS // _PIECE_ROWS, len(runs))
        for low, high in pairwise([None, *sorted(set(firsts[step::step])), None]):
            parts = []
            for start, names in zip(starts, runs, strict=True):
                begin = 0 if low is None else max(0, bisect_left(names, low) - 1)
                end = len(names) if high is None else bisect_left(names, high)
                held = map(reader.get_batch, range(start + begin, start + end))
                parts += [_between(piece, low, high) for piece in held]
            yield from _in_pieces(_in_memory(parts), _ROWS)


def _runs(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _RUN_ROWS:
            yield held
            held, rows = [], 0
    if held:
        yield held


def _between(batch: pa.RecordBatch, low: str | None, high: str | None) -> pa.RecordBatch:
    if low is not None:
        batch = batch.filter(pc.greater_equal(batch["name"], low))
    return batch if high is None else batch.filter(pc.less(batch["name"], high))


def _batches(source: str, opts: dict[str, Any], encoding: str) -> Iterator[pa.RecordBatch]:
    """Read a manifest's rows as they come, with paths made absolute; empty paths are left out."""
    base = posixpath.dirname(local_path(source) or source)
    for batch in _columns(source, opts, encoding):
        batch = batch.filter(pc.not_equal(batch["path"].fill_null(""), ""))
        if batch.num_rows:
            names, paths = _resolved(base, batch["path"])
            yield pa.RecordBatch.from_arrays([names, paths, batch["fingerprint"]], schema=FOUND)


def _columns(source: str, opts: dict[str, Any], encoding: str) -> Iterator[pa.RecordBatch]:
    """Read a manifest's columns `path` and `fingerprint`, null where it has none."""
    tree, name = locate(source, **opts)
    lower = name.lower()
    with tree.open(name) as file:
        if lower.endswith(".parquet"):
            yield from _parquet_columns(source, file)
            return
        buffered: Any = io.BufferedReader(file, 1 << 20) if isinstance(file, io.RawIOBase) else file
        text = io.TextIOWrapper(buffered, encoding, newline="" if lower.endswith(".csv") else "\n")
        if lower.endswith(".csv"):
            yield from _csv_columns(source, text)
            return
        while lines := list(islice(text, _ROWS)):
            paths = pa.array([line.rstrip("\r\n") for line in lines], pa.string())
            yield _listed(paths, pa.nulls(len(paths), pa.string()))


def _listed(paths: pa.Array, fingerprints: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([paths, fingerprints], names=["path", "fingerprint"])


def _parquet_columns(source: str, file: BinaryIO) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        _check_columns(source, names)
        found = [c for c in ("path", "fingerprint") if c in names]
        for batch in parquet.iter_batches(_ROWS, columns=found):
            paths = batch["path"].cast(pa.string())
            prints = pa.nulls(len(paths), pa.string())
            if len(found) > 1:
                prints = batch["fingerprint"].cast(pa.string()).fill_null("")
            yield _listed(paths, prints)
    except (pa.ArrowException, KeyError) as error:  # a KeyError: two columns of one name
        why = " ".join(str(error).split()).rstrip(".")
        raise LayoutError(
            f"{source}: not a Parquet file with the columns path and fingerprint as text ({why}); "
            "write it again"
        ) from None


def _csv_columns(source: str, text: io.TextIOWrapper) -> Iterator[pa.RecordBatch]:
    reader = csv.reader(text)
    try:
        yield from _csv_rows(source, reader)
    except csv.Error as error:
        raise LayoutError(
            f"{source}: line {reader.line_num} is not CSV ({error}); look for a quote that does "
            "not end"
        ) from None


def _csv_rows(source: str, reader: Any) -> Iterator[pa.RecordBatch]:
    header: list[str] = next(reader, [])
    _check_columns(source, header)
    path = header.index("path")
    mark = header.index("fingerprint") if "fingerprint" in header else None
    while rows := list(islice(reader, _ROWS)):
        paths = pa.array([row[path] if path < len(row) else "" for row in rows], pa.string())
        prints = pa.nulls(len(rows), pa.string())
        if mark is not None:
            texts = [row[mark] if mark < len(row) else "" for row in rows]
            prints = pa.array(texts, pa.string())
        yield _listed(paths, prints)


def _check_columns(source: str, columns: Iterable[str]) -> None:
    if "path" not in columns:
        raise LayoutError(f"{source}: no column 'path' among {', '.join(columns) or 'none'}")


def _resolved(base: str, texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return names below the directory `base`, and absolute paths or URLs.

    What is plain is done by columns; the rest, whose path must be normalised, one by one.
    """
    below, prefix = base.rstrip("/") + "/", _resolve(base, "x")[:-1]
    url, absolute = _mask(pc.match_substring(texts, "://")), _mask(pc.starts_with(texts, "/"))
    relative = ~url & ~absolute
    relative &= ~_matches(texts, _ODD_RELATIVE, relative)
    files = absolute & ~url
    files &= ~_matches(texts, _ODD_ABSOLUTE, files)
    links = _matches(texts, _PLAIN_URL, url)
    links &= ~_matches(texts, "(?i)^file:", _mask(pc.starts_with(texts, "f", ignore_case=True)))
    paths = texts
    if relative.any():
        joined = pc.binary_join_element_wise(prefix, texts, "")
        paths = joined if relative.all() else pc.if_else(pa.array(relative), joined, texts)
    inside = _mask(pc.starts_with(paths, below))
    names = pc.utf8_slice_codeunits(paths, len(below)) if inside.any() else paths
    if (links & ~inside).any():
        names = _replaced(names, links & ~inside, _without_scheme(paths))
    if (files & ~inside).any():
        names = _replaced(names, files & ~inside, pc.utf8_ltrim(paths, "/"))
    rows = np.flatnonzero(~((relative & inside) | files | links))
    if rows.size:
        names, paths = _mended(base, texts, rows, names, paths)
    return names, paths


def _mask(column: pa.Array) -> Mask:
    return np.asarray(column.to_numpy(zero_copy_only=False), bool)


def _matches(texts: pa.Array, pattern: str, among: Mask) -> Mask:
    """Tell of some texts whether they match; a regular expression costs more than all else."""
    if not among.any():
        return among
    return among & _mask(pc.match_substring_regex(texts, pattern))


def _replaced(column: pa.Array, rows: Mask, others: pa.Array) -> pa.Array:
    return others if rows.all() else pc.if_else(pa.array(rows), others, column)


def _without_scheme(urls: pa.Array) -> pa.Array:
    scheme = urls[0].as_py().partition("://")[0] + "://"
    if pc.all(pc.starts_with(urls, scheme)).as_py():
        return pc.utf8_slice_codeunits(urls, len(scheme))
    return pc.replace_substring_regex(urls, "^[^:]*://", "")


def _mended(
    base: str, texts: pa.Array, rows: NDArray[np.intp], names: pa.Array, paths: pa.Array
) -> tuple[pa.Array, pa.Array]:
    """Return names and paths with those of some rows resolved one by one."""
    whole = [_resolve(base, text) for text in texts.take(rows).to_pylist()]
    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    here = pa.array([_name_of(base, path) for path in whole], pa.string())
    marked = pa.array(mask)
    return (
        pc.replace_with_mask(names, marked, here),
        pc.replace_with_mask(paths, marked, pa.array(whole, pa.string())),
    )


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


def _with_fingerprints(batch: pa.RecordBatch, opts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Yield the rows; fingerprints that the manifest lacks are asked for."""
    if batch["fingerprint"].null_count == 0:
        yield batch
        return
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for start in range(0, batch.num_rows, _ASKED):
            rows = batch.slice(start, _ASKED)
            paths = rows["path"].to_pylist()
            ask = pool.map if any("://" in path for path in paths) else map
            prints = pa.array(list(ask(lambda path: _fingerprint(path, opts), paths)), pa.string())
            yield rows.set_column(2, "fingerprint", prints)


def _fingerprint(path: str, opts: dict[str, Any]) -> str:
    """Return a file's fingerprint; "" when it is missing, so that reading it says so."""
    if path[:1] == "/":
        return walked_entry(path, path).fingerprint
    try:
        tree, name = locate(path, **opts)
        return tree.entry(name).fingerprint
    except (InputError, LayoutError):
        return ""
