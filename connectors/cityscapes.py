"""Cityscapes: 2975 train, 500 val and 1525 test frames of 2048x1024, 19998 more labelled coarsely.

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_{labelIds,instanceIds,color}.png, _polygons.json

(Cordts 2016; the encodings are cityscapesScripts'.) Folders are the splits; `train_extra` is split
train, and any other folder (`demoVideo`) unlabelled. `--split` takes a folder's name, too; train
alone leaves train_extra out. Frames of train, val and train_extra must have labels.

Labels come from gtFine where a frame has any there, else from gtCoarse; `extra` says from which as
"gt", and "also" names the other. The mask is labelIds, the objects are instanceIds (see
`connectors.cityscapes_objects`). What is missing of the two is made from what is there: labelIds
from instanceIds, and both from the polygons as the official tools draw them. The polygons' text is
kept in `extra` and written back as it was. Labels of test are read as they are: void ids only.
`color` is not read: it is drawn from labelIds. Files of other folders (disparity, camera, ...) are
named in `extra["files"]`, not read, and not written ("referenced_files").

`write` makes all four label files, so that the official scripts run on them; polygons that a record
does not bring are traced. Ids that are no Cityscapes names: see `connectors.cityscapes_names`. With
a `classes.tsv` in its root, a dataset holds the classes listed there instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors import cityscapes_names as names
from connectors import cityscapes_objects as objects
from connectors import cityscapes_polygons as polygons
from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import not_expressed, put_image
from connectors.label_files import Label, extra_of, grey_png, labelled_size, read_label
from connectors.layout import MISSING, digest, find_root
from connectors.list_files import OnePlaceEach
from pipeline import masks
from pipeline.errors import InputError, MissingFile, UnknownName
from pipeline.images import read_header
from pipeline.label_space import label_space
from pipeline.labels import png
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.files import Tree
    from pipeline.image_header import Header
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Instance
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_SPLIT_OF: Final = {"train": "train", "train_extra": "train", "val": "val", "test": "test"}
_PROMISED: Final = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}
"""The folders whose frames must have labels, and where they are missed."""

_MADE_BY_TOOLS: Final = "cityscapes_panoptic_"
_NOT_HELD: Final = ("image_labels", "confidence", "depth")
_COLOUR_TYPES: Final = (png.RGB, png.RGBA)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What a frame's label files hold; `source` is the file that the mask comes from."""

    label: Label
    source: str
    instances: tuple[Instance, ...] | None
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cityscapes:
    """Cityscapes' folders of photos and of fine and coarse labels."""

    format: ClassVar[str] = "cityscapes"
    native: ClassVar[str] = "cityscapes-34"
    row_bytes: ClassVar[int] = 150_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        needed = {names.IMAGES, *names.LABELS}
        return find_root(
            tree,
            f"folders {names.IMAGES} and {' or '.join(names.LABELS)}",
            lambda found: bool(needed & set(found)),
        )

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return cityscapes-34, or the space of the dataset's own class table."""
        table = self._root(tree) + CLASS_TABLE
        return (classes_of(tree, table) if tree.exists(table) else label_space(self.native),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: the format has no place for it."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the frames that have a photo or labels, by folder and name.

        Raises:
            UnknownName: a split that was asked for is neither a split nor a folder.
        """
        root = self._root(tree)
        folders = _folders(tree, root)
        for split in splits:
            if split not in SPLITS and split not in folders:
                raise UnknownName("split or folder", split, {*SPLITS, *folders})
        table = root + CLASS_TABLE
        mark = tree.entry(table).fingerprint if tree.exists(table) else None
        for folder, kinds in folders.items():
            split = _SPLIT_OF.get(folder, "unlabelled")
            asked = folder in splits or (split == "unlabelled" and split in splits)
            if splits and not asked:
                continue
            for frame in names.frames(tree, root, folder, kinds):
                yield self._sample(tree, root, folder, frame, mark)

    def _sample(
        self, tree: Tree, root: str, folder: str, frame: names.Frame, table: str | None
    ) -> Sample:
        split = _SPLIT_OF.get(folder, "unlabelled")
        if frame.misnamed is not None:
            place, mark = tree.url_of(frame.misnamed), digest(self.format, READER_VERSION, MISSING)
            return Sample(frame.stem, place, MISSING, mark, self.format, split, payload=None)
        image = f"{root}{names.IMAGES}/{folder}/{frame.stem}_{names.IMAGES}.png"
        image_id, city = names.decoded(frame.stem)
        gt = frame.label_folder or _PROMISED.get(folder)
        labels = frame.labels.get(gt or "", {})
        extra: dict[str, Any] = {"gt": gt} if gt else {}
        if len(frame.labels) > 1:
            extra["also"] = names.LABELS[1]
        if folder != split:
            extra["folder"] = folder
        if frame.sides:
            extra["files"] = frame.sides
        if city is not None:
            extra["city"] = city
        said = json.dumps(extra, sort_keys=True)
        marks = [f"{key}{labels[key]}" for key in sorted(labels)] or [MISSING]
        return Sample(
            image_id=image_id,
            path=tree.url_of(image),
            fingerprint=frame.image or MISSING,
            digest=digest(self.format, READER_VERSION, split, said, *marks, table or ""),
            dataset=self.format,
            split=split,
            payload=[root, image, folder, frame.stem, "".join(sorted(labels)), extra, table],
        )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one frame's label files."""
        if sample.payload is None:
            raise InputError(
                sample.path, "the frame's name begins with another frame's", "rename one of the two"
            )
        root, image, folder, stem, held, said, table = sample.payload
        space = (
            known_classes(tree, root + CLASS_TABLE, table) if table else label_space(self.native)
        )
        head = _header(tree, image)
        size, extra, found = (head.height, head.width), dict(said), None
        if "gt" in extra:
            start = f"{root}{extra['gt']}/{folder}/{stem}_{extra['gt']}"
            if not held:
                raise MissingFile(
                    tree.url_of(start + names.TAILS["l"]),
                    "the photo has no labels",
                    "unpack its gtFine or gtCoarse archive in the same place, or name other "
                    "folders with --split",
                )
            files = {key: start + names.TAILS[key] for key in held}
            found = _read_labels(tree, files, head, space)
            size = labelled_size(found.label.ids, head, tree.url_of(found.source))
            extra |= extra_of(found.label, head) | found.extra
        return Record.truth(
            sample,
            space.name,
            size,
            mask=File(tree.url_of(found.source), found.label.cell) if found else None,
            classes=found.label.classes if found else None,
            instances=found.instances if found else None,
            extra=extra,
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's photo and its four label files.

        Raises:
            UsageError: the label space has ids beyond 8 bits.
        """
        own = record.dataset == self.format
        extra, outlines = record.own(self.format), record.own_labels(self.format).get("polygons")
        stem = _stem(record, extra, own=own)
        record = with_mask(record, space)
        label = grey_png(record, space)
        folder, loss = _folder(record, extra, labelled=label is not None)
        _, cost = put_image(
            sink, f"{names.IMAGES}/{folder}/{stem}_{names.IMAGES}", record, ("png",)
        )
        loss |= cost | not_expressed(record, *_NOT_HELD) | _left_behind(extra)
        if label is None:
            loss |= not_expressed(record, "instances")
        else:
            gt = extra.get("gt", names.LABELS[0])
            loss |= _write_labels(
                sink, f"{gt}/{folder}/{stem}_{gt}", record, label, space, outlines
            )
            if "polygons" in extra and outlines is None:
                loss["polygons"] = 1
        return Written(record.image_id, record.split, f"{folder}/{stem}".encode(), loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the class table where the classes are not Cityscapes'."""
        places = OnePlaceEach(self.format)
        for w in written:
            places.check(w.entry.decode())
        write_classes(sink, "", space, self.native)
        return None


def _folders(tree: Tree, root: str) -> dict[str, list[str]]:
    """Return the splits' folders, the official ones first, and which kinds of files each has."""
    tops = set(tree.names(root.rstrip("/")))
    found: dict[str, list[str]] = {}
    for kind in (names.IMAGES, *names.LABELS, *names.SIDES):
        for folder in tree.names(root + kind) if kind in tops and tree.isdir(root + kind) else ():
            if folder.startswith(_MADE_BY_TOOLS) or not tree.isdir(f"{root}{kind}/{folder}"):
                continue
            if folder in found or kind not in names.SIDES:
                found.setdefault(folder, []).append(kind)
    order = {folder: place for place, folder in enumerate(_SPLIT_OF)}
    return {f: found[f] for f in sorted(found, key=lambda f: (order.get(f, len(order)), f))}


def _header(tree: Tree, image: str) -> Header:
    """Read a photo's header.

    Raises:
        InputError: it is damaged, or not there.
    """
    try:
        return read_header(tree, image)
    except MissingFile as error:
        mend = "unpack its leftImg8bit archive beside the labels, or leave the labels out"
        raise MissingFile(error.path, error.cause, mend) from None


def _read_labels(tree: Tree, files: dict[str, str], head: Header, space: LabelSpace) -> _Labels:
    """Read what there is of labelIds, instanceIds and polygons; make what is not there."""
    extra: dict[str, Any] = {}
    content: dict[str, Any] | None = None
    values: NDArray[np.uint16] | None = None
    if "p" in files:
        path = tree.url_of(files["p"])
        text, content = polygons.parse(tree.read(files["p"]), _polygon_sizes(head), path)
        if polygons.TRACED not in content:
            extra["polygons"] = text
    counted = content is None or content.get(polygons.COUNTED) is not False
    source = next(key for key in ("l", "i", "p") if key in files)
    if "i" in files and (counted or source == "i"):
        values = objects.read_values(tree.read(files["i"]), tree.url_of(files["i"]))
    elif content is not None and (counted or source == "p"):
        values = polygons.draw(content, space, tree.url_of(files["p"]))
    where = tree.url_of(files["i" if "i" in files else source])
    if source == "l":
        label = _grey_label(tree.read(files["l"]), space, tree.url_of(files["l"]))
    else:
        assert values is not None
        label = _label_of(values, space, where)
    instances = None
    if values is not None and counted:
        instances, stray = objects.objects_of(values, label.ids, space, where)
        if stray:
            extra["disagreeing_pixels"] = stray
    return _Labels(label, files[source], instances, extra)


def _polygon_sizes(head: Header) -> tuple[tuple[int, int], ...]:
    return ((head.height, head.width), head.upright())


def _grey_label(data: bytes, space: LabelSpace, path: str) -> Label:
    """Read labelIds, which never hold colours.

    Raises:
        InputError: the file is damaged, of another mode, or holds ids of no class.
    """
    if data[:8] == png.SIGNATURE and len(data) > 25 and data[25] in _COLOUR_TYPES:
        masks.read_label(data, path)  # which refuses colours, and says so
    return read_label(data, space, path)


def _label_of(values: NDArray[np.uint16], space: LabelSpace, path: str) -> Label:
    """Return the labels that instanceIds imply."""
    objects.check(values, space, path)
    ids: LabelMap = objects.classes_of(values)
    classes = masks.class_pixels(ids, space, path=path)
    return Label(ids, masks.encode(ids, space.palette()), classes, {})


def _stem(record: Record, extra: dict[str, Any], *, own: bool) -> str:
    """Return a record's place below a folder; a name of Cityscapes' own stays as it was."""
    if own and "city" not in extra:
        return names.checked(record.image_id)
    return names.encoded(record.image_id, record.dataset, extra.get("city"))


def _folder(record: Record, extra: dict[str, Any], *, labelled: bool) -> tuple[str, dict[str, int]]:
    """Return the folder of a record, and what is lost where its split promises labels."""
    folder = extra.get("folder", record.split)
    if _SPLIT_OF.get(folder, "unlabelled") != record.split:
        folder = record.split
    if labelled or folder not in _PROMISED:
        return folder, {}
    return "unlabelled", {"split_of_unlabelled": 1}


def _left_behind(extra: dict[str, Any]) -> dict[str, int]:
    """Count what a record of Cityscapes only names."""
    lost = {"referenced_files": len(extra.get("files", ())), "coarse_labels": int("also" in extra)}
    return {name: count for name, count in lost.items() if count}


def _write_labels(
    sink: Sink,
    start: str,
    record: Record,
    label: bytes,
    space: LabelSpace,
    outlines: str | None,
) -> dict[str, int]:
    """Write the four label files, whose names begin with `start`; return what was lost.

    `outlines` is the text of polygons.json, where the labels were drawn from one.
    """
    ids = masks.decode(label, record.image_id)
    values, loss = objects.draw(record, ids, space)
    sink.write(start + names.TAILS["l"], label)
    sink.write(start + names.TAILS["i"], masks.encode(values))
    sink.write(f"{start}_color.png", _colours(ids, space))
    if outlines is not None:
        data = outlines.encode()
    else:
        data = polygons.trace(values, space, counted=record.instances is not None)
    sink.write(start + names.TAILS["p"], data)
    return loss


def _colours(ids: LabelMap, space: LabelSpace) -> bytes:
    """Return labels [H, W] as an RGBA PNG in the space's colours, as the official ones are."""
    import numpy as np

    table = np.full((256, 4), 255, dtype=np.uint8)
    table[:, :3] = np.frombuffer(space.palette(), dtype=np.uint8).reshape(-1, 3)
    pixels = np.take(table.view("<u4").ravel(), ids)
    return png.write_colours(pixels.view(np.uint8).reshape(*ids.shape, 4))


CITYSCAPES: Final = Cityscapes()
