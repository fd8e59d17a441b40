"""Generated scenes: seeded, exact, in the layout that the camvid-11 connector reads."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from connectors import connector
from pipeline.files import open_tree
from pipeline.masks import decode
from pipeline.streetscenes import scene, write_dataset

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_seed_draws_the_same_scene_in_any_thread_and_order():
    alone = [scene(k, 48, 64) for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: scene(k, 48, 64), reversed(range(8))))[::-1]
    for (rgb, ids), (rgb2, ids2) in zip(alone, together, strict=True):
        assert np.array_equal(rgb, rgb2)
        assert np.array_equal(ids, ids2)


def test_other_seeds_draw_other_scenes():
    assert len({scene(k, 48, 64)[1].tobytes() for k in range(20)}) == 20
    assert not np.array_equal(scene((1, 2), 48, 64)[0], scene((2, 1), 48, 64)[0])


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 47), (60, 400), (400, 60), (720, 960)])
def test_any_size(size: tuple[int, int]):
    for seed in range(3):
        rgb, ids = scene(seed, *size)
        assert rgb.shape == (*size, 3)
        assert ids.shape == size
        assert rgb.dtype == ids.dtype == np.uint8
        assert ids.max() <= 11


def test_every_class_appears_and_the_street_is_plausible():
    pixels = np.zeros(12, np.int64)
    for seed in range(60):
        pixels += np.bincount(scene(seed, 120, 160)[1].ravel(), minlength=12)
    share = pixels / pixels.sum()
    assert (share > 0.0005).all(), share
    assert share[3] > 0.2  # road
    assert share[11] < 0.06  # void


def test_sky_is_above_and_road_below():
    for seed in range(10):
        ids = scene(seed, 120, 160)[1]
        rows = np.arange(120)[:, None] * np.ones((1, 160))
        assert rows[ids == 3].mean() > 80
        if (ids == 0).any():
            assert rows[ids == 0].max() < 80


def test_labels_lie_on_the_picture_to_the_pixel():
    """The picture's edges lie under the label's borders at no shift, and less so at any other."""
    score: dict[tuple[int, int], float] = dict.fromkeys(
        ((dy, dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)), 0.0
    )
    for seed in range(12):
        rgb, ids = scene(seed, 240, 320)
        grey = rgb.astype(np.float64).sum(-1)
        for axis in (0, 1):
            step = np.abs(np.diff(grey, axis=axis))
            border = np.diff(ids.astype(np.int16), axis=axis) != 0
            for shift in score:
                score[shift] += float(step[np.roll(border, shift, (0, 1))].mean())
    best = max(score, key=lambda shift: score[shift])
    assert best == (0, 0)
    assert score[0, 0] > 1.3 * max(score[2, 0], score[-2, 0], score[0, 2], score[0, -2])


def test_the_connector_reads_what_is_written(tmp_path: Path):
    counts = write_dataset(tmp_path, 10, height=48, width=64, seed=5, unlabelled=3)
    assert counts == {"train": 6, "val": 2, "test": 2, "unlabelled": 3}
    tree, reader = open_tree(str(tmp_path)), connector("camvid-11")
    samples = list(reader.list(tree, ()))
    assert [s.split for s in samples].count("train") == 6
    assert len(samples) == 13
    for sample in samples:
        record = reader.read(tree, sample)
        rgb, ids = scene((5, int(sample.image_id.removeprefix("street_"))), 48, 64)
        assert (record.height, record.width) == (48, 64)
        if sample.split == "unlabelled":
            assert record.mask is None
            continue
        assert record.mask is not None
        assert record.mask.bytes is not None
        assert np.array_equal(decode(record.mask.bytes), ids)
        path = tmp_path / sample.split / f"{sample.image_id}.png"
        assert np.array_equal(np.asarray(Image.open(path)), rgb)


def _digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_several_processes_write_the_same_bytes(tmp_path: Path):
    for name, workers in (("one", 1), ("two", 2)):
        write_dataset(
            tmp_path / name, 150, height=24, width=32, suffix="jpg", unlabelled=2, workers=workers
        )
    one = _digests(tmp_path / "one")
    assert len(one) == 150 * 2 + 2 + 4
    assert one == _digests(tmp_path / "two")


def test_flat_layout_is_a_folder_of_photographs(tmp_path: Path):
    assert write_dataset(tmp_path, 4, height=24, width=32, layout="flat") == {"unlabelled": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"street_{k:06d}.jpg" for k in range(4)]
    with Image.open(tmp_path / "street_000000.jpg") as image:
        assert (image.size, image.mode, image.format) == ((32, 24), "RGB", "JPEG")
