"""What the files of a full ADE20K release may get wrong: each image fails alone, and says why."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from connectors.ade20k_full import ADE20K_FULL
from pipeline.errors import (
    BadAnnotation,
    CorruptMask,
    InputError,
    LabelOutOfRange,
    LayoutError,
    MissingFile,
    SizeMismatch,
    UnknownColour,
    UnsafePath,
)
from pipeline.files import open_tree
from tests.connectors.ade20k_tree import (
    BASE,
    SHAPE,
    TOP,
    only,
    put_image_2021,
    rgb_of,
    street,
    tail,
)
from tests.connectors.trees import grey, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD = "ADE20K_2016_07_26/images/"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Return a dataset of one image, training/a."""
    put_image_2021(tmp_path / "one", f"{BASE}training/a", street(1))
    return tmp_path / "one"


def set_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def spoil(stem: Path) -> None:
        path = stem.with_name(stem.name + ".json")
        note = json.loads(path.read_text())
        change(note["annotation"])
        path.write_text(json.dumps(note))

    return spoil


def set_first(**values: Any) -> Callable[[Path], object]:
    return set_json(lambda note: note["object"][0].update(values))


BAD: list[tuple[str, Callable[[Path], object], type[InputError], str]] = [
    ("no seg", lambda s: tail(s, "_seg.png").unlink(), MissingFile, "a_seg.png"),
    ("no json", lambda s: tail(s, ".json").unlink(), MissingFile, "a.json"),
    ("no mask", lambda s: (s / "instance_003_a.png").unlink(), MissingFile, "instance_003"),
    ("broken json", lambda s: tail(s, ".json").write_text('{"annot'), BadAnnotation, "not JSON"),
    ("json null", lambda s: tail(s, ".json").write_text("null"), BadAnnotation, "annotation"),
    ("deep json", lambda s: tail(s, ".json").write_text("[" * 100_000), BadAnnotation, "not JSON"),
    ("objects null", set_json(lambda n: n.update(object=None)), BadAnnotation, "list of objects"),
    ("object null", set_json(lambda n: n.update(object=[None])), BadAnnotation, "list of objects"),
    ("no id", set_first(id=None), BadAnnotation, "object 0: id"),
    ("id infinite", set_first(id=float("inf")), BadAnnotation, "object 0: id"),
    ("id huge", set_first(id=10**30), BadAnnotation, "object 0: id"),
    ("class in words", set_first(name_ndx="car"), BadAnnotation, "name_ndx"),
    ("mask is a list", set_first(instance_mask=["a"]), BadAnnotation, "instance_mask"),
    ("mask elsewhere", set_first(instance_mask="../../../x.png"), UnsafePath, "leads out"),
    ("level", set_first(parts={"part_level": 1000}), BadAnnotation, "part_level"),
    ("another size", lambda s: put(s.parent, "a/instance_000_a.png", grey(np.zeros((3, 4)))),
     SizeMismatch, "instance_000"),
    ("odd value", lambda s: put(s.parent, "a/instance_000_a.png", grey(np.ones(SHAPE))),
     LabelOutOfRange, "values 1;"),
    ("grey seg", lambda s: put(s.parent, "a_seg.png", grey(np.ones(SHAPE))), CorruptMask, "grey"),
    ("seg of another size", lambda s: put(s.parent, "a_seg.png", rgb_of(*[street(1)[1:]] * 2)),
     SizeMismatch, "a_seg.png"),
    ("red", lambda s: Image.new("RGB", SHAPE[::-1], (15, 1, 1)).save(tail(s, "_seg.png")),
     UnknownColour, "red is 15"),
    ("parts of another size",
     lambda s: put(s.parent, "a_parts_1.png", rgb_of(*[street(1)[1:]] * 2)), SizeMismatch, "parts"),
    ("unknown part", lambda s: put(s.parent, "a_parts_1.png", rgb_of(*[np.full(SHAPE, 9)] * 2)),
     LabelOutOfRange, "values 9"),
    ("parts cut off", lambda s: put(s.parent, "a_parts_1.png",
     tail(s, "_parts_1.png").read_bytes()[:-20]), CorruptMask, "parts_1"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_files_fail_alone(
    one: Path, spoil: Callable[[Path], object], error: type[InputError], says: str
) -> None:
    put_image_2021(one, f"{BASE}training/good", street(1))
    spoil(one / f"{BASE}training/a")
    tree = open_tree(str(one))
    bad, good = ADE20K_FULL.list(tree, ())
    with pytest.raises(error, match=says):
        ADE20K_FULL.read(tree, bad)
    assert len(ADE20K_FULL.read(tree, good).instances or ()) == 6


@pytest.mark.parametrize("number", [-1, 6, 70_000])
def test_class_numbers_out_of_range(one: Path, number: int) -> None:
    """With an index, a number beyond its list is no class."""
    with (one / TOP / "index_ade20k.pkl").open("wb") as file:
        pickle.dump({"objectnames": ["x"] * 3000}, file)
    set_first(name_ndx=number)(one / f"{BASE}training/a")
    if number == 6:
        assert (only(one).instances or ())[0].category == 6
    else:
        with pytest.raises(LabelOutOfRange, match=f"class number {number}"):
            only(one)


def test_bad_attribute_lines(tmp_path: Path) -> None:
    put_image_2021(tmp_path, f"{OLD}training/a", street(1))
    (tmp_path / f"{OLD}training/a.json").unlink()
    for text in ("001 # 0 # 0", "one # 0 # 0 # sky # sky #", "9999999999 # 0 # 0 # a # a # x"):
        put(tmp_path, f"{OLD}training/a_atr.txt", text)
        (sample,) = ADE20K_FULL.list(open_tree(str(tmp_path)), ())
        with pytest.raises(InputError, match=r"line 1|does not define"):
            ADE20K_FULL.read(open_tree(str(tmp_path)), sample)


def test_sceneparsing_is_another_format(tmp_path: Path) -> None:
    put(tmp_path, "images/training/a.jpg", b"")
    put(tmp_path, "annotations/training/a.png", b"")
    with pytest.raises(LayoutError, match="--format ade20k"):
        list(ADE20K_FULL.list(open_tree(str(tmp_path)), ()))
