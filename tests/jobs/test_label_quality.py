"""The label job's quality options through its command line."""

from __future__ import annotations

import pytest

from pipeline import masks
from pipeline.label_space import label_space
from pipeline.store import Store
from tests.jobs.calls import call
from tests.pipeline.predicting import OTHER, PLAIN
from tests.samples import write_scenes

VOID = label_space("camvid-11").ignore_index


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 3)
    return root


def test_all_options_together_and_what_became_void(scenes, tmp_path, capsys):
    label = ("label", scenes, tmp_path / "s", "--runner", "local", "--confidence")
    quality = ("--window", "48x64", "--overlap", "0.5", "--tta", "0.75,1,flip",
               "--refine", "guided", "--min-confidence", "0.1,Car=0.2,Fence=1")  # fmt: skip
    ensemble = ("--model", PLAIN, "--model", OTHER)
    summary, err = call(capsys, *label, *ensemble, *quality)
    assert summary["inputs"] == summary["done"] == 3
    void = pixels = 0
    for record in Store.open(tmp_path / "s").records():
        ids = masks.decode(record.mask.bytes)
        void, pixels = void + int((ids == VOID).sum()), pixels + ids.size
        assert {c.id: c.pixels for c in record.classes}.get(VOID, 0) == (ids == VOID).sum()
        assert masks.decode(record.confidence.bytes).min() > 0
        assert PLAIN in record.provenance.model
        assert OTHER in record.provenance.model
    assert 0 < void < pixels
    assert summary["void_share"] == pytest.approx(void / pixels, abs=1e-6)
    assert f"{void / pixels:.1%} of the pixels" in err

    turned, _ = call(capsys, *label, "--model", OTHER, "--model", PLAIN, *quality)
    assert (turned["done"], turned["skipped"]) == (0, 3), "the order of models does not matter"
    plain, _ = call(capsys, *label, "--model", PLAIN)
    assert plain["done"] == 3
    assert "void_share" not in plain


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--window", "48"), 2, "--window is HxW"),
        (("--window", "²x³"), 2, "--window is HxW"),
        (("--input-size", "9" * 5000 + "x1"), 2, "--input-size is HxW"),
        (("--input-size", "99999x99999"), 2, "--input-size is 1 to 16384"),
        (("--batch-size", "²"), 2, "--batch-size is a number"),
        (("--actors", "²"), 2, "--actors is MAX or MIN:MAX"),
        (("--gpus-per-actor", "inf"), 2, "--gpus-per-actor is a number"),
        (("--tta", ""), 2, "--tta takes flip"),
        (("--min-confidence", ""), 2, "--min-confidence takes"),
        (("--overlap", "0.5"), 2, "give --window"),
        (("--tta", "flop"), 2, "--tta takes flip"),
        (("--refine", "magic"), 2, "--refine takes none"),
        (("--min-confidence", "Cat=0.5"), 2, "Pedestrian"),
        (("--min-confidence", "no.txt"), 2, "--min-confidence takes"),
        (("--model", PLAIN), 2, "the same model"),
        (("--model", "zoo:enet?label_space=voc-21"), 2, "one label space"),
    ],
)
def test_wrong_options_get_one_line_before_any_work(scenes, tmp_path, capsys, options, code, text):
    arguments = ("label", scenes, tmp_path / "s", "--model", PLAIN, *options)
    _, err = call(capsys, *arguments, code=code)
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()
