"""Which segmill this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Return the version of segmill that is installed."""
    try:
        return version("segmill")
    except PackageNotFoundError:
        return "0+unknown (not installed)"
