"""NYU Depth v2 as folders of files, one of each kind for an image.

    image/0001.png          the photo; also images/ and rgb/, and .jpg
    label/0001.png          16-bit, 894 classes; also labels/
    label40/0001.png        8-bit, 0 for void, 1..40;  label13/0001.png  likewise, 1..13
    instance/0001.png       8-bit, the object's number within its class
    depth/0001.tiff         a depth cell (`pipeline.depth`): filled in, then as measured
    depth_mm/0001.png       16-bit millimetres; depth/0001.png is read so, too; raw: depth_raw_mm/
    meta/0001.json          scenes, sceneTypes, rawRgbFilenames, rawDepthFilenames, accelData
    train.txt  test.txt     a name on each line; also val.txt and unlabelled.txt

The classes are those of the finest label folder that is there: label, else label40, else label13;
with a classes.tsv, label holds the classes listed there. Without lists, the official split goes by
number, and every image has a label; other names are train. Images of test and unlabelled may lack a
label. `write` makes the coarser labels and depth_mm from the finer ones for those who load them.
"""

from __future__ import annotations

import heapq
import json
import posixpath
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import not_expressed, put_image
from connectors.label_files import cell_png, extra_of, labelled_size, read_label
from connectors.layout import MISSING, Fingerprints, digest, is_sorted, position, read_list
from connectors.list_files import ListFiles, OnePlaceEach, one_line
from connectors.nyuv2_objects import instances_of, numbers_of
from connectors.nyuv2_splits import OFFICIAL, official_split
from pipeline import depth, masks
from pipeline.errors import BadAnnotation, LabelOutOfRange, LayoutError, SizeMismatch
from pipeline.images import IMAGE_SUFFIXES, read_header
from pipeline.label_space import find_remap, label_space
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, Depth, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.label_files import Label
    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.trees.sinks import Sink

FORMATS: Final = ("nyuv2", "nyuv2-mat")
"""The formats whose extras are NYU's."""

_IMAGES: Final = ("image", "images", "rgb")
_LABELS: Final = {
    "label": "nyu-894",
    "labels": "nyu-894",
    "label40": "nyu-40",
    "label13": "nyu-13",
}
"""The folders of labels, the finest first, and their label spaces."""

_COARSER: Final = {
    "nyu-894": ("nyu-40", "nyu-13"),
    "nyu-40": ("nyu-13",),
}
_FOLDER: Final = {"nyu-894": "label", "nyu-40": "label40", "nyu-13": "label13"}
_DEPTHS: Final = (("depth", ".tiff"), ("depth", ".png"), ("depth_mm", ".png"))
_RAW: Final = "depth_raw_mm"
_MILLIMETRE: Final = 0.001
_NOT_HELD: Final = ("image_labels", "confidence")


def fits(names: Collection[str]) -> bool:
    """Tell whether a directory of these names is the dataset."""
    lists = any(f"{split}.txt" in names for split in SPLITS)
    return any(n in names for n in _IMAGES) and (lists or any(n in names for n in _LABELS))


def _first(names: Iterable[str], there: Collection[str]) -> str | None:
    return next((name for name in names if name in there), None)


def space_of(tree: Tree, root: str) -> LabelSpace:
    """Return the label space of a dataset's folders."""
    if tree.exists(root + CLASS_TABLE):
        return classes_of(tree, root + CLASS_TABLE)
    folder = _first(_LABELS, tree.names(root.rstrip("/")))
    return label_space(_LABELS[folder] if folder else "nyu-894")


class _Folders:
    """The files of a dataset, asked for by ascending image names."""

    def __init__(self, tree: Tree, root: str) -> None:
        there = {n for n in tree.names(root.rstrip("/")) if tree.isdir(root + n)}
        self._root = root
        self.image = _first(_IMAGES, there) or "image"
        self.label = _first(_LABELS, there)
        self._there, self._tree = there, tree
        self._prints: dict[tuple[str, str], Fingerprints] = {}

    def find(self, folder: str | None, name: str, suffix: str) -> tuple[str, str] | None:
        """Return a file's name below the tree and its fingerprint; None when it is not there."""
        if folder is None or folder not in self._there:
            return None
        kind = folder, suffix
        if kind not in self._prints:
            self._prints[kind] = Fingerprints(self._tree, self._root + folder)
        path = f"{self._root}{folder}/{name}{suffix}"
        mark = self._prints[kind].find(path)
        return (path, mark) if mark else None


def listed(tree: Tree, root: str, format: str, version: int) -> Iterator[Sample]:
    """Yield the images of the lists, or of the folders, sorted by name."""
    folders = _Folders(tree, root)
    table = tree.entry(root + CLASS_TABLE).fingerprint if tree.exists(root + CLASS_TABLE) else ""
    space = _LABELS[folders.label or "label"]
    for name, split, place, promised in _names(tree, root, folders):
        found = {"label": folders.find(folders.label, name, ".png")}
        image = folders.find(folders.image, name, ".png")
        image = image or folders.find(folders.image, name, ".jpg")
        path, mark = image or (f"{root}{folders.image}/{name}.png", MISSING)
        if found["label"] is None and promised:
            found["label"] = f"{root}{folders.label or 'label'}/{name}.png", MISSING
        found["instance"] = folders.find("instance", name, ".png")
        found["meta"] = folders.find("meta", name, ".json")
        found["raw"] = folders.find(_RAW, name, ".png")
        found["depth"] = next(
            (file for f, end in _DEPTHS if (file := folders.find(f, name, end))), None
        )
        files = {key: file[0] for key, file in found.items() if file}
        marks = [f"{key}={file[1]}" for key, file in found.items() if file]
        yield Sample(
            image_id=name,
            path=tree.url_of(path),
            fingerprint=mark,
            digest=digest(format, version, split, table, space, str(place), *marks),
            dataset=format,
            split=split,
            payload=files | {"image": path, "root": root, "table": table, "space": space}
            | ({} if place is None else {"position": place}),
        )  # fmt: skip


_Named = tuple[str, str, "int | None", bool]
"""Name, split, place in an unsorted list, whether there must be a label."""


def _names(tree: Tree, root: str, folders: _Folders) -> Iterator[_Named]:
    lists = [split for split in SPLITS if tree.exists(f"{root}{split}.txt")]
    if not lists:
        return _by_number(tree, root, folders)
    named: list[_Named] = []
    for split in lists:
        lines = read_list(tree, f"{root}{split}.txt")
        in_order, promised = is_sorted(lines), split in ("train", "val")
        named += ((x, split, position(at, in_order), promised) for at, x in enumerate(lines))
    named.sort(key=lambda item: item[0])
    for earlier, later in pairwise(named):
        if earlier[0] == later[0]:
            raise LayoutError(
                f"{tree.url_of(root)}: {earlier[0]!r} is in {earlier[1]}.txt and {later[1]}.txt; "
                "leave it in one list"
            )
    return iter(named)


def _by_number(tree: Tree, root: str, folders: _Folders) -> Iterator[_Named]:
    def stems(folder: str | None) -> list[str]:
        if folder is None or not tree.isdir(root + folder):
            return []
        cut = len(root) + len(folder) + 1
        walked = tree.walk(root + folder, IMAGE_SUFFIXES)
        # "a-1.png" comes before "a.png", "a" before "a-1".
        return sorted(posixpath.splitext(entry.name[cut:])[0] for entry in walked)

    for name, _ in groupby(heapq.merge(stems(folders.image), stems(folders.label))):
        number = int(name) if name.isascii() and name.isdecimal() else 0
        official = 1 <= number <= OFFICIAL
        yield name, official_split(number) if official else "train", None, True


def read(tree: Tree, sample: Sample) -> Record:
    """Read one image's files."""
    files: dict[str, Any] = sample.payload
    table = files["table"]
    space = label_space(files["space"])
    if table:
        space = known_classes(tree, files["root"] + CLASS_TABLE, table)
    head = read_header(tree, files["image"])
    extra = _meta(tree, files)
    unit = extra.pop("metres_per_unit", None)
    if "position" in files:
        extra["position"] = files["position"]
    size, mask, label, instances = (head.height, head.width), None, None, None
    if "label" in files:
        path = tree.url_of(files["label"])
        label = _label(tree.read(files["label"]), space, path)
        size, mask = labelled_size(label.ids, head, path), File(path, label.cell)
        extra |= extra_of(label, head)
        if "instance" in files:
            numbers = _numbers(tree, files["instance"], size)
            instances, unlabelled = instances_of(label.ids, numbers, space.ignore_index)
            extra |= {"unlabelled_instances": unlabelled} if unlabelled else {}
    return Record.truth(
        sample,
        space.name,
        size,
        mask=mask,
        classes=label.classes if label else None,
        instances=instances,
        depth=_depth(tree, files, unit),
        extra=extra,
    )


def _label(data: bytes, space: LabelSpace, path: str) -> Label:
    try:
        return read_label(data, space, path)
    except LabelOutOfRange as error:
        if space.name not in ("nyu-40", "nyu-13") or not error.cause.split(",")[0].endswith("255"):
            raise
        raise LabelOutOfRange(
            path,
            "it holds 255: labels shifted to start at 0, with 255 for void",
            f"add 1 to every value, so that 255 becomes 0; {space.name} has 0 for void",
        ) from None


def _meta(tree: Tree, files: Mapping[str, str]) -> dict[str, Any]:
    if "meta" not in files:
        return {}
    path = tree.url_of(files["meta"])
    try:
        meta = json.loads(tree.read(files["meta"]))
    except (ValueError, RecursionError):
        meta = None
    unit = meta.get("metres_per_unit") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or not isinstance(unit, int | float | None):
        raise BadAnnotation(path, "not a JSON object as segmill writes it", "correct or remove it")
    return meta


def _numbers(tree: Tree, name: str, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    path = tree.url_of(name)
    numbers = masks.read_label(tree.read(name), path)
    if numbers.shape != size:
        raise SizeMismatch(
            path, f"{numbers.shape[::-1]} pixels, the label {size[::-1]}", "replace one of the two"
        )
    if int(numbers.max()) > 255:
        raise BadAnnotation(
            path,
            f"objects numbered up to {numbers.max()}",
            "number them within their class, 1..255",
        )
    return numbers.astype(np.uint8, copy=False)


def _depth(tree: Tree, files: Mapping[str, str], unit: float | None) -> Depth | None:
    if "depth" not in files:
        return None
    path, data = tree.url_of(files["depth"]), tree.read(files["depth"])
    if files["depth"].endswith(".tiff"):
        values, raw = depth.decode(data, path)
    else:
        values = _millimetres(data, path)
        raw = None
        if "raw" in files:
            raw = _millimetres(tree.read(files["raw"]), tree.url_of(files["raw"]))
            if raw.shape != values.shape:
                raise SizeMismatch(path, "depth and raw depth differ in size", "replace one")
        data = depth.encode(values, raw)
    return Depth(path, data, unit or (1.0 if values.dtype == np.float32 else _MILLIMETRE))


def _millimetres(data: bytes, path: str) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return masks.read_label(data, path).astype(np.uint16, copy=False)


def write(sink: Sink, record: Record, space: LabelSpace) -> Written:
    """Write the files of one record."""
    name, extra = one_line(record.image_id), record.own(*FORMATS)
    kept = with_mask(record, space)
    loss = not_expressed(record, *_NOT_HELD)
    cell, numbers = cell_png(kept, space), None
    if cell is not None:
        labels = masks.decode(cell, name)
        if record.instances is not None:
            left = extra.pop("unlabelled_instances", {})
            numbers, cost = numbers_of(record.instances, labels, space.ignore_index, left, name)
            loss |= cost
    elif record.instances:
        loss["instances"] = len(record.instances)
    _, cost = put_image(sink, f"image/{name}", record, ("png",))
    loss |= cost
    if cell is not None:
        for folder, data in _label_files(cell, space):
            sink.write(f"{folder}/{name}.png", data)
    if numbers is not None:
        sink.write(f"instance/{name}.png", masks.encode(numbers))
    place = extra.pop("position", None)
    for key in ("orientation", "unknown_colours"):
        extra.pop(key, None)
    loss |= _write_depth(sink, name, record, extra)
    if extra:
        sink.write(f"meta/{name}.json", json.dumps(extra, sort_keys=True).encode())
    split = record.split
    if cell is None and split in ("train", "val"):
        split, loss["split_of_unlabelled"] = "unlabelled", 1
    return Written(name, split, json.dumps(place).encode(), loss)


def _label_files(cell: bytes, space: LabelSpace) -> Iterator[tuple[str, bytes]]:
    """Yield the label folders and files of a mask: its own classes, and NYU's coarser ones."""
    own = space.name in _FOLDER and space == label_space(space.name)
    yield _FOLDER[space.name] if own else "label", cell
    if not own:
        return
    ids = masks.decode(cell)
    for coarser in _COARSER.get(space.name, ()):
        target = label_space(coarser)
        yield _FOLDER[coarser], masks.encode(find_remap(space, target).apply(ids))


def _write_depth(sink: Sink, name: str, record: Record, extra: dict[str, Any]) -> dict[str, int]:
    """Write a depth cell as it is, and in millimetres; note a unit that is not the usual one."""
    held = record.depth
    if held is None:
        return {}
    if held.bytes is None:
        return {"depth": 1}
    sink.write(f"depth/{name}.tiff", held.bytes)
    values, raw = depth.decode(held.bytes, name)
    usual = 1.0 if values.dtype == np.float32 else _MILLIMETRE
    unit = held.metres_per_unit or usual
    if unit != usual:
        extra["metres_per_unit"] = unit
    for folder, page in (("depth_mm", values), (_RAW, raw)):
        if page is not None:
            scaled = np.nan_to_num(np.round(page.astype(np.float64) * (unit / _MILLIMETRE)))
            millimetres = np.clip(scaled, 0, 65535).astype(np.uint16)
            sink.write(f"{folder}/{name}.png", masks.encode(millimetres))
    return {}


def finish(sink: Sink, written: Iterable[Written], space: LabelSpace) -> None:
    """Write the split lists and the class table."""
    places = OnePlaceEach("nyuv2")
    with ListFiles(sink, or_else="train.txt") as lists:
        for w in written:
            places.check(w.image_id)
            lists.add(f"{w.split}.txt", w.image_id, json.loads(w.entry))
    write_classes(sink, "", space, space.name if space.name in _FOLDER else "nyu-894")
