from __future__ import annotations

import os
import resource
import tempfile

import pytest

from pipeline.errors import SegmillError
from pipeline.trees.temporary import temporary_file


def test_a_temporary_file_is_nameless_and_keeps_what_it_gets(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_file("x") as file:
        file.write(b"abc" * 300_000)
        file.seek(3)
        assert file.read(3) == b"abc"
        assert os.listdir(tmp_path) == []


def test_a_full_folder_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = temporary_file("x")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SegmillError, match=f"{tmp_path}.*TMPDIR"):
            file.write(bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.close()
