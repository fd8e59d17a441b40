"""The full ADE20K releases of 2016/2017 and 2021: objects, their parts, and 3,000 classes and more.

2021: `ADE20K_2021_17_01/images/ADE/{training,validation}/GROUP/SCENE/` with `STEM.jpg`,
`STEM_seg.png`, `STEM_parts_1.png`, ..., `STEM.json`, and `STEM/instance_NNN_STEM.png` for each
object: 255 visible, 128 hidden by another. 25,574 and 2,000 images. 2016/2017:
`ADE20K_2016_07_26/images/{training,validation}/LETTER/SCENE/` with `STEM_atr.txt` and no instance
masks. The RGB of the masks is in `connectors.ade20k_layers`, the classes' names in
`connectors.ade20k_index`; class numbers are ids, 0 is none and ignored.

An image's id is its path below its split's folder, without suffix. Objects have the annotation's
ids in 2021, the rank of their blue value in 2017, where parts have 65536 times their level more. A
part's `extra` names its `level` and `part_of`, -1 where no whole is found. The annotation is kept
as text in the record's extra, and not again in its objects. Files that the objects do not give
back pixel for pixel are kept there, too.

Records of other formats are written in the layout of 2021, in split folders `testing` and
`unlabelled`, too. An image in those needs no labels. Records of both releases go into a folder
each, and are two datasets from then on.
"""

from __future__ import annotations

import base64
import json
import posixpath
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from connectors.ade20k_files import SPLIT_OF, groups, place
from connectors.ade20k_index import (
    CLASS_TABLE,
    pack_numbers,
    space_in,
    unpack_numbers,
    write_index,
)
from connectors.ade20k_layers import draw, layer_png, numbering, read_layer
from connectors.ade20k_new import new_files
from connectors.ade20k_notes import annotation_in, atr_lines, decoded, json_objects
from connectors.ade20k_objects import (
    Scene,
    from_blue,
    from_masks,
    hidden_of,
    instance_png,
    not_redrawn,
    patches_of,
)
from connectors.base import Written
from connectors.class_table import known_classes
from connectors.image_files import not_expressed, put_image
from connectors.label_files import Label, extra_of, labelled_size
from connectors.layout import digest
from connectors.list_files import OnePlaceEach, one_line
from pipeline import masks
from pipeline.errors import SizeMismatch, UnknownName
from pipeline.files import safe_name
from pipeline.images import read_header
from pipeline.labels.derive import with_instances, with_mask
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.ade20k_layers import Layer
    from pipeline.files import Tree
    from pipeline.image_header import Header
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_ROOTS: Final = {"2021": "ADE20K_2021_17_01/", "2017": "ADE20K_2016_07_26/"}
_IMAGES: Final = {"2021": "images/ADE/", "2017": "images/"}
_NOTES: Final = {"2021": ".json", "2017": "_atr.txt"}
_FOLDERS: Final = {split: folder for folder, split in SPLIT_OF.items()}
_MASKED: Final = ("train", "val")
_NOT_HELD: Final = ("image_labels", "confidence", "depth")


@dataclass(frozen=True, slots=True)
class Ade20kFull:
    """Both layouts; the files say which one an image has."""

    format: ClassVar[str] = "ade20k-full"
    native: ClassVar[str | None] = None
    row_bytes: ClassVar[int] = 1_000_000
    objects_only: ClassVar[bool] = False

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return the classes of the dataset's table, its index, or all its annotations."""
        return (space_in(tree, *place(tree)),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: what the index says beyond the names can be counted again."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images of each split; see `space_in` for what a dataset without index costs."""
        for split in splits:
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        base, root = place(tree)
        space = space_in(tree, base, root)
        there = tree.exists(root + CLASS_TABLE)
        table = [root + CLASS_TABLE, tree.entry(root + CLASS_TABLE).fingerprint] if there else None
        known = table or [space.name, pack_numbers(space)]
        for folder, split in SPLIT_OF.items():
            if (splits and split not in splits) or not tree.isdir(base + folder):
                continue
            for group in groups(tree, base + folder):
                labelled = bool(group.marks) or split in _MASKED
                marks = [split, *group.identity, space.name, table[1] if table else ""]
                yield Sample(
                    image_id=group.stem[len(base) + len(folder) + 1 :],
                    path=tree.url_of(group.image),
                    fingerprint=group.fingerprint,
                    digest=digest(self.format, READER_VERSION, *marks),
                    dataset=self.format,
                    split=split,
                    payload={
                        "stem": group.stem,
                        "image": group.image,
                        "levels": [0, *group.levels] if labelled else [],
                        "release": _release(group.note, base),
                        "classes": known,
                        "table": there,
                    },
                )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's masks and annotation."""
        payload = sample.payload
        if payload["table"]:
            space = known_classes(tree, *payload["classes"])
        else:
            space = unpack_numbers(*payload["classes"])
        head = read_header(tree, payload["image"])
        record = Record.truth(
            sample,
            space.name,
            (head.height, head.width),
            extra={"release": payload["release"]},
        )
        if not payload["levels"]:
            return record
        return _labelled(tree, payload, record, space, head)

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write an image's files: as they were read, else in the layout of 2021."""
        name = safe_name(one_line(record.image_id), record.image_id)
        extra = record.own(self.format)
        release = "2017" if extra.get("release") == "2017" else "2021"
        loss = not_expressed(record, *_NOT_HELD)
        own = _is_own(record, record.own_labels(self.format))
        kept = record if own else with_instances(with_mask(record, space), space)
        release = release if own or kept.mask is None else "2021"
        labelled = kept.mask is not None and kept.mask.bytes is not None
        split = record.split if labelled or record.split not in _MASKED else "unlabelled"
        folder = f"{_ROOTS[release]}{_IMAGES[release]}{_FOLDERS[split]}"
        _, cost = put_image(sink, f"{folder}/{name}", record, ("jpeg",))
        scene = ""
        below = posixpath.dirname(f"{folder}/{name}")
        if own:
            scene = _write_own(sink, f"{folder}/{name}", record, space, extra)
        elif labelled:
            files, missed = new_files(kept, space, below)
            loss |= missed
            for tail, data in files:
                sink.write(f"{folder}/{name}{tail}", data)
        elif record.instances:
            loss["instances"] = len(record.instances)
        if split != record.split:
            loss["split_of_unlabelled"] = 1
        if "annotation" in extra and not own:
            loss["annotations"] = 1
        entry = [release, posixpath.basename(name) + ".jpg", below, scene]
        return Written(name, split, json.dumps(entry).encode(), loss | cost)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the index of each release that has an image."""
        places, releases = OnePlaceEach(self.format), set[str]()
        for w in written:
            release = json.loads(w.entry)[0]
            releases.add(release)
            places.check(f"{release}/{w.split}/{w.image_id}")
        for release in sorted(releases) or ["2021"]:

            def rows(release: str = release) -> Iterator[tuple[str, str, str]]:
                for w in written:
                    this, filename, folder, scene = json.loads(w.entry)
                    if this == release:
                        yield filename, folder, scene

            write_index(sink, _ROOTS[release], space, rows)
        return None


def _release(note: str, base: str) -> str:
    if note:
        return "2021" if note == "json" else "2017"
    return "2021" if base.endswith("ADE/") else "2017"


def _labelled(
    tree: Tree, payload: dict[str, Any], record: Record, space: LabelSpace, head: Header
) -> Record:
    stem, release = payload["stem"], payload["release"]
    seg = tree.url_of(f"{stem}_seg.png")
    layers: dict[int, Layer] = {}
    cells: dict[int, bytes] = {}
    for level in payload["levels"]:
        file = _layer_name(stem, level)
        cells[level] = tree.read(file)
        layers[level] = read_layer(cells[level], tree.url_of(file))
    ids = np.take(numbering(space).to_id, layers[0].numbers)
    classes = masks.class_pixels(ids, space, path=seg)
    ids = ids.astype(space.dtype, copy=False)
    shape = labelled_size(ids, head, seg)
    _check_parts(tree, stem, layers, space, shape)
    note = f"{stem}{_NOTES[release]}"
    text, encoding = decoded(tree.read(note))
    scene = Scene(layers, space, shape)
    if release == "2021":
        noted = json_objects(text, tree.url_of(note))
        folder = f"{posixpath.dirname(stem)}/"
        instances, patches = from_masks(tree, folder, noted, scene, tree.url_of(note))
    else:
        atr_lines(text, tree.url_of(note))
        instances, patches = from_blue(scene)
    cell = masks.encode(ids, space.palette() if space.dtype is np.uint8 else None)
    extra: dict[str, Any] = {
        "release": release,
        "annotation": text,
        "levels": payload["levels"],
    }
    extra |= extra_of(Label(ids, cell, classes, {}), head)
    if encoding != "utf-8":
        extra["encoding"] = encoding
    kept = not_redrawn(scene, patches)
    if kept:
        extra["files"] = {str(level): base64.b64encode(cells[level]).decode() for level in kept}
    return replace(
        record,
        height=shape[0],
        width=shape[1],
        mask=File(seg, cell),
        classes=classes,
        instances=instances,
        extra=json.dumps(extra, sort_keys=True),
    )


def _layer_name(stem: str, level: int) -> str:
    return f"{stem}_parts_{level}.png" if level else f"{stem}_seg.png"


def _check_parts(
    tree: Tree, stem: str, layers: dict[int, Layer], space: LabelSpace, shape: tuple[int, int]
) -> None:
    for level, layer in layers.items():
        path = tree.url_of(_layer_name(stem, level))
        if layer.numbers.shape != shape:
            size = f"{layer.numbers.shape[1]}x{layer.numbers.shape[0]}"
            cause = f"the parts have {size} pixels, the objects {shape[1]}x{shape[0]}"
            raise SizeMismatch(path, cause, "replace one of the two")
        if level:
            masks.check_ids(np.take(numbering(space).to_id, layer.numbers), space, path)


def _is_own(record: Record, extra: dict[str, Any]) -> bool:
    """Tell whether a record's labels, as read in `extra`, were not replaced since."""
    return (
        "annotation" in extra
        and record.provenance.kind == "truth"
        and record.mask is not None
        and record.instances is not None
        and (
            extra["release"] == "2017"
            or [o.id for o in json_objects(extra["annotation"], record.image_id)]
            == [i.id for i in record.instances]
        )
    )


def _write_own(
    sink: Sink, stem: str, record: Record, space: LabelSpace, extra: dict[str, Any]
) -> str:
    """Write the labels of a record of a full release; return its scene."""
    assert record.mask is not None
    shape, instances = (record.height, record.width), record.instances or ()
    text, release = extra["annotation"], extra["release"]
    patches, files = patches_of(instances, space, shape), extra.get("files", {})
    for level in extra["levels"]:
        if str(level) in files:
            data = base64.b64decode(files[str(level)])
        else:
            numbers, blue = draw(patches, level, shape)
            if level == 0:
                ids = masks.decode(record.mask.bytes or b"", record.image_id)
                numbers = np.take(numbering(space).to_number, ids)
            data = layer_png(numbers, blue)
        sink.write(_layer_name(stem, level), data)
    sink.write(f"{stem}{_NOTES[release]}", text.encode(extra.get("encoding", "utf-8")))
    if release != "2021":
        return ""
    folder = posixpath.dirname(stem)
    for noted, instance in zip(json_objects(text, stem), instances, strict=True):
        if noted.mask and instance.rle is not None:
            hidden = hidden_of(instance, stem)
            sink.write(f"{folder}/{noted.mask}", instance_png(instance.rle, hidden, shape, stem))
    scene = annotation_in(text, stem).get("scene")
    return "/".join(map(str, scene)) if isinstance(scene, list) else str(scene or "")


ADE20K_FULL: Final = Ade20kFull()
