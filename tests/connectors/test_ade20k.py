"""ADE20K SceneParsing: the conformance suite, and the real files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from connectors.ade20k import ADE20K
from pipeline.errors import CorruptMask, LayoutError
from pipeline.files import open_sink, open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.labels.derive import with_instances
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import (
    grey,
    make_record,
    photo,
    put,
    random_ids,
    rewrite,
    rgb_png,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.record import Record

SHAPE = (12, 16)
TOP = "ADEChallengeData2016/"
NAMES = {
    "train": ["ADE_train_00000001", "ADE_train_00000002"],
    "val": ["ADE_val_00000001"],
    "test": ["ADE_test_00000001"],
}
FOLDERS = {"train": "training", "val": "validation"}


class TestAde20k(Conformance):
    connector = ADE20K
    image_suffix = ".jpg"

    def make_tree(self, root: Path) -> Made:
        ids, lines = {}, []
        for split, folder in FOLDERS.items():
            for n, name in enumerate(NAMES[split]):
                ids[f"{split}/{name}"] = random_ids(range(151), SHAPE, n)
                put(root, f"{TOP}images/{folder}/{name}.jpg", photo(SHAPE, ".jpg", n))
                put(root, f"{TOP}annotations/{folder}/{name}.png", grey(ids[f"{split}/{name}"]))
                lines.append(f"{name} scene_{n}\n")
        name = NAMES["test"][0]
        put(root, f"release_test/testing/{name}.jpg", photo(SHAPE, ".jpg"))
        ids[f"test/{name}"] = np.zeros((0, 0), np.uint8)
        put(root, f"{TOP}sceneCategories.txt", "".join(lines))
        name = "ADE_val_00000001"
        return Made(
            NAMES,
            ids,
            name,
            f"{TOP}images/validation/{name}.jpg",
            f"{TOP}annotations/validation/{name}.png",
            (f"{TOP}sceneCategories.txt",),
        )


def records_of(root: Path | str) -> list[Record]:
    tree = open_tree(str(root))
    return [ADE20K.read(tree, sample) for sample in ADE20K.list(tree, ())]


def test_colour_mask_is_refused(tmp_path: Path) -> None:
    TestAde20k().make_tree(tmp_path)
    name = f"{TOP}annotations/validation/ADE_val_00000001.png"
    colours = np.array([c.colour for c in label_space("ade20k-150").classes], np.uint8)
    put(tmp_path, name, rgb_png(colours[np.ones(SHAPE, int)]))
    tree = open_tree(str(tmp_path))
    (sample,) = ADE20K.list(tree, ["val"])
    with pytest.raises(CorruptMask, match="ade20k-full"):
        ADE20K.read(tree, sample)


def test_images_folder_alone_is_no_dataset(tmp_path: Path) -> None:
    put(tmp_path, "images/training/a.jpg", photo(SHAPE, ".jpg"))
    with pytest.raises(LayoutError, match="annotations"):
        list(ADE20K.list(open_tree(str(tmp_path)), ()))


def test_table_of_classes_is_counted(tmp_path: Path) -> None:
    """Ratio is over labelled pixels; Train and Val count the images that hold the class."""
    space = LabelSpace("two", (LabelClass(0, "a, b", (0, 0, 0)), LabelClass(1, "c", (1, 1, 1))), 9)
    maps = {"train": [[0, 0, 1, 9]], "val": [[1, 1, 1, 9]]}
    rows = [
        make_record(np.array(ids, np.uint8), space, split, split, ".jpg")
        for split, ids in maps.items()
    ]
    rewrite(ADE20K, rows, tmp_path, space)
    assert (tmp_path / f"{TOP}objectInfo150.txt").read_text() == (
        "Idx\tRatio\tTrain\tVal\tName\n0\t0.3333\t1\t0\ta, b\n1\t0.6667\t1\t1\tc\n"
    )


def test_objects_are_painted_and_png_images_become_jpeg(tmp_path: Path) -> None:
    space = label_space("ade20k-150")
    ids = random_ids(range(1, 151), (20, 30), 3)
    record = with_instances(make_record(ids, space, "a b", "train"), space)
    record = replace(record, mask=None)
    (written,) = rewrite(ADE20K, [record], tmp_path, space)
    assert written.loss == {"images_reencoded": 1, "instances": 150}
    (back,) = records_of(tmp_path)
    assert back.image_id == "a b"
    with Image.open(tmp_path / f"{TOP}annotations/training/a b.png") as mask:
        assert mask.mode == "L"
        np.testing.assert_array_equal(np.array(mask), ids)


def test_frames_without_masks_are_unlabelled(tmp_path: Path) -> None:
    space = label_space("ade20k-150")
    record = make_record(None, space, "a", "train", ".jpg")
    (written,) = rewrite(ADE20K, [record], tmp_path, space)
    assert written.loss == {"split_of_unlabelled": 1}
    assert [(r.split, r.mask) for r in records_of(tmp_path)] == [("unlabelled", None)]


def test_scene_of_another_format_is_not_taken(tmp_path: Path) -> None:
    space = label_space("ade20k-150")
    record = make_record(np.ones(SHAPE, np.uint8), space, "a", "train", ".jpg")
    record = replace(record, extra='{"scene": "attic"}')
    rewrite(ADE20K, [record], tmp_path, space)
    assert (tmp_path / f"{TOP}sceneCategories.txt").read_text() == ""


def test_real_files_come_back(shared_data: Path, tmp_path: Path) -> None:
    """Masks, images, scenes and the table of classes, against Pillow's reading of the originals."""
    source = shared_data / "ade20k/sceneparsing"
    tree = open_tree(str(source))
    records = records_of(source)
    lines = (source / f"{TOP}sceneCategories.txt").read_text().splitlines()
    scenes = dict(line.split(" ") for line in lines)
    assert [(r.split, r.image_id, r.extras()) for r in records] == [
        (split, name, {"scene": scenes[name]})
        for split, name in (
            ("train", "ADE_train_00000001"),
            ("val", "ADE_val_00000001"),
            ("val", "ADE_val_00000002"),
        )
    ]
    sink, space = open_sink(str(tmp_path)), label_space("ade20k-150")
    written = [ADE20K.write(sink, record, space) for record in records]
    assert [w.loss for w in written] == [{}, {}, {}]
    ADE20K.finish(sink, written, space, {"ade20k": ADE20K.facts(tree)})
    for record in records:
        folder = FOLDERS[record.split]
        mask = f"{TOP}annotations/{folder}/{record.image_id}.png"
        with Image.open(source / mask) as one, Image.open(tmp_path / mask) as two:
            assert one.mode == two.mode == "L"
            np.testing.assert_array_equal(np.array(two), np.array(one))
        image = f"{TOP}images/{folder}/{record.image_id}.jpg"
        assert (tmp_path / image).read_bytes() == (source / image).read_bytes()
    name = f"{TOP}objectInfo150.txt"
    assert (tmp_path / name).read_text() == (source / name).read_text()
    kept = (tmp_path / f"{TOP}sceneCategories.txt").read_text().splitlines()
    assert len(kept) == 3
    assert set(kept) <= set(lines)


def test_classes_and_colours_are_the_benchmarks(shared_data: Path) -> None:
    """objectInfo150.txt and color150.mat, read here, agree with the built-in table."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    source = shared_data / "ade20k/sceneparsing"
    lines = (source / f"{TOP}objectInfo150.txt").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines if line]
    named = {int(row[0]): row[-1].strip() for row in rows}
    space = label_space("ade20k-150")
    assert {c.id: c.name for c in space.classes if c.id} == named
    colours = loadmat(source / "color150.mat")["colors"]
    np.testing.assert_array_equal([c.colour for c in space.classes if c.id], colours)


def test_pairs_by_sorted_name(tmp_path: Path) -> None:
    """A loader that pairs files by sorted name, as training code for ADE20K does, finds them."""
    space = label_space("ade20k-150")
    rows = [
        make_record(random_ids(range(151), SHAPE, n), space, f"{n}/x", "val", ".jpg")
        for n in range(3)
    ]
    rewrite(ADE20K, rows, tmp_path, space)
    images = sorted((tmp_path / f"{TOP}images/validation").rglob("*.jpg"))
    masks = sorted((tmp_path / f"{TOP}annotations/validation").rglob("*.png"))
    assert [p.parent.name for p in images] == [p.parent.name for p in masks] == ["0", "1", "2"]
    for row, image, mask in zip(rows, images, masks, strict=True):
        with Image.open(image) as one, Image.open(mask) as two:
            assert one.size == two.size
            expected = random_ids(range(151), SHAPE, int(row.image_id[0]))
            np.testing.assert_array_equal(np.array(two), expected)
