"""YOLO's segmentation labels, as Ultralytics reads them: a text file of polygons an image.

    data.yaml   images/train/NAME.jpg   labels/train/NAME.txt   classes.tsv   segmill-origins.jsonl

A line is an object: the class's index in `names`, then x, y of its outline as shares of width and
height. `write` traces outlines (`connectors.yolo_seg_polygons`); parts of an object are joined by
thin lines, holes are lost, and larger shapes lie below smaller ones. The loss report counts holes,
joined objects, and the pixels that are another class when the polygons are drawn again. What a mask
shows beside objects is a line for each piece of each class; void and background have none.

`read` takes data.yaml with `train`, `val` and `test` as folders or lists of images, `names` as a
list or by index, and lines of polygons, or of boxes, which have no pixels. Labels lie where
`images` is replaced by `labels`; an image of train or val without a label file has no objects, as
Ultralytics has it. Polygons are drawn as Ultralytics draws them, larger ones first.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors.base import Written
from connectors.class_table import NAME as CLASS_TABLE
from connectors.class_table import known_classes, write_classes
from connectors.image_files import put_as_shown
from connectors.layout import MISSING, Fingerprints, digest, find_root, lines_of
from connectors.list_files import OnePlaceEach, one_line
from connectors.origins import origin_of, write_origins
from connectors.tool_images import FOLDER, Lister, Seen, check_splits, shown, split_of
from connectors.tool_labels import id_of, is_object, once, space_of
from connectors.tool_shapes import record_of, refuse
from connectors.yolo_seg_labels import layers_of
from connectors.yolo_seg_labels import lines_of as label_of
from pipeline.errors import InputError, LayoutError
from pipeline.images import IMAGE_SUFFIXES, read_header
from pipeline.record import SPLITS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Record, Sample
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

DATA: Final = "data.yaml"
LABELS: Final = "labels"
_FORMATS: Final = ("jpeg", "png", "bmp", "tiff", "webp", "mpo", "avif", "jpeg2000")
_MOST_BYTES: Final = 4 << 20  # of data.yaml: some ten thousand names


@dataclass(frozen=True, slots=True)
class YoloSeg:
    """Ultralytics' segmentation data sets."""

    format: ClassVar[str] = "yolo-seg"
    native: ClassVar[str | None] = None
    row_bytes: ClassVar[int] = 40_000
    objects_only: ClassVar[bool] = False

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return the space of classes.tsv, else that of the names in data.yaml."""
        return (_space(tree, _key(tree, _root(tree))),)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: data.yaml is made anew."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the splits' images: a folder's by name, a list's in its order."""
        check_splits(splits)
        root = _root(tree)
        key, lister = _key(tree, root), Lister(tree, root, self.format)
        said = _data(tree, *key[:2])
        mark = f"{_space(tree, key).to_json()}\0{said['names']}"
        prints: dict[str, Fingerprints] = {}
        for split, place in _places(tree, root, said):
            if splits and split not in splits:
                continue
            for image, below, print_ in _images(tree, root, place):
                label = _label_name(image)
                folder = label.removesuffix(f"/{posixpath.splitext(below)[0]}.txt")
                marks = prints.setdefault(folder, Fingerprints(tree, folder))
                found = marks.find(label)
                name = image.rpartition(f"{FOLDER}/")[2]
                identity = digest(self.format, READER_VERSION, split, found or MISSING, mark)
                if not lister.is_new(image):
                    cause = f"a second line for image {name[:80]!r}"
                    yield lister.bad(f"{image}#again", split, identity, cause)
                    continue
                payload = [image, label if found else None, key]
                known = print_ or lister.find([image.removeprefix(root)])[1]
                place_in = posixpath.splitext(below)[0], split
                yield lister.sample(name, place_in, (image, known), identity, payload)

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's polygons."""
        if isinstance(sample.payload, str):
            raise refuse(sample.path, sample.payload)
        image, label, key = sample.payload
        space, names = _space(tree, key), _data(tree, *key[:2])["names"]
        head = read_header(tree, image)
        size, extra = shown(head)
        path = tree.url_of(label or image)
        text = tree.read_text(label) if label else ""
        classes = [id_of(space, name, tree.url_of(key[0])) for name in names]
        layers = layers_of(text, classes, size, path, space)
        labelled = True if label else None
        return record_of(sample, space, size, layers, path, extra, self.format, labelled=labelled)

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image, and its label file where it has labels."""
        stem = f"{record.split}/{one_line(record.image_id)}"
        made = label_of(record, space, _index(space))
        file, cost = put_as_shown(sink, f"{FOLDER}/{stem}", record, _FORMATS)
        if record.instances is not None or record.mask is not None:
            text = f"{made.text}\n" if made.text else ""
            sink.write(f"{LABELS}/{stem}.txt", text.encode())
        name = file.removeprefix(f"{FOLDER}/")
        entry = json.dumps(origin_of(record, name)).encode()
        return Written(record.image_id, record.split, entry, made.loss | cost)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write data.yaml, the class table and the images' identities."""
        import yaml

        places, there = OnePlaceEach(self.format), set[str]()
        for w in written:
            places.check(f"{w.split}/{w.image_id}")
            there.add(w.split)
        said: dict[str, Any] = {split: f"{FOLDER}/{split}" for split in SPLITS if split in there}
        for needed, instead in (("train", "val"), ("val", "train")):  # Ultralytics asks for both
            other = said.get(instead) or next(iter(said.values()), f"{FOLDER}/{needed}")
            said.setdefault(needed, other)
        said["names"] = {n: space.by_id[c].name for c, n in _index(space).items()}
        text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
        sink.write(DATA, text.encode())
        write_classes(sink, "", space)
        write_origins(sink, "", (json.loads(w.entry) for w in written))
        return None


@lru_cache(maxsize=32)
def _index(space: LabelSpace) -> dict[int, int]:
    """Return the index of each class that has one."""
    return {c: n for n, c in enumerate(c for c in space.train_ids if is_object(space, c))}


def _root(tree: Tree) -> str:
    return find_root(tree, f"a {DATA} of YOLO's", lambda names: _yaml_of(names) is not None)


def _yaml_of(names: Collection[str]) -> str | None:
    """Return the description among a folder's names: data.yaml, else the only .yaml."""
    found = [n for n in names if n.lower().endswith((".yaml", ".yml"))]
    beside = FOLDER in names or bool({"train", "valid", "val"} & set(names)) or DATA in names
    return DATA if DATA in found else found[0] if len(found) == 1 and beside else None


def _key(tree: Tree, root: str) -> list[str]:
    """Return what `_data` and `_space` find their files by, in any process."""
    yaml = root + (_yaml_of(tree.names(root.rstrip("/"))) or DATA)
    names = [yaml, *([root + CLASS_TABLE] if tree.exists(root + CLASS_TABLE) else [])]
    return [part for name in names for part in (name, tree.entry(name).fingerprint)]


@lru_cache(maxsize=32)
def _data(tree: Tree, name: str, fingerprint: str) -> dict[str, Any]:
    """Return what data.yaml says, its names as a list.

    Raises:
        LayoutError: it is no YAML, too large, or lacks names.
    """
    import yaml

    del fingerprint  # tells a file's versions apart
    path = tree.url_of(name)
    if tree.entry(name).size > _MOST_BYTES:
        raise LayoutError(f"{path}: more than {_MOST_BYTES} bytes: not a description of a dataset")
    try:
        said = yaml.safe_load(tree.read_text(name))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise LayoutError(f"{path}: not YAML that can be read ({cause})") from None
    names = said.get("names") if isinstance(said, dict) else None
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise LayoutError(f"{path}: names is no list of texts, nor texts by index from 0")
    if len(set(names)) < len(names):
        raise LayoutError(f"{path}: two names are the same; make each unique")
    return {k: v for k, v in said.items() if isinstance(v, (str, list))} | {"names": names}


def _space(tree: Tree, key: list[str]) -> LabelSpace:
    if len(key) > 2:
        return known_classes(tree, *key[2:])
    names = _data(tree, *key)["names"]
    return space_of(once((n, None) for n in names), YoloSeg.format, tree.url_of(key[0]))


def _places(tree: Tree, root: str, said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the splits with their folders and lists of images, each place once.

    A place that two splits name is that of the split it is called after.
    """
    found: list[tuple[str, str]] = []
    for key, value in said.items():
        split = split_of(key)
        if split is None or key == "names":
            continue
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) for place in places):
            raise LayoutError(f"{tree.url_of(root + DATA)}: {key} is no list of texts; correct it")
        found += [(split, _resolved(tree, root, said, place)) for place in places]
    taken: dict[str, str] = {}
    for split, place in found:
        words = [split_of(word) for word in place.removesuffix(".txt").split("/")]
        if place not in taken or split in words:
            taken[place] = split
    order = sorted(taken.items(), key=lambda item: SPLITS.index(item[1]))
    return iter([(split, place) for place, split in order])


def _resolved(tree: Tree, root: str, said: Mapping[str, Any], place: str) -> str:
    """Return the name in the tree of a folder or list that data.yaml names.

    Raises:
        LayoutError: there is none.
    """
    ups = place
    while ups.startswith(("../", "./")):  # of a file that has been moved
        ups = ups.partition("/")[2]
    base = said.get("path") if isinstance(said.get("path"), str) else ""
    tail = [f"{base}/{ups}", f"{posixpath.basename(base or '')}/{ups}"] if base else []
    for name in (ups, *tail):
        name = root + posixpath.normpath(name).lstrip("/")
        try:
            if tree.exists(name):
                return name.rstrip("/")
        except InputError:  # it leads outside
            continue
    raise LayoutError(f"{tree.url_of(root + DATA)}: {place!r} is not below it; correct data.yaml")


def _images(tree: Tree, root: str, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield the images of a folder or list: name, name in the split, fingerprint where known."""
    if not place.endswith(".txt"):
        yield from _images_of_folder(tree, place)
        return
    for line in lines_of(tree, place):
        name = line.strip().removeprefix("./")
        if name:
            _, folder, below = name.rpartition(f"{FOLDER}/")
            yield root + name, _inside(below if folder else name), ""


def _images_of_folder(tree: Tree, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield the images of a folder; at the end those that only a label file tells of."""
    seen, suffix = Seen(YoloSeg.format), ".jpg"
    for entry in tree.walk(place, IMAGE_SUFFIXES):
        stem, suffix = posixpath.splitext(entry.name)
        seen.is_new(stem)
        yield entry.name, entry.name[len(place) + 1 :], entry.fingerprint
    before, folder, below = f"/{place}/".rpartition(f"/{FOLDER}/")
    labels = f"{before}/{LABELS}/{below}".strip("/")
    if not folder or not tree.isdir(labels):
        return
    for entry in tree.walk(labels, (".txt",)):
        stem = f"{place}{entry.name[len(labels) :]}".removesuffix(".txt")
        if seen.is_new(stem):
            yield stem + suffix, (stem + suffix)[len(place) + 1 :], MISSING


def _inside(name: str) -> str:
    """Return an image's name less the folder of its split."""
    folder, slash, below = name.partition("/")
    return below if slash and split_of(folder) else name


def _label_name(image: str) -> str:
    """Return the label file of an image: the last `images` on its way is `labels`."""
    before, folder, below = f"/{image}".rpartition(f"/{FOLDER}/")
    stem = posixpath.splitext(below)[0]
    name = f"{before}/{LABELS}/{stem}.txt" if folder else f"{posixpath.splitext(image)[0]}.txt"
    return name.removeprefix("/") if folder else name


YOLO_SEG: Final = YoloSeg()
