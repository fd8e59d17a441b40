"""Nothing is written over what is read."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from connectors import connector
from jobs.apart import check_apart
from pipeline.errors import UsageError
from pipeline.label_space import label_space
from tests.connectors.trees import contents, make_record, random_ids, rewrite
from tests.jobs.calls import call

if TYPE_CHECKING:
    from pathlib import Path

CAMVID = label_space("camvid-11")


def voc(root: Path) -> Path:
    space = label_space("voc-21")
    record = make_record(random_ids((0, 7), (9, 14), 1), space, "a", "train", ".jpg")
    rewrite(connector("voc"), [record], root, space)
    return root


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("voc", "voc"),
        ("voc", "voc/below"),
        ("voc/VOCdevkit", "voc"),
        ("voc/VOCdevkit/VOC2012", "voc"),
        ("voc", "link"),
        ("link/VOCdevkit", "voc"),
        ("voc/../voc", "voc"),
    ],
)
def test_convert_does_not_write_over_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], src: str, dst: str
) -> None:
    held = contents(voc(tmp_path / "voc"))
    (tmp_path / "link").symlink_to("voc")
    words = ("--from", "voc", "--to", "voc", "--label-space", "camvid-11", "--runner", "local")
    _, said = call(capsys, "convert", tmp_path / src, tmp_path / dst, *words, code=2)
    assert "name another directory" in said
    assert contents(tmp_path / "voc") == held


def test_buckets_are_told_apart_by_their_names() -> None:
    check_apart("s3://bucket/a,s3://bucket/b", "s3://bucket/ab")
    for dst in ("s3://bucket/b/", "s3://bucket/b/c", "s3://bucket"):
        with pytest.raises(UsageError, match="another directory"):
            check_apart("s3://bucket/a,s3://bucket/b", dst)


def test_an_archive_may_lie_beside_what_becomes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.make_archive(str(tmp_path / "data/voc"), "zip", voc(tmp_path / "voc"))
    words = ("--from", "voc", "--to", "voc", "--runner", "local")
    call(capsys, "convert", tmp_path / "data/voc.zip", tmp_path / "data", *words)
    assert (tmp_path / "data/VOCdevkit/VOC2012/JPEGImages/a.jpg").is_file()


def test_export_does_not_write_over_what_the_rows_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = contents(voc(tmp_path / "voc"))
    local = ("--runner", "local")
    call(capsys, "ingest", tmp_path / "voc", tmp_path / "store", "--format", "voc", *local)
    words = ("--format", "voc", "--label-space", "unified", *local)
    for dst in ("voc", "voc/VOCdevkit", "."):
        _, said = call(capsys, "export", tmp_path / "store", tmp_path / dst, *words, code=2)
        assert "name another directory" in said
    assert contents(tmp_path / "voc") == held
    call(capsys, "export", tmp_path / "store", tmp_path / "vo", *words)
