"""Label Studio: tasks in its JSON, with brushes and polygons.

    tasks.json   label_config.xml   images/train/NAME.jpg   classes.tsv   segmill-origins.jsonl

`tasks.json` is imported into a project whose labelling interface is `label_config.xml`. Images are
named as local files below the dataset (`LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`), or by their URL
in a bucket. Truth is written as annotations, labels of models as predictions, which annotators
accept or change. Every object is a brush with all its pixels and holes
(`connectors.label_studio_rle`), the larger first; what a mask shows beside objects is a brush for
each class.

`read` takes every .json beside images/, in JSON's and JSON_MIN's form: brushes, polygons (drawn by
pycocotools' rule) and boxes without rotation, which have no pixels. Shapes are drawn in their
order. **Predictions are no labels:** an image that nobody annotated has none. Other results are
kept in `extra` and written back. The labels are those of classes.tsv, else of label_config.xml,
else those that occur (`connectors.tool_labels`). Rows keep the identity of the store that was
exported (`connectors.origins`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from connectors import label_studio_tasks as told
from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import known_classes, write_classes
from connectors.image_files import put_as_shown
from connectors.label_studio_shapes import (
    BOX,
    BRUSH,
    KEY,
    POLYGON,
    layers_of,
    own_layer,
    results_of,
)
from connectors.layout import digest, find_root
from connectors.list_files import OnePlaceEach, one_line
from connectors.origins import origin_of, write_origins
from connectors.tool_images import FOLDER, Lister, check_splits, is_text, place_of, shown
from connectors.tool_labels import hex_of, labels_of, space_of
from connectors.tool_shapes import record_of, refuse, shapes_of
from pipeline.images import read_header

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Record, Sample
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

TASKS: Final = "tasks.json"
CONFIG: Final = "label_config.xml"
_FORMATS: Final = ("jpeg", "png", "webp", "bmp", "gif")  # what browsers show
_LOCAL: Final = "/data/local-files/?d="


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """Label Studio's JSON and JSON_MIN."""

    format: ClassVar[str] = "label-studio"
    native: ClassVar[str | None] = None
    row_bytes: ClassVar[int] = 60_000
    objects_only: ClassVar[bool] = False

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return the space of classes.tsv, of label_config.xml, or of the labels that occur."""
        return (_space(tree, _key(tree, _root(tree))),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: tasks stand for themselves."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the tasks of each file; what follows a break in it is one bad sample."""
        check_splits(splits)
        root = _root(tree)
        key, lister = _key(tree, root), Lister(tree, root, self.format)
        mark = _space(tree, key).to_json()
        for name in _files(tree, root):
            for number, (task, cause) in enumerate(told.tasks(tree, name)):
                sample = self._sample(lister, [name, key], task, (number, mark, cause))
                if not splits or sample.split in splits or isinstance(sample.payload, str):
                    yield sample

    def _sample(
        self, lister: Lister, files: Sequence[Any], task: Any, said: tuple[int, str, str]
    ) -> Sample:
        (name, key), (number, mark, cause) = files, said
        image = told.image_of(task) if isinstance(task, dict) else None
        cause = cause or ("" if image else f"a task without an image: {str(task)[:60]}")
        names = told.names_of(image or "")
        text = json.dumps(task)
        if not all(map(is_text, names)):
            cause = f"an image whose name is no Unicode text ({names[0][:80]!r})"
        elif image and not lister.is_new(names[0]):
            cause = f"a second task of image {names[0][:80]!r}"
        if cause:
            identity = digest(self.format, READER_VERSION, mark, text)
            return lister.bad(f"{name}#{number}", "train", identity, cause)
        found = lister.find([f"{FOLDER}/{n}" for n in names] + names)
        own = found[0].rpartition(f"{FOLDER}/")[2] if found[1] != "missing" else names[0]
        place = place_of(own)
        results, data = told.results_of(task), told.data_of(task)
        rest = {k: v for k, v in data.items() if k != told.OWN and not _names_image(v, image, own)}
        identity = digest(self.format, READER_VERSION, place[1], mark, json.dumps([results, rest]))
        payload = [name, found[0], key, results, rest]
        return lister.sample(own, place, found, identity, payload)

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read the annotation of one image."""
        if isinstance(sample.payload, str):
            raise refuse(sample.path, sample.payload)
        name, image, key, results, rest = sample.payload
        space, path = _space(tree, key), tree.url_of(name)
        where = f"{path}, image {sample.image_id!r}"
        head = read_header(tree, image)
        first: dict[str, Any] = next((r for r in results or () if told.label_of(r)), {})
        size, extra = shown(head, (first.get("original_height"), first.get("original_width")))
        if rest:
            extra["data"] = rest
        layers, others = layers_of(results or [], size, space, where)
        if others:
            extra[KEY] = others
        return record_of(
            sample, space, size, layers, path, extra, self.format, labelled=results is not None
        )

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image; its entry has the task."""
        stem = f"{record.split}/{one_line(record.image_id)}"
        shapes = shapes_of(record, space, own_layer)
        truth = record.provenance.kind == "truth"
        if not truth:
            shapes.loss.pop("scores", None)
        file, cost = put_as_shown(sink, f"{FOLDER}/{stem}", record, _FORMATS)
        name = file.removeprefix(f"{FOLDER}/")
        extra = record.extras() if record.extra else {}
        results, others = results_of(shapes, record, space), extra.get(KEY, [])
        if others and record.relabelled:
            cost["results_of_other_kinds"], others = len(others), []
        url = sink.url_of(file) if sink.far else _LOCAL + quote(file)
        data = {"image": url, told.OWN: name}
        kept = extra.get("data")
        task: dict[str, Any] = {"data": (kept if isinstance(kept, dict) else {}) | data}
        if record.instances is not None or record.mask is not None:
            if truth:
                task["annotations"] = [{"result": [*results, *others]}]
            else:
                model = record.provenance.model or "segmill"
                task["predictions"] = [{"model_version": model, "result": results}]
        entry = [name, origin_of(record, name), json.dumps(task)]
        return Written(
            record.image_id, record.split, json.dumps(entry).encode(), shapes.loss | cost
        )

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the tasks, the configuration and the images' identities."""
        places = OnePlaceEach(self.format)
        with sink.stream(TASKS) as file:
            comma = b"[\n"
            for w in written:
                places.check(f"{w.split}/{w.image_id}")
                file.write(comma + json.loads(w.entry)[2].encode())
                comma = b",\n"
            file.write(b"\n]\n" if comma == b",\n" else b"[]\n")
        sink.write(CONFIG, _config(space).encode())
        write_classes(sink, "", space)
        write_origins(sink, "", (json.loads(w.entry)[1] for w in written))
        return None


def _names_image(value: Any, image: str | None, own: str) -> bool:
    """Tell whether a value of a task's data is where the image lies."""
    return isinstance(value, str) and (value == image or own in told.names_of(value))


def _root(tree: Tree) -> str:
    def fits(names: Collection[str]) -> bool:
        return any(name.lower().endswith(".json") for name in names)

    return find_root(tree, "a .json with Label Studio's tasks", fits)


def _files(tree: Tree, root: str) -> list[str]:
    return [root + name for name in tree.names(root.rstrip("/")) if name.lower().endswith(".json")]


def _key(tree: Tree, root: str) -> list[str]:
    """Return what `_space` finds the labels by, in any process."""
    there = [root + name for name in (CLASS_TABLE, CONFIG) if tree.exists(root + name)]
    names = there[:1] or _files(tree, root)
    return [part for name in names for part in (name, tree.entry(name).fingerprint)]


def _space(tree: Tree, key: list[str]) -> LabelSpace:
    name, fingerprint = key[:2]
    if name.endswith(CLASS_TABLE):
        return known_classes(tree, name, fingerprint)
    if name.endswith(CONFIG):
        labels = told.labels_of_config(tree, name, fingerprint)
    else:
        pairs = zip(key[::2], key[1::2], strict=True)
        found = {label for pair in pairs for label, _ in told.labels_of_tasks(tree, *pair)}
        labels = tuple((label, None) for label in sorted(found))
    return space_of(labels, LabelStudio.format, tree.url_of(name))


def _config(space: LabelSpace) -> str:
    """Return the labelling interface: each label for brushes, polygons and boxes."""
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
    for tag, name in (("BrushLabels", BRUSH), ("PolygonLabels", POLYGON), ("RectangleLabels", BOX)):
        lines.append(f'  <{tag} name="{name}" toName="image">')
        lines += [
            f"    <Label value={quoteattr(c.name)} background={quoteattr(hex_of(c.colour))}/>"
            for c in labels_of(space)
        ]
        lines.append(f"  </{tag}>")
    return "\n".join([*lines, "</View>", ""])


LABEL_STUDIO: Final = LabelStudio()
