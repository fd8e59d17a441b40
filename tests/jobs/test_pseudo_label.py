"""One round end to end on generated streets: labels, thresholds, lists, page, and the view."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import masks
from pipeline.labels.margin import margin_of
from pipeline.pseudo.audit import read_csv
from pipeline.pseudo.audited import audited
from pipeline.pseudo.calibrate import Calibration
from pipeline.runner import LocalRunner
from pipeline.scoring import score
from pipeline.store import Store
from tests.streets import make_streets

URI = "zoo:enet?label_space=camvid-11&seed=3"


def run(capsys, *args) -> tuple[int, dict, str]:
    """Run a verb; return its exit code, its JSON summary and what it said on stderr."""
    code = 0
    try:
        main([*map(str, args), "--json"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


@pytest.fixture
def streets(tmp_path):
    return make_streets(tmp_path / "streets", 8, 6)


def test_a_round(tmp_path, streets, capsys):
    out, report = tmp_path / "night", tmp_path / "report"
    bad = tmp_path / "streets" / "images" / "train-003.png"
    bad.write_bytes(b"no picture")
    command = (
        "pseudo-label", URI, "--images", streets.url, "--images-where", "split = 'train'",
        "--truth", streets.url, "--out", out, "--report", report, "--by-hand", 3, "--audit", 5,
        "--runner", "local", "--max-errors", 1, "--target", 0.6,
    )  # fmt: skip
    code, summary, _ = run(capsys, *command)
    assert code == 0, summary
    assert summary["inputs"] == 8 == summary["done"] + summary["skipped"] + summary["failed"]
    assert summary["failed"] == 1
    assert summary["held_out"] == {"images": 6, "unpredicted": 0, "unlabelled": 0, "failed": 0}

    store = Store.open(str(out))
    rows = list(store.records())
    assert len(rows) == 7  # the held-out labels lie beside the store, not among its rows
    for row in rows:
        assert row.provenance.kind == "pseudo"
        assert margin_of(row.confidence.bytes).shape == masks.decode(row.mask.bytes).shape
    calibration = Calibration.from_json((report / "thresholds.json").read_text())
    assert [r.name for r in calibration.rules] == list(summary["thresholds"])
    assert calibration.facts["truth"].endswith(f"version {streets.version}")
    held = pq.read_table(report / "quality.parquet").to_pylist()
    assert {r["image_id"] for r in held} == {r.image_id for r in rows}
    expected = summary["expected"]
    assert expected["images"] == 7
    assert expected["coverage"] is not None
    assert all(
        c["kept_recall"] is not None or not c["pixels"] for c in expected["classes"].values()
    )
    with open(report / "by_hand.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) <= 3
    page = (report / "index.html").read_text()
    assert "Risk and coverage" in page
    assert "Kept recall" in page

    # The audit: people label what was drawn; all of these happen to be labelled already.
    listed = read_csv((report / "audit.csv").read_text(), "audit.csv")
    found = audited(streets, store, listed)
    assert len(listed) == 5
    assert (found.inputs, found.skipped, len(found.failures)) == (5, 0, 0)
    low, high = found.estimate.figures()["pixel_accuracy_interval"]
    true = score(streets, store, runner=LocalRunner(1)).tally.pixel_accuracy
    assert 0 <= low <= high <= 1
    assert found.estimate.figures()["pixel_accuracy"] == pytest.approx(true, abs=0.15)

    # Once more: nothing is left to label, and the same thresholds come out.
    before = (report / "thresholds.json").read_bytes()
    code, summary, _ = run(capsys, *command)
    assert code == 0
    assert summary["done"] == 0
    assert (report / "thresholds.json").read_bytes() == before


def test_readers_take_a_view(tmp_path, streets, capsys):
    out = tmp_path / "night"
    labelled = ("label", streets.url, out, "--model", URI, "--confidence", "--runner", "local")
    assert run(capsys, *labelled)[0] == 0
    sure = [masks.decode(r.confidence.bytes) for r in Store.open(str(out)).records()]
    view = f"{np.median(sure) / 255 + 0.002:.4f}"  # an untrained model is equally unsure of all
    kept = np.mean(np.array(sure) / 255 >= float(view))
    assert 0 <= kept < 1
    scored = ("evaluate", "--truth", streets.url, "--pred", out, "--runner", "local")
    _, plain, _ = run(capsys, *scored, "--out", tmp_path / "e1")
    _, viewed, _ = run(capsys, *scored, "--view", view, "--out", tmp_path / "e2")
    assert plain["coverage"] == 1
    assert viewed["coverage"] < 1
    exported = ("export", out, tmp_path / "x", "--format", "maskdir", "--runner", "local")
    code, summary, _ = run(capsys, *exported, "--view", view)
    assert (code, summary["done"]) == (0, 14)
    void = Store.open(str(out)).label_spaces["camvid-11"].ignore_index
    files = sorted((tmp_path / "x" / "masks").rglob("*.png"))
    ignored = [np.mean(masks.decode(f.read_bytes()) == void) for f in files]
    assert np.mean(ignored) == pytest.approx(1 - kept, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--target", "1.5"),
        ("--quota", "2"),
        ("--bound", "guess"),
        ("--scene", "mask:x"),
        ("--runner", "mars"),
    ],
)
def test_wrong_options_end_before_anything_is_made(tmp_path, streets, capsys, wrong):
    out = tmp_path / "night"
    code, summary, _ = run(
        capsys, "pseudo-label", URI, "--images", streets.url, "--truth", streets.url,
        "--out", out, "--report", tmp_path / "r", *wrong,
    )  # fmt: skip
    assert code == 2
    assert wrong[0] in summary["error"]
    assert not out.exists()


def test_a_view_that_is_none_is_told(tmp_path, streets, capsys):
    args = ("export", streets.url, tmp_path / "x", "--format", "maskdir", "--view", "gone.json")
    code, summary, _ = run(capsys, *args)
    assert code == 2
    assert "gone.json" in summary["error"]
