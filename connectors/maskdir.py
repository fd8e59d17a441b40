"""maskdir: folders of images and masks with a table of classes, for any label space.

    images/train/NAME.jpg   masks/train/NAME.png   classes.tsv   splits.tsv

Masks are 8-bit palette or grey PNG, 16-bit grey PNG, or RGB in the colours of the table.
`classes.tsv` is explained in `connectors.class_table`. `splits.tsv`, tab-separated, has a header
and columns `image_id` and `split`, and may have `image` and `mask`: paths below images/ and masks/,
an empty mask for an image without one. `write` always writes all four columns, so that reading back
gives the same ids, splits, masks and order.

Without splits.tsv the folders decide: when images/ holds only folders called train, val, test and
unlabelled (also training, validation, valid and testing), they are the splits; otherwise every
image is train. An image of test or unlabelled may lack a mask; for others a missing mask, and for
any mask a missing image, is an error that the job counts.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import SUFFIXES, not_expressed, put_image
from connectors.label_files import cell_png, extra_of, labelled_size, read_label
from connectors.layout import MISSING, Fingerprints, digest, find_root, lines_of
from connectors.list_files import OnePlaceEach, one_line
from pipeline.errors import InputError, LayoutError, UnknownName
from pipeline.images import IMAGE_SUFFIXES, read_header
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

SPLITS_TABLE: Final = "splits.tsv"
_COLUMNS: Final = ("image_id", "split", "image", "mask")
_FOLDERS: Final = {split: split for split in SPLITS} | {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "testing": "test",
}
_MASKED: Final = ("train", "val")


@dataclass(frozen=True, slots=True)
class _Item:
    """One image of the listing; names below images/ and masks/, `masked` if it must have a mask."""

    image_id: str
    split: str
    image: str
    mask: str
    masked: bool


@dataclass(frozen=True, slots=True)
class MaskDir:
    """Folders of images and masks."""

    format: ClassVar[str] = "maskdir"
    native: ClassVar[str | None] = None
    row_bytes: ClassVar[int] = 30_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        def fits(names: Collection[str]) -> bool:
            return CLASS_TABLE in names and ("images" in names or SPLITS_TABLE in names)

        return find_root(tree, f"folders images and masks and {CLASS_TABLE}", fits)

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return the space of the class table."""
        return (classes_of(tree, self._root(tree) + CLASS_TABLE),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: the format has no place for it."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the samples in the order of splits.tsv, else of the images' names."""
        for split in splits:
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        root = self._root(tree)
        table = tree.entry(root + CLASS_TABLE).fingerprint
        images = Fingerprints(tree, root + "images")
        masks = Fingerprints(tree, root + "masks")
        for item in _items(tree, root):
            if splits and item.split not in splits:
                continue
            image, mask = f"{root}images/{item.image}", f"{root}masks/{item.mask}"
            mark = masks.find(mask) if item.mask else None
            held = bool(item.mask) and (item.masked or mark is not None)
            yield Sample(
                image_id=item.image_id,
                path=tree.url_of(image),
                fingerprint=images.of(image),
                digest=digest(self.format, READER_VERSION, item.split, mark or MISSING, table),
                dataset=self.format,
                split=item.split,
                payload=[image, mask if held else None, root + CLASS_TABLE, table],
            )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one sample."""
        image, mask, classes, table = sample.payload
        space = known_classes(tree, classes, table)
        head = read_header(tree, image)
        size, label, extra = (head.height, head.width), None, None
        if mask is not None:
            path = tree.url_of(mask)
            label = read_label(tree.read(mask), space, path)
            size = labelled_size(label.ids, head, path)
            extra = extra_of(label, head)
        return Record.truth(
            sample,
            space.name,
            size,
            mask=File(tree.url_of(mask), label.cell) if label else None,
            classes=label.classes if label else None,
            extra=extra,
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image, and its mask where it has one."""
        stem = f"{record.split}/{one_line(record.image_id)}"
        cell = cell_png(with_mask(record, space), space)
        name, loss = put_image(sink, f"images/{stem}", record, tuple(SUFFIXES))
        if cell is not None:
            sink.write(f"masks/{stem}.png", cell)
        loss |= not_expressed(record, "instances", "image_labels", "confidence", "depth")
        row = [name.removeprefix("images/"), f"{stem}.png" if cell is not None else ""]
        return Written(record.image_id, record.split, json.dumps(row).encode(), loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the tables of classes and splits."""
        places = OnePlaceEach(self.format)
        with sink.stream(SPLITS_TABLE) as file:
            file.write(("\t".join(_COLUMNS) + "\n").encode())
            for w in written:
                places.check(f"{w.split}/{w.image_id}")
                row = "\t".join((w.image_id, w.split, *json.loads(w.entry)))
                file.write(f"{row}\n".encode())
        write_classes(sink, "", space)
        return None


def _items(tree: Tree, root: str) -> Iterator[_Item]:
    if tree.exists(root + SPLITS_TABLE):
        return _items_of_table(tree, root)
    return _items_of_folders(tree, root)


def _items_of_table(tree: Tree, root: str) -> Iterator[_Item]:
    """Yield what splits.tsv lists.

    Raises:
        LayoutError: it lacks a column, or names an unknown split.
    """
    name = root + SPLITS_TABLE
    lines = lines_of(tree, name)
    columns = next(lines, "").split("\t")
    if not {"image_id", "split"} <= set(columns):
        raise LayoutError(
            f"{tree.url_of(name)}: expected a header with columns image_id and split, tab-"
            f"separated, not {columns}"
        )
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        row = dict(zip(columns, line.split("\t"), strict=False))
        if row.get("split") not in SPLITS:
            raise LayoutError(
                f"{tree.url_of(name)}, line {number}: split {row.get('split')!r}; expected one of "
                f"{', '.join(SPLITS)}"
            )
        yield _item_of_row(tree, root, row)


def _item_of_row(tree: Tree, root: str, row: dict[str, str]) -> _Item:
    image_id, split = row["image_id"], row["split"]
    image = row.get("image") or _image_named(tree, root, image_id, split)
    mask = row.get("mask")
    if mask is None:
        return _Item(image_id, split, image, _stem(image) + ".png", split in _MASKED)
    return _Item(image_id, split, image, mask, masked=True)


def _image_named(tree: Tree, root: str, image_id: str, split: str) -> str:
    """Find the image of an id by trying suffixes, in images/ and in its split's folder there."""
    for stem in (image_id, f"{split}/{image_id}"):
        for suffix in IMAGE_SUFFIXES:
            try:
                if tree.exists(f"{root}images/{stem}{suffix}"):
                    return stem + suffix
            except InputError:  # an unsafe name: reading it says so
                break
    return image_id + ".png"


def _items_of_folders(tree: Tree, root: str) -> Iterator[_Item]:
    """Yield what images/ holds; at the end, masks that have no image."""
    tops = tree.names(root + "images")
    others = [top for top in tops if not top.lower().endswith(IMAGE_SUFFIXES)]
    folders = [top for top in others if tree.isdir(f"{root}images/{top}")]
    split_folders = bool(folders) and all(folder in _FOLDERS for folder in folders)
    seen = set()
    for entry in tree.walk(root + "images", IMAGE_SUFFIXES):
        name = entry.name[len(root) + len("images/") :]
        seen.add(hash(_stem(name)))  # 60 bytes an image
        yield _item_of_name(name, split_folders)
    if not tree.isdir(root + "masks"):
        return
    for entry in tree.walk(root + "masks", (".png",)):
        name = entry.name[len(root) + len("masks/") :]
        if hash(_stem(name)) not in seen:
            yield _item_of_name(name, split_folders)


def _item_of_name(name: str, split_folders: bool) -> _Item:
    folder, slash, below = name.partition("/")
    split = _FOLDERS.get(folder, "train") if split_folders and slash else "train"
    image_id = _stem(below if split_folders and slash else name)
    return _Item(image_id, split, name, _stem(name) + ".png", split in _MASKED)


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


MASKDIR: Final = MaskDir()
