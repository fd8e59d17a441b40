"""`segmill label`: what --limit, --shard, --sample and --dry-run do, from the command line."""

from __future__ import annotations

import pytest

from tests.jobs.calls import call
from tests.samples import write_scenes

MODEL = ("--model", "zoo:enet?label_space=camvid-11&seed=0", "--runner", "local")
PRICE = ("--dry-run", "--price-per-gpu-hour", "2", "--gpus-per-actor", "0.5", "--actors", "3")


def test_parts_then_an_outlook_then_all(tmp_path, capsys):
    write_scenes(tmp_path / "in", 40, height=48, width=64)
    words = ("label", tmp_path / "in", tmp_path / "out", *MODEL)
    before, said = call(capsys, *words, *PRICE)
    assert not (tmp_path / "out").exists()
    assert (before["inputs"], before["skipped"], before["to_do"]) == (40, 40, 40)
    assert (before["rate"]["source"], before["rate"]["images"]) == ("trial", 16)
    assert "labelled here" in said
    hours = 40 / before["rate"]["images_per_second"] / 3600
    assert before["gpu_hours"] == pytest.approx(0.5 * hours, abs=1e-4)
    assert before["expected_seconds"] == pytest.approx(hours * 3600 / 3, abs=0.1)
    assert before["cost"] == pytest.approx(2 * before["gpu_hours"], abs=0.01)

    parts = [call(capsys, *words, "--shard", f"{n}/2", "--batch-size", "4")[0] for n in (1, 2)]
    assert sum(part["inputs"] for part in parts) == sum(part["done"] for part in parts) == 40
    assert min(part["inputs"] for part in parts) > 5
    few, _ = call(capsys, *words, "--limit", "7", "--sample", "50%")
    assert (few["inputs"], few["skipped"]) == (7, 7)

    (tmp_path / "in" / "0003.jpg").write_bytes((tmp_path / "in" / "0004.jpg").read_bytes())
    after, said = call(capsys, *words, "--dry-run")
    assert (after["to_do"], after["changed"], after["done_already"]) == (0, 1, 39)
    assert (after["rate"]["source"], after["rate"]["images"]) == ("history", 40)
    assert "earlier runs" in said
    last, _ = call(capsys, *words)
    assert (last["done"], last["changed"], last["skipped"]) == (1, 1, 39)
    nothing, said = call(capsys, *words, "--dry-run")
    assert (nothing["done_already"], nothing["expected_seconds"]) == (40, 0.0)
    assert "nothing to time" in said


@pytest.mark.parametrize("words", [("--shard", "3/2"), ("--sample", "5")])
def test_a_wrong_choice_is_told_before_anything_is_loaded(tmp_path, capsys, words):
    _, said = call(capsys, "label", "nowhere", tmp_path / "s", *MODEL, *words, code=2)
    assert words[0] in said
