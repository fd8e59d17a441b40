"""Nothing is written over what is read: a source, and the files that a store's rows name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.errors import UsageError
from pipeline.files import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store import Store


def check_apart(src: str, dst: str) -> None:
    """Refuse to write a dataset into the one that is read, or around it.

    An archive may lie where the dataset goes: no file of a format has such a name.

    Raises:
        UsageError: DST is SRC, lies below it, or holds it as a directory.
    """
    there = _place(dst)
    for source in {src, *src.split(",")}:
        here = _place(source)
        if _within(there, here) or (_within(here, there) and not os.path.isfile(here)):
            raise UsageError(
                f"{dst}: the dataset that is read is, or lies in, that directory, or holds it; "
                "name another directory"
            )


def check_store_apart(store: Store, dst: str) -> None:
    """Refuse to write a dataset where the first row of a fragment has its image or its mask.

    Raises:
        UsageError: DST is a directory above one of them.
    """
    there = _place(dst)
    for path in _first_paths(store):
        if _within(_place(path), there):
            raise UsageError(
                f"{dst}: holds files that the store's rows come from, such as {path}; "
                "name another directory"
            )


def _first_paths(store: Store) -> Iterator[str]:
    """Yield the paths of each fragment's first row: some KB of it are read, not its pixels."""
    import pyarrow.parquet as pq

    for fragment in store.fragments():
        with store.tree().open(fragment.path) as file:
            columns = ["image.path", "mask.path"]
            for batch in pq.ParquetFile(file).iter_batches(1, columns=columns):
                row = batch.to_pylist()[0]
                held = [row[name]["path"] for name in ("image", "mask") if row[name]]
                yield from (path for path in held if path)
                break


def _place(url: str) -> str:
    """Return the real path of a local file or directory; another URL without its last slashes."""
    path = local_path(url)
    return url.rstrip("/") if path is None else os.path.realpath(path)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
