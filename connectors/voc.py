"""Pascal VOC 2012 segmentation (and VOC-like sets): 20 classes, background, 255 for void.

    VOCdevkit/VOC2012/  JPEGImages  SegmentationClass  SegmentationObject  Annotations
                        ImageSets/Segmentation/{train,val,trainval,test}.txt

Official counts: train 1464, val 1449, test 1456 (its masks are withheld). With SBD's additions,
`train_aug.txt` (or trainaug) lists 10582 images whose masks lie in SegmentationClassAug.

Lists and splits: an image's split is train, val, test or unlabelled by the first of these lists
that names it, train for those that only train_aug, trainaug or trainval names; which lists name it
is in the record's extra, and `write` restores them. `--split` takes the name of a list:
`--split train` is the official 1464, `--split train_aug` the 10582. Images of the detection task
have no mask; they are read only when a list of theirs is asked for by its path below ImageSets, say
`--split Main/trainval`, and their mask is then None. Images of test and unlabelled may lack a mask,
any other is an error without one.

The mask is the one in SegmentationClass, else the one in SegmentationClassAug. Instances come from
SegmentationObject, under their numbers there, and from the XML (see `connectors.voc_annotation`).

`write` makes VOCdevkit/VOC2012 below its target. Images are JPEG: others are encoded again
("images_reencoded"). A record without a mask gets one painted from its instances, larger ones
first; without those it goes to the lists of ImageSets/Main.
"""

from __future__ import annotations

import base64
import heapq
import json
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from connectors import voc_annotation, voc_objects
from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import not_expressed, put_image
from connectors.label_files import (
    extra_of,
    labelled_size,
    needs_eight_bits,
    palette_png,
    read_label,
)
from connectors.layout import MISSING, Fingerprints, digest, find_root, is_sorted, read_list
from connectors.list_files import ListFiles, OnePlaceEach, one_line
from pipeline import masks
from pipeline.errors import LayoutError, UnknownName
from pipeline.images import read_header
from pipeline.instances import Drawing
from pipeline.label_space import label_space
from pipeline.labels.derive import painted
from pipeline.loss import Loss
from pipeline.record import File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from connectors.label_files import Label
    from pipeline.files import Tree
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Instance
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_TARGET: Final = "VOCdevkit/VOC2012/"
_SETS: Final = "ImageSets/"
_SEGMENTATION: Final = "Segmentation/"
_SPLIT_OF: Final = {
    "train": "train",
    "val": "val",
    "test": "test",
    "unlabelled": "unlabelled",
    "train_aug": "train",
    "trainaug": "train",
    "trainval": "train",
}
"""The lists below ImageSets/Segmentation that are read, the deciding ones first."""

_FOLDERS: Final = {
    "c": "SegmentationClass/{}.png",
    "a": "SegmentationClassAug/{}.png",
    "o": "SegmentationObject/{}.png",
    "x": "Annotations/{}.xml",
}
_PROMISED: Final = ("train", "val", "train_aug", "trainaug", "trainval")
"""The lists whose images must have a mask."""

_NOT_HELD: Final = ("image_labels", "confidence", "depth")


@dataclass(frozen=True, slots=True)
class Voc:
    """VOC's folders, lists and annotations."""

    format: ClassVar[str] = "voc"
    native: ClassVar[str] = "voc-21"
    row_bytes: ClassVar[int] = 10_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        needed = {"JPEGImages", "ImageSets"}
        return find_root(
            tree, "folders JPEGImages and ImageSets", lambda names: needed <= set(names)
        )

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return voc-21, or the space of the dataset's own class table."""
        table = self._root(tree) + CLASS_TABLE
        return (classes_of(tree, table) if tree.exists(table) else label_space(self.native),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return the names of all lists: those that no record names are lost when it is written."""
        sets = self._root(tree) + _SETS
        folders = [f for f in tree.names(sets.rstrip("/")) if tree.isdir(sets + f)]
        found = (f"{f}/{name}" for f in folders for name in tree.names(sets + f))
        return {"lists": sorted(n.removesuffix(".txt") for n in found if n.endswith(".txt"))}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images of the lists, sorted by id.

        Raises:
            UnknownName: a split that was asked for is no list of the dataset.
        """
        root = self._root(tree)
        names = _list_names(tree, root, splits)
        folders = set(tree.names(root.rstrip("/")))
        table = tree.entry(root + CLASS_TABLE).fingerprint if CLASS_TABLE in folders else None
        images = Fingerprints(tree, root + "JPEGImages")
        labels = {
            letter: Fingerprints(tree, root + form.partition("/")[0])
            for letter, form in _FOLDERS.items()
            if form.partition("/")[0] in folders
        }
        for image_id, lists in _listed(tree, root, names):
            if splits and not any(name in splits for name in lists):
                continue
            split, image = _split_of(lists), f"{root}JPEGImages/{image_id}.jpg"
            marks = _marks(labels, root, image_id, lists)
            parts = [split, *sorted(lists), *(f"{key}{marks[key]}" for key in sorted(marks))]
            yield Sample(
                image_id=image_id,
                path=tree.url_of(image),
                fingerprint=images.of(image),
                digest=digest(self.format, READER_VERSION, *parts, table or ""),
                dataset=self.format,
                split=split,
                payload=[root, "".join(sorted(marks)), lists, table],
            )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's masks and annotation."""
        root, held, lists, table = sample.payload
        space = known_classes(tree, root + CLASS_TABLE, table) if table else label_space("voc-21")
        head = read_header(tree, f"{root}JPEGImages/{sample.image_id}.jpg")
        size, extra = (head.height, head.width), {"lists": lists}
        files = {key: root + _FOLDERS[key].format(sample.image_id) for key in held}
        mask, instances = files.get("c") or files.get("a"), None
        label = None
        if mask is not None:
            data = tree.read(mask)
            label = read_label(data, space, tree.url_of(mask))
            size = labelled_size(label.ids, head, tree.url_of(mask))
            extra |= extra_of(label, head) | _second_mask(tree, files, data, label.cell, space)
            if "o" in files:
                instances = _objects(tree, files["o"], label, space, extra)
        if "x" in files:
            path = tree.url_of(files["x"])
            extra["annotation"], objects = voc_annotation.parse(tree.read(files["x"]), path)
            instances = voc_annotation.merge(instances or (), objects, space, path)
        return Record.truth(
            sample,
            space.name,
            size,
            mask=File(tree.url_of(mask), label.cell) if label and mask else None,
            classes=label.classes if label else None,
            instances=instances,
            extra=extra,
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image, masks and annotation."""
        name, own = one_line(record.image_id), record.dataset == self.format
        extra, labels = record.own(self.format), record.own_labels(self.format)
        kept, loss = _fitting(record, space, keep=own)
        drawing = Drawing.of(kept.instances or (), record.height, record.width, record.image_id)
        label, ids = _label(kept, space, drawing, paint=not own)
        _, cost = put_image(sink, f"{_TARGET}JPEGImages/{name}", record, ("jpeg",))
        loss |= cost | not_expressed(record, *_NOT_HELD)
        if label is not None:
            _write_masks(sink, name, label, extra.get("mask_folders", "c"), labels.get("aug_mask"))
            void = labels.get("object_void")
            if void is not None or any(i.rle for i in kept.instances or ()):
                # Painted over a background, no pixel outside of an object is void.
                grounded = ids is not None and "background" in space.by_name
                ids = masks.decode(label, name) if ids is None else ids
                unsure = None if grounded else ids == space.ignore_index
                loss |= _write_objects(sink, kept, drawing, unsure, void)
            loss |= {key: 1 for key in ("aug_mask", "object_void") if key in extra.keys() - labels}
        annotation = _annotation(kept, space, extra, own=own, segmented=label is not None)
        if annotation is not None:
            sink.write(f"{_TARGET}Annotations/{name}.xml", annotation)
        lists = _lists_for(record, extra, labelled=label is not None, boxed=annotation is not None)
        if not (own or label or "unlabelled" in lists or "test" in lists):
            loss["segmentation_masks"] = 1
        return Written(name, record.split, json.dumps(lists).encode(), loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the lists."""
        places, sets, kept = OnePlaceEach(self.format), _TARGET + _SETS, set[str]()
        with ListFiles(sink, or_else=f"{sets}{_SEGMENTATION}train.txt") as files:
            for w in written:
                places.check(w.image_id)
                for name, place in json.loads(w.entry).items():
                    below = name if "/" in name else _SEGMENTATION + name
                    files.add(f"{sets}{below}.txt", w.image_id, place)
                    kept.add(below)
        write_classes(sink, _TARGET, space, self.native)
        lost = {*(facts.get(self.format) or {}).get("lists", ())} - kept
        return Loss(attributes={"lists": len(lost)}) if lost else None


def _list_names(tree: Tree, root: str, asked: Collection[str]) -> list[str]:
    """Return the lists to read: those of Segmentation, the deciding ones first, and asked ones."""
    folder = f"{root}{_SETS}{_SEGMENTATION}".rstrip("/")
    there = set(tree.names(folder)) if tree.isdir(folder) else set()
    names = [name for name in _SPLIT_OF if f"{name}.txt" in there]
    others = [name for name in sorted(set(asked)) if name not in names]
    for name in others:
        if "/" not in name or not tree.exists(f"{root}{_SETS}{name}.txt"):
            raise UnknownName("split or list", name, [*names, "Main/trainval", "Main/..."])
    if not names and not others:
        raise LayoutError(
            f"{tree.url_of(folder)}: no train.txt, val.txt, trainval.txt or test.txt; for the "
            "images of another task name its list, such as --split Main/trainval"
        )
    return [*names, *others]


def _listed(tree: Tree, root: str, names: list[str]) -> Iterator[tuple[str, dict[str, int | None]]]:
    """Yield each id of the lists, sorted, with the lists that name it and its place in them."""
    streams = []
    for rank, name in enumerate(names):
        if "/" in name:  # lists of the other tasks have flags behind the id
            ids = [line.split()[0] for line in read_list(tree, f"{root}{_SETS}{name}.txt")]
        else:
            ids = read_list(tree, f"{root}{_SETS}{_SEGMENTATION}{name}.txt")
        kept = not is_sorted(ids)  # a sorted list needs no places
        streams.append(sorted((x, rank, at if kept else -1) for at, x in enumerate(ids)))
    for image_id, places in groupby(heapq.merge(*streams), key=lambda item: item[0]):
        yield image_id, {names[rank]: None if at < 0 else at for _, rank, at in places}


def _split_of(lists: dict[str, int | None]) -> str:
    for name, split in _SPLIT_OF.items():
        if name in lists:
            return split
    last = min(lists).rpartition("/")[2]  # Main/val, Main/cat_val
    return {"val": "val", "test": "test"}.get(last.rpartition("_")[2], "train")


def _marks(
    labels: dict[str, Fingerprints], root: str, image_id: str, lists: dict[str, int | None]
) -> dict[str, str]:
    """Return an image's label files: fingerprints by folder, `MISSING` for a promised mask."""
    found = {}
    for letter, files in labels.items():
        mark = files.find(root + _FOLDERS[letter].format(image_id))
        if mark is not None:
            found[letter] = mark
    if "c" not in found and "a" not in found and any(name in lists for name in _PROMISED):
        found["c"] = MISSING
    return found


def _second_mask(
    tree: Tree, files: dict[str, str], data: bytes, cell: bytes, space: LabelSpace
) -> dict[str, Any]:
    """Return what SegmentationClassAug holds beside SegmentationClass: mostly the same mask."""
    if "a" not in files:
        return {}
    if "c" not in files:
        return {"mask_folders": "a"}
    extra = {"mask_folders": "ac"}
    second = tree.read(files["a"])
    if second != data:
        other = read_label(second, space, tree.url_of(files["a"])).cell
        if other != cell:
            extra["aug_mask"] = base64.b64encode(other).decode()
    return extra


def _objects(
    tree: Tree, name: str, label: Label, space: LabelSpace, extra: dict[str, Any]
) -> tuple[Instance, ...]:
    """Return the numbered objects; note void where it is not the class mask's."""
    path = tree.url_of(name)
    numbers = voc_objects.read_object_map(tree.read(name), path, label.ids.shape)
    found = masks.instances_from_maps(label.ids, numbers, space, voc_objects.BORDER)
    void = numbers == voc_objects.BORDER
    if not found or not np.array_equal(void, label.ids == space.ignore_index):
        extra["object_void"] = masks.rle_encode(void)
    return found


def _fitting(record: Record, space: LabelSpace, *, keep: bool) -> tuple[Record, dict[str, int]]:
    """Return the record with instances numbered in 8 bits, and what that lost."""
    if record.instances is None:
        return record, {}
    background = None if keep else space.by_name.get("background")
    ground = None if background is None else background.id
    own = voc_objects.numbered(record.instances, ground, keep=keep)
    kept = voc_objects.within_eight_bits(own, record.height, record.width)
    loss = {
        "instance_masks": sum(a.rle != b.rle for a, b in zip(own, kept, strict=True)),
        "instance_ids": sum(
            b.id not in (0, a.id) for a, b in zip(record.instances, own, strict=True)
        ),
        "instances_of_background": sum(i.category == ground for i in own),
        "instance_scores": sum(instance.score is not None for instance in own),
    }
    return replace(record, instances=kept), {name: n for name, n in loss.items() if n}


def _write_masks(sink: Sink, name: str, label: bytes, folders: str, second: str | None) -> None:
    for letter in folders:
        data = label
        if letter == "a" and second is not None:
            data = base64.b64decode(second)
        sink.write(_TARGET + _FOLDERS[letter].format(name), data)


def _label(
    record: Record, space: LabelSpace, drawing: Drawing, *, paint: bool
) -> tuple[bytes | None, LabelMap | None]:
    """Return the class mask to write, and its pixels where it had to be painted."""
    needs_eight_bits(space)
    ids = painted(record, space, drawing) if paint else None
    if ids is None:
        return palette_png(record, space), None
    return masks.encode(ids, space.palette()), ids


def _write_objects(
    sink: Sink, record: Record, drawing: Drawing, unsure: NDArray[np.bool_] | None, void: str | None
) -> dict[str, int]:
    numbers, loss = voc_objects.draw(record, drawing, unsure, void)
    data = masks.encode(numbers, voc_objects.voc_palette())
    sink.write(_TARGET + _FOLDERS["o"].format(record.image_id), data)
    return loss


def _annotation(
    record: Record, space: LabelSpace, extra: dict[str, Any], *, own: bool, segmented: bool
) -> bytes | None:
    """Return the XML of a record; none for one of VOC's that had none."""
    if "annotation" in extra:
        return voc_annotation.annotation_of(record, space, extra["annotation"])
    if own or record.instances is None:
        return None
    return voc_annotation.new_annotation(record, space, segmented=segmented)


def _lists_for(
    record: Record, extra: dict[str, Any], *, labelled: bool, boxed: bool
) -> dict[str, int | None]:
    """Return the lists to name a record in, and its place where they are not sorted."""
    lists: dict[str, int | None] = extra.get("lists") or {}
    if lists and _split_of(lists) == record.split:
        return lists
    learned = record.split in ("train", "val")
    names = [record.split, "trainval"] if learned else [record.split]
    main = [f"Main/{name}" for name in names if name != "unlabelled"] if boxed else []
    if learned and not labelled:
        return dict.fromkeys(main or [f"Main/{name}" for name in names])
    return dict.fromkeys([*names, *main])


VOC: Final = Voc()
