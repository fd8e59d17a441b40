"""Ways to train: heads for training alone, depth, optimisers, memory, waiting, the run's page."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F  # noqa: N812

from pipeline import depth as depth_cells
from pipeline import masks
from pipeline.errors import StoreError, UsageError
from pipeline.label_space import label_space
from pipeline.models import adapter, load_model
from pipeline.models.loaded import Architecture, Preprocessing
from pipeline.models.uri import parse
from pipeline.predict.options import LabelOptions, check_model
from pipeline.record import Depth, File, Record, to_table
from pipeline.report.training_page import training_page
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from pipeline.training.batches import Batch, Epoch, stacked, train_batches
from pipeline.training.cache import Cache
from pipeline.training.data import Channels, Reader
from pipeline.training.example import Example
from pipeline.training.learner import Learner, Task, open_model
from pipeline.training.losses import criterion
from pipeline.training.recipe import Augment, Optimiser, Recipe, read_recipe, shipped_recipes
from pipeline.training.schedule import optimiser, rate
from pipeline.training.validate import Normaliser
from pipeline.training.waiting import Timed
from tests.streets import HERE, SPACE, make_streets, recipe, run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("streets"))


def a_batch(depth: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        torch.randint(0, 255, (2, 16, 16, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 11, (2, 16, 16), dtype=torch.uint8, generator=generator),
        torch.rand(2, 16, 16, generator=generator) * 8 if depth else None,
    )


# --- heads for training alone --------------------------------------------------------------------

DEEP = "python:tests.tiny_net:Deep?classes=11"


def test_the_loss_is_the_weighted_sum_over_heads_and_reaches_them(store):
    how = recipe(model=DEEP, ema=None, optimiser={"lr": 1e-2, "warmup": 0})
    model, batch = open_model(how, store), a_batch()
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    image = Normaliser(model.preprocessing, HERE.device)(batch)
    expected = 0.0
    for weight, logits in model.module.forward_train(image):
        full = F.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
        expected += weight * float(F.cross_entropy(full, batch.labels.long()).detach())
    learner = Learner(model, how, HERE, Task(255, None))
    loss, _ = learner.step(iter([batch]), 0, 0.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    for name, p in learner.module.named_parameters():
        assert not torch.equal(p, before[name]), f"{name} has not learnt"


def test_evaluation_ignores_the_heads(store, tmp_path):
    """Whatever the auxiliary head holds, validation and labelling say the same."""
    result = run(store, tmp_path / "m", model=DEEP, epochs=1)
    model = load_model(str(tmp_path / "m"))
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        before = model.module(image)
        for p in model.module.auxiliary.parameters():
            p.fill_(1e3)
        assert torch.equal(model.module(image), before)
    assert before.shape[-2:] == (20, 28)
    assert result.miou is not None


# --- optimisers and schedules --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "values"),
    [
        ({"schedule": "poly", "power": 0.9}, [1.0, 0.75**0.9, 0.5**0.9, 0.0]),
        ({"schedule": "poly", "power": 2, "final": 0.5}, [1.0, 0.78125, 0.625, 0.5]),
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "step", "milestones": [0.25, 0.9]}, [1.0, 0.1, 0.1, 0.01]),
        ({"schedule": "exponential", "final": 0.01}, [1.0, 10**-0.5, 0.1, 0.01]),
        ({"schedule": "cosine"}, [1.0, (2 + 2**0.5) / 4, 0.5, 0.0]),
    ],
)
def test_schedules(how, values):
    made = Optimiser(warmup=0, **how)
    assert [rate(at, made) for at in (0, 0.25, 0.5, 1)] == pytest.approx(values)
    assert rate(0.05, Optimiser(warmup=0.1, **how)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"schedule": "step"}, "milestones"),
        ({"milestones": [0.5]}, "milestones"),
        ({"schedule": "exponential"}, "final"),
        ({"nesterov": True}, "nesterov is for sgd"),
        ({"name": "lion"}, "optimiser.name"),
    ],
)
def test_optimisers_that_make_no_sense(wrong, words, tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps(recipe().plain() | {"optimiser": wrong}))
    with pytest.raises(UsageError, match=words):
        read_recipe(str(tmp_path / "r.yaml"))


def test_sgd_is_the_textbooks():
    """Two steps by hand: momentum and Nesterov's, decay of matrices alone, the backbone slower."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Linear(2, 1)
            self.head = torch.nn.Linear(2, 1)

    for nesterov in (False, True):
        net = Net()
        how = Optimiser(
            name="sgd", lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.01, backbone_lr=0.5
        )
        by_hand = {n: (p.detach().clone().double(), 0.0) for n, p in net.named_parameters()}
        moving = optimiser(net, how)
        for _ in range(2):
            for group in moving.param_groups:
                group["lr"] = how.lr * group["factor"]
            for p in net.parameters():
                p.grad = torch.full_like(p, 0.3)
            moving.step()
            for name, (value, velocity) in by_hand.items():
                slope = 0.3 + (0.01 * value if name.endswith("weight") else 0.0)
                velocity = 0.8 * velocity + slope
                move = slope + 0.8 * velocity if nesterov else velocity
                lr = 0.05 if name.startswith("backbone") else 0.1
                by_hand[name] = (value - lr * move, velocity)
        for name, p in net.named_parameters():
            assert torch.allclose(p.double(), by_hand[name][0], atol=1e-6), name
    with pytest.raises(UsageError, match="no part named backbone"):
        optimiser(torch.nn.Linear(2, 1), Optimiser(backbone_lr=0.1))


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgd"])
def test_every_optimiser_resumes_to_the_same_weights(store, tmp_path, name):
    from pipeline.training.supervised import Listener

    how = {"lr": 1e-3, "name": name, "schedule": "poly"}
    whole = run(store, tmp_path / "a", optimiser=how, epochs=2)

    def die(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "b", Listener(step=die), optimiser=how, epochs=2)
    assert run(store, tmp_path / "b", optimiser=how, epochs=2).digest == whole.digest


# --- shipped recipes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipes_model_and_losses_can_be_made(name):
    """On the meta device: no memory for the numbers."""
    how = read_recipe(name)
    uri = parse(how.model)
    classes = len(label_space(how.label_space or "camvid-11").train_ids)
    with torch.device("meta"):
        net = adapter(uri.kind).build(
            Architecture(uri.kind, uri.name, uri.build_options()), classes
        )
    assert criterion(how.loss, 255, None).terms
    assert (getattr(net, "in_channels", 3) == 4) == (how.depth is not None)
    if how.optimiser.backbone_lr != 1:
        assert any(n.startswith("backbone.") for n, _ in net.named_parameters())
    text = shipped_recipes()[name].read_text()
    assert "backbone_weights=FILE" not in text or hasattr(net, "backbone")


# --- depth ---------------------------------------------------------------------------------------

PLANES = 4
SCALE = {"mean": 2.0, "std": 1.0}


def rooms(root, *, rows: int = 12, unit: float = 0.001) -> Store:
    """Return a store of grey images whose classes are told by depth alone."""
    rng = np.random.default_rng(5)
    root.mkdir()
    store = Store.create(root / "store", [SPACE])
    records = []
    for number in range(rows):
        ids = np.kron(rng.integers(0, PLANES, (4, 5)), np.ones((8, 8))).astype(np.uint8)
        far = ((0.5 + ids) / unit).astype(np.uint16)
        far[rng.random(far.shape) < 0.02] = 0
        path = root / f"{number}.png"
        cv2.imwrite(str(path), rng.integers(90, 120, (*ids.shape, 3), dtype=np.uint8))
        records.append(
            Record(
                image_id=f"room-{number:02}", dataset="rooms",
                split="train" if number % 3 else "val", image=File(str(path)), fingerprint="f",
                height=ids.shape[0], width=ids.shape[1], label_space=SPACE.name,
                mask=File(bytes=masks.encode(ids, SPACE.palette())),
                classes=masks.class_pixels(ids, SPACE),
                depth=Depth(None, depth_cells.encode(far), unit),
            )
        )  # fmt: skip
    table = to_table(records)
    return store.commit([write_fragment(store.sink(), "data/rooms.parquet", table)])


@pytest.fixture(scope="module")
def indoor(tmp_path_factory):
    return rooms(tmp_path_factory.mktemp("rooms") / "rooms")


FOUR = {
    "model": "python:tests.tiny_net:Four?classes=11", "depth": SCALE, "class_weights": "none",
    "augment": {"crop": [24, 32], "scale": [0.8, 1.2]}, "ema": None,
}  # fmt: skip


def test_depth_is_learnt_from(indoor, tmp_path):
    """The images tell nothing: without depth a quarter of the pixels is right at best."""
    how = FOUR | {"optimiser": {"lr": 3e-2}, "epochs": 8, "steps_per_epoch": 8}
    result = run(indoor, tmp_path / "m", **how)
    assert result.history[-1]["pixel_accuracy"] > 0.9
    assert result.unreadable == 0
    loaded = load_model(str(tmp_path / "m"))
    assert loaded.preprocessing.depth == (2.0, 1.0)
    assert loaded.digest == result.digest
    check_model(loaded, LabelOptions())  # tests/pipeline/test_label_depth.py labels with one


def test_depth_is_in_metres_and_beside_its_pixels(indoor):
    reader = Reader(indoor, "train", Channels(SPACE), with_depth=True)
    for row in reader.rows():
        example = reader.load(row)
        known = example.depth > 0
        assert 0.9 < known.mean() < 1
        assert np.abs(example.depth - example.labels - 0.5)[known].max() < 2e-3
    half = reader.load(row, (16, 20))
    assert set(np.unique(half.depth)) <= set(np.unique(example.depth)), "no means of depths"


def test_the_network_gets_four_channels():
    prep = Preprocessing((0.5,) * 3, (0.25,) * 3, depth=(3.0, 2.0))
    batch = a_batch(depth=True)
    batch.depth[0, 0, 0] = 0
    out = Normaliser(prep, torch.device("cpu"))(batch)
    assert out.shape == (2, 4, 16, 16)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(out[:, :3], batch.images.permute(0, 3, 1, 2) / 63.75 - 2, atol=1e-5)
    assert torch.allclose(out[1, 3], (batch.depth[1] - 3) / 2)
    assert out[0, 3, 0, 0] == 0, "nothing measured is the mean"
    assert Preprocessing.from_dict(json.loads(json.dumps(prep.to_dict()))) == prep
    assert "depth" not in replace(prep, depth=None).to_dict(), "digests of other models stay"


def test_rdfnet_takes_what_training_gives():
    how = read_recipe("nyu-rdfnet50")
    with torch.device("meta"):
        net = adapter("zoo").build(Architecture("zoo", "rdfnet50", {}), 40).eval()
    prep = Preprocessing((0.5,) * 3, (0.25,) * 3, depth=(how.depth.mean, how.depth.std))
    inputs = Normaliser(prep, torch.device("cpu"))(a_batch(depth=True))
    assert net(inputs.to("meta")).shape == (2, 40, 4, 4)


def test_images_without_depth_are_counted(store, indoor, tmp_path):
    with pytest.raises(StoreError, match=r"no image of split 'train' can be read.*no depth map"):
        run(store, tmp_path / "m", **FOUR)


def test_recipe_and_model_agree_on_depth(store):
    with pytest.raises(UsageError, match=r"takes depth; the recipe must say how"):
        open_model(recipe(**FOUR | {"depth": None}), store)
    with pytest.raises(UsageError, match="colours alone"):
        open_model(recipe(depth=SCALE), store)


# --- memory and waiting --------------------------------------------------------------------------


def test_the_cache_changes_nothing_but_decoding(store, tmp_path, monkeypatch):
    plain = run(store, tmp_path / "a", epochs=3)
    decoded: list[str] = []
    whole = Reader._decoded

    def counted(self, row):
        decoded.append(row.image_id)
        return whole(self, row)

    monkeypatch.setattr(Reader, "_decoded", counted)
    kept = run(store, tmp_path / "b", epochs=3, cache="memory", cache_mib=8)
    assert kept.digest == plain.digest
    assert [row["loss"] for row in kept.history] == [row["loss"] for row in plain.history]
    learnt = [name for name in decoded if name.startswith("train")]
    assert len(learnt) == len(set(learnt)) == 10, "each once"
    assert run(store, tmp_path / "b", epochs=3).digest == kept.digest, "no other run without it"


def test_the_cache_keeps_to_its_bytes(store):
    reader = Reader(store, "train", Channels(SPACE))
    each = 40 * 56 * 4
    reader.cache = Cache(3 * each + 5)
    held = []
    for _ in range(2):
        for row in reader.rows():
            example = reader.load(row)
            held.append(reader.cache.held)
            fresh = reader._decoded(row)
            assert np.array_equal(example.image, fresh.image)
    assert max(held) == 3 * each
    list(train_batches(reader, recipe(), Epoch(0, steps=3), HERE, None))


def test_waiting_is_counted():
    def slow():
        for i in range(3):
            time.sleep(0.02)
            yield i

    timed = Timed(slow(), torch.device("cpu"))
    assert list(timed) == [0, 1, 2]
    waited, seconds = timed.seconds()
    assert 0.06 <= waited <= seconds


def test_history_says_how_long_it_waited(store, tmp_path):
    result = run(store, tmp_path / "m", epochs=2)
    for row in result.history:
        assert 0 <= row["wait"] <= row["train_seconds"] <= row["seconds"]
    assert 0 <= result.wait_share <= 1


def test_examples_of_many_classes_are_stacked():
    example = Example(np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 300, np.uint16))
    assert stacked([example, example]).labels.dtype == torch.int32


# --- what people look at -------------------------------------------------------------------------


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in {"src", "href"} and v]


def test_the_page_is_written_after_each_epoch(store, tmp_path):
    from pipeline.training.supervised import Listener

    pages = []
    listener = Listener(
        epoch=lambda row: pages.append((tmp_path / "m" / "training.html").read_text())
    )
    result = run(store, tmp_path / "m", listener, epochs=3)
    assert len(pages) == 3
    assert len(set(pages)) == 3
    last = (tmp_path / "m" / "training.html").read_text()
    assert ("goes on" in pages[-1], "finished" in last) == (True, True)
    assert f"<b>{100 * result.miou:.1f}</b>" in last
    best = result.history[result.best_epoch - 1]
    for name, iou in best["iou"].items():
        shown = "–" if iou is None else f"{100 * iou:.1f}"
        assert re.search(rf"<span>{name}</span></span></th><td class=\"num\">{shown}</td>", last)
    assert last.count("<svg") == 4
    assert "model: python:tests.tiny_net:make" in last
    links = _Links()
    links.feed(last)
    assert all(link.startswith("data:") for link in links.found), "works offline"


def test_nothing_on_the_page_is_trusted(store, tmp_path):
    run(store, tmp_path / "m", epochs=1)
    record = json.loads((tmp_path / "m" / "model.json").read_text())["training"]
    evil = "<script>alert(1)</script>"
    record |= {"unreadable": 7, "unreadable_first": {evil: evil}, "store": evil}
    record["recipe"]["model"] = evil
    record["epochs"][0] |= {"loss": float("inf")}
    page = training_page(record, SPACE, title=evil).decode()
    assert evil not in page
    assert "The first 1 of 7" in page


def test_tensorboard_is_asked_for_by_name(store, tmp_path, capsys, monkeypatch):
    from jobs.__main__ import main

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("pipeline.training.board.find_spec", lambda name: None)
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(epochs=1).plain()))
    with pytest.raises(SystemExit) as ended:
        main(
            ["train", store.url, "--recipe", str(tmp_path / "r.yaml"), "--out",
             str(tmp_path / "m"), "--tensorboard", str(tmp_path / "t")]
        )  # fmt: skip
    assert ended.value.code == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "m" / "model.json").exists()


# --- documentation -------------------------------------------------------------------------------


def test_the_reference_shows_every_key_with_its_default():
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) | {"epochs": 1}
    least = {"model": "zoo:enet", "augment": {"crop": [360, 480]}, "epochs": 1}
    assert set(shown) == set(Recipe.model_fields)
    for part, fields in (("optimiser", Optimiser), ("augment", Augment)):
        assert set(shown[part]) == set(fields.model_fields)
    assert Recipe.model_validate(shown) == Recipe.model_validate(least)
