"""All methods alike: they train on few labelled street scenes, resume to the bit, leave a model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.errors import StoreError, UsageError
from pipeline.models import load_model
from pipeline.record import to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from pipeline.training.batches import Epoch
from pipeline.training.data import Channels, Reader
from pipeline.training.learner import Task, open_model
from pipeline.training.methods import METHODS, make_method
from pipeline.training.methods.options import AnyMethod
from pipeline.training.place import Place
from pipeline.training.recipe import read_recipe
from pipeline.training.selection import selected
from pipeline.training.supervised import Listener, Plan, read_result, train
from pipeline.training.unlabelled import ImageReader, open_streams, picture_batches
from tests.streets import HERE, MODEL, SPACE, make_streets, recipe, street

FORMS: dict[str, dict[str, Any]] = {
    "mean-teacher": {"threshold": 0.0},
    "mean-teacher squared": {"loss": "squared", "threshold": 0.0},
    "unimatch": {"threshold": 0.0},
    "unimatch 2": {"version": 2, "threshold": 0.0},
    "self-training": {},
    "advsemiseg": {"start": 0.0, "threshold": 0.0},
    "gan-ss": {"width": 2},
    "gan-ss weak": {"form": "weak", "width": 2},
    "decouplednet": {},
}
NETWORKS = {"decouplednet": "zoo:decouplednet?width=2"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("streets"), 10, 2)


def plan_of(form: str, store: Store, out: Any, **changes: Any) -> Plan:
    """Return a run on 3 labelled images, the other 7 without their masks."""
    name = form.split()[0]
    values = {
        "model": NETWORKS.get(name, MODEL), "method": {"name": name} | FORMS[form], "batch": 2,
        "epochs": 3, "steps_per_epoch": 2, "class_weights": "none", "precision": "fp32",
    }  # fmt: skip
    how = recipe(**values | changes)
    return Plan(store, how, str(out), labelled=selected(store, "train", "3"))


def test_every_method_has_options_and_a_form_here():
    names = {form.split()[0] for form in FORMS} | {"supervised"}
    assert names == set(METHODS)
    for name in METHODS:
        assert TypeAdapter(AnyMethod).validate_python(name).name == name


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_run_goes_on_as_if_it_was_not(form, store, tmp_path):
    whole = plan_of(form, store, tmp_path / "a")
    train(whole, HERE)
    result = read_result(whole.out)
    assert result.finished
    assert (result.train_rows, result.other_rows) == (3, 7)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    deaths = [3, 6]  # within the second epoch; at the end of the third, before it is saved

    def die(done: int, total: int) -> None:
        if done in deaths:
            deaths.remove(done)
            raise KeyboardInterrupt

    broken = replace(whole, out=str(tmp_path / "b"))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(broken, HERE, Listener(step=die))
    train(broken, HERE)
    resumed = read_result(broken.out)
    assert resumed.digest == result.digest
    for one, other in zip(resumed.history, result.history, strict=True):
        clocks = dict.fromkeys(("seconds", "train_seconds", "wait"), 0)
        assert one | clocks == other | clocks
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["tensors"]
        for name in ("a", "b")
    ]
    same(*states)
    loaded = load_model(whole.out)
    assert (loaded.digest, loaded.label_space) == (result.digest, SPACE)
    described = json.loads((tmp_path / "a" / "model.json").read_text())
    assert described["training"]["method"] == form.split()[0]
    with torch.inference_mode():
        assert loaded.module(torch.zeros(1, 3, 64, 64)).shape[1] == 11


def same(one: Any, other: Any) -> None:
    """Assert that two states agree to the bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_taken(form, store, tmp_path):
    plan = plan_of(form, store, tmp_path, precision="bf16", epochs=1, steps_per_epoch=3)
    train(plan, HERE)
    assert math.isfinite(read_result(plan.out).history[-1]["loss"])


def test_several_workers_are_refused(store, tmp_path):
    how = plan_of("unimatch", store, tmp_path).recipe
    with pytest.raises(UsageError, match="'unimatch' trains on one worker"):
        make_method(open_model(how, store), how, Place(torch.device("cpu"), 0, 2), Task(255, None))


def test_decouplednet_trains_its_own_network(store, tmp_path):
    plan = plan_of("decouplednet", store, tmp_path, model=MODEL)
    with pytest.raises(UsageError, match="zoo:decouplednet"):
        train(plan, HERE)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("mean-techer", "method: .*'mean-techer'.*'mean-teacher'"),
        ({"name": "unimatch", "decai": 0.9}, r"method\.unimatch\.decai: Extra inputs"),
        ({"name": "gan-ss", "form": "strong"}, r"method\.gan-ss\.form: .*'semi' or 'weak'"),
    ],
)
def test_a_wrong_method_is_told_in_one_line(method, words, tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe().plain(), "method": method}))
    with pytest.raises(UsageError, match=words) as told:
        read_recipe(str(tmp_path / "r.yaml"))
    assert "\n" not in str(told.value)


def test_the_command_takes_few_masks_and_a_method(store, tmp_path, capsys):
    from jobs.__main__ import main

    how = {"batch": 2, "epochs": 1, "steps_per_epoch": 2, "class_weights": "none"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(**how).plain()))
    out = str(tmp_path / "m")
    with pytest.raises(SystemExit) as ended:
        main(["train", store.url, "--recipe", str(tmp_path / "r.yaml"), "--out", out, "--json",
              "--labelled", "1/4", "--method", "mean-teacher"])  # fmt: skip
    assert not ended.value.code
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["inputs"], summary["done"], summary["failed"]) == (12, 12, 0)
    training = json.loads((tmp_path / "m" / "model.json").read_text())["training"]
    assert training["rows"] == {"train": 3, "val": 2, "without_mask": 0, "unlabelled": 7}
    assert {"loss_labelled", "loss_unlabelled", "kept"} <= training["epochs"][0].keys()


# --- which images ---------------------------------------------------------------------------------


def test_few_are_chosen_evenly_or_by_list(store, tmp_path):
    every = [f"train-{i:03}" for i in range(10)]
    assert selected(store, "train", "1/4") == {every[0], every[4], every[8]}
    assert selected(store, "train", "4") == {every[0], every[2], every[5], every[7]}
    (tmp_path / "ids.txt").write_text("# the best\ntrain-003\n\ntrain-007\n")
    assert selected(store, "train", str(tmp_path / "ids.txt")) == {"train-003", "train-007"}
    with pytest.raises(UsageError, match="has 10 labelled"):
        selected(store, "train", "11")
    with pytest.raises(UsageError, match="1/8, a number"):
        selected(store, "train", "1:8")
    (tmp_path / "ids.txt").write_text("train-003\nval-000\n")
    with pytest.raises(StoreError, match=r"no mask of 1 of the 2 images.*val-000"):
        selected(store, "train", str(tmp_path / "ids.txt"))


def ids_of(reader: Reader) -> list[str]:
    return [row.image_id for row in reader.rows()]


def test_labelled_and_other_images_share_out_the_store(store):
    few = frozenset({"train-002", "train-009"})
    labelled = Reader(store, "train", Channels(SPACE), only=few)
    others = ImageReader(store, "train", Channels(SPACE), taken=labelled)
    assert set(ids_of(labelled)) == few
    assert sorted(ids_of(labelled) + ids_of(others)) == [f"train-{i:03}" for i in range(10)]
    assert (labelled.survey.labelled, labelled.samples, others.images) == (2, 2, 8)
    assert labelled.survey.images.max() <= 2
    halves = [[r.image_id for r in others.rows(rank, 2)] for rank in range(2)]
    assert sorted(halves[0] + halves[1]) == sorted(ids_of(others))


@pytest.fixture(scope="module")
def mixed_store(tmp_path_factory):
    """4 labelled images, 3 with image-level labels only, 2 with nothing."""
    root = tmp_path_factory.mktemp("mixed")
    rows = [street(root, "train", i) for i in range(4)]
    bare = [replace(street(root, "unlabelled", i), mask=None, classes=None) for i in range(5)]
    told = [replace(row, image_labels=(SPACE.train_ids[2], SPACE.train_ids[7])) for row in bare[:3]]
    store = Store.create(root / "store", [SPACE])
    return store.commit(
        [write_fragment(store.sink(), "data/a.parquet", to_table([*rows, *told, *bare[3:]]))]
    )


def test_rows_without_masks_are_found_and_weak_ones_told_apart(mixed_store, tmp_path):
    channels = Channels(SPACE)
    plan = Plan(mixed_store, recipe(method={"name": "gan-ss", "form": "weak"}), str(tmp_path))
    labelled, others = plan.readers(channels)
    assert len(ids_of(labelled)) == 4
    assert ids_of(others["weak"]) == [f"unlabelled-00{i}" for i in range(3)]
    row = next(others["weak"].rows())
    assert np.flatnonzero(others["weak"].presence(row)).tolist() == [2, 7]
    every = ImageReader(mixed_store, "train", channels, taken=labelled)
    assert ids_of(every) == [f"unlabelled-00{i}" for i in range(5)]
    other_store = replace(plan, unlabelled=mixed_store, recipe=recipe(method="mean-teacher"))
    assert ids_of(other_store.readers(channels)[1]["unlabelled"]) == ids_of(every)
    as_store = replace(other_store, unlabelled_split="train")
    assert len(ids_of(as_store.readers(channels)[1]["unlabelled"])) == 4


def test_withheld_masks_leave_their_classes_as_image_labels(store):
    labelled = Reader(store, "train", Channels(SPACE), only=frozenset({"train-000"}))
    weak = ImageReader(store, "train", Channels(SPACE), taken=labelled, weak=True)
    truth = Reader(store, "train", Channels(SPACE))
    for row, full in zip(weak.rows(), list(truth.rows())[1:], strict=True):
        ids = truth.load(full).labels
        assert np.flatnonzero(weak.presence(row)).tolist() == [
            c for c in range(11) if (ids == c).any()
        ]
        assert row.cell == b""


def test_nothing_to_learn_from_is_told_before_training(store, tmp_path):
    plan = Plan(store, recipe(method="mean-teacher"), str(tmp_path))
    with pytest.raises(StoreError, match=r"no image with no mask in use.*--labelled"):
        train(plan, HERE)


def test_an_epochs_pictures_can_be_repeated(store):
    few = Reader(store, "train", Channels(SPACE), only=frozenset({"train-000"}))
    how = recipe(batch=4)

    def epoch(number: int, *, weak: bool) -> list[Any]:
        reader = ImageReader(store, "train", Channels(SPACE), taken=few, weak=weak)
        with open_streams(few, {"weak": reader}, how, Epoch(number, 1), HERE, None) as streams:
            return [streams.weak() for _ in range(4)]

    for weak in (False, True):
        one, same_again, other = epoch(3, weak=weak), epoch(3, weak=weak), epoch(4, weak=weak)
        assert [p.ids for p in one] == [p.ids for p in same_again] != [p.ids for p in other]
        assert all(torch.equal(a.images, b.images) for a, b in zip(one, same_again, strict=True))
        seen = {i for p in one for i in p.ids}
        assert seen == {f"train-{i:03}" for i in range(1, 10)}
        assert one[0].images.shape == (4, 32, 40, 3)
        assert bool(one[0].present.any()) is weak


def test_bad_pictures_are_counted_and_made_up_for(tmp_path):
    store = make_streets(tmp_path, 6, 1)
    (tmp_path / "images" / "train-001.png").write_bytes(b"no image")
    (tmp_path / "images" / "train-004.png").unlink()
    plan = plan_of("mean-teacher", store, tmp_path / "m", epochs=2)
    train(replace(plan, labelled=frozenset({"train-000", "train-002"})), HERE)
    result = read_result(plan.out)
    assert set(result.failures) == {"train-001", "train-004"}
    assert (result.other_rows, result.unreadable) == (4, 2)
    for i in (3, 5):
        (tmp_path / "images" / f"train-00{i}.png").unlink()
    reader = ImageReader(store, "train", Channels(SPACE), taken=Reader(
        store, "train", Channels(SPACE), only=frozenset({"train-000", "train-002"})))  # fmt: skip
    with pytest.raises(StoreError, match="no image of split 'train' can be read"):
        next(picture_batches(reader, plan.recipe, Epoch(0, 1), HERE, None))
