"""SUN RGB-D: 10,335 indoor images with depth, 37 classes, 5,285 for training and 5,050 for test.

    SUNRGBD/{kv1,kv2,realsense,xtion}/.../FRAME/  image/*.jpg  depth/*.png  depth_bfx/*.png  seg.mat
        annotation2Dfinal/index.json  intrinsics.txt  extrinsics/*.txt  scene.txt
    SUNRGBDtoolbox/                  (see `connectors.sunrgbd_toolbox`; may be absent)

A frame's id is its path below SUNRGBD. The mask is that of the toolbox's SUNRGBD2Dseg.mat, else
made from seg.mat, whose names of all kinds stay in the record's extra, as do the text files. Depth
has the map with its holes filled first and the sensor's second. Objects are those of seg.mat and
the outlines of annotation2Dfinal that have a class (`connectors.sunrgbd_polygons`).

Splits: those of the toolbox's allsplit.mat, else the official ones, which are shipped; frames that
neither names are train. `--split trainvalsplit.train` and `--split trainvalsplit.val` take the
2,666 and 2,619 that the official list cuts train into. A frame of a split without seg.mat and
without labels in the toolbox is an error; one that no list names is unlabelled then.

Not kept, but named in extra's `left_out`, and counted when written: `fullres/`, dated backups of
annotations, other variables of seg.mat. With a `classes.tsv` beside SUNRGBD the dataset holds those
classes. Frames that are listed and have no folder are no samples: a warning counts them, as most
copies are a part. Copies that number all images (`img-000001.jpg`, `label37/`) are not read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from connectors import sunrgbd_depth, sunrgbd_polygons, sunrgbd_seg, sunrgbd_toolbox
from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import not_expressed, put_image
from connectors.layout import digest, find_root
from connectors.list_files import OnePlaceEach
from connectors.sunrgbd_frames import SEG, frames, pack_text, stem, unpack_text
from pipeline import masks
from pipeline.errors import BadAnnotation, MissingFile, UnknownName, UnsafePath
from pipeline.files import is_junk, safe_name
from pipeline.images import read_header
from pipeline.label_space import label_space
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, Depth, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.sunrgbd_frames import Frame
    from connectors.sunrgbd_seg import Seg
    from pipeline.files import Tree
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Instance
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_BASE: Final = "SUNRGBD/"
_SENSORS: Final = frozenset(("kv1", "kv2", "realsense", "xtion"))
_NOT_HELD: Final = ("image_labels", "confidence")
_LOG: Final = logging.getLogger("segmill")


@dataclass(frozen=True, slots=True)
class SunRgbd:
    """The release's folders, and the toolbox's lists and labels."""

    format: ClassVar[str] = "sunrgbd"
    native: ClassVar[str] = sunrgbd_seg.NATIVE
    row_bytes: ClassVar[int] = 400_000
    objects_only: ClassVar[bool] = False

    def _places(self, tree: Tree) -> tuple[str, str]:
        """Return what the toolbox's and the frames' names start with."""

        def fits(names: Collection[str]) -> bool:
            return "SUNRGBD" in names or not _SENSORS.isdisjoint(names)

        root = find_root(tree, "a folder SUNRGBD, or kv1, kv2, realsense or xtion", fits)
        return root, root + _BASE if tree.isdir(root + "SUNRGBD") else root

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return sunrgbd-37, or the space of the dataset's own class table."""
        table = self._places(tree)[0] + CLASS_TABLE
        return (classes_of(tree, table) if tree.exists(table) else label_space(self.native),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: the format has no place for it."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the frames, sorted by their paths.

        Raises:
            UnknownName: a split that was asked for is none.
        """
        for split in splits:
            if split not in (*SPLITS, *sunrgbd_toolbox.PARTS):
                raise UnknownName("split", split, (*SPLITS, *sunrgbd_toolbox.PARTS))
        root, base = self._places(tree)
        listed = sunrgbd_toolbox.places(tree, root)
        rows = sunrgbd_toolbox.order(tree, root)
        labels = tree.entry(root + sunrgbd_toolbox.LABELS).fingerprint if rows else None
        table = root + CLASS_TABLE
        mark = tree.entry(table).fingerprint if tree.exists(table) else None
        found = unlisted = 0
        for frame in frames(tree, base):
            name = frame.name if frame.name in listed else sunrgbd_toolbox.sequence(frame.name)
            place, row = listed.get(name), rows.get(name)
            found, unlisted = found + (place is not None), unlisted + (place is None)
            held = SEG in frame.files or row is not None
            split = sunrgbd_toolbox.split_of(place, labelled=held)
            if splits and split not in splits and place not in splits:
                continue
            part = place if place in sunrgbd_toolbox.PARTS else None
            payload = _payload(frame, root, base, part)
            if row is not None and labels is not None:
                payload["row"] = [row, labels]
            payload["table"] = mark
            image = payload["image"]
            yield Sample(
                image_id=frame.name,
                path=tree.url_of(f"{base}{frame.name}/{image}"),
                fingerprint=frame.mark(image),
                digest=self._digest(frame, split, payload),
                dataset=self.format,
                split=split,
                payload=payload,
            )
        where = tree.url_of(base.rstrip("/"))
        if unlisted:
            _LOG.warning("%s: no list has %d frames; those with labels are train", where, unlisted)
        if 0 < found < len(listed):
            _LOG.warning("%s: holds %d of the %d frames listed", where, found, len(listed))

    def _digest(self, frame: Frame, split: str, payload: dict[str, Any]) -> str:
        read = [SEG, *payload["depth"].values(), *payload["texts"]]
        marks = [f"{name}={frame.mark(name)}" for name in read]
        row = map(str, payload.get("row", ()))
        known = (payload["part"] or "", payload["table"] or "", *payload["left_out"])
        return digest(self.format, READER_VERSION, split, *marks, *row, *known)

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one frame."""
        said = sample.payload
        folder = f"{said['base']}{sample.image_id}/"
        table = said["root"] + CLASS_TABLE
        space = label_space(self.native)
        if said["table"]:
            space = known_classes(tree, table, said["table"])
        head = read_header(tree, folder + said["image"])
        shape = (head.height, head.width)
        extra = _extra(tree, folder, said)
        seg = _seg(tree, folder, said, shape, extra)
        drawn = None if seg is None else sunrgbd_seg.to_ids(seg, space)
        ids, path = _labels(tree, folder, said, shape, drawn, space)
        if ids is None and sample.split != "unlabelled":
            cause = "no such file, nor labels in the toolbox"
            raise MissingFile(path, cause, "restore it, or take the frame out")
        if drawn is not None and ids is not drawn:
            differing = int(np.count_nonzero(drawn != ids))
            extra |= {"toolbox_differs": differing} if differing else {}
        instances = _instances(tree, folder, _objects(seg, drawn, shape, space, path), space, extra)
        palette = space.palette() if space.dtype is np.uint8 else None
        where = path if ids is drawn else f"{path}#{said['row'][0]}"
        classes = None if ids is None else masks.class_pixels(ids, space, path=where)
        return Record.truth(
            sample,
            space.name,
            (head.height, head.width),
            mask=None if ids is None else File(path, masks.encode(ids, palette)),
            classes=classes,
            instances=instances,
            depth=_depth(tree, folder, said, shape),
            extra=extra,
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a frame's folder."""
        name = _folder_name(record.image_id)
        folder = f"{_BASE}{name}/"
        extra, stated = record.own(self.format), record.own_labels(self.format)
        own, as_read = "files" in extra, "files" in stated
        kept = record if as_read else with_mask(record, space)
        loss = not_expressed(record, *_NOT_HELD)
        image, cost = put_image(
            sink, f"{folder}image/{extra.get('image') or stem(name)}", record, ("jpeg", "png")
        )
        loss |= cost
        if own and extra.get("left_out"):
            loss["files_left_out"] = len(extra["left_out"])
        if as_read:
            seg = sunrgbd_seg.from_json(stated["seg"], name) if "seg" in stated else None
        else:
            seg, lost = sunrgbd_seg.of_record(kept, space)
            loss |= lost | ({"raw_labels": 1} if "seg" in extra else {})
        if seg is not None:
            sink.write(folder + SEG, sunrgbd_seg.render(seg))
        for below, text in extra.get("files", {}).items():
            if below == sunrgbd_polygons.INDEX and not as_read:
                loss["polygons"] = 1
                continue
            sink.write(folder + safe_name(below, name), unpack_text(text))
        depth = _write_depth(sink, folder, record, extra, loss)
        labels = None
        if kept.mask is not None and kept.mask.bytes is not None:
            labels = masks.decode(kept.mask.bytes, name)
        split = record.split
        if labels is None and seg is None and split != "unlabelled":
            split, loss = "unlabelled", loss | {"split_of_unlabelled": 1}
        part = extra.get("part") or ("train" if not own and split == "train" else None)
        entry = sunrgbd_toolbox.entry_of(
            image.removeprefix(folder), depth, _intrinsics(extra), part, labels
        )
        return Written(name, split, entry, loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the toolbox's lists and labels."""
        places = OnePlaceEach(self.format)
        with sunrgbd_toolbox.Toolbox(sink) as toolbox:
            for w in written:
                places.check(w.image_id)
                toolbox.add(w.image_id, w.split, w.entry)
        write_classes(sink, "", space, self.native)
        return None


def _payload(frame: Frame, root: str, base: str, part: str | None) -> dict[str, Any]:
    """Return what `read` needs of a frame, which lists no folder again."""
    texts, left = frame.rest()
    depths = frame.depths
    # A missing image mostly has the name of its depth map or folder.
    image = frame.image or f"image/{stem(next(iter(depths.values()), frame.name))}.jpg"
    return {
        "root": root,
        "base": base,
        "image": image,
        "depth": depths,
        "seg": SEG in frame.files,
        "texts": texts,
        "left_out": left,
        "part": part and part.rpartition(".")[2],
    }


def _extra(tree: Tree, folder: str, said: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "image": stem(said["image"]),
        "files": {name: pack_text(tree.read(folder + name)) for name in said["texts"]},
    }
    return extra | {name: said[name] for name in ("depth", "part", "left_out") if said[name]}


def _seg(
    tree: Tree, folder: str, said: dict[str, Any], shape: tuple[int, int], extra: dict[str, Any]
) -> Seg | None:
    if not said["seg"]:
        return None
    path = tree.url_of(folder + SEG)
    seg = sunrgbd_seg.read(tree.read(folder + SEG), path)
    sunrgbd_seg.check_size(seg, shape, path)
    extra["seg"] = sunrgbd_seg.to_json(seg)
    if seg.left:
        extra["left_out"] = [*extra.get("left_out", ()), *(f"{SEG}#{name}" for name in seg.left)]
    return seg


def _labels(
    tree: Tree,
    folder: str,
    said: dict[str, Any],
    shape: tuple[int, int],
    drawn: LabelMap | None,
    space: LabelSpace,
) -> tuple[LabelMap | None, str]:
    """Return the class ids and where they come from: the toolbox before seg.mat's, `drawn`."""
    name = said["root"] + sunrgbd_toolbox.LABELS
    if "row" in said:
        row, fingerprint = said["row"]
        ids = sunrgbd_toolbox.read_labels(tree, name, fingerprint, row, shape)
        if ids is not None:
            # Only widened: a number too big for the space must be seen, not wrapped round.
            wide = space.dtype is np.uint16
            return ids.astype(np.uint16) if wide else ids, tree.url_of(name)
    return drawn, tree.url_of(folder + SEG)


def _objects(
    seg: Seg | None,
    ids: LabelMap | None,
    shape: tuple[int, int],
    space: LabelSpace,
    path: str,
) -> tuple[tuple[Instance, ...] | None, LabelMap]:
    """Return the objects of seg.mat, None where it numbers none, and the map of their ids."""
    if seg is None or ids is None or seg.objects is None:
        return None, np.zeros(shape, np.uint16)
    return sunrgbd_seg.objects_of(seg, ids, space, path)


def _instances(
    tree: Tree,
    folder: str,
    objects: tuple[tuple[Instance, ...] | None, LabelMap],
    space: LabelSpace,
    extra: dict[str, Any],
) -> tuple[Instance, ...] | None:
    """Add the outlines to the objects of seg.mat; note in extra what could not be read."""
    instances, drawn = objects
    text = extra["files"].get(sunrgbd_polygons.INDEX)
    if text is None:
        return instances
    path = tree.url_of(folder + sunrgbd_polygons.INDEX)
    try:
        outlines = sunrgbd_polygons.parse(unpack_text(text), path)
    except BadAnnotation as error:
        extra["unread"] = {sunrgbd_polygons.INDEX: error.cause}
        _LOG.warning("%s", error)
        return instances
    merged, failed = sunrgbd_polygons.joined(instances or (), drawn, outlines, space, path)
    if failed + outlines.skipped:
        extra["outlines_left_out"] = failed + outlines.skipped
    return merged


def _depth(tree: Tree, folder: str, said: dict[str, Any], shape: tuple[int, int]) -> Depth | None:
    if not said["depth"]:
        return None
    names = {below: folder + name for below, name in said["depth"].items()}
    maps = {
        below: sunrgbd_depth.read_map(tree.read(name), tree.url_of(name), shape)
        for below, name in names.items()
    }
    used = names.get(sunrgbd_depth.FILLED) or names[sunrgbd_depth.SENSOR]
    cell = sunrgbd_depth.cell(maps)
    return Depth(tree.url_of(used), cell, sunrgbd_depth.METRES_PER_UNIT)


def _folder_name(image_id: str) -> str:
    """Return the folder of an image, its id.

    Raises:
        UnsafePath: it would lie elsewhere, or not be found again.
    """
    if safe_name(image_id, _BASE) != image_id or not image_id or is_junk(image_id):
        raise UnsafePath(repr(image_id), "the name is no folder's name", "rename the image")
    return image_id


def _write_depth(
    sink: Sink, folder: str, record: Record, extra: dict[str, Any], loss: dict[str, int]
) -> str | None:
    """Write the depth maps; return the name of the one to use, below the frame's folder."""
    pages = None
    if record.depth is not None:
        pages = sunrgbd_depth.pages(record.depth, record.image_id)
    if pages is None:
        return None
    if pages.rounded:
        loss["depth_rounded_to_millimetres"] = 1
    name = f"{stem(record.image_id)}.png"
    names: dict[str, str] = extra.get("depth") or {sunrgbd_depth.SENSOR: f"depth/{name}"}
    maps = {next(iter(names)): pages.main}
    if pages.sensor is not None:
        maps = {sunrgbd_depth.FILLED: pages.main, sunrgbd_depth.SENSOR: pages.sensor}
        names = {sunrgbd_depth.FILLED: f"depth_bfx/{name}"} | names
    for below, values in maps.items():
        target = folder + safe_name(names[below], record.image_id)
        sink.write(target, masks.encode(sunrgbd_depth.to_pixels(values)))
    return names[next(iter(maps))]


def _intrinsics(extra: dict[str, Any]) -> list[float] | None:
    """Return the nine numbers of intrinsics.txt, row by row; None without them."""
    text = extra.get("files", {}).get("intrinsics.txt")
    if text is None:
        return None
    try:
        values = [float(word) for word in unpack_text(text).split()]
    except ValueError:
        return None
    return values if len(values) == 9 else None


SUNRGBD: Final = SunRgbd()
