"""COCO panoptic: a PNG of segment ids for each image, and a JSON that says what they are.

    annotations/panoptic_train2017.json, annotations/panoptic_train2017/000000000009.png
    train2017/000000000009.jpg, or images/train2017/000000000009.jpg

133 categories in 118,287 train and 5,000 val images (Kirillov et al., CVPR 2019). A JSON beside a
folder of its own name is read, too, in `annotations` or in the root. An image without an annotation
has no label. Categories that are not COCO's own make a label space of their own; a `classes.tsv` in
the root goes before them.

The mask holds categories. Segments of things are instances; `extra` keeps the segments' order and
what the file says of stuff. Pixels are in `connectors.panoptic_pixels`.

`write` gives the segments of its own records their ids back. For others it makes segments of mask
and objects: see `new_segments` for what it counts. Images stay JPEG or PNG.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import classes_of, write_classes
from connectors.coco_categories import categories_of, is_name, key_of, space_by
from connectors.coco_images import (
    ImageIds,
    check_splits,
    claim_of,
    entry_of,
    image_of,
    of_image,
    place_of,
    said_of,
    stem_of,
)
from connectors.coco_json import Stream, by_image, facts_of, write_json
from connectors.coco_layout import ANNOTATIONS, FOLDER, ImageFolders, split_of
from connectors.image_files import not_expressed, put_image
from connectors.label_files import labelled_size
from connectors.layout import MISSING, Fingerprints, digest, find_root
from connectors.list_files import OnePlaceEach
from connectors.panoptic_pixels import (
    is_thing,
    new_segments,
    read_ids,
    read_segments,
    same_segments,
    write_ids,
)
from pipeline import masks
from pipeline.errors import BadAnnotation, LayoutError
from pipeline.images import read_header
from pipeline.labels.derive import with_mask
from pipeline.loss import Loss
from pipeline.record import SPLITS, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.coco_sort import Grouped
    from connectors.panoptic_pixels import Info, SegmentIds
    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_JSON: Final = re.compile(r"panoptic_.*\.json")
_OFFICIAL: Final = re.compile(r"panoptic_(train|val|test|unlabeled)\d*\.json")
_EXPECTED: Final = "a panoptic_train2017.json beside a folder of its own name, below annotations"
_MEND: Final = "correct the JSON, or leave the image out"
_NOT_HELD: Final = ("image_labels", "confidence", "depth")


@dataclass(frozen=True, slots=True)
class CocoPanoptic:
    """COCO's panoptic segmentation."""

    format: ClassVar[str] = "coco-panoptic"
    native: ClassVar[str] = "coco-panoptic-133"
    row_bytes: ClassVar[int] = 30_000
    objects_only: ClassVar[bool] = False

    def _files(self, tree: Tree) -> tuple[str, list[str]]:
        """Return the root and the JSON files, in the order of the splits."""

        def fits(names: Collection[str]) -> bool:
            return ANNOTATIONS in names or bool(_jsons(names))

        root = find_root(tree, _EXPECTED, fits)
        found: list[str] = []
        for folder in (f"{root}{ANNOTATIONS}/", root):
            if tree.isdir(folder.rstrip("/")):
                found += [folder + name for name in _jsons(tree.names(folder.rstrip("/")))]
        if not found:
            raise LayoutError(f"{tree.url_of(root)}: expected {_EXPECTED}")
        return root, sorted(found, key=lambda name: (SPLITS.index(split_of(name)), name))

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return coco-panoptic-133, or the spaces of the dataset's own classes."""
        root, files = self._files(tree)
        if tree.exists(root + CLASS_TABLE):
            return (classes_of(tree, root + CLASS_TABLE),)
        return tuple(
            dict.fromkeys(
                space_by(tree, key_of(tree, root, name, self.native), self.native) for name in files
            )
        )

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return info, licences and categories by split."""
        _, files = self._files(tree)
        return {split_of(name): facts_of(tree, name) for name in reversed(files)}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images of the JSON files in their order.

        Raises:
            LayoutError: a JSON is cut off or none.
        """
        check_splits(splits)
        root, files = self._files(tree)
        for name in files:
            if not splits or split_of(name) in splits:
                yield from self._listed(tree, root, name)

    def _listed(self, tree: Tree, root: str, name: str) -> Iterator[Sample]:
        folder, split, key = (
            name.removesuffix(".json"),
            split_of(name),
            key_of(tree, root, name, self.native),
        )
        space = space_by(tree, key, self.native)
        things = sorted(_things(space, facts_of(tree, name).get("categories")))
        tag = folder.rpartition("panoptic_")[2]
        images, pngs = ImageFolders(tree, root, tag), Fingerprints(tree, folder)
        for number, group in enumerate(by_image(tree, name)):
            entry, annotation, problem = _parse(group)
            file_name = entry["file_name"] if problem is None else f"{place_of(group)}#{number}"
            image, mark = images.find(file_name) if problem is None else (name, MISSING)
            png = None if annotation is None else f"{folder}/{annotation.get('file_name')}"
            texts = (group.text, *group.annotations)
            yield Sample(
                image_id=stem_of(file_name),
                path=tree.url_of(image) if problem is None else f"{tree.url_of(name)}#{file_name}",
                fingerprint=mark,
                digest=digest(
                    self.format,
                    READER_VERSION,
                    split,
                    space.name,
                    *key[2 if key[:1] == ["table"] else 3 :],
                    pngs.of(png) if png else "",
                    *texts,
                ),
                dataset=self.format,
                split=split,
                payload=[image, png, entry, annotation, key, things, problem],
            )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's segments."""
        image, png, entry, annotation, key, things, problem = sample.payload
        if problem is not None:
            raise BadAnnotation(sample.path, problem, _MEND)
        space, head = space_by(tree, key, self.native), read_header(tree, image)
        size, extra = (head.height, head.width), dict[str, Any]()
        mask = instances = classes = None
        if png is not None:
            path = tree.url_of(png)
            ids = read_ids(tree.read(png), path)
            size = labelled_size(ids, head, path)
            infos = annotation.get("segments_info")
            objects = {c.id for c in space.classes if is_thing(c, things)}
            found = read_segments(ids, infos, space, objects, path)
            more = {key: annotation[key] for key in annotation.keys() - _ANNOTATION}
            kept: dict[str, Any] = {"segments": found.infos}
            extra["panoptic"] = kept | ({"annotation": more} if more else {})
            palette = space.palette() if found.mask.dtype.itemsize == 1 else None
            mask = File(path, masks.encode(found.mask, palette))
            classes, instances = masks.class_pixels(found.mask, space, path=path), found.things
        return Record.truth(
            sample,
            space.name,
            size,
            mask=mask,
            classes=classes,
            instances=instances,
            extra=extra | of_image(entry, size, head),
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image and its PNG of segments."""
        extra = record.own(self.format).get("panoptic")
        kept: dict[str, Any] = extra if isinstance(extra, dict) else {}
        folder = f"{FOLDER[record.split]}/"
        loss = not_expressed(record, *_NOT_HELD)
        ids, infos, used, lost = _segments(record, space, kept)
        name, cost = put_image(sink, folder + record.image_id, record, ("jpeg", "png"))
        image = image_of(record, name.removeprefix(folder))
        annotation = ""
        if ids is not None:
            png = f"{record.image_id}.png"
            sink.write(f"{_folder(record.split)}/{png}", write_ids(ids))
            said = {"segments_info": infos, "file_name": png}
            more = kept.get("annotation")
            said |= more if isinstance(more, dict) else {}
            annotation = json.dumps(said, ensure_ascii=False)
        claim = claim_of(image, record.image_id)
        image.pop("id", None)
        entry = entry_of(claim, used, image, annotation)
        return Written(record.image_id, record.split, entry, loss | lost | cost)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write a JSON for each split that has images."""
        places, used, loss = OnePlaceEach(self.format), set[int](), Loss()
        ids: dict[str, ImageIds] = {}
        for w in written:
            places.check(f"{w.split}/{w.image_id}")
            claim, classes = json.loads(w.entry.partition(b"\n")[0])
            ids.setdefault(w.split, ImageIds()).add(claim)
            used.update(classes)
        for split in [split for split in SPLITS if split in ids] or ["train"]:
            said = said_of(facts, self.format, split)
            numbers = ids.get(split, ImageIds())
            categories = categories_of(space, said.get("categories"), used)
            more = {key: value for key, value in said.items() if key not in _WRITTEN}
            parts: Iterable[tuple[str, Any]] = (
                ("info", said.get("info", {})),
                ("licenses", said.get("licenses", [])),
                ("images", Stream(_images(written, split, numbers))),
                ("annotations", Stream(_annotations(written, split, numbers))),
                ("categories", categories),
            )
            write_json(sink, f"{_folder(split)}.json", chain(parts, more.items()))
            if numbers.changed():
                changed = loss.attributes.get("image_ids", 0) + numbers.changed()
                loss.attributes["image_ids"] = changed
        write_classes(sink, "", space, self.native)
        return loss


_ANNOTATION: Final = frozenset({"image_id", "file_name", "segments_info"})
_WRITTEN: Final = frozenset({"info", "licenses", "categories"})


def _jsons(names: Collection[str]) -> list[str]:
    """Return the panoptic files among names: with a folder of their own name, or COCO's own."""
    return [
        name
        for name in names
        if _JSON.fullmatch(name)
        and (name.removesuffix(".json") in names or _OFFICIAL.fullmatch(name))
    ]


def _folder(split: str) -> str:
    return f"{ANNOTATIONS}/panoptic_{FOLDER[split]}"


def _things(space: LabelSpace, categories: Any) -> set[int]:
    """Return the classes that the JSON calls things where the space does not say."""
    unsaid = {c.id for c in space.classes if c.isthing is None}
    said = (c for c in (categories if isinstance(categories, list) else ()) if isinstance(c, dict))
    found = {c["id"] for c in said if c.get("isthing") and type(c.get("id")) is int}
    return unsaid & found


def _parse(group: Grouped) -> tuple[Info, Info | None, str | None]:
    """Return image, annotation, and what is wrong with them."""
    image, problem = group.image or {}, group.problem
    if problem is None and not is_name(image.get("file_name")):
        problem = "an image without a file_name"
    if problem is None and len(group.annotations) > 1:
        problem = f"{len(group.annotations)} annotations of one image"
    if problem is not None or not group.annotations:
        return image, None, problem
    annotation = json.loads(group.annotations[0])
    if not is_name(annotation.get("file_name")):
        problem = "an annotation without the file_name of its PNG"
    return image, annotation, problem


def _segments(
    record: Record, space: LabelSpace, kept: Info
) -> tuple[SegmentIds | None, list[Info], tuple[int, ...], dict[str, int]]:
    """Return segment ids, infos, the classes of objects, and what was lost; no ids without labels.

    A record of the format that was not changed since has its own segments; of others it
    counts those whose ids and words are lost.
    """
    used = tuple(sorted({i.category for i in record.instances or ()}))
    stated = kept.get("segments")
    if stated is not None and record.mask is not None and record.mask.bytes:
        try:
            if not record.relabelled:
                return *same_segments(record, stated, space), used, {}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            pass  # mask or objects are others now, or another program wrote the extras
    painted = with_mask(record, space)
    if painted.mask is None or painted.mask.bytes is None:
        boxes = len(record.instances or ())
        return None, [], (), {"instances_without_masks": boxes} if boxes else {}
    drawn = new_segments(painted, space)
    if isinstance(stated, list) and stated:
        drawn.count("segment_ids", len(stated))
    return drawn.ids, drawn.infos, drawn.used, drawn.loss


def _entries(
    written: Iterable[Written], split: str, ids: ImageIds
) -> Iterator[tuple[list[bytes], int]]:
    number = ids.assign()
    for w in written:
        if w.split == split:
            lines = w.entry.split(b"\n")
            yield lines, number(json.loads(lines[0])[0])


def _images(written: Iterable[Written], split: str, ids: ImageIds) -> Iterator[bytes]:
    for lines, number in _entries(written, split, ids):
        yield b'{"id": %d, ' % number + lines[1][1:]


def _annotations(written: Iterable[Written], split: str, ids: ImageIds) -> Iterator[bytes]:
    for lines, number in _entries(written, split, ids):
        if lines[2]:
            yield b'{"image_id": %d, ' % number + lines[2][1:]


COCO_PANOPTIC: Final = CocoPanoptic()
