"""VOC: the conformance suite, lists, and the real files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pycocotools.coco import COCO
from torchvision.datasets import VOCDetection, VOCSegmentation

from connectors.coco import COCO_INSTANCES
from connectors.voc import VOC
from pipeline.errors import (
    LayoutError,
    MissingFile,
    UnknownName,
    UnsafePath,
)
from pipeline.files import open_sink, open_tree
from pipeline.labels.png import quickly
from pipeline.labels.relabel import Relabeller
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import (
    bare,
    contents,
    copy_tree,
    palette,
    photo,
    put,
    random_ids,
    rewrite,
)
from tests.connectors.voc_tree import (
    ANNOTATION,
    HOME,
    PALETTE,
    SHAPE,
    SPACE,
    canonical,
    indices,
    put_image,
    put_list,
    read_all,
    write_tree,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TestVoc(Conformance):
    connector = VOC
    image_suffix = ".jpg"

    def make_tree(self, root: Path) -> Made:
        return write_tree(root)


class TestVocWithoutObjects(TestVoc):
    """Masks alone, as after SBD's conversion; nothing is added on the way back."""

    def make_tree(self, root: Path) -> Made:
        return write_tree(root, objects=False)

    def test_no_file_is_added(self, root: Path, made: Made, tmp_path: Path) -> None:
        rewrite(VOC, self.records(open_tree(str(root))), tmp_path / "target", SPACE)
        assert contents(tmp_path / "target").keys() == contents(root).keys()


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
    write_tree(tmp_path / "one", objects=False)
    other = random_ids((0, 3), SHAPE, 9)
    put(tmp_path / "one", f"{HOME}/SegmentationClassAug/2008_1.png", palette(other, PALETTE))
    records = read_all(tmp_path / "one")
    rewrite(VOC, records, tmp_path / "two", SPACE)
    back = tmp_path / "two" / HOME
    assert np.array_equal(indices(back / "SegmentationClassAug/2008_1.png"), other)
    assert not (back / "SegmentationClassAug/2009_9.png").exists()
    assert [bare(r) for r in read_all(tmp_path / "two")] == [bare(r) for r in records]


def test_unsorted_lists_keep_their_order(tmp_path: Path) -> None:
    made = write_tree(tmp_path / "one")
    put_list(tmp_path / "one", "Segmentation/train", ["2009_9", "2007_000032"])
    put_list(tmp_path / "one", "Segmentation/trainval", ["2009_9", "2007_000032", "2008_1"])
    rewrite(VOC, read_all(tmp_path / "one"), tmp_path / "two", SPACE)
    for name in made.same_files:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_detection_images_come_only_when_asked_for(tmp_path: Path) -> None:
    write_tree(tmp_path)
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
    write_tree(tmp_path / "set")
    put(tmp_path, "secret.jpg", photo(SHAPE, ".jpg"))
    put_list(tmp_path / "set", "Segmentation/val", ["../../../../secret", "/etc/passwd"])
    tree = open_tree(str(tmp_path / "set"))
    for sample in VOC.list(tree, ["val"]):
        with pytest.raises((UnsafePath, MissingFile)):
            VOC.read(tree, sample)


def test_two_years_in_one_root_must_be_told_apart(tmp_path: Path) -> None:
    write_tree(tmp_path)
    copy_tree(tmp_path / HOME, tmp_path / "VOCdevkit/VOC2007")
    with pytest.raises(LayoutError, match="VOC2007"):
        read_all(tmp_path)
    assert len(read_all(tmp_path / "VOCdevkit/VOC2007")) == 4


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


def test_lists_that_are_not_read_are_counted(tmp_path: Path) -> None:
    put_image(tmp_path, "a")
    put_list(tmp_path, "Segmentation/test", ["a"])
    for name in ("Segmentation/mysubset", "Main/cat_train", "Layout/train"):
        put_list(tmp_path, name, ["a"])
    tree = open_tree(str(tmp_path))
    facts = {"voc": VOC.facts(tree)}
    written = [
        VOC.write(open_sink(str(tmp_path / "b")), record, SPACE) for record in read_all(tmp_path)
    ]
    loss = VOC.finish(open_sink(str(tmp_path / "b")), written, SPACE, facts)
    assert loss is not None
    assert loss.attributes == {"lists": 3}


def test_torchvision_reads_a_made_tree(tmp_path: Path) -> None:
    made = write_tree(tmp_path / "one")
    rewrite(VOC, read_all(tmp_path / "one"), tmp_path / "two", SPACE)
    for image_set in ("train", "val"):
        names = made.splits[image_set]
        dataset = VOCSegmentation(tmp_path / "two", image_set=image_set, download=False)
        assert [Path(path).stem for path in dataset.masks] == names
        for name, (image, mask) in zip(names, dataset, strict=True):
            assert image.size == SHAPE[::-1]
            assert np.array_equal(np.array(mask), made.ids[f"{image_set}/{name}"])


VOC_NAMES = {
    "airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor",
    "potted plant": "pottedplant", "dining table": "diningtable",
}  # fmt: skip
"""What VOC calls the classes that COCO has under another name."""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_torchvision_reads_what_coco_became(shared_data: Path, tmp_path: Path) -> None:
    """Real polygons and crowds, drawn by pycocotools: larger objects first, the rest over them."""
    source = shared_data / "coco/instances"
    tree = open_tree(str(source))
    spaces = COCO_INSTANCES.label_spaces(tree)
    relabel = Relabeller.to(SPACE, spaces)
    records = [COCO_INSTANCES.read(tree, s) for s in COCO_INSTANCES.list(tree, ())]
    with quickly():
        written = rewrite(VOC, [relabel(r)[0] for r in records], tmp_path, SPACE)
    covered = 0
    for image_set in ("train", "val"):
        coco = COCO(source / f"annotations/instances_{image_set}2017.json")
        segmentation = VOCSegmentation(tmp_path, image_set=image_set, download=False)
        detection = VOCDetection(tmp_path, image_set=image_set, download=False)
        assert len(segmentation) == len(detection) == len(coco.getImgIds())
        by_name = {Path(i["file_name"]).stem: i["id"] for i in coco.loadImgs(coco.getImgIds())}
        for path, (image, mask), (_, said) in zip(
            segmentation.masks, segmentation, detection, strict=True
        ):
            classes, objects, names, hidden = drawn_by_pycocotools(coco, by_name[Path(path).stem])
            covered += hidden
            assert image.size == mask.size
            assert np.array_equal(np.array(mask), classes)
            found = tmp_path / HOME / "SegmentationObject" / Path(path).name
            assert np.array_equal(indices(found), objects) if found.exists() else not names
            boxes = said["annotation"].get("object", [])
            assert [box["name"] for box in boxes] == names
    assert sum(w.loss.get("instances_covered", 0) for w in written) == covered > 10


def drawn_by_pycocotools(
    coco: COCO, image_id: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str], int]:
    """Return class map, object map, the objects' names, and how many objects others hide.

    What VOC has no class for covers what lies below it, and is no object.
    """
    shape = coco.imgs[image_id]["height"], coco.imgs[image_id]["width"]
    classes, objects, places = (np.zeros(shape, np.uint8) for _ in range(3))
    names, regions = [], []
    for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
        name = coco.cats[annotation["category_id"]]["name"]
        name = VOC_NAMES.get(name, name)
        names.append(name if name in SPACE.by_name else "background")
        regions.append(coco.annToMask(annotation).astype(bool))
    for k in sorted(range(len(names)), key=lambda k: -int(regions[k].sum())):
        classes[regions[k]], places[regions[k]] = SPACE.by_name[names[k]].id, k + 1
    hidden = sum((places[region] != k).any() for k, region in enumerate(regions, 1))
    kept = [k for k, name in enumerate(names, 1) if name != "background"]
    for number, k in enumerate(kept, 1):
        objects[places == k] = number
    return classes, objects, [names[k - 1] for k in kept], int(hidden)
