"""ADE20K SceneParsing: 150 classes, the benchmark cut of ADE20K (Zhou 2017).

`ADEChallengeData2016/{images,annotations}/{training,validation}/NAME.{jpg,png}`: 20,210 and 2,000
images, masks in 8-bit grey, 0 for other (ignored) and 1..150 by share of pixels.
`objectInfo150.txt` lists the classes, `sceneCategories.txt` has a line `NAME SCENE` for each image.
The test images come apart, in `release_test/testing`, without masks.

Folders `testing` and `unlabelled` below images and annotations, which `write` adds, hold masked
test images and images of split unlabelled. An image's id is its path below its split's folder,
without suffix. With a `classes.tsv` beside images and annotations, a dataset holds those classes
instead.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, known_classes, write_classes
from connectors.image_files import not_expressed, put_image
from connectors.label_files import extra_of, grey_png, labelled_size, read_label
from connectors.layout import MISSING, Fingerprints, digest, find_root, lines_of
from connectors.list_files import ListFiles, OnePlaceEach, one_line
from pipeline.errors import CorruptMask, UnknownName
from pipeline.files import safe_name
from pipeline.images import IMAGE_SUFFIXES, read_header
from pipeline.label_space import label_space
from pipeline.labels import png
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.label_files import Label
    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

FOLDERS: Final = {
    "train": "training",
    "val": "validation",
    "test": "testing",
    "unlabelled": "unlabelled",
}
"""The folder of each split, here and in the full releases."""

_TARGET: Final = "ADEChallengeData2016/"
_TEST: Final = "release_test/testing"
_CLASSES: Final = "objectInfo150.txt"
_SCENES: Final = "sceneCategories.txt"
_MASKED: Final = ("train", "val")
_NOT_HELD: Final = ("instances", "image_labels", "confidence", "depth")


@dataclass(frozen=True, slots=True)
class Ade20k:
    """SceneParsing's folders."""

    format: ClassVar[str] = "ade20k"
    native: ClassVar[str] = "ade20k-150"
    row_bytes: ClassVar[int] = 20_000
    objects_only: ClassVar[bool] = False

    def _root(self, tree: Tree) -> str:
        def fits(names: Collection[str]) -> bool:
            return "images" in names and bool({"annotations", _SCENES, _CLASSES} & set(names))

        return find_root(tree, "folders images and annotations", fits)

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return ade20k-150, or the space of the dataset's own class table."""
        table = self._root(tree) + CLASS_TABLE
        return (classes_of(tree, table) if tree.exists(table) else label_space(self.native),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return the text of objectInfo150.txt, where the dataset has one."""
        name = self._root(tree) + _CLASSES
        return {"object_info": tree.read_text(name)} if tree.exists(name) else {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images of each split by name, then masks that have no image.

        The scenes of all images are held meanwhile: some 150 bytes an image that has one.
        """
        for split in splits:
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        root = self._root(tree)
        there = tree.exists(root + CLASS_TABLE)
        table = tree.entry(root + CLASS_TABLE).fingerprint if there else None
        scenes = _scenes(tree, root)
        for split in SPLITS:
            if splits and split not in splits:
                continue
            for name, image, mark, mask in _pairs(tree, root, split):
                scene = scenes.get(name)
                parts = (split, mark or MISSING, scene or "", table or "")
                yield Sample(
                    image_id=name,
                    path=tree.url_of(image[0]),
                    fingerprint=image[1],
                    digest=digest(self.format, READER_VERSION, *parts),
                    dataset=self.format,
                    split=split,
                    payload=[image[0], mask, root + CLASS_TABLE, table, scene],
                )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's mask and scene."""
        image, mask, classes, table, scene = sample.payload
        space = known_classes(tree, classes, table) if table else label_space(self.native)
        head = read_header(tree, image)
        size, label = (head.height, head.width), None
        extra: dict[str, object] = {} if scene is None else {"scene": scene}
        if mask is not None:
            path = tree.url_of(mask)
            label = _read_grey(tree.read(mask), space, path)
            size = labelled_size(label.ids, head, path)
            extra |= extra_of(label, head)
        return Record.truth(
            sample,
            space.name,
            size,
            mask=File(tree.url_of(mask), label.cell) if label else None,
            classes=label.classes if label else None,
            extra=extra,
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image, and its mask where it has one or can be painted one."""
        name = safe_name(one_line(record.image_id), record.image_id)
        kept = with_mask(record, space)
        label = grey_png(kept, space)
        split = record.split if label or record.split not in _MASKED else "unlabelled"
        folder = f"{_TARGET}images/{FOLDERS[split]}"
        if label is None and split == "test":
            folder = _TEST
        _, loss = put_image(sink, f"{folder}/{name}", record, ("jpeg",))
        if label is not None:
            sink.write(f"{_TARGET}annotations/{FOLDERS[split]}/{name}.png", label)
        loss |= not_expressed(record, *_NOT_HELD)
        if split != record.split:
            loss["split_of_unlabelled"] = 1
        scene = record.own(self.format).get("scene")
        counts = {c.id: c.pixels for c in kept.classes or ()} if label else {}
        return Written(name, split, json.dumps([scene, counts]).encode(), loss)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the scenes and the table of classes: the dataset's own text where it had one."""
        places, tally = OnePlaceEach(self.format), _Tally(space)
        with ListFiles(sink, or_else=_TARGET + _SCENES) as lists:
            for w in written:
                places.check(f"{w.split}/{w.image_id}")
                scene, counts = json.loads(w.entry)
                if scene is not None:
                    lists.add(_TARGET + _SCENES, f"{w.image_id} {scene}")
                tally.add(w.split, counts)
        text = (facts.get(self.format) or {}).get("object_info")
        own = isinstance(text, str) and space == label_space(self.native)
        sink.write(_TARGET + _CLASSES, (str(text) if own else tally.table()).encode())
        write_classes(sink, _TARGET, space, self.native)
        return None


class _Tally:
    """Counts each class's pixels, and the training and validation images that it is in."""

    def __init__(self, space: LabelSpace) -> None:
        self._space = space
        self._pixels: dict[int, int] = {}
        self._images: dict[tuple[int, str], int] = {}

    def add(self, split: str, counts: dict[str, int]) -> None:
        for key, pixels in counts.items():
            number = int(key)
            self._pixels[number] = self._pixels.get(number, 0) + pixels
            self._images[number, split] = self._images.get((number, split), 0) + 1

    def table(self) -> str:
        """Return objectInfo150.txt: each class's share of the pixels that have one, and images."""
        rows = ["Idx\tRatio\tTrain\tVal\tName"]
        ids = [c.id for c in self._space.classes if c.id != self._space.ignore_index]
        total = sum(self._pixels.get(i, 0) for i in ids)
        for i in ids:
            ratio = self._pixels.get(i, 0) / total if total else 0.0
            train, val = (self._images.get((i, split), 0) for split in _MASKED)
            name = " ".join(self._space.by_id[i].name.split())
            rows.append(f"{i}\t{ratio:.4f}\t{train}\t{val}\t{name}")
        return "\n".join(rows) + "\n"


def _read_grey(data: bytes, space: LabelSpace, path: str) -> Label:
    """Read a grey mask; colours, as the full releases have them, are refused.

    Raises:
        CorruptMask: it is damaged, or holds colours.
    """
    if data[:8] == png.SIGNATURE and len(data) > 25 and data[25] in (png.RGB, 6):
        raise CorruptMask(
            path,
            "an RGB mask, where SceneParsing has 8-bit grey",
            "read the full releases with --format ade20k-full",
        )
    return read_label(data, space, path)


def _scenes(tree: Tree, root: str) -> dict[str, str]:
    """Return the scene of each name in sceneCategories.txt; names may hold spaces."""
    if not tree.exists(root + _SCENES):
        return {}
    kinds: dict[str, str] = {}
    found = {}
    for line in lines_of(tree, root + _SCENES):
        name, _, scene = line.strip().rpartition(" ")
        if name:
            found[name.strip()] = kinds.setdefault(scene, scene)
    return found


def _pairs(
    tree: Tree, root: str, split: str
) -> Iterator[tuple[str, tuple[str, str], str | None, str | None]]:
    """Yield name, (image, its fingerprint), mask's fingerprint, mask of a split's images."""
    folder, label = f"{root}images/{FOLDERS[split]}", f"{root}annotations/{FOLDERS[split]}"
    masks, seen = Fingerprints(tree, label), set[int]()
    if tree.isdir(folder):
        for entry in tree.walk(folder, IMAGE_SUFFIXES):
            name = posixpath.splitext(entry.name)[0][len(folder) + 1 :]
            seen.add(hash(name))  # 60 bytes an image
            mask = f"{label}/{name}.png"
            mark = masks.find(mask)
            held = mark is not None or split in _MASKED
            yield name, (entry.name, entry.fingerprint), mark, mask if held else None
    if tree.isdir(label):
        for entry in tree.walk(label, (".png",)):
            name = posixpath.splitext(entry.name)[0][len(label) + 1 :]
            if hash(name) not in seen:
                image = f"{folder}/{name}.jpg"
                yield name, (image, MISSING), entry.fingerprint, entry.name
    if split == "test":
        yield from _test_images(tree, root)


def _test_images(
    tree: Tree, root: str
) -> Iterator[tuple[str, tuple[str, str], str | None, str | None]]:
    """Yield the images of release_test, which lies in the dataset's folder or beside it."""
    beside = posixpath.dirname(root.rstrip("/"))
    for prefix in dict.fromkeys((root, f"{beside}/" if beside else "")):
        if tree.isdir(prefix + _TEST):
            for entry in tree.walk(prefix + _TEST, IMAGE_SUFFIXES):
                name = posixpath.splitext(entry.name)[0][len(prefix + _TEST) + 1 :]
                yield name, (entry.name, entry.fingerprint), None, None
            return


ADE20K: Final = Ade20k()
