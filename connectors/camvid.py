"""CamVid in its two editions: the original release, 32 classes, and SegNet's cut, 11 classes.

`camvid`: 701 frames of 960x720 in `701_StillsRaw_full/NAME.png`, labels in 32 colours in
`LabeledApproved_full/NAME_L.png` (Brostow 2009). The release has no splits; a frame gets the one
that SegNet's lists give it, by its drive and number: 367 train, 101 val, 233 test. Lists
`train.txt`, `val.txt`, `test.txt` and `unlabelled.txt` of bare names, which `write` adds, come
first; other frames are train. Frames of unlabelled may lack a label, any other is an error without
one. Colours of no class on up to 0.1 % of the pixels are ignored and counted in the record's extra.

`camvid-11`: `train.txt`, `val.txt`, `test.txt` with lines `/SegNet/CamVid/train/NAME.png
/SegNet/CamVid/trainannot/NAME.png`, masks 480x360 in 8-bit grey, 0..10 and 11 for void. What comes
before `train/` in a path does not matter. A line without a second path, and `unlabelled.txt`,
stand for frames without a mask.

Both: with a `classes.tsv` in its root, a dataset holds the classes listed there instead.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import not_expressed, put_image
from connectors.label_files import (
    colour_png,
    extra_of,
    grey_png,
    labelled_size,
    read_colour_label,
    read_label,
)
from connectors.layout import (
    MISSING,
    Fingerprints,
    digest,
    find_root,
    is_sorted,
    position,
    read_list,
)
from connectors.list_files import ListFiles, OnePlaceEach, one_line
from pipeline.errors import LayoutError, UnknownName
from pipeline.images import IMAGE_SUFFIXES, read_header
from pipeline.label_space import label_space
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from connectors.label_files import Label
    from pipeline.files import Entry, Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_STILLS: Final = "701_StillsRaw_full"
_LABELS: Final = "LabeledApproved_full"
_PREFIX: Final = "/SegNet/CamVid/"
_PAIR: Final = re.compile(r"(\S.*?\.\w+)(?:\s+(\S.*))?")  # names may hold spaces
_FIRST_TEST: Final = 8550  # SegNet's cut of drive 0001TP
_VAL_FRAMES: Final = range(7959, 8160)  # SegNet's val: CamSeq01, a part of drive 0016E5
_NOT_HELD: Final = ("instances", "image_labels", "confidence", "depth")


def segnet_split(name: str) -> str:
    """Return the split that SegNet's lists give a frame of the original release.

    >>> [segnet_split(n) for n in ("0001TP_008520", "0001TP_008550", "0016E5_07959", "Seq05VD_f0")]
    ['train', 'test', 'val', 'test']
    """
    drive, _, rest = name.partition("_")
    number = int(rest.lstrip("f")) if rest.lstrip("f").isdecimal() else -1
    if drive == "Seq05VD" or (drive == "0001TP" and number >= _FIRST_TEST):
        return "test"
    return "val" if drive == "0016E5" and number in _VAL_FRAMES else "train"


def _check_splits(splits: Collection[str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)


def _classes(tree: Tree, root: str, native: str) -> LabelSpace:
    name = root + CLASS_TABLE
    return classes_of(tree, name) if tree.exists(name) else label_space(native)


def _table_fingerprint(tree: Tree, root: str) -> str | None:
    """Return the fingerprint of the dataset's own class table, None when it has none."""
    return tree.entry(root + CLASS_TABLE).fingerprint if tree.exists(root + CLASS_TABLE) else None


def _record(
    tree: Tree,
    sample: Sample,
    native: str,
    read: Callable[[bytes, LabelSpace, str], Label],
) -> Record:
    """Read a sample whose payload is image, mask, root, table's fingerprint and list position."""
    image, mask, root, table, place = sample.payload
    space = known_classes(tree, root + CLASS_TABLE, table) if table else label_space(native)
    head = read_header(tree, image)
    extra: dict[str, object] = {} if place is None else {"position": place}
    size, cell, label = (head.height, head.width), None, None
    if mask is not None:
        path = tree.url_of(mask)
        label = read(tree.read(mask), space, path)
        size, cell = labelled_size(label.ids, head, path), File(path, label.cell)
        extra |= extra_of(label, head)
    return Record.truth(
        sample,
        space.name,
        size,
        mask=cell,
        classes=label.classes if label else None,
        extra=extra,
    )


@dataclass(frozen=True, slots=True)
class CamVid:
    """The original release: colour labels, no lists of its own."""

    format: ClassVar[str] = "camvid"
    native: ClassVar[str] = "camvid-32"
    row_bytes: ClassVar[int] = 8_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        def fits(names: Collection[str]) -> bool:
            return _STILLS in names and (_LABELS in names or "unlabelled.txt" in names)

        return find_root(tree, f"folders {_STILLS} and {_LABELS}", fits)

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return camvid-32, or the space of the dataset's own class table."""
        return (_classes(tree, self._root(tree), self.native),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: the format has no place for it."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the frames that have an image or a label, sorted by name."""
        _check_splits(splits)
        root = self._root(tree)
        table = _table_fingerprint(tree, root)
        listed = _listed(tree, root)
        images = _frames(tree, root + _STILLS)
        labels = _frames(tree, root + _LABELS, "_L")
        for name in sorted({*images, *labels, *listed}):
            split = listed.get(name) or segnet_split(name)
            if splits and split not in splits:
                continue
            still, label = images.get(name), labels.get(name)
            image = still.name if still else f"{root}{_STILLS}/{name}.png"
            mask = label.name if label else f"{root}{_LABELS}/{name}_L.png"
            mark = label.fingerprint if label else MISSING
            promised = label is not None or split != "unlabelled"
            yield Sample(
                image_id=name,
                path=tree.url_of(image),
                fingerprint=still.fingerprint if still else MISSING,
                digest=digest(self.format, READER_VERSION, split, mark, table or ""),
                dataset=self.format,
                split=split,
                payload=[image, mask if promised else None, root, table, None],
            )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one frame."""
        return _record(tree, sample, self.native, read_colour_label)

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a frame and its colour label, where it has one."""
        name = one_line(record.image_id)
        label = colour_png(with_mask(record, space), space)
        _, loss = put_image(sink, f"{_STILLS}/{name}", record, ("png",))
        if label is not None:
            sink.write(f"{_LABELS}/{name}_L.png", label)
        unlabelled = label is None and record.split != "unlabelled"
        loss |= not_expressed(record, *_NOT_HELD)
        if unlabelled:
            loss["split_of_unlabelled"] = 1
        return Written(name, "unlabelled" if unlabelled else record.split, b"", loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the lists and the class colours."""
        places = OnePlaceEach(self.format)
        with ListFiles(sink, or_else="train.txt") as lists:
            for w in written:
                places.check(w.image_id)
                lists.add(f"{w.split}.txt", w.image_id)
        colours = (f"{r} {g} {b}\t{c.name}" for c in space.classes for r, g, b in [c.colour])
        sink.write("label_colors.txt", "\n".join(colours).encode())
        write_classes(sink, "", space, self.native)
        return None


def _listed(tree: Tree, root: str) -> dict[str, str]:
    """Return the split of each frame that a list names; SegNet's two-path lines serve too."""
    listed: dict[str, str] = {}
    for split in SPLITS:
        if tree.exists(f"{root}{split}.txt"):
            for line in read_list(tree, f"{root}{split}.txt"):
                pair = _PAIR.fullmatch(line)
                if pair and pair[2]:
                    line = posixpath.splitext(posixpath.basename(pair[1]))[0]
                listed.setdefault(line, split)
    return listed


def _frames(tree: Tree, folder: str, tail: str = "") -> dict[str, Entry]:
    """Return a folder's image files by name without suffix; 701 of them, so they may be held."""
    frames: dict[str, Entry] = {}
    if not tree.isdir(folder):
        return frames
    for entry in tree.walk(folder, IMAGE_SUFFIXES):
        stem = posixpath.splitext(entry.name)[0][len(folder) + 1 :]
        if stem.endswith(tail):
            frames[stem.removesuffix(tail)] = entry
    return frames


@dataclass(frozen=True, slots=True)
class CamVid11:
    """SegNet's edition: grey masks and lists of pairs of paths."""

    format: ClassVar[str] = "camvid-11"
    native: ClassVar[str] = "camvid-11"
    row_bytes: ClassVar[int] = 8_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        lists = {f"{split}.txt" for split in SPLITS}
        return find_root(
            tree,
            "train.txt, val.txt or test.txt beside folders train, trainannot, ...",
            lambda names: any(n in lists and n[:-4] in names for n in names),
        )

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return camvid-11, or the space of the dataset's own class table."""
        return (_classes(tree, self._root(tree), self.native),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: the format has no place for it."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the frames of the lists, in their order.

        Raises:
            LayoutError: a split that was asked for has no list.
        """
        _check_splits(splits)
        root = self._root(tree)
        for split in SPLITS:
            if split in splits and not tree.exists(f"{root}{split}.txt"):
                raise LayoutError(f"{tree.url_of(root + split)}.txt: the split has no list file")
        table = _table_fingerprint(tree, root)
        for split in SPLITS:
            if (not splits or split in splits) and tree.exists(f"{root}{split}.txt"):
                yield from self._listed(tree, root, split, table)

    def _listed(self, tree: Tree, root: str, split: str, table: str | None) -> Iterator[Sample]:
        lines = read_list(tree, f"{root}{split}.txt")
        images = Fingerprints(tree, root + split)
        masks = Fingerprints(tree, f"{root}{split}annot")
        in_order, seen = is_sorted(lines), set[str]()
        for number, line in enumerate(lines):
            pair = _PAIR.fullmatch(line)
            first, second = (pair[1], pair[2]) if pair else (line, None)
            below = _below(first, split)
            name = posixpath.splitext(below)[0]
            if name in seen:
                continue
            seen.add(name)
            image = f"{root}{split}/{below}"
            mask = f"{root}{split}annot/{_below(second, split + 'annot')}" if second else None
            mark = MISSING if mask is None else masks.of(mask)
            yield Sample(
                image_id=name,
                path=tree.url_of(image),
                fingerprint=images.of(image),
                digest=digest(self.format, READER_VERSION, split, mark, table or ""),
                dataset=self.format,
                split=split,
                payload=[image, mask, root, table, position(number, in_order)],
            )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one frame."""
        return _record(tree, sample, self.native, read_label)

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a frame and its mask, where it has one."""
        split, name = record.split, one_line(record.image_id)
        label = grey_png(with_mask(record, space), space)
        _, loss = put_image(sink, f"{split}/{name}", record, ("png",))
        if label is not None:
            sink.write(f"{split}annot/{name}.png", label)
        loss |= not_expressed(record, *_NOT_HELD)
        place = record.own(self.format).get("position")
        return Written(name, split, json.dumps([label is not None, place]).encode(), loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the lists as SegNet does, with its own prefix before every path."""
        places = OnePlaceEach(self.format)
        with ListFiles(sink, or_else="train.txt") as lists:
            for w in written:
                places.check(f"{w.split}/{w.image_id}")
                labelled, place = json.loads(w.entry)
                line = f"{_PREFIX}{w.split}/{w.image_id}.png"
                if labelled:
                    line += f" {_PREFIX}{w.split}annot/{w.image_id}.png"
                lists.add(f"{w.split}.txt", line, place)
        write_classes(sink, "", space, self.native)
        return None


def _below(path: str, folder: str) -> str:
    """Return what comes after `folder/` in a path of a list file.

    >>> _below("/SegNet/CamVid/train/0001TP_006690.png", "train")
    '0001TP_006690.png'
    """
    path, mark = "/" + path.removeprefix(_PREFIX).lstrip("/"), f"/{folder}/"
    at = 0 if path.startswith(mark) else path.rfind(mark)
    return path[at + len(mark) :] if at >= 0 else path[1:]


CAMVID: Final = CamVid()
CAMVID_11: Final = CamVid11()
