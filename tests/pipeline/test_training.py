from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from pipeline import masks
from pipeline.errors import ModelError, RemapError, StoreError, UnknownName, UsageError
from pipeline.fragment import write_fragment
from pipeline.label_space import label_space
from pipeline.models import load_model
from pipeline.record import File, Record, to_table
from pipeline.store import Store
from pipeline.streetscenes import scene
from pipeline.training.augment import augmented, jittered
from pipeline.training.batches import Epoch, prefetched, train_batches
from pipeline.training.data import Channels, Reader, shuffled
from pipeline.training.launch import Where, launch
from pipeline.training.learner import Learner, Task, open_model
from pipeline.training.losses import class_weights, cross_entropy
from pipeline.training.place import Place
from pipeline.training.recipe import Augment, Jitter, Recipe, read_recipe, shipped_recipes
from pipeline.training.schedule import Clock, MovingAverage
from pipeline.training.supervised import Listener, Plan, read_result, train

SPACE = label_space("camvid-11")
SIZE = (40, 56)
TINY = """
import torch
from torch import nn
def make(classes):
    act = nn.ReLU
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), act(), nn.Conv2d(12, 24, 3, 2, 1),
        nn.BatchNorm2d(24), act(), nn.Dropout2d(0.1), nn.Conv2d(24, classes, 1))
def plain(classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, classes, 1))
"""
MODEL = "python:segmill_tiny_net:make"
HERE = Place(torch.device("cpu"), threads=1)


@pytest.fixture(scope="module", autouse=True)
def _tiny_net(tmp_path_factory):
    """Put a tiny network where `python:` models are found, here and in child processes."""
    root = tmp_path_factory.mktemp("package")
    (root / "segmill_tiny_net.py").write_text(TINY)
    sys.path.insert(0, str(root))
    before, threads = os.environ.get("PYTHONPATH"), torch.get_num_threads()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *([before] if before else [])])
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.path.remove(str(root))
    os.environ.pop("PYTHONPATH")
    if before:
        os.environ["PYTHONPATH"] = before


def record(root, split, number, *, embed=False):
    rgb, ids = scene((sum(map(ord, split)), number), *SIZE)
    path = root / f"{split}-{number:03}.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    return Record(
        image_id=path.stem, dataset="streets", split=split,
        image=File(str(path), path.read_bytes() if embed else None),
        fingerprint="f", height=SIZE[0], width=SIZE[1], label_space=SPACE.name,
        mask=File(bytes=masks.encode(ids, SPACE.palette())),
        classes=masks.class_pixels(ids, SPACE),
    )  # fmt: skip


def make_store(root, train_rows=10, val_rows=5, **options):
    (root / "images").mkdir(parents=True)
    store = Store.create(root / "store", [SPACE])
    fragments = []
    for split, count in (("train", train_rows), ("val", val_rows)):
        rows = [record(root / "images", split, i, **options) for i in range(count)]
        fragments.append(write_fragment(store.sink(), f"data/{split}.parquet", to_table(rows)))
    return store.commit(fragments)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("streets"))


def recipe(**changes):
    values = {
        "model": MODEL,
        "augment": {"crop": [32, 40], "scale": [0.8, 1.25], "jitter": {"brightness": 0.2}},
        "optimiser": {"lr": 1e-2, "weight_decay": 1e-4},
        "batch": 4,
        "epochs": 3,
        "ema": 0.9,
        "class_weights": "enet",
        "seed": 3,
    }
    return Recipe.model_validate(values | changes)


def run(store, out, listener=None, **changes):
    train(Plan(store, recipe(**changes), str(out)), HERE, listener)
    return read_result(str(out))


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid_and_say_how_to_run(name):
    assert read_recipe(name, seed=7).seed == 7
    text = shipped_recipes()[name].read_text()
    assert text.startswith("#")
    assert f"--recipe {name}" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: zoo:enet\nepochs: 1\naugment: {crop: [8, 8]}\nlr: 3", "lr: Extra inputs"),
        ("model: zoo:enet\nepochs: 0\naugment: {crop: [8, 8]}", "epochs: .*greater than 0, not 0"),
        ("model: zoo:enet\naugment: {crop: [8, 8]}", "epochs, minutes or both"),
        ("model: zoo:enet\nepochs: 1\naugment: {crop: [8, 8], scale: [2, 1]}", "augment: .*least"),
        ("epochs: 1\naugment: {crop: [8, 8]}", "model: Field required"),
        ("- a\n- b", "mapping"),
        ("a: [1", "not YAML"),
    ],
)
def test_a_wrong_recipe_is_told_by_key(text, words, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_recipe(str(tmp_path / "r.yaml"))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UnknownName, match="streetscenes"):
        read_recipe("streetscene")
    with pytest.raises(UsageError, match="no such recipe file"):
        read_recipe("recipes/mine.yaml")


# --- losses and schedule -------------------------------------------------------------------------


def test_cross_entropy_is_torchs_mean_over_valid_pixels():
    logits = torch.randn(2, 4, 6, 5)
    labels = torch.randint(0, 4, (2, 6, 5), dtype=torch.uint8)
    labels[0, :3] = 255
    for weights in (None, torch.tensor([1.0, 0.5, 7.0, 2.0])):
        want = F.cross_entropy(logits, labels.long(), weights, ignore_index=255)
        assert torch.allclose(cross_entropy(logits, labels, 255, weights), want)


def test_a_batch_of_void_teaches_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8), 255, None)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_coarse_logits_are_brought_to_the_labels_size():
    logits, labels = torch.randn(1, 3, 4, 5), torch.zeros(1, 16, 20, dtype=torch.int32)
    full = F.interpolate(logits, (16, 20), mode="bilinear")
    want = F.cross_entropy(full, labels.long())
    assert torch.allclose(cross_entropy(logits, labels, 65535, None), want)


def test_class_weights():
    pixels = np.array([600, 300, 100, 0])
    home = np.array([1000, 500, 1000, 0])
    # frequencies 0.6, 0.6, 0.1: median 0.6
    median = class_weights("median-frequency", pixels, home)
    assert np.allclose(median, [1, 1, 6, 1])
    enet = class_weights("enet", pixels, home)
    assert np.allclose(enet, [1 / math.log(1.62), 1 / math.log(1.32), 1 / math.log(1.12), 1])
    assert class_weights("none", pixels, home) is None


def test_the_clock_keeps_time_for_the_last_validation():
    assert Clock(total_steps=10, budget=None).progress(5) == pytest.approx(0.55)
    fresh = Clock(None, budget=100.0, before=96.0)
    assert fresh.progress(0) >= 1
    timed = Clock(None, budget=100.0, before=75.0, validation=20.0)
    assert timed.progress(0) == pytest.approx(75 / 80, abs=1e-3)
    both = Clock(total_steps=4, budget=100.0, before=10.0)
    assert both.progress(3) == pytest.approx(3.5 / 4)


def test_moving_average():
    module = torch.nn.BatchNorm1d(2)
    average = MovingAverage(module, decay=0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.num_batches_tracked.fill_(7)
    average.update(module, step=100)
    assert average.module.weight.tolist() == [2.0, 2.0]
    assert average.module.num_batches_tracked == 7


# --- augmentation and data -----------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    st.integers(0, 1000),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_a_crop_has_its_size_and_only_known_values(shape, crop, scale, seed, kind):
    rng = np.random.default_rng(seed)
    void = 255 if kind is np.uint8 else 65535
    labels = rng.integers(0, 5, shape).astype(kind)
    image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    how = Augment(crop=crop, scale=scale, jitter=Jitter(brightness=0.5, contrast=0.5))
    out, ids = augmented(image, labels, how, void, np.random.default_rng(seed))
    assert out.shape == (*crop, 3)
    assert (ids.shape, ids.dtype) == (crop, kind)
    assert set(np.unique(ids)) <= {*np.unique(labels), void}
    again = augmented(image, labels, how, void, np.random.default_rng(seed))
    assert np.array_equal(out, again[0])
    assert np.array_equal(ids, again[1])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5)])
def test_labels_stay_on_their_pixels(scale):
    """The image's colour is its label, in large patches: so it is after scale, crop and mirror."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 6, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    image = np.repeat(labels[..., None] * 40, 3, axis=2)
    how = Augment(crop=(48, 60), scale=scale, flip=0.5)
    for _ in range(20):
        out, ids = augmented(image, labels, how, 255, rng)
        agree = (np.abs(out[..., 1].astype(int) - ids * 40) < 20)[ids != 255]
        assert agree.mean() > (0.999 if scale == (1.0, 1.0) else 0.85)
        assert (ids != 255).mean() > 0.99


def test_jitter_is_brightness_contrast_saturation():
    image = np.random.default_rng(0).integers(60, 160, (8, 9, 3), dtype=np.uint8)
    rng = np.random.default_rng(5)
    b, c, s = rng.uniform(0.7, 1.3), rng.uniform(0.8, 1.2), rng.uniform(0.5, 1.5)
    out = jittered(
        image,
        Jitter(brightness=0.3, contrast=0.2, saturation=0.5),
        np.random.default_rng(5),
    )
    luma = image @ np.array([0.299, 0.587, 0.114])
    want = luma[..., None] + s * (image - luma[..., None])
    want = b * (luma.mean() + c * (want - luma.mean()))
    assert np.abs(out - np.clip(want, 0, 255)).max() <= 1


@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_shuffling_loses_nothing(rows, most, seed):
    class Line(str):
        size = 1

    lines = [Line(i) for i in range(rows)]
    found = list(shuffled(iter(lines), np.random.default_rng(seed), most))
    assert sorted(found, key=int) == lines
    assert found == list(shuffled(iter(lines), np.random.default_rng(seed), most))


def test_masks_become_channels(store):
    target = label_space("unified")
    channels = Channels(target)
    reader = Reader(store, "train", channels)
    row = next(reader.rows())
    example = reader.load(row)
    ids = masks.decode(row.cell)
    for source in SPACE.classes:
        there = example.labels[ids == source.id]
        if source.id in SPACE.train_ids and there.size:
            assert len(set(there)) == 1
            name = target.by_id[target.train_ids[there[0]]].name if there[0] != 255 else "void"
            assert name != "void"
    assert (example.labels[ids == SPACE.ignore_index] == channels.void).all()


def test_the_survey_counts_without_reading_masks(store):
    reader = Reader(store, "train", Channels(SPACE))
    all_ids = [masks.decode(r.cell) for r in reader.rows()]
    for channel, i in enumerate(SPACE.train_ids):
        assert reader.survey.pixels[channel] == sum((m == i).sum() for m in all_ids)
        homes = [(m != SPACE.ignore_index).sum() for m in all_ids if (m == i).any()]
        assert reader.survey.home[channel] == sum(homes)
    assert (reader.survey.labelled, reader.survey.unlabelled) == (10, 0)


def test_workers_share_the_rows(store):
    reader = Reader(store, "train", Channels(SPACE))
    parts = [[r.image_id for r in reader.rows(rank, 3)] for rank in range(3)]
    assert [len(p) for p in parts] == [4, 3, 3]
    assert sorted(parts[0] + parts[1] + parts[2]) == [r.image_id for r in reader.rows()]


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_are_the_same_whatever_the_threads(store, threads):
    def batches(count):
        place = replace(HERE, threads=count)
        reader = Reader(store, "train", Channels(SPACE))
        return list(train_batches(reader, recipe(), Epoch(2, steps=5), place, None))

    for one, other in zip(batches(1), batches(threads), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.images.shape == (4, 32, 40, 3)


def test_embedded_images_are_read_from_the_store(tmp_path):
    store = make_store(tmp_path, 4, 2, embed=True)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert run(store, tmp_path / "m", epochs=1).unreadable == 0


def test_prefetching_ends_with_its_consumer():
    closed = []

    def numbers():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    ready = prefetched(numbers())
    assert [next(ready) for _ in range(3)] == [0, 1, 2]
    ready.close()
    assert closed

    def failing():
        yield 1
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        list(prefetched(failing()))


# --- runs ----------------------------------------------------------------------------------------


def test_training_learns_and_saves_the_best(store, tmp_path):
    result = run(store, tmp_path / "m", epochs=4, steps_per_epoch=6, ema=None, class_weights="none")
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.85 * losses[0]
    best = max(result.history, key=lambda row: row["miou"])
    assert (result.best_epoch, result.miou) == (best["epoch"], best["miou"])
    assert result.finished
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    training = described["training"]
    assert training["recipe"]["batch"] == 4
    assert (training["store"], training["store_version"]) == (store.url, store.version)
    assert load_model(str(tmp_path / "m")).digest == result.digest == described["digest"]


def test_enet_learns(store, tmp_path):
    result = run(
        store, tmp_path / "m", model="zoo:enet", epochs=2, steps_per_epoch=5, ema=None,
        class_weights="none", optimiser={"lr": 5e-3},
    )  # fmt: skip
    assert result.history[1]["loss"] < result.history[0]["loss"]
    assert load_model(str(tmp_path / "m")).label_space == SPACE


def test_validation_is_the_miou_of_the_saved_weights(store, tmp_path):
    """Recount by plain torch and numpy: one matrix over all images, void left out."""
    result = run(store, tmp_path / "m")
    model = load_model(str(tmp_path / "m"))
    counts = np.zeros((11, 11), np.int64)
    for row in Reader(store, "val", Channels(SPACE)).rows():
        rgb = cv2.imread(row.path)[..., ::-1].astype(np.float32) / 255
        prep = model.preprocessing
        tensor = torch.from_numpy((rgb - prep.mean) / prep.std).float().permute(2, 0, 1)[None]
        right, down = -SIZE[1] % prep.multiple, -SIZE[0] % prep.multiple
        padded = F.pad(tensor, (0, right, 0, down), mode="replicate")
        with torch.inference_mode():
            logits = F.interpolate(model.module(padded), padded.shape[-2:], mode="bilinear")
        best = logits[0, :, : SIZE[0], : SIZE[1]].argmax(0).numpy()
        truth = masks.decode(row.cell)
        for a, b in zip(truth.ravel(), best.ravel(), strict=True):
            if a != SPACE.ignore_index:
                counts[a, b] += 1
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou = counts.diagonal()[union > 0] / union[union > 0]
    assert result.miou == pytest.approx(iou.mean(), abs=1e-4)


def test_the_same_seed_gives_the_same_model(store, tmp_path):
    digests = {run(store, tmp_path / str(i), epochs=2, seed=s).digest for i, s in enumerate([1, 1])}
    assert len(digests) == 1
    assert run(store, tmp_path / "other", epochs=2, seed=2).digest not in digests


def test_a_killed_run_goes_on_as_if_it_was_not(store, tmp_path):
    unbroken = run(store, tmp_path / "a", epochs=4, accumulate=2, steps_per_epoch=2)

    deaths = [
        3,
        6,
    ]  # in the middle of the second epoch; at the end of the third, before it is saved

    def die(done, total):
        if done in deaths:
            deaths.remove(done)
            raise KeyboardInterrupt

    out, changes = tmp_path / "b", {"epochs": 4, "accumulate": 2, "steps_per_epoch": 2}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(store, out, Listener(step=die), **changes)
    resumed = run(store, out, **changes)
    assert resumed.digest == unbroken.digest
    for one, other in zip(resumed.history, unbroken.history, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["tensors"]
        for name in ("a", "b")
    ]
    for name, tensor in states[0]["module"].items():
        assert torch.equal(tensor, states[1]["module"][name])


def test_a_finished_run_is_left_alone(store, tmp_path):
    first = run(store, tmp_path / "m", epochs=1)
    before = (tmp_path / "m" / "model.json").stat().st_mtime_ns
    assert run(store, tmp_path / "m", epochs=1) == first
    assert (tmp_path / "m" / "model.json").stat().st_mtime_ns == before


def test_another_run_is_not_overwritten(store, tmp_path):
    run(store, tmp_path / "m", epochs=1)
    plan = Plan(store, recipe(epochs=1, seed=9), str(tmp_path / "m"))
    with pytest.raises(UsageError, match=r"differs in recipe.*--no-resume"):
        launch(plan, Where("local"))
    assert launch(plan, Where("local"), resume=False).finished
    (tmp_path / "m" / "checkpoint.pt").write_bytes(b"PK\3\4 torn")
    with pytest.raises(ModelError, match="damaged"):
        launch(plan, Where("local"))


def test_bad_images_are_counted_and_left_out(tmp_path):
    store = make_store(tmp_path)
    images = tmp_path / "images"
    (images / "train-002.png").write_bytes(b"no image")
    (images / "train-004.png").unlink()
    cv2.imwrite(str(images / "val-001.png"), np.zeros((9, 9, 3), np.uint8))
    result = run(store, tmp_path / "m", epochs=2)
    assert result.unreadable == 3
    assert set(result.failures) == {"train-002", "train-004", "val-001"}
    assert "9x9" in result.failures["val-001"]
    assert [row["steps"] for row in result.history] == [2, 2]
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(StoreError, match=r"no image of split 'train' can be read.*train-0"):
        run(store, tmp_path / "n")


def test_wrong_splits_and_spaces(store, tmp_path):
    with pytest.raises(StoreError, match="split 'trian' has no image"):
        train(Plan(store, recipe(), str(tmp_path), split="trian"), HERE)
    with pytest.raises(ModelError, match=r"4 classes.*'camvid-11' has 11"):
        run(store, tmp_path, model="zoo:enet?classes=4")
    (tmp_path / "own.json").write_text(load_model("zoo:enet?classes=4").label_space.to_json())
    with pytest.raises(RemapError, match="'classes-4'"):
        run(store, tmp_path, model="zoo:enet", label_space=str(tmp_path / "own.json"))
    two = Store.create(tmp_path / "two", [SPACE, label_space("voc-21")])
    with pytest.raises(UsageError, match="label_space: NAME"):
        open_model(recipe(model="zoo:enet"), two)
    assert (
        open_model(recipe(model="zoo:enet", label_space="voc-21"), two).label_space.name == "voc-21"
    )


def test_without_a_validation_split_the_last_weights_are_kept(store, tmp_path):
    plan = Plan(store, recipe(epochs=2), str(tmp_path), val_split="none")
    result = launch(plan, Where("local"))
    assert (result.miou, result.best_epoch, result.val_rows) == (None, None, 0)
    assert load_model(str(tmp_path)).digest == result.digest


def test_a_budget_of_minutes_ends_the_run(store, tmp_path):
    result = run(store, tmp_path / "m", epochs=None, minutes=0.03)
    assert result.finished
    assert result.seconds < 20
    assert result.miou is not None
    rates = [row["lr"] for row in result.history if row["steps"]]
    assert rates[-1] < 0.5 * 1e-2


def test_input_size_goes_into_the_model(store, tmp_path):
    result = run(store, tmp_path / "m", input_size=[24, 32], epochs=1)
    assert result.miou is not None
    assert load_model(str(tmp_path / "m")).preprocessing.size == (24, 32)


def test_accumulated_batches_are_one_batch(store):
    model = "python:segmill_tiny_net:plain?classes=11"
    whole = recipe(model=model, batch=4, accumulate=1, ema=None)
    halves = recipe(model=model, batch=2, accumulate=2, ema=None)
    images = torch.randint(0, 255, (4, 8, 8, 3), dtype=torch.uint8)
    labels = torch.randint(0, 11, (4, 8, 8), dtype=torch.uint8)

    class Two:
        def __init__(self, n):
            self.images, self.labels = images[n], labels[n]

    nets = []
    for how, parts in ((whole, [slice(0, 4)]), (halves, [slice(0, 2), slice(2, 4)])):
        learner = Learner(open_model(how, store), how, HERE, Task(255, None))
        learner.step(iter([Two(n) for n in parts]), 0, 0.5)
        nets.append(learner.module.state_dict())
    for name, tensor in nets[0].items():
        assert torch.allclose(tensor, nets[1][name], atol=1e-6)


def test_start_from_takes_what_fits(store, tmp_path):
    run(store, tmp_path / "a", epochs=1)
    source = load_model(str(tmp_path / "a")).module.state_dict()
    how = recipe(model=MODEL, label_space="voc-21", start_from=str(tmp_path / "a"), ema=None)
    started = open_model(how, store).module.state_dict()
    assert torch.equal(started["0.weight"], source["0.weight"])
    assert started["7.weight"].shape[0] == 21
    with pytest.raises(ModelError, match="none of its"):
        open_model(recipe(model="zoo:enet", start_from=str(tmp_path / "a")), store)


def test_a_loss_that_is_no_number_ends_the_run(store, tmp_path):
    with pytest.raises(ModelError, match=r"loss is .*optimiser\.lr"):
        run(store, tmp_path / "m", optimiser={"lr": 1e30, "warmup": 0.0}, steps_per_epoch=8)


def test_the_command(store, tmp_path, capsys):
    from jobs.__main__ import main

    (tmp_path / "r.yaml").write_text(json.dumps(recipe(epochs=1).plain()))
    out = str(tmp_path / "m")
    with pytest.raises(SystemExit) as ended:
        main(["train", store.url, "--recipe", str(tmp_path / "r.yaml"), "--out", out, "--json"])
    assert not ended.value.code
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert (summary["inputs"], summary["done"], summary["failed"]) == (15, 15, 0)
    assert summary["miou"] == read_result(out).miou
    assert "epoch 1: loss" in captured.err
    with pytest.raises(SystemExit) as ended:
        main(["train", store.url, "--recipe", "nope", "--out", out])
    assert ended.value.code == 2


COMMAND = [sys.executable, "-m", "jobs", "train"]


@pytest.mark.slow
def test_a_killed_process_goes_on(store, tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(epochs=40).plain()))
    arguments = [store.url, "--recipe", str(tmp_path / "r.yaml"), "--json", "--out"]
    whole = subprocess.run(
        [*COMMAND, *arguments, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    killed = subprocess.Popen(
        [*COMMAND, *arguments, str(tmp_path / "b")], stderr=subprocess.PIPE, text=True
    )
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("epoch 5:"):
            killed.send_signal(signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    killed.stderr.close()
    resumed = subprocess.run(
        [*COMMAND, *arguments, str(tmp_path / "b")], capture_output=True, text=True, check=True
    )
    assert "epoch 1:" not in resumed.stderr
    digests = [json.loads(r.stdout.splitlines()[-1])["model_digest"] for r in (whole, resumed)]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_on_ray(store, tmp_path):
    plan = Plan(store, recipe(epochs=2, batch=2), str(tmp_path / "m"))
    result = launch(plan, Where("ray", workers=2, gpu=False))
    assert result.finished
    assert [row["steps"] for row in result.history] == [2, 2]
    assert load_model(str(tmp_path / "m")).digest == result.digest
    assert not (tmp_path / "m" / "ray").exists()
    bad = Plan(store, recipe(), str(tmp_path / "n"), split="nothing")
    with pytest.raises(StoreError, match="split 'nothing'"):
        launch(bad, Where("ray", workers=2, gpu=False))
