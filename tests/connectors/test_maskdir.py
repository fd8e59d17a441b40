"""maskdir: the conformance suite, both layouts, label spaces of any kind."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from connectors.class_table import parse, render
from connectors.maskdir import MASKDIR
from pipeline import masks
from pipeline.errors import CorruptMask, LayoutError, MissingFile, UnknownColour, UnsafePath
from pipeline.files import open_tree
from pipeline.label_space import LABEL_SPACES, LabelClass, LabelSpace, label_space
from pipeline.record import Depth, Instance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import (
    bare,
    contents,
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

    from numpy.typing import NDArray

CLASSES = (
    "id\tname\tr\tg\tb\tisthing\tvoid\n0\tsky\t1\t2\t3\n"
    "7\tear th\t200\t0\t0\n9\tnothing\t0\t0\t0\t\t1\n"
)
SPACE = parse(CLASSES, "classes.tsv")


class TestMaskDir(Conformance):
    """Folders as splits, no splits.tsv: what people have."""

    connector = MASKDIR

    def make_tree(self, root: Path) -> Made:
        splits = {"test": ["c"], "train": ["a.1", "deep/b"], "val": ["a.1"]}
        ids = {}
        for split, names in splits.items():
            for n, name in enumerate(names):
                ids[f"{split}/{name}"] = random_ids((0, 7, 9), (9, 14), n)
                put(root, f"images/{split}/{name}.png", photo((9, 14)))
                put(root, f"masks/{split}/{name}.png", grey(ids[f"{split}/{name}"]))
        put(root, "images/README.txt", "no image")
        put(root, "classes.tsv", CLASSES)
        return Made(splits, ids, "deep/b", "images/train/deep/b.png", "masks/train/deep/b.png")


class TestWithSplitsTable(Conformance):
    """What `write` makes: splits.tsv with all columns, in an order of its own."""

    connector = MASKDIR

    def make_tree(self, root: Path) -> Made:
        rows = ["image_id\tsplit\timage\tmask"]
        splits = {"val": ["z", "b"], "train": ["z"], "unlabelled": ["y"]}
        ids: dict[str, NDArray[Any]] = {}
        for split, names in splits.items():
            for n, name in enumerate(names):
                put(root, f"images/{split}/{name}.jpg", photo((6, 5), ".jpg"))
                ids[f"{split}/{name}"] = np.empty((0, 0))
                mask = "" if split == "unlabelled" else f"{split}/{name}.png"
                if mask:
                    ids[f"{split}/{name}"] = random_ids((0, 7, 9), (6, 5), n)
                    put(root, f"masks/{mask}", grey(ids[f"{split}/{name}"]))
                rows.append(f"{name}\t{split}\t{split}/{name}.jpg\t{mask}")
        put(root, "splits.tsv", "\n".join(rows) + "\n")
        put(root, "classes.tsv", render(SPACE))
        same = ("splits.tsv", "classes.tsv")
        return Made(splits, ids, "b", "images/val/b.jpg", "masks/val/b.png", same)


def flat(root: Path) -> None:
    put(root, "classes.tsv", CLASSES)
    for n, name in enumerate(("a", "b", "c")):
        put(root, f"images/{name}.png", photo((4, 4)))
        put(root, f"masks/{name}.png", grey(random_ids((0, 7), (4, 4), n)))


def test_flat_folders_are_train(tmp_path: Path) -> None:
    flat(tmp_path)
    samples = list(MASKDIR.list(open_tree(str(tmp_path)), ()))
    assert [(s.image_id, s.split) for s in samples] == [(n, "train") for n in "abc"]


def test_small_splits_table_names_ids_only(tmp_path: Path) -> None:
    flat(tmp_path)
    put(tmp_path, "splits.tsv", "split\timage_id\r\nval\tc\r\n\r\ntrain\ta\r\ntest\tgone\r\n")
    tree = open_tree(str(tmp_path))
    samples = list(MASKDIR.list(tree, ()))
    assert [(s.image_id, s.split) for s in samples] == [
        ("c", "val"), ("a", "train"), ("gone", "test"),
    ]  # fmt: skip
    assert MASKDIR.read(tree, samples[0]).split == "val"
    with pytest.raises(MissingFile, match="gone"):
        MASKDIR.read(tree, samples[2])


def test_mask_without_image_is_not_overlooked(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "images/b.png").unlink()
    tree = open_tree(str(tmp_path))
    samples = list(MASKDIR.list(tree, ()))
    assert sorted(s.image_id for s in samples) == ["a", "b", "c"]
    with pytest.raises(MissingFile, match=r"images/b\.png"):
        MASKDIR.read(tree, samples[-1])


def test_test_images_may_lack_masks(tmp_path: Path) -> None:
    put(tmp_path, "classes.tsv", CLASSES)
    put(tmp_path, "images/testing/a.png", photo((4, 4)))
    tree = open_tree(str(tmp_path))
    (sample,) = MASKDIR.list(tree, ["test"])
    assert MASKDIR.read(tree, sample).mask is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("splits.tsv", "image\tpart\na\ttrain\n"),
        ("splits.tsv", "image_id\tsplit\na\ttomato\n"),
        ("classes.tsv", "id\tname\n0\tsky\n"),
        ("classes.tsv", "id\tname\tr\tg\tb\n0\tsky\t1\t2\tblue\n"),
        ("classes.tsv", "id\tname\tr\tg\tb\n0\tsky\t1\t2\t3\n0\tsea\t1\t2\t3\n"),
        ("classes.tsv", "id\tname\tr\tg\tb\n0\tsky\t1\t2\t300\n"),
        ("classes.tsv", ""),
    ],
)
def test_malformed_tables(tmp_path: Path, name: str, text: str) -> None:
    flat(tmp_path)
    put(tmp_path, name, text)
    tree = open_tree(str(tmp_path))
    with pytest.raises(LayoutError, match=name):
        [MASKDIR.read(tree, sample) for sample in MASKDIR.list(tree, ())]


def test_names_in_tables_do_not_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(tmp_path, "secret.png", photo((4, 4)))
    flat(root)
    rows = ["image_id\tsplit\timage\tmask", "x\ttrain\t../../secret.png\ta.png"]
    rows += ["y\ttrain\ta.png\t../../secret.png", "z\ttrain\t/etc/passwd\ta.png"]
    put(root, "splits.tsv", "\n".join(rows))
    tree = open_tree(str(root))
    errors = []
    for sample in MASKDIR.list(tree, ()):
        with pytest.raises((UnsafePath, MissingFile)) as caught:
            MASKDIR.read(tree, sample)
        errors.append(caught.type)
    assert errors[:2] == [UnsafePath, UnsafePath]


def test_colour_masks_follow_the_table(tmp_path: Path) -> None:
    flat(tmp_path)
    ids = random_ids((0, 7, 9), (4, 4), 1)
    colours = np.zeros((256, 3), np.uint8)
    colours[[0, 7, 9]] = [(1, 2, 3), (200, 0, 0), (0, 0, 0)]
    put(tmp_path, "masks/a.png", rgb_png(colours[ids]))
    put(tmp_path, "masks/b.png", rgb_png(colours[ids] + 1))
    tree = open_tree(str(tmp_path))
    good, bad, _ = MASKDIR.list(tree, ())
    record = MASKDIR.read(tree, good)
    assert record.mask is not None
    np.testing.assert_array_equal(masks.decode(record.mask.bytes or b""), ids)
    with pytest.raises(UnknownColour, match=r"\(2, 3, 4\)"):
        MASKDIR.read(tree, bad)


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_every_built_in_space_comes_back(tmp_path: Path, name: str) -> None:
    space = label_space(name)
    every = np.array([sorted({*space.ids, space.ignore_index})], space.dtype)
    record = make_record(every, space, "all", "train")
    rewrite(MASKDIR, [record], tmp_path, space)
    tree = open_tree(str(tmp_path))
    assert MASKDIR.label_spaces(tree) == (space,)
    (sample,) = MASKDIR.list(tree, ())
    assert bare(MASKDIR.read(tree, sample)).mask == bare(record).mask
    again = tmp_path / "again"
    rewrite(MASKDIR, [MASKDIR.read(tree, sample)], again, space)
    assert contents(again) == {
        name: data for name, data in contents(tmp_path).items() if not name.startswith("again")
    }


COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def label_spaces(draw: st.DrawFn) -> LabelSpace:
    ids = draw(st.lists(st.integers(0, 65535), min_size=1, max_size=8, unique=True))
    texts = st.text(st.characters(codec="utf-8"), max_size=12)
    names = draw(st.lists(texts, min_size=len(ids), max_size=len(ids), unique=True))
    classes = tuple(
        LabelClass(i, n, draw(COLOURS), draw(st.none() | st.booleans()), draw(st.booleans()))
        for i, n in zip(ids, names, strict=True)
    )
    name = draw(st.text("abc-0123 :\t#", min_size=1).filter(lambda t: t == t.strip()))
    return LabelSpace(name, classes, draw(st.integers(0, 65535)))


@settings(max_examples=60, deadline=None)
@given(label_spaces())
def test_class_table_comes_back(space: LabelSpace) -> None:
    assert parse(render(space), "classes.tsv") == space


def test_class_table_without_a_name_is_named_by_its_content() -> None:
    other = parse(CLASSES.replace("ear th", "earth"), "classes.tsv")
    assert SPACE.name != other.name
    assert parse(CLASSES, "elsewhere.tsv") == SPACE
    assert SPACE.ignore_index == 9
    assert parse(CLASSES.replace("\t\t1\n", "\n"), "classes.tsv").ignore_index == 255


def test_class_table_cannot_pose_as_a_built_in_space() -> None:
    text = render(label_space("camvid-11")).replace("Sky", "Heaven")
    assert parse(text, "classes.tsv").name.startswith("camvid-11-")


def test_other_columns_are_counted_as_lost(tmp_path: Path) -> None:
    record = make_record(np.zeros((4, 4), np.uint8), label_space("voc-21"), "a", "train")
    rich = replace(
        record,
        instances=(Instance(1, 1, None, None), Instance(2, 1, None, None)),
        image_labels=(1,),
        depth=Depth(bytes=b"x"),
        confidence=record.mask,
    )
    (written,) = rewrite(MASKDIR, [rich], tmp_path, label_space("voc-21"))
    assert written.loss == {"instances": 2, "image_labels": 1, "depth": 1, "confidence": 1}


def test_grey_mask_with_alpha_is_refused(tmp_path: Path) -> None:
    flat(tmp_path)
    Image.new("LA", (4, 4)).save(tmp_path / "masks/a.png")
    tree = open_tree(str(tmp_path))
    sample = next(iter(MASKDIR.list(tree, ())))
    with pytest.raises(CorruptMask, match="alpha"):
        MASKDIR.read(tree, sample)
