"""The model that comes with segmill: labels for one's own pictures at once, offline."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipeline import masks
from pipeline.errors import UnknownName, UsageError
from pipeline.label_space import label_space
from pipeline.models import load_model
from pipeline.models.shipped import DEFAULT, SHIPPED, folder
from pipeline.store import Store
from pipeline.streetscenes import scene
from tests.jobs.calls import call

ROOT = Path(__file__).resolve().parents[2]
ROAD = 3


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_pictures_are_labelled_without_naming_a_model(tmp_path, capsys, offline):
    sizes = [(360, 480), (240, 320), (540, 400)]
    (tmp_path / "photos").mkdir()
    for n, (height, width) in enumerate(sizes):
        picture, _ = scene(n, height, width)
        cv2.imwrite(str(tmp_path / f"photos/{n}.jpg"), picture[..., ::-1])
    report, said = call(capsys, "label", tmp_path / "photos", tmp_path / "out", "--runner", "local")
    assert report["inputs"] == report["done"] == 3
    assert report["skipped"] == report["failed"] == 0
    assert DEFAULT in said
    assert "11 street classes" in said
    rows = {r.image_id: r for r in Store.open(tmp_path / "out").records()}
    for n, size in enumerate(sizes):
        row = rows[str(n)]
        ids = masks.decode(row.mask.bytes, "mask")
        assert ids.shape == size
        assert (row.label_space, row.provenance.model) == ("camvid-11", DEFAULT)
        bottom, top = ids[-size[0] // 5 :], ids[: size[0] // 5]
        assert (bottom == ROAD).mean() > 0.6, "streets lie at the bottom"
        assert (top == ROAD).mean() < 0.05


def test_who_names_a_model_is_told_nothing_of_it(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/a.png"), np.zeros((32, 32, 3), np.uint8))
    how = ("--model", DEFAULT, "--runner", "local", "--dry-run")
    _, said = call(capsys, "label", tmp_path / "photos", tmp_path / "out", *how)
    assert "no --model" not in said


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_whole_small_and_knows_no_machine(name):
    place = Path(folder(name))
    described = json.loads((place / "model.json").read_text())
    weights = place / "weights.safetensors"
    assert weights.stat().st_size < 4_000_000
    with safe_open(weights, "pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - no mapping
    assert kinds <= {torch.float16, torch.int64}
    model = load_model(f"shipped:{name}")
    assert model.digest == described["digest"], "the weights are those that model.json names"
    floats = {t.dtype for t in model.module.state_dict().values() if t.is_floating_point()}
    assert floats == {torch.float32}
    assert described["architecture"]["name"] == SHIPPED[name].network
    assert "store" not in described["training"]
    assert not [v for v in _texts(described) if v.startswith(("/", "file:"))]
    card = (place / "README.md").read_text()
    miou = described["training"]["miou"]
    assert f"validation mIoU {100 * miou:.1f}" in card, "the card is of these weights"
    for part in ("## Licence", "## Limits", "CC BY-NC", f"shipped:{name}"):
        assert part in card


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [t for v in value.values() for t in _texts(v)]
    if isinstance(value, list):
        return [t for v in value for t in _texts(v)]
    return [value] if isinstance(value, str) else []


def test_a_large_photo_is_seen_at_the_size_that_was_learnt():
    prep = load_model(DEFAULT).preprocessing
    assert prep.inside(3000, 4000) == (360, 480)
    assert prep.inside(4000, 3000) == (480, 360)
    assert prep.inside(360, 480) == (360, 480)


def test_wrong_names_and_options_are_told():
    with pytest.raises(UnknownName, match="camvid-lite"):
        load_model("shipped:camvid")
    with pytest.raises(UsageError, match="no option size"):
        load_model(f"{DEFAULT}?size=32x32")


def test_training_may_start_from_it(tmp_path):
    from pipeline.training.learner import open_model
    from pipeline.training.recipe import Recipe

    store = Store.create(tmp_path / "store", [label_space("cityscapes-19")])
    asked = {"model": DEFAULT, "epochs": 1, "augment": {"crop": [64, 64]}}
    model = open_model(Recipe.model_validate(asked), store)
    assert model.label_space.name == "camvid-11"


def test_a_wheel_holds_it(tmp_path):
    pytest.importorskip("setuptools", "77")
    source = tmp_path / "source"
    source.mkdir()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for part in ("pipeline", "connectors", "jobs"):
        # Without the C source: a compiler has no part in this.
        shutil.copytree(
            ROOT / part, source / part, ignore=shutil.ignore_patterns("*.c", "*.so", "__pycache__")
        )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation",
         "--quiet", "--wheel-dir", str(tmp_path)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for name in SHIPPED:
        for file in ("model.json", "weights.safetensors", "README.md"):
            assert f"pipeline/models/shipped/{name}/{file}" in held
