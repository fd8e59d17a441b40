"""A small VOC in its true layout, and VOC files read by Pillow and the standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from connectors.voc import VOC
from pipeline.files import open_tree
from pipeline.label_space import label_space
from tests.connectors.conformance import Made
from tests.connectors.trees import (
    palette,
    photo,
    put,
    random_ids,
)

if TYPE_CHECKING:
    from pathlib import Path

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


def write_tree(root: Path, *, objects: bool = True) -> Made:
    """Write four images; without `objects` only with class masks."""
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
            if not objects:
                continue
            numbers = palette(objects_of(found), PALETTE)
            put(root, f"{HOME}/SegmentationObject/{name}.png", numbers)
            put(root, f"{HOME}/Annotations/{name}.xml", ANNOTATION.format(name=name))
    put_list(root, "Segmentation/trainval", ["2007_000032", "2008_1", "2009_9"])
    lists = [f"{HOME}/ImageSets/Segmentation/{n}.txt" for n in (*splits, "trainval")]
    mask = f"{HOME}/SegmentationClass/2009_9.png"
    return Made(splits, ids, "2009_9", f"{HOME}/JPEGImages/2009_9.jpg", mask, tuple(lists))


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
