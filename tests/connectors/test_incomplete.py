"""A run that stopped, and what an earlier run left in the same directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from connectors import connector
from connectors.incomplete import ERRORS, NAME, begun, ended
from pipeline.errors import LayoutError
from pipeline.files import open_tree
from pipeline.label_space import label_space
from tests.connectors.trees import grey, make_record, photo, put, random_ids, rewrite
from tests.jobs.calls import call

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = "id\tname\tr\tg\tb\n0\tsky\t1\t2\t3\n1\troad\t4\t5\t6\n255\tnothing\t0\t0\t0\n"


def maskdir(root: Path) -> Path:
    for name in "abc":
        put(root, f"images/train/{name}.png", photo((9, 14)))
        put(root, f"masks/train/{name}.png", grey(random_ids((0, 1), (9, 14), 1)))
    put(root, "classes.tsv", CLASSES)
    return root


def test_a_stopped_run_leaves_nothing_that_reads_as_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = maskdir(tmp_path / "in"), tmp_path / "out"
    how = ("--runner", "local", "--label-space", "keep")
    words = ("convert", source, target, "--from", "maskdir", "--to", "camvid", *how)

    def stop(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(connector("camvid")), "finish", stop)
        call(capsys, *words, code=1)
    assert (target / NAME).is_file()
    again = ("convert", target, tmp_path / "x", "--from", "camvid", "--to", "maskdir")
    _, said = call(capsys, *again, code=1)
    assert "not whole" in said
    assert str(target / NAME) in said
    call(capsys, *words)
    assert not (target / NAME).exists()
    summary, _ = call(capsys, *again, "--label-space", "keep")
    assert summary["done"] == 3


@pytest.mark.parametrize("opened", ["", "VOCdevkit", "VOCdevkit/VOC2012", ".."])
def test_the_mark_counts_wherever_the_dataset_is_opened(tmp_path: Path, opened: str) -> None:
    voc, out = connector("voc"), tmp_path / "data" / "out"
    space = label_space("voc-21")
    rewrite(voc, [make_record(random_ids((0, 7), (9, 14), 1), space, "a", "train")], out, space)
    tree = open_tree(str(out / opened))
    assert len(list(voc.list(tree, ()))) == 1
    chunks = begun(str(out), [1, 2])
    assert next(chunks) == 1
    with pytest.raises(LayoutError, match="same command again"):
        list(voc.list(tree, ()))
    ended(str(out))
    assert len(list(voc.list(tree, ()))) == 1


def test_a_run_without_a_record_leaves_no_mark(tmp_path: Path) -> None:
    assert list(begun(str(tmp_path / "out"), ())) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["voc", "camvid", "camvid-11", "cityscapes", "coco-panoptic", "coco-stuff", "ade20k"]
)
def test_native_classes_replace_an_earlier_table(tmp_path: Path, name: str) -> None:
    writer = connector(name)
    assert writer.native is not None
    for space in (label_space("nyu-13"), label_space(writer.native)):
        records = [make_record(random_ids((1,), (9, 14), 1), space, "a", "train")]
        rewrite(writer, records, tmp_path, space)
        assert writer.label_spaces(open_tree(str(tmp_path))) == (space,)


def test_errors_of_an_earlier_run_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = maskdir(tmp_path / "in"), tmp_path / "out"
    image = source / "images/train/b.png"
    held = image.read_bytes()
    words = ("convert", source, target, "--from", "maskdir", "--to", "maskdir", "--runner", "local")
    image.write_bytes(b"")
    call(capsys, *words, code=3)
    assert (target / ERRORS).is_file()
    image.write_bytes(held)
    call(capsys, *words)
    assert not (target / ERRORS).exists()
