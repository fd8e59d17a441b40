"""`evaluate` on the command line: baselines, gates, labels against labels, and nothing to score."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
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


def test_the_terminal_tells_intervals_the_baseline_and_gates(sides, tmp_path, capsys):
    asked = ("--truth", sides["truth"], "--pred", sides["pred"], "--baseline", sides["base"])
    gates = ("--fail-if", "miou < 0.01", "--fail-if", "miou < baseline + 0.5")
    out = tmp_path / "report"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *map(str, (*asked, *gates, "--out", out, *LOCAL))])
    assert ended.value.code == 4
    report, said = json.loads((out / "report.json").read_bytes()), capsys.readouterr().out
    low, high = (f"{100 * v:.1f}" for v in report["intervals"]["miou"])
    assert f"mIoU {100 * report['miou']:.1f} % (95 %: {low} – {high})" in said
    difference = 100 * report["baseline"]["miou"]["difference"]
    assert f"{difference:+.1f} points against base".replace("-", "−") in said
    assert "1 of 2 gates failed" in said
    assert "failed: miou < baseline + 0.5 (" in said
    assert "passed: miou < 0.01 (" in said
    assert "only 5 images" in said


def test_labels_against_labels_need_no_truth(sides, tmp_path, capsys):
    out = tmp_path / "report"
    asked = ("--pred", sides["base"], "--baseline", sides["base"], "--baseline-version", 1)
    call(capsys, "evaluate", *asked, "--out", out, *LOCAL)
    report = json.loads((out / "report.json").read_bytes())
    assert report["agreement"] == 1.0
    assert (report["images_changed"], report["images_same"]) == (0, 4)
    assert "pixel_accuracy" not in report


def test_labels_against_labels_take_the_rows_of_the_baseline_that_were_asked_for(
    sides, tmp_path, capsys
):
    asked = ("--pred", sides["base"], "--baseline", sides["base"], "--out", tmp_path / "report")
    summary, _ = call(capsys, "evaluate", *asked, "--baseline-where", "image_id > 'i002'", *LOCAL)
    assert (summary["inputs"], summary["done"]) == (2, 2)


def test_gates_on_what_changed(sides, tmp_path, capsys):
    asked = ("--pred", sides["pred"], "--baseline", sides["base"], "--out", tmp_path / "r", *LOCAL)
    gates = ("agreement < 0.5", "images_changed < 1", "churn.Car.churn > 0.99", "agreement > 0.5")
    options = [word for gate in gates for word in ("--fail-if", gate)]
    call(capsys, "evaluate", *asked, *options, code=4)
    found = json.loads((tmp_path / "r" / "report.json").read_bytes())["gates"]
    assert [g["fails"] for g in found] == [False, False, False, True]
    assert not any("why" in g for g in found)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "--truth"),
        (("--truth", "truth", "--baseline-version", 1), "--baseline-version"),
        (("--truth", "truth", "--measure", "boundry"), "boundry"),
        (("--truth", "truth", "--fail-if", "miou < baseline"), "--baseline"),
        (("--truth", "truth", "--fail-if", "classes.Dragon.iou < 1"), "Dragon"),
        (("--baseline", "base", "--slice", "split"), "--slice"),
        (("--baseline", "base", "--fail-if", "kappa < 1"), "--truth"),
        (("--baseline", "base", "--fail-if", "miou < baseline"), "--truth"),
        (("--truth", "truth", "--fail-if", "agreement < 1"), "without --truth"),
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
