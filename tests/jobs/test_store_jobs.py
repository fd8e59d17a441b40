"""`store validate`, `stats`, `merge` and `ingest --validate` as a user calls them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.checks.findings import FINDINGS
from pipeline.label_space import LabelClass, LabelSpace
from pipeline.streetscenes import write_dataset
from tests import broken_rows as broken
from tests.jobs.calls import call

EVIL = '<img src=x onerror="document.documentElement.dataset.evil=1">'


@pytest.fixture
def bad(tmp_path):
    """Give a store in which every second row is broken, another way each."""
    rows = [broken.good_row(tmp_path, f"r{n:02d}", n) for n in range(2 * len(broken.BREAKS))]
    for n, breaks in enumerate(broken.BREAKS.values()):
        rows[2 * n + 1] = breaks(rows[2 * n + 1])
    return broken.store_of(tmp_path, rows, pieces=4)


def test_a_clean_store_ends_with_0_and_a_page_that_says_so(tmp_path, capsys):
    store = broken.store_of(tmp_path, broken.good_rows(tmp_path))
    out = tmp_path / "report"
    summary, _ = call(capsys, "store", "validate", store.url, "--decode", "--out", out)
    assert (summary["inputs"], summary["done"], summary["failed"]) == (6, 6, 0)
    assert (summary["errors"], summary["warnings"], summary["info"]) == (0, 0, 0)
    assert pq.read_table(out / "findings.parquet").num_rows == 0
    page = (out / "index.html").read_text()
    assert "Nothing is wrong with this store." in page
    assert "Class balance · camvid-11" in page


def test_a_broken_store_ends_with_3_and_a_report_of_everything(bad, tmp_path, capsys):
    out = tmp_path / "report"
    summary, said = call(capsys, "store", "validate", bad.url, "--out", out, code=3)
    errors = [k for k in broken.BREAKS if k not in WARNINGS]
    assert summary["failed"] == len(errors)
    assert summary["inputs"] == summary["done"] + summary["failed"]
    assert set(summary["kinds"]) == set(broken.BREAKS)
    assert "--max-errors allows 0" in said
    table = pq.read_table(out / "findings.parquet")
    assert table.schema.equals(FINDINGS)
    assert sorted(table["kind"].to_pylist()) == sorted(broken.BREAKS)
    report = json.loads((out / "report.json").read_text())
    assert report["findings"] == summary["findings"] == table.to_pylist()
    assert {"class", "pixels", "share", "images", "objects"} <= set(report["classes"][0])
    page = (out / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 20
    assert not re.search(r"(?:src|href)=.(?:https?:|//|/)", page), "the page needs nothing else"
    call(capsys, "store", "validate", bad.url, "--max-errors", len(errors))


WARNINGS = {
    "no-label", "mask-void", "instance-empty", "instance-id", "instance-part", "instance-box",
    "instance-area", "instance-mask",
}  # fmt: skip


def test_the_table_for_people(bad, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["store", "validate", bad.url])
    assert ended.value.code == 3
    out = capsys.readouterr().out
    assert re.search(r"error +Masks that do not", out)
    assert "warning" in out
    with pytest.raises(SystemExit) as ended:
        main(["store", "stats", bad.url])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert re.search(r"Road +[\d,]+ +\d+\.\d\d% +\d+", out)
    assert "with depth: 9" in out


def test_names_from_the_store_are_text_on_the_page(tmp_path, capsys):
    rows = broken.good_rows(tmp_path)
    rows[0] = replace(rows[0], image_id=EVIL, split=EVIL, dataset=EVIL)
    evil = LabelSpace("</script>" + EVIL, (LabelClass(3, EVIL, (1, 2, 3)),), 255)
    rows[1] = replace(rows[1], label_space=evil.name, depth=None, instances=None)
    rows[1] = broken.with_mask(rows[1], np.full((72, 96), 3, np.uint8))
    store = broken.store_of(tmp_path, rows)
    store.with_spaces([evil])
    out = tmp_path / "report"
    call(capsys, "store", "validate", store.url, "--out", out, code=3)
    page = (out / "index.html").read_text()
    assert EVIL not in page
    assert page.count("<script") == 1
    assert "&lt;img src=x" in page
    if shutil.which("chromium"):
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}", (out / "index.html").as_uri(),
        ]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "data-evil" not in dom.stdout
        assert "Class balance" in dom.stdout


@pytest.mark.parametrize("by", ["none", "dataset", "split", "both"])
def test_stats_by(tmp_path, capsys, by):
    rows = broken.good_rows(tmp_path)
    rows[0] = replace(rows[0], dataset="other")
    store = broken.store_of(tmp_path, rows)
    summary, _ = call(capsys, "store", "stats", store.url, "--by", by)
    keys = {"dataset": 2, "split": 3, "both": 4, "none": 1}
    named = [line for line in summary["classes"] if line["share"] is not None]
    assert len(named) == keys[by] * 11
    assert sum(line["pixels"] for line in summary["classes"]) == 6 * 72 * 96
    assert sum(line["objects"] for line in summary["classes"]) == 6


def test_stats_by_what_is_not_there(tmp_path, capsys):
    store = broken.store_of(tmp_path, broken.good_rows(tmp_path))
    _, said = call(capsys, "store", "stats", store.url, "--by", "colour", code=2)
    assert "none, dataset, split, both" in said


def test_ingest_validates_what_it_wrote(tmp_path, capsys):
    write_dataset(tmp_path / "data", 12, height=48, width=64, seed=3, splits=(8, 2, 2))
    args = ["ingest", tmp_path / "data", tmp_path / "s", "--format", "camvid-11", "--validate"]
    summary, said = call(capsys, *args)
    assert summary["validation"]["rows"] == summary["done"] == 12
    assert summary["validation"]["errors"] == 0
    assert "validated 12 rows" in said
    summary, _ = call(capsys, *args)  # nothing new came, and nothing is checked
    assert summary["validation"]["rows"] == summary["done"] == 0


def test_ingest_ends_with_4_when_rows_that_it_wrote_have_errors(tmp_path, capsys):
    """A box that leaves the image is read as it is: the validation is what tells."""
    from tests.connectors import voc_tree

    voc_tree.write_tree(tmp_path / "data")
    home = tmp_path / "data" / voc_tree.HOME
    shutil.rmtree(home / "SegmentationObject")  # boxes of objects with pixels are the pixels'
    note = min((home / "Annotations").iterdir())
    note.write_text(note.read_text().replace("<xmax>4</xmax>", "<xmax>400</xmax>"))
    args = ["ingest", tmp_path / "data", tmp_path / "s", "--format", "voc", "--validate"]
    summary, said = call(capsys, *args, code=4)
    assert summary["failed"] == 0
    assert summary["validation"]["kinds"]["instance-outside"] == 1
    assert summary["gate"].startswith("1 of the ")
    assert "its box leaves the image by 389" in said


def test_the_same_frame_in_two_splits_is_found_by_its_bytes(tmp_path, capsys):
    write_dataset(tmp_path / "data", 12, height=48, width=64, seed=3, splits=(8, 2, 2))
    data, store = tmp_path / "data", tmp_path / "s"
    first = sorted((data / "train").iterdir())[0].name
    for part in ("", "annot"):
        shutil.copyfile(data / f"train{part}" / first, data / f"val{part}" / "leak.png")
    line = "/SegNet/CamVid/val/leak.png /SegNet/CamVid/valannot/leak.png\n"
    (data / "val.txt").write_text((data / "val.txt").read_text() + line)
    call(capsys, "ingest", data, store, "--format", "camvid-11")
    call(capsys, "store", "validate", store)
    summary, _ = call(capsys, "store", "validate", store, "--images", code=3)
    assert summary["kinds"]["leakage"] == 1
    assert summary["failed"] == 2


def test_merge_into_unified(tmp_path, capsys):
    store = broken.store_of(tmp_path, broken.good_rows(tmp_path))
    args = ["store", "merge", store.url, tmp_path / "all", "--label-space", "unified"]
    summary, _ = call(capsys, *args)
    assert (summary["inputs"], summary["done"], summary["skipped"]) == (6, 6, 0)
    assert summary["painted"] == 0
    stats, _ = call(capsys, "store", "stats", tmp_path / "all")
    assert {line["label_space"] for line in stats["classes"]} == {"unified"}
    assert stats["rows"] == 6


def test_merge_counts_rows_that_fail_and_those_that_are_there(tmp_path, capsys):
    rows = broken.good_rows(tmp_path)
    rows[1] = replace(rows[1], mask=replace(rows[1].mask, bytes=b"torn"))
    store = broken.store_of(tmp_path, rows, pieces=3)
    args = ["store", "merge", store.url, tmp_path / "all", "--label-space", "unified"]
    summary, said = call(capsys, *args, code=3)
    assert (summary["inputs"], summary["done"], summary["failed"]) == (6, 5, 1)
    assert "1 rows failed" in said
    summary, _ = call(capsys, *args, "--max-errors", "1")
    assert (summary["done"], summary["skipped"], summary["failed"]) == (1, 4, 1)
    listed, _ = call(capsys, "store", "errors", tmp_path / "all")
    assert [e["image_id"] for e in listed["errors"]] == [rows[1].image_id]


def test_images_that_a_format_keeps_anyway_are_not_ingested_again(tmp_path, capsys):
    from tests.connectors.test_nyuv2_mat import write_tree

    write_tree(tmp_path)
    args = ["ingest", tmp_path, tmp_path / "s", "--format", "nyuv2-mat"]
    summary, _ = call(capsys, *args)
    assert (summary["done"], summary["skipped"]) == (4, 0)
    for more in (["--embed-images"], []):
        summary, _ = call(capsys, *args, *more)
        assert (summary["done"], summary["skipped"]) == (0, 4)


def test_embedded_images_are_cut_by_their_bytes(tmp_path, capsys, monkeypatch):
    from pipeline.store import Store

    write_dataset(tmp_path / "data", 12, height=48, width=64, seed=3, splits=(12, 0, 0))
    monkeypatch.setattr("pipeline.run.FRAGMENT_BYTES", 30_000)
    args = ["ingest", tmp_path / "data", tmp_path / "s", "--format", "camvid-11", "--embed-images"]
    summary, _ = call(capsys, *args)
    assert summary["done"] == 12
    store = Store.open(tmp_path / "s")
    sizes = [sum(len(r.image.bytes) for r in store.rows(f)) for f in store.fragments()]
    assert len(sizes) > 2
    assert max(sizes) <= 30_000


def test_facts_that_give_way_to_others_are_told(tmp_path, capsys):
    """Two datasets of one format in a store, with files of the same names and other licences."""
    from pipeline.store import Store
    from tests.connectors.coco_tree import dataset

    for name in ("a", "b"):
        text = dataset([], [], licenses=[{"id": 1, "name": name}])
        (tmp_path / name / "annotations").mkdir(parents=True)
        (tmp_path / name / "annotations/instances_val2017.json").write_text(text)
        (tmp_path / name / "val2017").mkdir()
    args = ["--format", "coco-instances"]
    told = "the store had other facts of coco-instances: instances_val2017"
    for source, store, replaced in (("a", "s", 0), ("a", "s", 0), ("b", "s", 1), ("a", "t", 0)):
        summary, said = call(capsys, "ingest", tmp_path / source, tmp_path / store, *args)
        assert summary["facts_replaced"] == replaced
        assert (told in said) == bool(replaced)
    store = Store.open(tmp_path / "s")
    assert "'b'" in str(store.facts)
    assert "'a'" in str(Store.open(store.url, 1).facts)
    space = ["--label-space", "coco-80"]
    merge = ["store", "merge", tmp_path / "s", tmp_path / "t", tmp_path / "all", *space]
    summary, said = call(capsys, *merge)
    assert summary["facts_replaced"] == 1
    assert told in said
