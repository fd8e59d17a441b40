"""Temporary files whose errors say where they lie and how to put them elsewhere."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO, Final

from pipeline.errors import SegmillError

if TYPE_CHECKING:
    from typing import Any

_BUFFER: Final = 256 << 10
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Told(io.FileIO):
    """A file that says which folder is full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            raise _told(tempfile.gettempdir(), error) from error


def _told(folder: str, error: OSError) -> Exception:
    if error.errno not in _FULL:
        return error
    return SegmillError(
        f"{folder}: no room left for temporary files ({error.strerror}); "
        "make some, or set TMPDIR to a folder on a larger disk"
    )


def temporary_file(what: str) -> BinaryIO:
    """Open a nameless file of `TMPDIR` for writing, reading and seeking; it goes when closed.

    Raises:
        SegmillError: the folder is full, now or when something is written; the message names it.
    """
    try:
        handle, path = tempfile.mkstemp(prefix=f"segmill-{what}-")
    except OSError as error:
        raise _told(tempfile.gettempdir(), error) from error
    os.unlink(path)
    return io.BufferedRandom(_Told(handle, "r+b"), _BUFFER)
