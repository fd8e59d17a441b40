"""CamVid: the conformance suite on both editions, and the real files."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from connectors.camvid import CAMVID, CAMVID_11, segnet_split
from pipeline import masks
from pipeline.errors import MissingFile, UnknownColour, UnsafePath, UsageError
from pipeline.files import open_tree
from pipeline.label_space import LabelClass, LabelSpace, label_space
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import grey, make_record, photo, put, random_ids, rewrite, rgb_png

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (12, 16)
COLOURS = np.array([c.colour for c in label_space("camvid-32").classes], np.uint8)
FRAMES = {
    "test": ["Seq05VD_f00000"],
    "train": ["0001TP_006690", "0016E5_00390"],
    "val": ["0016E5_07959"],
}


def segnet_lines(split: str, names: list[str]) -> str:
    base = "/SegNet/CamVid"
    return "".join(f"{base}/{split}/{n}.png {base}/{split}annot/{n}.png\n" for n in names)


class TestCamVid11(Conformance):
    connector = CAMVID_11

    def make_tree(self, root: Path) -> Made:
        ids = {}
        splits = {split: FRAMES[split] for split in ("train", "val", "test")}
        for split, names in splits.items():
            put(root, f"{split}.txt", segnet_lines(split, names))
            for n, name in enumerate(names):
                ids[f"{split}/{name}"] = random_ids(range(12), SHAPE, n)
                put(root, f"{split}/{name}.png", photo(SHAPE))
                put(root, f"{split}annot/{name}.png", grey(ids[f"{split}/{name}"]))
        name = "0016E5_00390"
        same = ("train.txt", "val.txt", "test.txt")
        return Made(splits, ids, name, f"train/{name}.png", f"trainannot/{name}.png", same)


class TestCamVid11OutOfOrder(TestCamVid11):
    """A list that is not sorted keeps its order."""

    def make_tree(self, root: Path) -> Made:
        made = super().make_tree(root)
        names = made.splits["train"][::-1]
        put(root, "train.txt", segnet_lines("train", names))
        return replace(made, splits=made.splits | {"train": names})


class TestCamVid(Conformance):
    connector = CAMVID
    stray_error = UnknownColour

    def make_tree(self, root: Path) -> Made:
        ids = {}
        order = sorted((name, split) for split, names in FRAMES.items() for name in names)
        splits: dict[str, list[str]] = {}
        for n, (name, split) in enumerate(order):
            splits.setdefault(split, []).append(name)
            ids[f"{split}/{name}"] = random_ids(range(32), SHAPE, n)
            put(root, f"701_StillsRaw_full/{name}.png", photo(SHAPE))
            label = rgb_png(COLOURS[ids[f"{split}/{name}"]])
            put(root, f"LabeledApproved_full/{name}_L.png", label)
        name = "0016E5_07959"
        image = f"701_StillsRaw_full/{name}.png"
        return Made(splits, ids, name, image, f"LabeledApproved_full/{name}_L.png")

    def spoil(self, mask: Path) -> None:
        Image.new("RGB", SHAPE[::-1], (1, 2, 3)).save(mask)


def test_names_below_lists_do_not_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "set"
    TestCamVid11().make_tree(root)
    put(tmp_path, "secret.png", photo(SHAPE))
    put(root, "train.txt", segnet_lines("train", ["../../secret"]))
    tree = open_tree(str(root))
    (sample,) = CAMVID_11.list(tree, ["train"])
    with pytest.raises(UnsafePath):
        CAMVID_11.read(tree, sample)


@pytest.mark.parametrize(
    "line",
    [
        "train/a b.png trainannot/a b.png",
        "/home/someone/train/CamVid/train/a b.png\t/home/someone/CamVid/trainannot/a b.png\r",
        "  train/a b.png   trainannot/a b.png  ",
    ],
)
def test_other_prefixes_in_lists(tmp_path: Path, line: str) -> None:
    put(tmp_path, "train.txt", line + "\n\n")
    put(tmp_path, "train/a b.png", photo(SHAPE))
    put(tmp_path, "trainannot/a b.png", grey(np.full(SHAPE, 3)))
    tree = open_tree(str(tmp_path))
    (sample,) = CAMVID_11.list(tree, ())
    assert sample.image_id == "a b"
    assert [(c.id, c.pixels) for c in CAMVID_11.read(tree, sample).classes or ()] == [(3, 192)]


def test_split_without_a_list(tmp_path: Path) -> None:
    TestCamVid11().make_tree(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"unlabelled\.txt"):
        list(CAMVID_11.list(open_tree(str(tmp_path)), ["unlabelled"]))


def test_frames_without_masks_stay_in_their_list(tmp_path: Path) -> None:
    record = make_record(None, label_space("camvid-11"), "a", "val")
    rewrite(CAMVID_11, [record], tmp_path, label_space("camvid-11"))
    assert (tmp_path / "val.txt").read_text() == "/SegNet/CamVid/val/a.png\n"
    tree = open_tree(str(tmp_path))
    (sample,) = CAMVID_11.list(tree, ["val"])
    assert CAMVID_11.read(tree, sample).mask is None


def test_stray_colours_are_ignored_and_counted(tmp_path: Path) -> None:
    name, pixels = "0016E5_07959", np.zeros((40, 50, 3), np.uint8)
    pixels[:] = (128, 64, 128)
    pixels[3, 4], pixels[5, 6] = (192, 0, 65), (1, 1, 1)
    put(tmp_path, f"701_StillsRaw_full/{name}.png", photo((40, 50)))
    put(tmp_path, f"LabeledApproved_full/{name}_L.png", rgb_png(pixels))
    tree = open_tree(str(tmp_path))
    (sample,) = CAMVID.list(tree, ())
    record = CAMVID.read(tree, sample)
    assert record.extra == '{"unknown_colours": {"1,1,1": 1, "192,0,65": 1}}'
    assert {c.id: c.pixels for c in record.classes or ()} == {17: 1998, 30: 2}
    pixels[0, :1] = (1, 1, 1)
    put(tmp_path, f"LabeledApproved_full/{name}_L.png", rgb_png(pixels))
    with pytest.raises(UnknownColour, match=r"\(1, 1, 1\) on 2 pixels, \(192, 0, 65\) on 1 pixels"):
        CAMVID.read(tree, sample)


def test_lists_beside_the_original_release_decide(tmp_path: Path) -> None:
    TestCamVid().make_tree(tmp_path)
    put(tmp_path, "val.txt", "0001TP_006690\n")
    put(tmp_path, "test.txt", segnet_lines("test", ["0016E5_07959"]))
    splits = {s.image_id: s.split for s in CAMVID.list(open_tree(str(tmp_path)), ())}
    assert splits == {
        "0001TP_006690": "val", "0016E5_07959": "test",
        "0016E5_00390": "train", "Seq05VD_f00000": "test",
    }  # fmt: skip


def test_class_colours_are_written_as_the_release_does(tmp_path: Path, shared_data: Path) -> None:
    rewrite(CAMVID, [], tmp_path, label_space("camvid-32"))
    real = (shared_data / "camvid/full32/label_colors.txt").read_text()
    assert (tmp_path / "label_colors.txt").read_text() == real
    assert not (tmp_path / "classes.tsv").exists()


def test_spaces_that_a_format_cannot_hold(tmp_path: Path) -> None:
    wide = label_space("nyu-894")
    record = make_record(np.full((2, 2), 700, np.uint16), wide, "a", "train")
    with pytest.raises(UsageError, match="8 bits"):
        rewrite(CAMVID_11, [record], tmp_path, wide)
    twins = LabelSpace("twins", (LabelClass(0, "a", (1, 1, 1)), LabelClass(1, "b", (1, 1, 1))), 2)
    record = make_record(np.zeros((2, 2), np.uint8), twins, "a", "train")
    with pytest.raises(UsageError, match="same"):
        rewrite(CAMVID, [record], tmp_path, twins)


def test_split_rule_is_segnets(shared_data: Path) -> None:
    for split in ("train", "val", "test"):
        names = (shared_data / f"camvid/segnet/CamVid/{split}.txt").read_text().split()[::2]
        stems = [name.rpartition("/")[2].removesuffix(".png") for name in names]
        assert {segnet_split(stem) for stem in stems} == {split}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.array(image)


def test_real_camvid_11_comes_back(shared_data: Path, tmp_path: Path) -> None:
    """All 701 frames: lists byte for byte, masks pixel for pixel, images as they are."""
    source = shared_data / "camvid/segnet/CamVid"
    tree = open_tree(str(source.parent))
    samples = list(CAMVID_11.list(tree, ()))
    assert {s.split: sum(t.split == s.split for t in samples) for s in samples} == {
        "train": 367, "val": 101, "test": 233,
    }  # fmt: skip
    records = (CAMVID_11.read(tree, sample) for sample in samples)
    written = rewrite(CAMVID_11, records, tmp_path, label_space("camvid-11"))
    assert all(w.loss == {} for w in written)
    for split in ("train", "val", "test"):
        one, two = source / f"{split}.txt", tmp_path / f"{split}.txt"
        assert two.read_bytes() == one.read_bytes()
    for s in samples:
        mask, image = f"{s.split}annot/{s.image_id}.png", f"{s.split}/{s.image_id}.png"
        assert np.array_equal(pixels_of(tmp_path / mask), pixels_of(source / mask)), mask
        assert (tmp_path / image).read_bytes() == (source / image).read_bytes()


def test_real_camvid_32(shared_data: Path, tmp_path: Path) -> None:
    """Two frames with labels come back in colour; eighteen labels lack their frame."""
    source = shared_data / "camvid/full32"
    tree = open_tree(str(source))
    samples = list(CAMVID.list(tree, ()))
    assert len(samples) == 20
    records = []
    for sample in samples:
        if (source / f"701_StillsRaw_full/{sample.image_id}.png").exists():
            records.append(CAMVID.read(tree, sample))
        else:
            with pytest.raises(MissingFile, match=sample.image_id):
                CAMVID.read(tree, sample)
    assert len(records) == 2
    rewrite(CAMVID, records, tmp_path, label_space("camvid-32"))
    for record in records:
        name = f"LabeledApproved_full/{record.image_id}_L.png"
        with Image.open(source / name) as one, Image.open(tmp_path / name) as two:
            np.testing.assert_array_equal(np.array(two), np.array(one))


def test_real_32_classes_agree_with_segnets_11(shared_data: Path) -> None:
    """The full-size labels under SegNet's table, shrunk by nearest pixel, are nearly its masks."""
    from pipeline.label_space import find_remap

    remap = find_remap(label_space("camvid-32"), label_space("camvid-11"))
    tree = open_tree(str(shared_data / "camvid/full32"))
    for sample in [s for s in CAMVID.list(tree, ()) if s.fingerprint != "missing"]:
        record = CAMVID.read(tree, sample)
        assert record.mask is not None
        ids = remap.apply(masks.decode(record.mask.bytes or b""))
        segnet = shared_data / f"camvid/segnet/CamVid/valannot/{sample.image_id}.png"
        agree = (ids[::2, ::2] == pixels_of(segnet)).mean()
        assert agree > 0.97


def test_jpeg_frames_become_png(tmp_path: Path) -> None:
    record = make_record(np.zeros(SHAPE, np.uint8), label_space("camvid-11"), "a", "train", ".jpg")
    (written,) = rewrite(CAMVID_11, [record], tmp_path, label_space("camvid-11"))
    assert written.loss == {}
    with (
        Image.open(tmp_path / "train/a.png") as png,
        Image.open(io.BytesIO(record.image.bytes or b"")) as jpeg,
    ):
        assert png.format == "PNG"
        difference = np.array(png).astype(int) - np.array(jpeg)
        assert abs(difference).max() <= 2  # OpenCV's and Pillow's JPEG decoders round differently
