"""Nights that train: on truth first, then from the champion, on truth and last night's labels."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.compute as pc
import yaml

from pipeline import masks
from pipeline.pseudo.view import View
from pipeline.refresh.mixed_store import MixedStore
from pipeline.store import Store
from pipeline.training.data import Channels, Reader
from tests.refresh.palette_model import BETTER, SPACE
from tests.refresh.world import LAX, World, date_of

RECIPE = {
    "model": "python:tests.tiny_net:make",
    "batch": 4,
    "epochs": 1,
    "augment": {"crop": [16, 16]},
}
FREE = {"canary": 0, "class_shares": None, "bucket": None, "vanished": None, "confidence": None,
        "ignored": None, "most_ignored": None, "entropy": None, "least_entropy": None,
        "churn": None}  # fmt: skip


def test_a_challenger_is_trained_from_the_champion_when_there_is_enough_new(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    world = World(tmp_path, None)
    world.arrive(0, 4)
    training = {"recipe": str(recipe), "min_new": 2}

    def run(day: int):
        return world.night(day, training=training, gate=LAX, drift=FREE)

    first = run(1)
    assert first.status == "published"
    assert first.challenger.folder == str(tmp_path / "models" / date_of(1))
    assert (first.challenger.parent, first.challenger.recipe) == (None, str(recipe))
    assert "labels" not in first.challenger.trained_on
    world.arrive(4, 1)
    second = run(2)  # one new image is too few to train on
    assert (second.kept, second.published.rows) == (True, 5)
    world.arrive(5, 1)
    third = run(3)
    assert not third.kept
    assert third.challenger.parent == first.challenger.digest
    assert third.challenger.trained_on["night"] == date_of(2)
    assert third.challenger.trained_on["labels_version"] == second.published.version
    described = json.loads((tmp_path / "models" / date_of(3) / "model.json").read_text())
    assert described["digest"] == third.challenger.digest
    assert described["training"]["rows"]["train"] == 12 + 5  # truth and last night's labels
    assert run(4).status == "nothing-new"


def test_what_is_learned_from_is_truth_and_one_snapshot(tmp_path):
    """Masks of truth as they are, published ones as the night's thresholds show them."""
    world = World(tmp_path, BETTER)
    world.arrive(0, 3)
    night = world.night(1)
    view = View.parse(night.paths["thresholds"])
    truth, labels = Store.open(str(tmp_path / "truth")), world.store()
    store = MixedStore(truth, labels, view, "train")
    world.arrive(3, 2)
    world.night(2)  # does not show in it
    reader = Reader(store, "train", Channels(SPACE))
    rows = {row.image_id: row for row in reader.rows()}
    assert reader.survey.labelled == len(rows) == 12 + 3
    for record in labels.records():
        ids = masks.decode(record.mask.bytes)
        hard = view.of(SPACE).hard(ids, masks.decode(record.confidence.bytes))
        np.testing.assert_array_equal(masks.decode(rows[record.image_id].cell), hard)
    for record in truth.records(pc.field("split") == "val"):
        assert record.image_id not in rows
