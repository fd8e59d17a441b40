"""Where a label store lies."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def appears(location: str, options: Mapping[str, str] | None) -> bool:
    """Tell whether a store is there, or is being made there at this moment."""
    from deltalake import DeltaTable

    for _ in range(10 if os.path.isdir(f"{location}/_delta_log") else 1):
        if DeltaTable.is_deltatable(location, dict(options or {}) or None):
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
