"""`evaluate` on the command line: baselines, gates, labels against labels, and nothing to score."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.jobs.calls import call
from tests.pipeline.test_scoring import masks_of, record, store_of

LOCAL = ("--runner", "local", "--workers", 1)


@pytest.fixture
def sides(tmp_path):
    """Truth, a prediction that is half right, and an earlier one that lacks an image."""
    held = masks_of(5)
    truth = [record(n, t) for n, (t, _) in held.items()]
    pred = [record(n, p) for n, (_, p) in held.items()]
    rng = np.random.default_rng(4)
    base = [
        record(n, np.where(rng.random(p.shape) < 0.9, p, (p + 1) % 11).astype(np.uint8))
        for n, (_, p) in held.items()
    ][1:]
    rows = {"truth": truth, "pred": pred, "base": base}
    return {name: store_of(tmp_path / name, part).url for name, part in rows.items()}


def test_a_baseline_a_slice_and_gates(sides, tmp_path, capsys):
    out = tmp_path / "report"
    asked = ("--truth", sides["truth"], "--pred", sides["pred"], "--baseline", sides["base"])
    gates = ("--fail-if", "miou < 0.01", "--fail-if", "miou < baseline + 0.5")
    summary, said = call(
        capsys, "evaluate", *asked, "--slice", "split", *gates, "--out", out, *LOCAL, code=4
    )
    assert "miou < baseline + 0.5" in said
    assert "1 of 5 scored images are left out" in said
    report = json.loads((out / "report.json").read_bytes())
    assert [g["fails"] for g in report["gates"]] == [False, True]
    assert (report["baseline"]["images"], report["baseline"]["lacking"]) == (4, 1)
    assert report["slices"][0]["value"] == "val"
    low, high = report["intervals"]["miou"]
    assert low <= report["miou"] <= high
    assert report["inputs"] == report["done"] + report["skipped"] + report["failed"] == 5
    assert summary["miou"] == report["miou"]
    assert pq.read_table(out / "per_image.parquet").num_rows == 5


def test_labels_against_labels_need_no_truth(sides, tmp_path, capsys):
    out = tmp_path / "report"
    asked = ("--pred", sides["base"], "--baseline", sides["base"], "--baseline-version", 1)
    call(capsys, "evaluate", *asked, "--out", out, *LOCAL)
    report = json.loads((out / "report.json").read_bytes())
    assert report["agreement"] == 1.0
    assert (report["images_changed"], report["images_same"]) == (0, 4)
    assert "pixel_accuracy" not in report


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "--truth"),
        (("--truth", "truth", "--baseline-version", 1), "--baseline-version"),
        (("--truth", "truth", "--measure", "boundry"), "boundry"),
        (("--truth", "truth", "--fail-if", "miou < baseline"), "--baseline"),
        (("--truth", "truth", "--fail-if", "classes.Dragon.iou < 1"), "Dragon"),
        (("--baseline", "base", "--slice", "split"), "--slice"),
    ],
)
def test_slips_end_before_the_work(sides, tmp_path, capsys, asked, said):
    words = [sides.get(word, word) for word in asked]
    _, err = call(
        capsys, "evaluate", "--pred", sides["pred"], *words, "--out", tmp_path / "r", *LOCAL, code=2
    )
    assert said in err


def test_all_measures_are_those_that_apply(sides, tmp_path, capsys):
    out = tmp_path / "report"
    asked = ("--truth", sides["truth"], "--pred", sides["pred"], "--out", out, *LOCAL)
    summary, said = call(capsys, "evaluate", *asked, "--measure", "all")
    assert "boundary" in summary
    assert set(summary["left_out"]) == {"calibration", "cityscapes", "objects", "panoptic"}
    assert not summary["left_out"].keys() & summary.keys()
    report = json.loads((out / "report.json").read_bytes())
    assert report["left_out"] == summary["left_out"]
    page = (out / "index.html").read_text()
    for name in summary["left_out"]:
        assert f"leaves out {name}: " in said
        assert f"not measured: {name}" in page
    assert {"boundary_iou", "boundary_f1"} <= set(pq.read_schema(out / "per_image.parquet").names)
    # What is asked for by its name, or by a gate, is needed.
    _, err = call(capsys, "evaluate", *asked, "--measure", "all", "--measure", "objects", code=2)
    assert "tells of objects" in err
    gate = ("--fail-if", "panoptic.all.pq < 0.1")
    _, err = call(capsys, "evaluate", *asked, "--measure", "all", *gate, code=2)
    assert "panoptic" in err


def test_nothing_scored_is_no_success(sides, tmp_path, capsys):
    bare = [replace(record(f"i{k:03d}", None), mask=None) for k in range(3)]
    truth = store_of(tmp_path / "bare", bare).url
    out = ("--out", tmp_path / "r", *LOCAL)
    summary, err = call(capsys, "evaluate", "--truth", truth, "--pred", sides["pred"], *out, code=1)
    assert "no image was scored" in err
    assert (summary["inputs"], summary["skipped"]) == (3, 3)
    every = ("--max-errors", "100%")
    call(capsys, "evaluate", "--truth", sides["truth"], "--pred", truth, *out, code=3)
    call(capsys, "evaluate", "--truth", sides["truth"], "--pred", truth, *out, *every, code=1)
