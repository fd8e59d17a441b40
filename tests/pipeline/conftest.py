"""Fixtures for tests of what lies on some file system."""

from __future__ import annotations

import fsspec
import pytest


@pytest.fixture
def memory():
    """Give fsspec's memory file system, empty again afterwards."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
