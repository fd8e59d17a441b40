"""MS COCO's instances: polygons and run lengths in one JSON file a split.

    annotations/instances_train2017.json  instances_val2017.json  image_info_test2017.json
    train2017/000000000009.jpg ...        val2017/ ...            test2017/ ...

Images may lie in `train2017/` or `images/train2017/`; 2014's and other names do as well. A file's
split is the start of what follows `instances_`: train, val, test, unlabeled; train when it says
none of these. Images of `image_info_*.json` have no annotations at all (`instances` is None), those
without an annotation in `instances_*.json` have no objects (an empty tuple). Official counts: train
118,287 images and 860,001 annotations, val 5,000.

Records have objects and no mask. Every annotation keeps its text (`connectors.coco_objects`), every
image its own, so that ids, polygons, digits, areas, licences and unknown keys are written back as
they were. `captions_*.json` and `person_keypoints_*.json` beside the instances come along.

A bad image or annotation is that sample's error; so are annotations of an image that is not listed.
Width and height are those of the stored pixels, whatever EXIF says.

`write` gives records of other formats new ids, writes pixels as compressed run lengths (polygons
could not hold holes), and cuts a mask without objects into one region a class.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors import coco_finish
from connectors.coco_categories import OFFICIAL, is_name, pack_ids, space_of
from connectors.coco_entry import entry_of
from connectors.coco_json import by_image, outline
from connectors.coco_layout import ImageFolders, beside, chosen, json_files, root_of
from connectors.coco_objects import Place, wrap
from connectors.image_files import SUFFIXES
from connectors.layout import MISSING, digest
from pipeline.errors import BadAnnotation, SizeMismatch
from pipeline.images import read_header
from pipeline.label_space import label_space
from pipeline.record import Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.base import Written
    from connectors.coco_json import Grouped
    from connectors.coco_layout import JsonFile
    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Instance
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_MEND: Final = "correct the annotation file"


@dataclass(frozen=True, slots=True)
class CocoInstances:
    """COCO's instances, with what lies beside them."""

    format: ClassVar[str] = "coco-instances"
    native: ClassVar[str] = OFFICIAL
    row_bytes: ClassVar[int] = 20_000
    objects_only: ClassVar[bool] = True
    """No mask is written for a record that has objects: see `connectors.writing`."""

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return coco-80 for the official categories, else a space with the files' own ids."""
        root = root_of(tree)
        spaces = _spaces(tree, json_files(tree, root))
        return tuple(dict.fromkeys(spaces.values()))

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return each file's keys and values, in order; None stands for images and annotations."""
        root = root_of(tree)
        facts: dict[str, Any] = {}
        for file in json_files(tree, root):
            for name in (file.name, *beside(tree, root, file)):
                stem = posixpath.basename(name).removesuffix(".json")
                facts[stem] = [list(pair) for pair in outline(tree, name)]
        return facts

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images of the files, in their order; then annotations without an image.

        Raises:
            LayoutError: a file is cut off or no JSON, or a split that was asked for has none.
        """
        root = root_of(tree)
        files = json_files(tree, root)
        wanted = chosen(files, splits, tree.url_of(root))
        spaces = _spaces(tree, files)
        for file in wanted:
            yield from _listed(tree, root, file, spaces[file.name])

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's annotations."""
        if isinstance(sample.payload, str):
            raise BadAnnotation(sample.path, sample.payload, _MEND)
        name, image, space, categories, tail, text, objects, others = sample.payload
        said = json.loads(text)
        head = read_header(tree, image)
        path = tree.url_of(name)
        if (said.get("height"), said.get("width")) != (head.height, head.width):
            raise SizeMismatch(
                tree.url_of(image),
                f"the image has {head.width}x{head.height} pixels, {path} says "
                f"{said.get('width')}x{said.get('height')}",
                "replace the image; COCO's sizes are those of the stored pixels, not turned",
            )
        place = Place(path, said["id"], head.height, head.width, categories)
        suffix = posixpath.splitext(said["file_name"])[1]
        instances: tuple[Instance, ...] | None = None
        rest: dict[str, Any] = {}
        if objects is not None:
            instances, rest = place.read_all(objects, others)
        return Record.truth(
            sample,
            space,
            (head.height, head.width),
            instances=instances,
            extra=wrap(
                "image",
                text,
                file=tail,
                suffix=None if suffix == SUFFIXES.get(head.format) else suffix,
                **rest,
            ),
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image; its entry has the JSON."""
        return entry_of(sink, record, space, self.format)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Number what has no number yet, and write the JSON files."""
        return coco_finish.finish(sink, written, space, facts.get(self.format, {}))


def _spaces(tree: Tree, files: list[JsonFile]) -> dict[str, LabelSpace]:
    """Return each file's label space; a file without categories shares that of the first."""
    found = {f.name: space_of(dict(outline(tree, f.name)), tree.url_of(f.name)) for f in files}
    first = next((space for space in found.values() if space), None) or label_space(OFFICIAL)
    return {name: space or first for name, space in found.items()}


def _listed(tree: Tree, root: str, file: JsonFile, space: LabelSpace) -> Iterator[Sample]:
    names = beside(tree, root, file)
    kinds = [posixpath.basename(n).removesuffix(f"_{file.tail}.json") for n in names]
    folders = ImageFolders(tree, root, file.tail)
    lister = _Lister(tree, file, space, pack_ids(space), kinds)
    for number, found in enumerate(by_image(tree, file.name, names)):
        cause = found.problem or _problem(found)
        if found.image is None or cause:
            yield lister.bad(number, found, cause)
            continue
        yield lister.sample(found, *folders.find(found.image["file_name"]))


def _problem(found: Grouped) -> str | None:
    name = (found.image or {}).get("file_name")
    if not is_name(name):
        return f"an image without a file_name that is a text ({str(name)[:40]!r})"
    return None


@dataclass(frozen=True, slots=True)
class _Lister:
    """Makes the samples of one annotation file."""

    tree: Tree
    file: JsonFile
    space: LabelSpace
    categories: str
    kinds: list[str]

    def bad(self, number: int, found: Grouped, cause: str | None) -> Sample:
        """Return the sample of an image that cannot be read, or of annotations without one."""
        if found.image is None and found.annotations:
            cause = f"{cause}; the first is {found.annotations[0][:80]}"
        return Sample(
            image_id=f"{self.file.kind}_{self.file.tail}#{number}",
            path=f"{self.tree.url_of(self.file.name)}#{number}",
            fingerprint=MISSING,
            digest=digest(CocoInstances.format, READER_VERSION, self.file.split, found.text),
            dataset=CocoInstances.format,
            split=self.file.split,
            payload=str(cause),
        )

    def sample(self, found: Grouped, image: str, fingerprint: str) -> Sample:
        """Return an image's sample."""
        file = self.file
        others = {k: texts for k, texts in zip(self.kinds, found.beside, strict=True) if texts}
        parts = [t for texts in (found.annotations, *found.beside) for t in texts]
        labelled = file.kind == "instances" or bool(found.annotations)
        tail = None if file.tail == file.usual_tail else file.tail
        name = str((found.image or {})["file_name"])
        return Sample(
            image_id=posixpath.splitext(name)[0],
            path=self.tree.url_of(image),
            fingerprint=fingerprint,
            digest=digest(
                CocoInstances.format,
                READER_VERSION,
                file.split,
                self.space.name,
                self.categories,
                found.text,
                *parts,
            ),
            dataset=CocoInstances.format,
            split=file.split,
            payload=[
                file.name,
                image,
                self.space.name,
                self.categories,
                tail,
                found.text,
                found.annotations if labelled else None,
                others,
            ],
        )


COCO_INSTANCES: Final = CocoInstances()
