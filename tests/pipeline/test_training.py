from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pipeline import masks
from pipeline.errors import ModelError, RemapError, StoreError, UsageError
from pipeline.label_space import label_space
from pipeline.models import load_model
from pipeline.store import Store
from pipeline.training.batches import Batch
from pipeline.training.data import Channels, Reader
from pipeline.training.launch import Where, launch
from pipeline.training.learner import Learner, Task, open_model
from pipeline.training.place import Place, this_machine
from pipeline.training.supervised import Listener, Plan, read_result, train
from tests.streets import HERE, MODEL, SIZE, SPACE, make_streets, recipe, run

if TYPE_CHECKING:
    from pipeline.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("streets"))


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
        times = {"seconds", "train_seconds", "wait"}
        assert {k: v for k, v in one.items() if k not in times} == {
            k: v for k, v in other.items() if k not in times
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
    with pytest.raises(UsageError, match=r"differs in recipe: seed \(3, now 9\).*--no-resume"):
        launch(plan, Where("local"))
    assert launch(plan, Where("local"), resume=False).finished
    (tmp_path / "m" / "checkpoint.pt").write_bytes(b"PK\3\4 torn")
    with pytest.raises(ModelError, match="damaged"):
        launch(plan, Where("local"))


def test_bad_images_are_counted_and_left_out(tmp_path):
    store = make_streets(tmp_path)
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


def _one_step(how: Recipe, parts: list[slice], place: Place, url: str) -> dict[str, torch.Tensor]:
    """Return the weights after one step on parts of a batch in which void is spread unevenly."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (4, 8, 8, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 11, (4, 8, 8), dtype=torch.uint8, generator=generator)
    labels[0], labels[1, :5] = 255, 255
    learner = Learner(
        open_model(how, Store.open(url)), how, place, Task(255, torch.linspace(0.5, 3, 11))
    )
    learner.step(iter([Batch(images[part], labels[part]) for part in parts]), 0, 0.5)
    return learner.module.state_dict()


def _plain(batch: int, accumulate: int) -> Recipe:
    model = "python:tests.tiny_net:plain?classes=11"
    loss = ["cross-entropy", {"name": "focal", "weight": 0.5}]
    return recipe(model=model, batch=batch, accumulate=accumulate, ema=None, loss=loss)


def _worker(rank: int, folder: str, url: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    place = Place(torch.device("cpu"), rank, 2)
    own = [slice(2 * rank, 2 * rank + 1), slice(2 * rank + 1, 2 * rank + 2)]
    torch.save(_one_step(_plain(1, 2), own, place, url), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_accumulated_batches_and_several_workers_are_one_batch(store, tmp_path):
    whole = _one_step(_plain(4, 1), [slice(0, 4)], HERE, store.url)
    halves = _one_step(_plain(2, 2), [slice(0, 2), slice(2, 4)], HERE, store.url)
    spawned = torch.multiprocessing.spawn(_worker, (str(tmp_path), store.url), join=False)
    _worker(1, str(tmp_path), store.url)
    assert spawned is not None
    spawned.join()
    for other in (halves, *(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))):
        for name, tensor in whole.items():
            assert torch.allclose(tensor, other[name], atol=1e-6)


def test_a_run_that_gets_no_better_stops_early(store, tmp_path):
    result = run(store, tmp_path / "m", epochs=30, early_stop=2, optimiser={"lr": 1e-12})
    assert result.finished
    assert result.best_epoch is not None
    assert len(result.history) == result.best_epoch + 2 < 30


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
    how = recipe(epochs=12)
    train(Plan(store, how, str(tmp_path / "a")), this_machine())
    (tmp_path / "r.yaml").write_text(json.dumps(how.plain()))
    arguments = [store.url, "--recipe", str(tmp_path / "r.yaml"), "--json", "--out"]
    killed = subprocess.Popen(
        [*COMMAND, *arguments, str(tmp_path / "b")], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("epoch 3:"):
            killed.send_signal(signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL
    killed.stderr.close()
    resumed = subprocess.run(
        [*COMMAND, *arguments, str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "epoch 1:" not in resumed.stderr
    digest = json.loads(resumed.stdout.splitlines()[-1])["model_digest"]
    assert digest == read_result(str(tmp_path / "a")).digest


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
