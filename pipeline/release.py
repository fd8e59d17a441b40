"""Which segmill this is."""

from __future__ import annotations


def release() -> str:
    """Return the version of segmill that is installed."""
    from importlib.metadata import PackageNotFoundError, version  # which imports an e-mail parser

    try:
        return version("segmill")
    except PackageNotFoundError:
        return "0+unknown (not installed)"
