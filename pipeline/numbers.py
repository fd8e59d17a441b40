"""Numbers as users write them."""

from __future__ import annotations

import re


def whole(text: str) -> int | None:
    """Return a whole number of plain digits; None where it is none, or beyond all use.

    >>> whole("12"), whole("²"), whole("-1"), whole("9" * 5000)
    (12, None, None, None)
    """
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None
