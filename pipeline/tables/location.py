"""Where a label store lies."""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pipeline.errors import NoSpace, StoreError, UsageError, WriteFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_FULL: Final = re.compile(r"\(os error (?:28|122|27)\)")  # ENOSPC, EDQUOT, EFBIG


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Turn what the table's library says of a write that failed into one line with the mend.

    Raises:
        NoSpace: the disk is full.
        WriteFailed: the write failed otherwise; whether it happened, the next reader knows.
    """
    from deltalake.exceptions import TableNotFoundError

    try:
        yield
    except (OSError, TableNotFoundError) as error:  # the second: no directory could be made
        text = _plain(error)
        again = "run the same command again; no reader sees half a commit"
        if _FULL.search(text):
            raise NoSpace(f"{url}: cannot be written: {text}; make room, then {again}") from error
        raise WriteFailed(f"{url}: cannot be written: {text}; {again}") from error


def _plain(error: Exception) -> str:
    """Return what the table's library says, without the colours and arrows of its terminal."""
    return " ".join(_COLOURS.sub("", str(error)).replace("↳", "-").split())


def unreadable(url: str, version: int | None, error: Exception) -> StoreError:
    """Return the error of a snapshot that the table's library cannot read, in one line.

    Its own words have structures of its own in them, and a native backtrace.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0].partition("ParsedLogPath")[0].strip(" :,[{")[:300]
    asked = "the newest version" if version is None else f"version {version}"
    return StoreError(
        f"{url}: {asked} cannot be read: {said}; `segmill store history` lists the versions; "
        "where a file of _delta_log is damaged or gone, put it back"
    )


def is_table(location: str, options: Mapping[str, str] | None = None) -> bool:
    """Tell whether a table is there.

    Raises:
        StoreError: the place cannot be asked.
    """
    from deltalake import DeltaTable

    try:
        return bool(DeltaTable.is_deltatable(location, dict(options or {}) or None))
    except OSError as error:
        raise StoreError(
            f"{location}: cannot be reached: {_plain(error)}; check the URL and the credentials"
        ) from None


def holds_other_files(location: str) -> bool:
    """Tell whether a directory holds more than what a store's making left when it died."""
    return os.path.isdir(location) and not {"_delta_log"}.issuperset(os.listdir(location))


def appears(location: str, options: Mapping[str, str] | None) -> bool:
    """Tell whether a store is there, or is being made there at this moment."""
    for _ in range(10 if os.path.isdir(f"{location}/_delta_log") else 1):
        if is_table(location, options):
            return True
        time.sleep(0.1)
    return False


def locate(url: str | os.PathLike[str]) -> str:
    """Return a store's URL in one form: absolute for local paths, without a slash at the end.

    Raises:
        UsageError: the path holds %-escapes, which the table's library would undo.
    """
    text = os.fspath(url).removeprefix("file://")
    if re.search(r"%[0-9A-Fa-f]{2}", text):
        raise UsageError(f"a store's path holds no %-escapes: {text}; name it otherwise")
    if "://" not in text:
        text = os.path.abspath(text)
    return text.rstrip("/") or "/"
