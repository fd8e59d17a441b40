"""VOC: numbered objects, annotations, and records that come from other formats."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torchvision.datasets import VOCDetection

from connectors.voc import VOC
from pipeline import masks
from pipeline.errors import (
    BadAnnotation,
    CorruptMask,
    SizeMismatch,
)
from pipeline.label_space import label_space
from pipeline.record import Instance
from tests.connectors.trees import (
    bare,
    make_record,
    palette,
    photo,
    put,
    rewrite,
    rgb_png,
)
from tests.connectors.voc_tree import (
    HOME,
    PALETTE,
    SHAPE,
    SPACE,
    canonical,
    indices,
    put_list,
    read_all,
    write_tree,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.record import Record


object_maps = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 5, 254, 255]))
small_maps = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 7, 15, 20, 255]))
names = st.lists(st.sampled_from(["person", "car", "tomato"]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(small_maps, object_maps, names, st.booleans())
def test_any_objects_and_names_come_back(
    ids: NDArray[np.uint8], numbers: NDArray[np.uint8], named: list[str], alike: bool
) -> None:
    """Object numbers, void and XML order survive, whether maps and XML agree or not."""
    if alike:
        numbers = np.where(ids == 255, 255, np.where(numbers == 255, 0, numbers)).astype(np.uint8)
    boxes = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    objects = "".join(f"<object><name>{n}</name>{boxes}</object>" for n in named)
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        put(one, f"{HOME}/JPEGImages/a.jpg", photo((6, 7), ".jpg"))
        put(one, f"{HOME}/SegmentationClass/a.png", palette(ids, PALETTE))
        put(one, f"{HOME}/SegmentationObject/a.png", palette(numbers, PALETTE))
        xml = f"<annotation><a/>{objects}<z>1</z></annotation>"
        put(one, f"{HOME}/Annotations/a.xml", xml)
        put_list(one, "Segmentation/val", ["a"])
        (record,) = read_all(one)
        (written,) = rewrite(VOC, [record], two, SPACE)
        assert written.loss == {}
        assert np.array_equal(indices(two / HOME / "SegmentationClass/a.png"), ids)
        assert np.array_equal(indices(two / HOME / "SegmentationObject/a.png"), numbers)
        assert canonical(two / HOME / "Annotations/a.xml") == ElementTree.canonicalize(xml)
        assert [bare(r) for r in read_all(two)] == [bare(record)]
    drawn = [i.id for i in record.instances or () if i.rle]
    assert drawn == [n for n in np.unique(numbers).tolist() if n not in (0, 255)]
    assert len({i.id for i in record.instances or ()}) == len(record.instances or ())


def test_object_of_xml_and_of_map_are_one_where_they_agree(tmp_path: Path) -> None:
    made = write_tree(tmp_path)
    ids = np.zeros(SHAPE, np.uint8)
    ids[2:5, 3:7] = 15
    put(tmp_path, made.mask or "", palette(ids, PALETTE))
    objects = (made.mask or "").replace("Class", "Object")
    put(tmp_path, objects, palette((ids == 15).astype(np.uint8), PALETTE))
    record = next(r for r in read_all(tmp_path) if r.image_id == made.sample)
    person, tomato = record.instances or ()
    assert (person.id, person.category, person.area) == (1, 15, 12)
    assert person.bbox == (3, 2, 4, 3)
    assert ["pose", "Left"] in json.loads(person.extra or "")["object"]
    assert (tomato.id, tomato.category, tomato.rle, tomato.bbox) == (2, 255, None, None)


def test_boxes_count_from_one(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for file in (tmp_path / HOME / "SegmentationObject").iterdir():
        file.unlink()
    record = read_all(tmp_path, "val")[0]
    assert [i.bbox for i in record.instances or ()] == [(1, 0, 3, 6), None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not xml",
        "<annotation><object></annotation>",
        "<html></html>",
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
        "<annotation>" + "<a>" * 50 + "</a>" * 50 + "</annotation>",
        "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>",
        "<annotation><object><bndbox><xmin>x</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax>"
        "</bndbox></object></annotation>",
        *(
            f"<annotation><object><bndbox><xmin>1</xmin><ymin>{n}</ymin><xmax>3</xmax>"
            "<ymax>3</ymax></bndbox></object></annotation>"
            for n in ("nan", "-inf", "1e999", "1e308")
        ),
    ],
)
def test_bad_annotations(tmp_path: Path, text: str) -> None:
    write_tree(tmp_path, objects=False)
    put(tmp_path, f"{HOME}/Annotations/2008_1.xml", text)
    with pytest.raises(BadAnnotation, match=r"2008_1\.xml"):
        read_all(tmp_path, "val")


def test_bad_object_maps(tmp_path: Path) -> None:
    write_tree(tmp_path)
    name = f"{HOME}/SegmentationObject/2008_1.png"
    put(tmp_path, name, palette(np.zeros((3, 3)), PALETTE))
    with pytest.raises(SizeMismatch, match=r"SegmentationObject/2008_1\.png"):
        read_all(tmp_path, "val")
    put(tmp_path, name, rgb_png(np.full((*SHAPE, 3), 77, np.uint8)))
    with pytest.raises(CorruptMask, match=r"SegmentationObject/2008_1\.png"):
        read_all(tmp_path, "val")


def blob(shape: tuple[int, int], box: tuple[int, int, int, int]) -> str:
    x, y, w, h = box
    binary = np.zeros(shape, np.uint8)
    binary[y : y + h, x : x + w] = 1
    return masks.rle_encode(binary)


def foreign(*instances: Instance, ids: NDArray[np.uint8] | None = None) -> Record:
    record = make_record(ids, SPACE, "a", "train", ".jpg")
    return replace(record, instances=instances, width=7, height=5)


def test_foreign_instances_become_objects_and_boxes(tmp_path: Path) -> None:
    ids = np.zeros((5, 7), np.uint8)
    ids[0:2, 0:3], ids[3:5, 4:7] = 15, 7
    record = foreign(
        Instance(900001, 15, (0, 0, 3, 2), 6, rle=blob((5, 7), (0, 0, 3, 2)), score=0.5),
        Instance(12, 7, None, 6, iscrowd=True, rle=blob((5, 7), (4, 3, 3, 2))),
        ids=ids,
    )
    (written,) = rewrite(VOC, [record], tmp_path, SPACE)
    assert written.loss == {"instance_ids": 2, "instance_scores": 1}
    numbers = indices(tmp_path / HOME / "SegmentationObject/a.png")
    assert np.array_equal(numbers, np.select([ids == 15, ids == 7], [1, 2], 0))
    detected = VOCDetection(tmp_path, year="2012", image_set="train", download=False)
    objects = detected[0][1]["annotation"]["object"]
    assert [o["name"] for o in objects] == ["person", "car"]
    assert [o["difficult"] for o in objects] == ["0", "1"]
    assert objects[1]["bndbox"] == {"xmin": "5", "ymin": "4", "xmax": "7", "ymax": "5"}
    (back,) = read_all(tmp_path)
    assert [(i.id, i.category, i.rle, i.bbox) for i in back.instances or ()] == [
        (1, 15, blob((5, 7), (0, 0, 3, 2)), (0, 0, 3, 2)),
        (2, 7, blob((5, 7), (4, 3, 3, 2)), (4, 3, 3, 2)),
    ]


def test_mask_is_painted_from_instances(tmp_path: Path) -> None:
    small, large = blob((5, 7), (1, 1, 2, 2)), blob((5, 7), (0, 0, 6, 5))
    record = foreign(Instance(1, 7, None, 4, rle=small), Instance(2, 15, None, 30, rle=large))
    (written,) = rewrite(VOC, [record], tmp_path, SPACE)
    assert written.loss == {"instances_covered": 1}
    expected = np.zeros((5, 7), np.uint8)
    expected[:, :6] = 15
    expected[1:3, 1:3] = 7
    assert np.array_equal(indices(tmp_path / HOME / "SegmentationClass/a.png"), expected)


def test_boxes_alone_go_to_the_detection_lists(tmp_path: Path) -> None:
    record = foreign(Instance(1, 7, (1, 1, 2, 2), None))
    (written,) = rewrite(VOC, [record], tmp_path, SPACE)
    assert written.loss == {"segmentation_masks": 1}
    assert (tmp_path / HOME / "ImageSets/Main/train.txt").read_text() == "a\n"
    (back,) = read_all(tmp_path, "Main/train")
    assert (back.split, back.mask) == ("train", None)
    assert [(i.category, i.bbox) for i in back.instances or ()] == [(7, (1, 1, 2, 2))]


def test_more_objects_than_eight_bits_hold(tmp_path: Path) -> None:
    ids = np.full((20, 15), 7, np.uint8)
    every = [
        Instance(n + 1, 7, None, 1, rle=blob((20, 15), (n % 15, n // 15, 1, 1))) for n in range(300)
    ]
    record = replace(foreign(*every, ids=ids), width=15, height=20)
    (written,) = rewrite(VOC, [record], tmp_path, SPACE)
    assert written.loss == {"instance_masks": 46}
    (back,) = read_all(tmp_path)
    assert [i.id for i in back.instances or ()] == list(range(1, 301))
    assert [i.id for i in back.instances or () if i.rle] == list(range(1, 255))
    assert (back.instances or ())[299].bbox == (14, 19, 1, 1)


def test_png_images_are_encoded_again(tmp_path: Path) -> None:
    record = make_record(np.zeros(SHAPE, np.uint8), SPACE, "a", "val", ".png")
    (written,) = rewrite(VOC, [record], tmp_path, SPACE)
    assert written.loss == {"images_reencoded": 1}
    with Image.open(tmp_path / HOME / "JPEGImages/a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", SHAPE[::-1])


def test_names_follow_the_label_space(tmp_path: Path) -> None:
    """A person who became a Pedestrian is one in the XML, too; her other elements stay."""
    write_tree(tmp_path / "one")
    camvid = label_space("camvid-11")
    (record,) = read_all(tmp_path / "one", "val")
    person = (record.instances or ())[0]
    moved = replace(
        make_record(np.full(SHAPE, 9, np.uint8), camvid, "2008_1", "val", ".jpg"),
        dataset="voc",
        instances=(replace(person, category=9),),
        extra=record.extra,
    )
    rewrite(VOC, [moved], tmp_path / "two", camvid)
    text = (tmp_path / "two" / HOME / "Annotations/2008_1.xml").read_text()
    assert "<name>Pedestrian</name>" in text
    assert "<name>person</name>" not in text
    assert "<occluded>1</occluded>" in text
