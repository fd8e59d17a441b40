"""Labelling with models of colour and depth, from stores whose rows have depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import depth as depth_cells
from pipeline import masks
from pipeline.errors import UsageError
from pipeline.files import read_url
from pipeline.images import decode
from pipeline.models import load_model
from pipeline.models.ensemble import together
from pipeline.predict.options import LabelOptions, check_model
from pipeline.record import Depth, to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from tests.jobs.calls import call
from tests.pipeline.test_training_ways import FOUR, rooms
from tests.streets import run


@pytest.fixture(scope="module")
def indoor(tmp_path_factory):
    return rooms(tmp_path_factory.mktemp("rooms") / "rooms")


@pytest.fixture(scope="module")
def model(indoor, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "m"
    how = FOUR | {"optimiser": {"lr": 3e-2}, "epochs": 8, "steps_per_epoch": 8}
    run(indoor, out, **how)
    return f"run:{out}"


def by_hand(uri: str, record) -> np.ndarray:
    """The formulas: colours and metres normalised, one pass, the best class."""
    loaded = load_model(uri)
    prep, (mean, std) = loaded.preprocessing, loaded.preprocessing.depth
    rgb = decode(read_url(record.image.path), "image") / 255
    metres = depth_cells.metres(record.depth)[..., None]
    far = np.where(metres > 0, (metres - mean) / std, 0)
    inputs = np.concatenate([(rgb - prep.mean) / prep.std, far], axis=2)
    with torch.inference_mode():
        logits = loaded.module(torch.from_numpy(inputs).float().permute(2, 0, 1)[None])
    return np.array(loaded.label_space.train_ids)[logits[0].argmax(0).numpy()]


def test_labels_are_those_of_colours_and_depth_together(indoor, model, tmp_path, capsys):
    summary, _ = call(
        capsys, "label", indoor.url, tmp_path / "out", "--model", model, "--runner", "local"
    )
    assert summary["inputs"] == summary["done"] == 12
    found = {r.image_id: r for r in Store.open(tmp_path / "out").records()}
    right = []
    for truth in indoor.records():
        ids = masks.decode(found[truth.image_id].mask.bytes)
        assert (ids == by_hand(model, truth)).all()
        right.append((ids == masks.decode(truth.mask.bytes)).mean())
    assert np.mean(right) > 0.9, "which the grey images alone cannot tell"


def test_a_smaller_input_takes_depth_by_nearest(indoor, model, tmp_path, capsys):
    how = ("--model", model, "--runner", "local", "--input-size", "16x20")
    summary, _ = call(capsys, "label", indoor.url, tmp_path / "out", *how)
    assert summary["done"] == 12
    found = {r.image_id: r for r in Store.open(tmp_path / "out").records()}
    right = [
        (masks.decode(found[t.image_id].mask.bytes) == masks.decode(t.mask.bytes)).mean()
        for t in indoor.records()
    ]
    assert np.mean(right) > 0.8


def test_bad_depth_is_a_failure_of_its_own(indoor, model, tmp_path, capsys):
    rows = sorted(indoor.records(), key=lambda r: r.image_id)
    small = depth_cells.encode(np.ones((8, 8), np.uint16))
    cell = rows[3].depth.bytes
    bad = {
        0: (None, "no depth map"),
        1: (Depth(None, None, 0.001), "no depth map"),
        2: (Depth(None, small, 0.001), "depth map is 8x8, its image 32x40"),
        3: (Depth(None, cell[: len(cell) // 2], 0.001), "not a depth map"),
    }
    broken = [replace(r, depth=bad[n][0] if n in bad else r.depth) for n, r in enumerate(rows)]
    store = Store.create(tmp_path / "store", list(indoor.label_spaces.values()))
    store.commit([write_fragment(store.sink(), "data/x.parquet", to_table(broken))])
    how = ("--model", model, "--runner", "local")
    summary, _ = call(capsys, "label", store.url, tmp_path / "out", *how, code=3)
    assert summary["inputs"] == 12 == summary["done"] + summary["failed"]
    failures = Store.open(tmp_path / "out").failures().to_pylist()
    said = {f["image_id"]: f["message"] for f in failures}
    assert set(said) == {rows[n].image_id for n in bad}
    for n, (_, why) in bad.items():
        assert why in said[rows[n].image_id]


def test_what_depth_does_not_go_with_is_told_at_once(indoor, model, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(read_url(next(iter(indoor.records())).image.path))
    said = call(capsys, "label", folder, tmp_path / "out", "--model", model, code=2)[1]
    assert "holds images alone" in said
    how = ("--model", model, "--tta", "flip")
    said = call(capsys, "label", indoor.url, tmp_path / "out", *how, code=2)[1]
    assert "models of colours" in said
    loaded = load_model(model)
    with pytest.raises(UsageError, match=r"takes 4 channels.*how to scale it"):
        check_model(
            replace(loaded, preprocessing=replace(loaded.preprocessing, depth=None)), LabelOptions()
        )
    with pytest.raises(UsageError, match="labels alone"):
        together("ensemble:x", [loaded, replace(loaded, digest="f" * 64)])
