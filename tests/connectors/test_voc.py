"""VOC: the conformance suite, numbered objects, annotations, lists, and the real files."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torchvision.datasets import VOCDetection, VOCSegmentation

from connectors.voc import VOC
from pipeline import masks
from pipeline.errors import (
    BadAnnotation,
    CorruptMask,
    LayoutError,
    MissingFile,
    SizeMismatch,
    UnknownName,
    UnsafePath,
)
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.record import Instance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import (
    bare,
    contents,
    copy_tree,
    make_record,
    palette,
    photo,
    put,
    random_ids,
    rewrite,
    rgb_png,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.record import Record

SPACE = label_space("voc-21")
HOME = "VOCdevkit/VOC2012"
SHAPE = (9, 11)


def voc_colours() -> bytes:
    """VOC's palette by its rule, written down again: bits of the index dealt from the top."""
    table = bytearray()
    for index in range(256):
        bits = [(index >> b) & 1 for b in range(8)]
        red = bits[0] << 7 | bits[3] << 6 | bits[6] << 5
        green = bits[1] << 7 | bits[4] << 6 | bits[7] << 5
        blue = bits[2] << 7 | bits[5] << 6
        table += bytes((red, green, blue))
    return bytes(table)


PALETTE = voc_colours()
ANNOTATION = """<annotation>
\t<filename>{name}.jpg</filename>
\t<folder>VOC2012</folder>
\t<object>
\t\t<name>person</name>
\t\t<actions><jumping>0</jumping></actions>
\t\t<bndbox><xmax>4</xmax><xmin>2</xmin><ymax>6</ymax><ymin>1</ymin></bndbox>
\t\t<difficult>0</difficult><occluded>1</occluded><pose>Left</pose>
\t\t<part><name>head</name><bndbox><xmin>2.5</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax>
\t\t</bndbox></part>
\t\t<truncated>1</truncated>
\t</object>
\t<object><name>tomato &amp; co</name><difficult>1</difficult></object>
\t<segmented>1</segmented>
\t<size><depth>3</depth><height>9</height><width>11</width></size>
\t<source><annotation>PASCAL VOC2012</annotation><image>flickr</image></source>
</annotation>"""


def put_image(root: Path, name: str) -> None:
    put(root, f"{HOME}/JPEGImages/{name}.jpg", photo(SHAPE, ".jpg"))


def put_list(root: Path, name: str, ids: list[str]) -> None:
    put(root, f"{HOME}/ImageSets/{name}.txt", "".join(f"{i}\n" for i in ids))


def objects_of(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Number the classes of a mask; void stays void."""
    return np.where(ids == 255, 255, np.where(ids > 0, ids % 3 + 1, 0)).astype(np.uint8)


class TestVoc(Conformance):
    connector = VOC
    image_suffix = ".jpg"

    def make_tree(self, root: Path) -> Made:
        splits = {"train": ["2007_000032", "2009_9"], "val": ["2008_1"], "test": ["2011_2"]}
        ids: dict[str, NDArray[Any]] = {}
        for split, names in splits.items():
            put_list(root, f"Segmentation/{split}", names)
            for n, name in enumerate(names):
                put_image(root, name)
                ids[f"{split}/{name}"] = np.empty((0, 0))
                if split == "test":
                    continue
                found = random_ids((0, 15, 2, 255), SHAPE, n)
                ids[f"{split}/{name}"] = found
                put(root, f"{HOME}/SegmentationClass/{name}.png", palette(found, PALETTE))
                numbers = palette(objects_of(found), PALETTE)
                put(root, f"{HOME}/SegmentationObject/{name}.png", numbers)
                put(root, f"{HOME}/Annotations/{name}.xml", ANNOTATION.format(name=name))
        put_list(root, "Segmentation/trainval", ["2007_000032", "2008_1", "2009_9"])
        lists = [f"{HOME}/ImageSets/Segmentation/{n}.txt" for n in (*splits, "trainval")]
        mask = f"{HOME}/SegmentationClass/2009_9.png"
        return Made(splits, ids, "2009_9", f"{HOME}/JPEGImages/2009_9.jpg", mask, tuple(lists))


class TestVocWithoutObjects(TestVoc):
    """Masks alone, as after SBD's conversion; nothing is added on the way back."""

    def make_tree(self, root: Path) -> Made:
        made = super().make_tree(root)
        for folder in ("SegmentationObject", "Annotations"):
            for file in (root / HOME / folder).iterdir():
                file.unlink()
        return made

    def test_no_file_is_added(self, root: Path, made: Made, tmp_path: Path) -> None:
        rewrite(VOC, self.records(open_tree(str(root))), tmp_path / "target", SPACE)
        assert contents(tmp_path / "target").keys() == contents(root).keys()


def read_all(root: Path, *splits: str) -> list[Record]:
    tree = open_tree(str(root))
    return [VOC.read(tree, sample) for sample in VOC.list(tree, splits)]


def indices(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "P"
        assert bytes(image.getpalette() or ()) == PALETTE
        return np.array(image)


def canonical(path: Path) -> str:
    return ElementTree.canonicalize(path.read_text(), strip_text=True)


# Objects and annotations

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
    made = TestVoc().make_tree(tmp_path)
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
    TestVoc().make_tree(tmp_path)
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
    ],
)
def test_bad_annotations(tmp_path: Path, text: str) -> None:
    TestVocWithoutObjects().make_tree(tmp_path)
    put(tmp_path, f"{HOME}/Annotations/2008_1.xml", text)
    with pytest.raises(BadAnnotation, match=r"2008_1\.xml"):
        read_all(tmp_path, "val")


def test_bad_object_maps(tmp_path: Path) -> None:
    TestVoc().make_tree(tmp_path)
    name = f"{HOME}/SegmentationObject/2008_1.png"
    put(tmp_path, name, palette(np.zeros((3, 3)), PALETTE))
    with pytest.raises(SizeMismatch, match=r"SegmentationObject/2008_1\.png"):
        read_all(tmp_path, "val")
    put(tmp_path, name, rgb_png(np.full((*SHAPE, 3), 77, np.uint8)))
    with pytest.raises(CorruptMask, match=r"SegmentationObject/2008_1\.png"):
        read_all(tmp_path, "val")


# Lists


def test_augmented_lists(shared_data: Path) -> None:
    root = shared_data / "voc2012/VOCdevkit"
    lists = root / "VOC2012/ImageSets/Segmentation"
    for name in ("train", "train_aug", "val", "trainval"):
        asked = [s.image_id for s in VOC.list(open_tree(str(root)), [name])]
        assert asked == (lists / f"{name}.txt").read_text().split()
    records = {r.image_id: r for r in read_all(root)}
    assert len(records) == 26
    sbd, official = records["2008_002932"], records["2007_000032"]
    assert (sbd.split, official.split) == ("train", "train")
    assert "SegmentationClassAug/" in str(sbd.mask and sbd.mask.path)
    assert "SegmentationClass/" in str(official.mask and official.mask.path)


def test_augmented_mask_of_its_own_is_kept(tmp_path: Path) -> None:
    TestVocWithoutObjects().make_tree(tmp_path / "one")
    other = random_ids((0, 3), SHAPE, 9)
    put(tmp_path / "one", f"{HOME}/SegmentationClassAug/2008_1.png", palette(other, PALETTE))
    records = read_all(tmp_path / "one")
    rewrite(VOC, records, tmp_path / "two", SPACE)
    back = tmp_path / "two" / HOME
    assert np.array_equal(indices(back / "SegmentationClassAug/2008_1.png"), other)
    assert not (back / "SegmentationClassAug/2009_9.png").exists()
    assert [bare(r) for r in read_all(tmp_path / "two")] == [bare(r) for r in records]


def test_unsorted_lists_keep_their_order(tmp_path: Path) -> None:
    made = TestVoc().make_tree(tmp_path / "one")
    put_list(tmp_path / "one", "Segmentation/train", ["2009_9", "2007_000032"])
    put_list(tmp_path / "one", "Segmentation/trainval", ["2009_9", "2007_000032", "2008_1"])
    rewrite(VOC, read_all(tmp_path / "one"), tmp_path / "two", SPACE)
    for name in made.same_files:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_detection_images_come_only_when_asked_for(tmp_path: Path) -> None:
    TestVoc().make_tree(tmp_path)
    put_image(tmp_path, "2012_box")
    put(tmp_path, f"{HOME}/Annotations/2012_box.xml", ANNOTATION.format(name="2012_box"))
    put(tmp_path, f"{HOME}/ImageSets/Main/cat_val.txt", "2008_1  1\n2012_box -1\n")
    assert "2012_box" not in {r.image_id for r in read_all(tmp_path)}
    masked, box = read_all(tmp_path, "Main/cat_val")
    assert (masked.image_id, masked.split) == ("2008_1", "val")
    assert masked.mask is not None
    assert (box.image_id, box.split, box.mask) == ("2012_box", "val", None)
    assert len(box.instances or ()) == 2
    with pytest.raises(UnknownName, match="Main/dog_val"):
        read_all(tmp_path, "Main/dog_val")


def test_other_tasks_lists_are_not_enough(tmp_path: Path) -> None:
    put_image(tmp_path, "a")
    put_list(tmp_path, "Main/trainval", ["a"])
    with pytest.raises(LayoutError, match="Main/trainval"):
        read_all(tmp_path)


def test_ids_in_lists_do_not_lead_outside(tmp_path: Path) -> None:
    TestVoc().make_tree(tmp_path / "set")
    put(tmp_path, "secret.jpg", photo(SHAPE, ".jpg"))
    put_list(tmp_path / "set", "Segmentation/val", ["../../../../secret", "/etc/passwd"])
    tree = open_tree(str(tmp_path / "set"))
    for sample in VOC.list(tree, ["val"]):
        with pytest.raises((UnsafePath, MissingFile)):
            VOC.read(tree, sample)


def test_two_years_in_one_root_must_be_told_apart(tmp_path: Path) -> None:
    TestVoc().make_tree(tmp_path)
    copy_tree(tmp_path / HOME, tmp_path / "VOCdevkit/VOC2007")
    with pytest.raises(LayoutError, match="VOC2007"):
        read_all(tmp_path)
    assert len(read_all(tmp_path / "VOCdevkit/VOC2007")) == 4


# Records of other formats


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
    TestVoc().make_tree(tmp_path / "one")
    camvid = label_space("camvid-11")
    (record,) = read_all(tmp_path / "one", "val")
    person = (record.instances or ())[0]
    moved = replace(
        make_record(np.full(SHAPE, 9, np.uint8), camvid, "2008_1", "val", ".jpg"),
        instances=(replace(person, category=9),),
        extra=record.extra,
    )
    rewrite(VOC, [moved], tmp_path / "two", camvid)
    text = (tmp_path / "two" / HOME / "Annotations/2008_1.xml").read_text()
    assert "<name>Pedestrian</name>" in text
    assert "<name>person</name>" not in text
    assert "<occluded>1</occluded>" in text


# Real files


def test_real_voc_comes_back(shared_data: Path, tmp_path: Path) -> None:
    """Masks with their 255 border, objects, images and lists, as torchvision reads them."""
    source = shared_data / "voc2012/VOCdevkit/VOC2012"
    records = read_all(source)
    assert all(w.loss == {} for w in rewrite(VOC, records, tmp_path, SPACE))
    target = tmp_path / HOME
    originals = {n: d for n, d in contents(source).items() if not n.endswith(".png")}
    assert originals.items() <= contents(target).items()
    masked = [path.relative_to(source) for path in source.rglob("*.png")]
    assert len(masked) == 26 + 16 + 1
    for path in masked:
        assert np.array_equal(indices(target / path), indices(source / path)), path
    for image_set in ("train", "val", "trainval"):
        ids = (source / f"ImageSets/Segmentation/{image_set}.txt").read_text().split()
        dataset = VOCSegmentation(tmp_path, year="2012", image_set=image_set, download=False)
        assert len(dataset) == len(ids)
        for name, (image, mask) in zip(ids, dataset, strict=True):
            assert image.size == mask.size
            expected = indices(source / f"SegmentationClass/{name}.png")
            assert np.array_equal(np.array(mask), expected)
            assert (expected == 255).any()


def test_real_objects(shared_data: Path) -> None:
    records = {r.image_id: r for r in read_all(shared_data / "voc2012/VOCdevkit")}
    instances = records["2011_003066"].instances or ()
    assert [i.id for i in instances] == list(range(1, 20))
    assert {SPACE.by_id[i.category].name for i in instances} == {
        "bottle", "chair", "diningtable", "person",
    }  # fmt: skip


def test_real_annotations_come_back(shared_data: Path, tmp_path: Path) -> None:
    """Two XML files of VOC2007 and labelme's masks, objects and XML of three photos."""
    one, two = tmp_path / "one" / HOME, tmp_path / "two" / HOME
    copy_tree(shared_data / "voc2012/labelme_voc_format", one)
    ids = sorted(path.stem for path in (one / "JPEGImages").iterdir())
    put_list(tmp_path / "one", "Segmentation/train", ids)
    for path in (shared_data / "voc2012/voc2007_xml_sample").rglob("*.xml"):
        put(one, f"Annotations/{path.name}", path.read_bytes())
        put_image(tmp_path / "one", path.stem)
        put_list(tmp_path / "one", "Main/trainval", ["000012", "000136"])
    records = read_all(one, "train", "Main/trainval")
    assert len(records) == 5
    assert all(w.loss == {} for w in rewrite(VOC, records, tmp_path / "two", SPACE))
    for path in [*one.glob("Seg*/*.png")]:
        assert np.array_equal(indices(two / path.relative_to(one)), indices(path)), path.name
    annotations = [*one.glob("Annotations/*.xml")]
    assert len(annotations) == 5
    for path in annotations:
        assert canonical(two / "Annotations" / path.name) == canonical(path)


def test_masks_in_colour_dress(shared_data: Path) -> None:
    """Datumaro's fixture has RGB masks, of classes and of objects."""
    records = read_all(shared_data / "voc2012/fixture_datumaro")
    assert [(r.image_id, r.split) for r in records] == [
        ("2007_000001", "train"), ("2007_000002", "test"),
    ]  # fmt: skip
    assert [(c.id, c.pixels) for c in records[0].classes or ()] == [(2, 200)]
    assert [(i.id, i.category, i.area) for i in records[0].instances or () if i.rle] == [
        (1, 2, 200)
    ]
