"""CVAT: the conformance suite, its run lengths judged by brute force, corrections, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from connectors import cvat_xml as xml
from connectors.cvat import CVAT
from pipeline import masks
from pipeline.errors import BadAnnotation, LayoutError, MissingFile, SizeMismatch, UnsafePath
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.record import Instance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools

SHAPE = (10, 14)
LABELS = (("cat", "#ff0000"), ("a & b", "#00ff00"), ("void", "#000000"))


def runs_of(region: NDArray[Any]) -> str:
    """Row by row, starting with zeros: counted pixel by pixel."""
    runs, value = [0], 0
    for pixel in region.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return ", ".join(map(str, runs))


def drawn(text: str, height: int, width: int) -> NDArray[np.uint8]:
    """The reverse, written from CVAT's documentation."""
    flat: list[int] = []
    for place, run in enumerate(text.split(",")):
        flat += [place % 2] * int(run)
    return np.array(flat, np.uint8).reshape(height, width)


def mask(label: str, region: NDArray[Any], at: tuple[int, int] = (0, 0), **more: Any) -> str:
    said = {"label": label, "rle": runs_of(region), "top": at[0], "left": at[1]}
    said |= {"height": region.shape[0], "width": region.shape[1], "occluded": 0} | more
    return element("mask", said)


def polygon(label: str, points: str, **more: Any) -> str:
    return element("polygon", {"label": label, "points": points, "occluded": 1} | more)


def element(tag: str, said: dict[str, Any], inner: str = "") -> str:
    made = ElementTree.Element(tag, {key: str(value) for key, value in said.items()})
    return ElementTree.tostring(made, encoding="unicode").replace(" />", f">{inner}</{tag}>")


def image(number: int, name: str, *shapes: str, **more: Any) -> str:
    said = {"id": number, "name": name, "width": SHAPE[1], "height": SHAPE[0]} | more
    return element("image", said, "\n".join(shapes))


def document(*images: str, labels: tuple[tuple[str, str], ...] = LABELS, extra: str = "") -> str:
    named = "".join(
        f"<label>{element('name', {}, name.replace('&', '&amp;'))}<color>{colour}</color>"
        "<type>any</type><attributes/></label>"
        for name, colour in labels
    )
    meta = f"<meta><task><id>7</id><name>t</name><labels>{named}</labels></task></meta>"
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<annotations><version>1.1</version>{meta}{extra}{''.join(images)}</annotations>"
    )


class TestCvat(Conformance):
    connector = CVAT
    own_classes = True

    def make_tree(self, root: Path) -> Made:
        ring = np.ones((4, 5), np.uint8)
        ring[1:3, 1:4] = 0
        attribute = '<attribute name="kind">x &lt; y</attribute>'
        first = [
            polygon("cat", "1,1;9,1;9,6;1,6", z_order=2),
            mask("a & b", ring, (0, 2), z_order=1, source="semi-auto").replace(
                "</mask>", attribute + "</mask>"
            ),
            mask("void", np.ones((2, 2), np.uint8), (8, 12)),
            element("points", {"label": "cat", "points": "1,1;2,2", "occluded": 0}),
            element("box", {"label": "cat", "xtl": 1.5, "ytl": 2, "xbr": 4, "ybr": 5}),
        ]
        second = [
            polygon("a & b", "0,0;3,0;3,3;0,3", group_id=4),
            polygon("a & b", "10,5;13,5;13,9;10,9", group_id=4),
            polygon("cat", "0,9;14,9;14,10;0,10", group_id=4),
        ]
        text = document(
            image(5, "train/b.png", *first),
            image(0, "a.png", *second, subset="Train"),
            image(1, "val/street/c.png", mask("cat", np.ones(SHAPE, np.uint8))),
            image(2, "unlabelled/d.png"),
        )
        put(root, "annotations.xml", text)
        for name in ("train/b", "Train/a", "val/street/c", "unlabelled/d"):
            put(root, f"images/{name}.png", photo(SHAPE))
        one, two = (np.full(SHAPE, 2, np.uint8) for _ in range(2))
        one[0:4, 2:7] = np.where(ring == 1, 1, one[0:4, 2:7])
        one[1:6, 1:9] = 0
        two[0:3, 0:3] = two[5:9, 10:13] = 1
        two[9:, :] = 0
        ids: dict[str, NDArray[Any]] = {
            "train/b": one,
            "train/a": two,
            "val/street/c": np.zeros(SHAPE, np.uint8),
            "unlabelled/d": np.empty(0),
        }
        splits = {"train": ["b", "a"], "val": ["street/c"], "unlabelled": ["d"]}
        return Made(splits, ids, "b", "images/train/b.png")

    def test_objects_are_shapes_and_groups(self, root: Path, made: Made) -> None:
        tree = open_tree(str(root))
        first, second = (r for r in self.records(tree) if r.split == "train")
        assert [(i.id, i.category, bool(i.rle)) for i in first.instances or ()] == [
            (1, 0, True), (2, 1, True), (3, 0, False),
        ]  # fmt: skip
        assert (first.instances or ())[2].bbox == (1.5, 2, 2.5, 3)
        assert [(i.category, i.area) for i in second.instances or ()] == [(1, 21), (0, 14)]

    def test_what_others_say_comes_back(self, root: Path, made: Made, tmp_path: Path) -> None:
        tree = open_tree(str(root))
        rewrite(CVAT, self.records(tree), tmp_path / "b", self.space(tree))
        one = ElementTree.parse(root / "annotations.xml").getroot().findall("image")
        two = ElementTree.parse(tmp_path / "b/annotations.xml").getroot().findall("image")
        for old, new in zip(one, two, strict=True):
            kept = [e for e in old if e.get("label") != "void"]
            assert len(kept) <= len(new)
            found = {said(e) for e in new}
            assert {said(e) for e in kept if e.tag != "mask"} <= found
        attribute = two[0].find("mask/attribute")
        assert attribute is not None
        assert (attribute.get("name"), attribute.text) == ("kind", "x < y")


def said(node: ElementTree.Element) -> tuple[str, tuple[tuple[str, str], ...]]:
    return node.tag, tuple(sorted(node.attrib.items()))


# Run lengths


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)), st.data())
def test_run_lengths_are_those_of_the_documentation(
    region: NDArray[np.bool_], data: st.DataObject
) -> None:
    text = xml.encode_mask(region)
    assert text == runs_of(region)
    np.testing.assert_array_equal(drawn(text, *region.shape), region)
    top, left = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    height, width = (side + 3 for side in region.shape)
    said = {"rle": text, "left": str(left), "top": str(top)}
    said |= {"height": str(region.shape[0]), "width": str(region.shape[1])}
    counts = xml.decode_mask(["mask", said, None, []], (height, width), "x")
    whole = np.zeros((height, width), np.uint8)
    whole[top : top + region.shape[0], left : left + region.shape[1]] = region
    judged = coco_mask.decode({"size": [height, width], "counts": counts.encode()})
    np.testing.assert_array_equal(judged, whole)


# What other formats hold


def test_overlapping_objects_keep_their_pixels(tmp_path: Path) -> None:
    """The smaller lies on the larger, and a hole shows what is below."""
    space = label_space("voc-21")
    large, small = np.zeros((2, *SHAPE), np.uint8)
    large[1:9, 1:12], large[4:6, 4:6] = 1, 0
    small[2:5, 2:6] = 1
    objects = [Instance(n, c, None, None, rle=masks.rle_encode(m)) for n, c, m in
               ((1, 3, small), (2, 7, large))]  # fmt: skip
    blank = make_record(np.zeros(SHAPE, np.uint8), space, "x", "val")
    record = replace(blank, mask=None, classes=None, instances=tuple(objects))
    assert [w.loss for w in rewrite(CVAT, [record], tmp_path, space)] == [{}]
    (node,) = ElementTree.parse(tmp_path / "annotations.xml").getroot().findall("image")
    shapes = node.findall("mask")
    assert [int(s.get("z_order", "")) for s in shapes] == [1, 0]
    for shape, region in zip(shapes, (small, large), strict=True):
        box = [int(shape.get(k, "")) for k in ("top", "left", "height", "width")]
        found = np.zeros(SHAPE, np.uint8)
        rows, columns = slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3])
        found[rows, columns] = drawn(shape.get("rle", ""), box[2], box[3])
        np.testing.assert_array_equal(found, region)
    (back,) = read_all(tmp_path)
    assert [(i.category, i.rle) for i in back.instances or ()] == [
        (i.category, i.rle) for i in objects
    ]


def test_losses_are_counted(tmp_path: Path) -> None:
    space = label_space("camvid-11")
    ids = np.zeros(SHAPE, np.uint8)
    ids[3:6], ids[7:] = 4, 11
    region = masks.rle_encode((ids == 4).astype(np.uint8))
    objects = (
        Instance(1, 4, None, None, True, region, 0.5),
        Instance(2, 4, None, None, extra='{"part_of": 1}', rle=region),
        Instance(3, 4, None, None),
    )
    record = replace(make_record(ids, space, "x", "test"), instances=objects)
    (written,) = rewrite(CVAT, [record], tmp_path, space)
    assert written.loss == {
        "parts_of_objects": 1,
        "crowds": 1,
        "scores": 1,
        "objects_from_mask_regions": 1,
        "objects_of_no_place": 1,
    }
    (back,) = read_all(tmp_path)
    assert back.mask is not None
    np.testing.assert_array_equal(masks.decode(back.mask.bytes or b""), ids)


def test_labels_for_the_task(tmp_path: Path) -> None:
    space = label_space("camvid-11")
    rewrite(CVAT, [make_record(np.zeros(SHAPE, np.uint8), space, "x", "val")], tmp_path, space)
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert [(n["name"], n["color"]) for n in labels] == [
        (c.name, "#{:02x}{:02x}{:02x}".format(*c.colour)) for c in space.classes
    ]
    size = ElementTree.parse(tmp_path / "annotations.xml").getroot().findtext("meta/task/size")
    assert size == "1"


def test_names_tell_a_built_in_space(tmp_path: Path) -> None:
    """CVAT's own export has no class table."""
    space = label_space("camvid-11")
    ids = np.arange(140, dtype=np.uint8).reshape(SHAPE) % 12
    rewrite(CVAT, [make_record(ids, space, "x", "val")], tmp_path, space)
    (tmp_path / "classes.tsv").unlink()
    assert CVAT.label_spaces(open_tree(str(tmp_path))) == (space,)
    (back,) = read_all(tmp_path)
    np.testing.assert_array_equal(masks.decode((back.mask and back.mask.bytes) or b""), ids)


# Bad input


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [CVAT.read(tree, sample) for sample in CVAT.list(tree, ())]


def outcomes(root: Path) -> list[str]:
    tree, found = open_tree(str(root)), []
    for sample in CVAT.list(tree, ()):
        try:
            CVAT.read(tree, sample)
            found.append("good")
        except (BadAnnotation, MissingFile, SizeMismatch, UnsafePath) as error:
            found.append(f"{type(error).__name__}: {error.cause}")
    return found


ONE = np.ones((2, 2), np.uint8)


@pytest.mark.parametrize(
    ("shape", "cause"),
    [
        (mask("cat", ONE, rle="1, 2"), "add up to 3, not to 2x2"),
        (mask("cat", ONE, rle="-1, 5"), "add up to"),
        (mask("cat", ONE, rle="0, x"), "no list of numbers"),
        (mask("cat", ONE, rle=""), "no list of numbers"),
        (mask("cat", ONE, rle="0, " + "9" * 5000), "no list of numbers"),
        (mask("cat", ONE, at=(9, 0)), "in an image of 14x10"),
        (mask("cat", ONE, left="two"), "no whole number"),
        (mask("cat", ONE, width=10**9, height=10**9), "in an image of"),
        (polygon("cat", "1,1;2,2"), "fewer than 3 points"),
        (polygon("cat", "1,1;2,2;3"), "fewer than 3 points"),
        (polygon("cat", "1,1;2,2;nan,3"), "far outside"),
        (polygon("cat", "20,20;30,20;30,30"), "outside the image"),
        (polygon("cat", "1,1;5,1;5,1e30"), "far outside"),
        (polygon("dog", "1,1;5,1;5,5"), "label 'dog' is not a class"),
        (element("box", {"label": "cat", "xtl": 1, "ytl": 2, "xbr": 0, "ybr": 5}), "a box from"),
        (element("box", {"label": "cat", "xtl": 1}), "no number"),
        (polygon("cat", "1,1;5,1;5,5", z_order="top"), "no whole number"),
    ],
)
def test_a_bad_shape_is_its_image_s_error(tmp_path: Path, shape: str, cause: str) -> None:
    good = polygon("cat", "1,1;5,1;5,5")
    put(tmp_path, "annotations.xml", document(image(0, "a.png", good), image(1, "b.png", shape)))
    for name in ("a", "b"):
        put(tmp_path, f"images/{name}.png", photo(SHAPE))
    first, second = outcomes(tmp_path)
    assert first == "good"
    assert cause in second


@pytest.mark.parametrize("keep", [0.6, 0.8, 0.999])
def test_a_file_that_is_cut_off_loses_its_end_only(tmp_path: Path, keep: float) -> None:
    shapes = [polygon("cat", "1,1;5,1;5,5")] * 20
    images = [image(n, f"{n}.png", *shapes) for n in range(10)]
    text = document(*images)
    put(tmp_path, "annotations.xml", text[: int(keep * len(text))])
    for n in range(10):
        put(tmp_path, f"images/{n}.png", photo(SHAPE))
    *whole, last = outcomes(tmp_path)
    assert whole == ["good"] * len(whole)
    assert len(whole) == text[: int(keep * len(text))].count("</image>")
    assert "cut off" in last


def test_names_and_sizes_that_do_not_fit(tmp_path: Path) -> None:
    put(tmp_path / "set", "images/a.png", photo(SHAPE))
    put(tmp_path, "secret.png", photo(SHAPE))
    text = document(
        image(0, "a.png"), image(1, "../../secret.png"), image(2, "a.png"), image(3, "gone.png"),
        image(4, "images/a.png", width=3), "<image id='5'/>",
    )  # fmt: skip
    put(tmp_path / "set", "annotations.xml", text)
    found = outcomes(tmp_path / "set")
    assert found[0] == "good"
    kinds = [line.partition(":")[0] for line in found[1:]]
    assert kinds == [
        "UnsafePath", "BadAnnotation", "MissingFile", "SizeMismatch", "BadAnnotation",
    ]  # fmt: skip


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotations><meta><task><labels><label><name>&b;</name></label></labels></task></meta>"
    "</annotations>"
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (BOMB, "Entit"),
        ("", "cut off"),
        ("<annotation/>", "not of <annotations>"),
        (document()[:100], "cut off"),
        ("<annotations><version>1.1</version></annotations>", "no <meta>"),
        (document(extra='<track id="0" label="cat"/>'), "video"),
        (document(labels=(("x", "#000000"),) * 2), "good"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, text: str, cause: str) -> None:
    put(tmp_path, "annotations.xml", text)
    if cause == "good":
        assert read_all(tmp_path) == []
        return
    with pytest.raises(LayoutError, match=cause):
        read_all(tmp_path)
