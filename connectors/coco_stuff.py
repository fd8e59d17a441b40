"""COCO-Stuff: 172 classes in pixel maps, and the stuff classes in a JSON of run lengths.

    stuffthingmaps/train2017/000000000009.png    annotations/stuff_train2017.json
    train2017/000000000009.jpg, or images/train2017/000000000009.jpg

Caesar, Uijlings, Ferrari, CVPR 2018: 118,287 train and 5,000 val images. A pixel map holds id - 1
in 8 bits, 255 for unlabelled; it may lie in `annotations/train2017/` or `train_label/` (images:
`train_img/`), too. The JSON has an annotation for each image and class, ids 92 to 182, and all
things as 183 `other`. Where an image has both, the map is the mask, and `extra` keeps of the JSON
what a mask has no place for. Images of train and val must have either; others may have neither.

A `classes.tsv` in the root makes it a dataset of those classes, and maps hold the ids themselves.

`write` makes maps and JSON; no JSON for its own records that came without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, write_classes
from connectors.coco_categories import is_name, key_of, space_by
from connectors.coco_images import (
    check_splits,
    claim_of,
    entry_of,
    image_of,
    of_image,
    place_of,
    stem_of,
)
from connectors.coco_json import by_image, facts_of
from connectors.coco_layout import FOLDER, ImageFolders, split_of
from connectors.coco_stuff_json import (
    annotations_of,
    extra_of,
    mask_of,
    without_pixels,
    write_files,
)
from connectors.image_files import not_expressed, put_image
from connectors.label_files import grey_png, labelled_size
from connectors.layout import MISSING, Fingerprints, digest, find_root
from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask, LabelOutOfRange, LayoutError
from pipeline.images import IMAGE_SUFFIXES, read_header
from pipeline.label_space import label_space
from pipeline.labels.derive import with_mask
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.coco_sort import Grouped
    from pipeline.files import Tree
    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.loss import Loss
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_MAPS: Final = "stuffthingmaps"
_FOLDERS: Final = (_MAPS, "annotations")
_TAG: Final = re.compile(r"(train|val|test|unlabeled)\d*")
_LABELS: Final = re.compile(r"(train|val|test)_label")
_JSON: Final = re.compile(r"stuff_(.+)\.json")
_PROMISED: Final = ("train", "val")
_EXPECTED: Final = f"{_MAPS}/train2017, or annotations/stuff_train2017.json"
_NOT_HELD: Final = ("instances", "image_labels", "confidence", "depth")
_VOID: Final = 255


@dataclass(slots=True)
class _Part:
    """What there is of one split: folder of maps, JSON; `tag` is "train2017"."""

    tag: str
    maps: str | None = None
    json: str | None = None

    @property
    def split(self) -> str:
        return split_of(self.tag)


def _parts(tree: Tree) -> tuple[str, list[_Part]]:
    """Return the root, and what it has of each split, in the order of the splits."""

    def fits(names: Collection[str]) -> bool:
        return bool({*_FOLDERS} & {*names}) or any(
            _LABELS.fullmatch(n) or _JSON.fullmatch(n) for n in names
        )

    root = find_root(tree, _EXPECTED, fits)
    found: dict[str, _Part] = {}
    folders = {name: tree.names(root + name) for name in _FOLDERS if tree.isdir(root + name)}
    top = tree.names(root.rstrip("/"))
    for folder, names in folders.items():
        for tag in filter(_TAG.fullmatch, names):
            part = found.setdefault(tag, _Part(tag))
            part.maps = part.maps or f"{root}{folder}/{tag}"
    for name in filter(_LABELS.fullmatch, top):
        tag = name.removesuffix("_label")
        found.setdefault(tag, _Part(tag, f"{root}{name}"))
    for prefix, names in (("annotations/", folders.get("annotations", [])), ("", top)):
        for match in filter(None, map(_JSON.fullmatch, names)):
            part = found.setdefault(match[1], _Part(match[1]))
            part.json = part.json or f"{root}{prefix}{match[0]}"
    images = tree.names(f"{root}images") if tree.isdir(f"{root}images") else []
    for tag in filter(_TAG.fullmatch, (*top, *images)):
        if found and split_of(tag) not in _PROMISED:
            found.setdefault(tag, _Part(tag))
    if not found:
        raise LayoutError(f"{tree.url_of(root)}: expected {_EXPECTED}")
    return root, sorted(found.values(), key=lambda p: (SPLITS.index(p.split), p.tag))


@dataclass(frozen=True, slots=True)
class CocoStuff:
    """COCO-Stuff's pixel maps and JSON."""

    format: ClassVar[str] = "coco-stuff"
    native: ClassVar[str] = "coco-stuff"
    row_bytes: ClassVar[int] = 20_000
    objects_only: ClassVar[bool] = False

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return coco-stuff, or the spaces of the dataset's own classes."""
        root, parts = _parts(tree)
        if tree.exists(root + CLASS_TABLE):
            return (classes_of(tree, root + CLASS_TABLE),)
        return tuple(
            dict.fromkeys(
                space_by(tree, key_of(tree, root, part.json, self.native), self.native)
                for part in parts
            )
        )

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return info, licences and categories by split."""
        _, parts = _parts(tree)
        return {part.split: facts_of(tree, part.json) for part in reversed(parts) if part.json}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images of the JSON files in their order, then those of other maps, by name.

        Raises:
            LayoutError: a JSON is cut off or none.
        """
        check_splits(splits)
        root, parts = _parts(tree)
        for part in parts:
            if not splits or part.split in splits:
                yield from _Lister(tree, root, part).samples()

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's map, or its annotations."""
        image, label, name, entry, texts, key, problem = sample.payload
        if problem is not None:
            raise BadAnnotation(sample.path, problem, "correct the JSON, or leave the image out")
        space, head = space_by(tree, key, self.native), read_header(tree, image)
        size, extra, path, ids = (head.height, head.width), dict[str, Any](), None, None
        if label is not None:
            path = tree.url_of(label)
            ids = _read_map(tree.read(label), space, path, shifted=key[:1] != ["table"])
            size = labelled_size(ids, head, path)
        if entry is not None:
            if ids is None and (texts or sample.split in _PROMISED):
                path = tree.url_of(name)
                ids = mask_of(texts, space, size, path)
            extra = extra_of(texts)
            extra |= of_image(entry, size, head)
        if size != (head.height, head.width):
            extra["orientation"] = head.orientation
        palette = space.palette() if space.dtype is np.uint8 else None
        return Record.truth(
            sample,
            space.name,
            size,
            mask=None if ids is None else File(path, masks.encode(ids, palette)),
            classes=None if ids is None else masks.class_pixels(ids, space, path=sample.path),
            extra=extra,
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image and its pixel map."""
        own = record.dataset == self.format
        extra, folder = record.own(self.format), f"{FOLDER[record.split]}/"
        kept = with_mask(record, space)
        native = space == label_space(self.native)
        data = _map_png(kept, space) if native else grey_png(kept, space)
        name, loss = put_image(sink, folder + record.image_id, record, ("jpeg", "png"))
        loss |= not_expressed(record, *_NOT_HELD)
        if data is not None:
            sink.write(f"{_MAPS}/{folder}{record.image_id}.png", data)
        elif record.split in _PROMISED:
            loss["images_without_labels"] = 1
        if own and "image" not in extra:
            return Written(record.image_id, record.split, b"", loss)
        said = extra.get("annotations")
        said = [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []
        same = [] if record.relabelled else said
        texts, claims, lost = annotations_of(kept, space, same, only_stuff=native)
        if len(said) > len(same):
            lost["annotations"] = len(said)
        image = image_of(record, name.removeprefix(folder))
        claim = claim_of(image, record.image_id)
        image.pop("id", None)
        entry = entry_of(claim, claims, image, "\n".join(texts))
        return Written(record.image_id, record.split, entry, loss | lost)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write a JSON for each split that has images with annotations."""
        native = space == label_space(self.native)
        loss = write_files(sink, written, space, facts, only_stuff=native)
        write_classes(sink, "", space, self.native)
        return loss


class _Lister:
    """Lists one split."""

    def __init__(self, tree: Tree, root: str, part: _Part) -> None:
        self._tree, self._part = tree, part
        self._key = key_of(tree, root, part.json, CocoStuff.native)
        self._space = space_by(tree, self._key, CocoStuff.native).name
        self._folders = ImageFolders(tree, root, part.tag)
        self._maps = Fingerprints(tree, part.maps) if part.maps else None
        self._table = self._key[2] if self._key[:1] == ["table"] else ""

    def samples(self) -> Iterator[Sample]:
        """Yield the images of the JSON, of maps that it lacks, and those without a label."""
        seen, part, tree = set[int](), self._part, self._tree
        if part.json is not None:
            for number, group in enumerate(by_image(tree, part.json)):
                sample = self._of_json(part.json, number, group)
                seen.add(hash(sample.image_id))
                yield sample
        if part.maps is not None:
            for entry in tree.walk(part.maps, (".png",)):
                stem = stem_of(entry.name.removeprefix(f"{part.maps}/"))
                if hash(stem) not in seen:
                    image, mark = self._folders.find_stem(stem)
                    yield self._sample(stem, image, mark, (entry.name, entry.fingerprint))
        if part.json is None or part.split not in _PROMISED:
            yield from self._without_maps(seen)

    def _without_maps(self, seen: set[int]) -> Iterator[Sample]:
        folder = self._folders.own()
        for entry in self._tree.walk(folder, IMAGE_SUFFIXES) if folder else ():
            stem = stem_of(entry.name.removeprefix(f"{folder}/"))
            label, mark = self._map_of(stem)
            if hash(stem) not in seen and mark == MISSING:
                promised = label if self._part.split in _PROMISED else None
                yield self._sample(stem, entry.name, entry.fingerprint, (promised, mark))

    def _map_of(self, stem: str) -> tuple[str | None, str]:
        if self._maps is None:
            return None, MISSING
        name = f"{self._part.maps}/{stem}.png"
        return name, self._maps.of(name)

    def _of_json(self, name: str, number: int, group: Grouped) -> Sample:
        entry, problem = group.image or {}, group.problem
        if problem is None and not is_name(entry.get("file_name")):
            problem = "an image without a file_name"
        if problem is not None:
            place = f"{place_of(group)}#{number}"
            url = f"{self._tree.url_of(name)}#{place}"
            return self._sample(place, name, MISSING, (None, ""), problem=problem, url=url)
        stem = stem_of(entry["file_name"])
        image, mark = self._folders.find(entry["file_name"])
        label, label_mark = self._map_of(stem)
        if label_mark == MISSING and self._part.split not in _PROMISED:
            label = None
        texts = (group.text, *group.annotations)
        kept = group.annotations if label_mark == MISSING else without_pixels(group.annotations)
        return self._sample(stem, image, mark, (label, label_mark), entry, texts, kept)

    def _sample(
        self,
        stem: str,
        image: str,
        mark: str,
        label: tuple[str | None, str],
        entry: dict[str, Any] | None = None,
        texts: tuple[str, ...] = (),
        kept: Collection[str] = (),
        *,
        problem: str | None = None,
        url: str | None = None,
    ) -> Sample:
        part = self._part
        parts = (part.split, self._space, self._table, label[1], problem or "", *texts)
        return Sample(
            image_id=stem,
            path=url or self._tree.url_of(image),
            fingerprint=mark,
            digest=digest(CocoStuff.format, READER_VERSION, *parts),
            dataset=CocoStuff.format,
            split=part.split,
            payload=[image, label[0], part.json, entry, [*kept], self._key, problem],
        )


def _read_map(data: bytes, space: LabelSpace, path: str, *, shifted: bool) -> LabelMap:
    """Return the class ids of a pixel map, which holds id - 1 when it is `shifted`."""
    values = masks.read_label(data, path)
    if not shifted:
        if values.dtype != space.dtype:
            masks.check_ids(values, space, path)
        return values.astype(space.dtype, copy=False)
    if values.dtype != np.uint8:
        raise CorruptMask(path, "a pixel map of 16 bits", "write id - 1 in 8 bits")
    ids = np.arange(1, 257)
    ids[_VOID] = space.ignore_index
    allowed = np.zeros(65536, dtype=np.bool_)
    allowed[list(space.ids)] = True
    stray = ~allowed[ids] | (ids == space.ignore_index)
    stray[_VOID] = False
    if stray[values].any():
        found = ", ".join(str(v) for v in np.unique(values[stray[values]])[:20])
        raise LabelOutOfRange(
            path,
            f"values {found} are not id - 1 of a class of label space {space.name!r}",
            "fix the map, or put a classes.tsv beside it when it holds the ids themselves",
        )
    return np.take(ids.astype(space.dtype), values)


def _map_png(record: Record, space: LabelSpace) -> bytes | None:
    """Return a record's mask as a pixel map of id - 1; None without a mask."""
    if record.mask is None or record.mask.bytes is None:
        return None
    values = (np.arange(65536) - 1).astype(np.uint8)
    values[space.ignore_index] = _VOID
    return masks.encode(np.take(values, masks.decode(record.mask.bytes, record.image_id)), None)


COCO_STUFF: Final = CocoStuff()
