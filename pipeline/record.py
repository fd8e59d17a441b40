"""The record: one image and everything known about its labels, one row of the store.

The one place that names a column. `SCHEMA` is the Arrow schema of every fragment; `Record` is a row
in Python; `to_table` and `from_batch` go from one to the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from datetime import datetime  # noqa: TC003 - dataclass fields are resolved at run time
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from pipeline.errors import BadAnnotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa

    SCHEMA: pa.Schema

SCHEMA_VERSION: Final = 1
"""Raised by one when an older segmill could no longer read a store rightly."""

Split = Literal["train", "val", "test", "unlabelled"]
EMBEDDED: Final = "+images"
"""What ends the digest of a truth row that holds its image's bytes."""
SPLITS: Final = ("train", "val", "test", "unlabelled")
RELABELLED: Final = "relabelled"
"""The key of a record's `extra` that says that its labels are not those that were read."""

Kind = Literal["truth", "model", "pseudo"]

COLUMNS: Final = (
    "image_id", "dataset", "split", "image", "fingerprint", "height", "width", "label_space",
    "mask", "confidence", "classes", "instances", "image_labels", "depth", "provenance", "extra",
)  # fmt: skip


def _types() -> dict[str, pa.DataType]:
    """Return the Arrow type of each of `COLUMNS`, in their order."""
    import pyarrow as pa

    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    count = pa.struct([("id", pa.int32()), ("pixels", pa.int64()), ("confidence", pa.float32())])
    instance = pa.struct(
        [
            ("id", pa.int64()),
            ("category", pa.int32()),
            ("bbox", pa.list_(pa.float64())),
            ("area", pa.float64()),
            ("iscrowd", pa.bool_()),
            ("rle", pa.string()),
            ("score", pa.float32()),
            ("extra", pa.string()),
        ]
    )
    depth = pa.struct(
        [("path", pa.string()), ("bytes", pa.binary()), ("metres_per_unit", pa.float64())]
    )
    provenance = pa.struct(
        [
            ("kind", pa.string()),
            ("model", pa.string()),
            ("model_digest", pa.string()),
            ("run", pa.string()),
            ("at", pa.timestamp("us", tz="UTC")),
        ]
    )
    kinds = {
        "image": file,
        "height": pa.int32(),
        "width": pa.int32(),
        "mask": file,
        "confidence": file,
        "classes": pa.list_(count),
        "instances": pa.list_(instance),
        "image_labels": pa.list_(pa.int32()),
        "depth": depth,
        "provenance": provenance,
    }
    return {name: kinds.get(name, pa.string()) for name in COLUMNS}


_ROW_BYTES: Final = 1000
_OBJECT_BYTES: Final = 100


def _features() -> dict[str, Any]:
    """Describe the columns to Hugging Face's `datasets`, which then shows images as images."""
    value = {"_type": "Value"}
    text, i32, i64 = (
        value | {"dtype": "string"},
        value | {"dtype": "int32"},
        value | {"dtype": "int64"},
    )
    f32, f64, flag = (
        value | {"dtype": "float32"},
        value | {"dtype": "float64"},
        value | {"dtype": "bool"},
    )
    image = {"_type": "Image"}
    return {
        "image_id": text, "dataset": text, "split": text,
        "image": image, "fingerprint": text, "height": i32, "width": i32, "label_space": text,
        "mask": image, "confidence": image,
        "classes": {"_type": "List", "feature": {"id": i32, "pixels": i64, "confidence": f32}},
        "instances": {
            "_type": "List",
            "feature": {
                "id": i64, "category": i32, "bbox": {"_type": "List", "feature": f64}, "area": f64,
                "iscrowd": flag, "rle": text, "score": f32, "extra": text,
            },
        },
        "image_labels": {"_type": "List", "feature": i32},
        "depth": {"path": text, "bytes": value | {"dtype": "binary"}, "metres_per_unit": f64},
        "provenance": {
            "kind": text, "model": text, "model_digest": text, "run": text,
            "at": value | {"dtype": "timestamp[us, tz=UTC]"},
        },
        "extra": text,
    }  # fmt: skip


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    said = json.dumps({"info": {"features": _features()}}).encode()
    return pa.schema(list(_types().items()), metadata={b"huggingface": said})


def __getattr__(name: str) -> Any:
    # Made when it is asked for: turning one format into another needs records, and no Arrow, which
    # takes a tenth of a second to import.
    if name == "SCHEMA":
        return _schema()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class File:
    """A file by its path or URL, and its bytes where they are held."""

    path: str | None = None
    bytes: bytes | None = None


@dataclass(frozen=True, slots=True)
class ClassPixels:
    """How many pixels of a mask hold one class; mean confidence in 0..1, None for truth."""

    id: int
    pixels: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One object: box (x, y, w, h) in pixels, compressed COCO run lengths of the image's size.

    `extra` is JSON text with what the source format says beyond this. Its key "part_of" makes the
    object a part of the object with that id: it lies on its whole, and is not painted over it.
    """

    id: int
    category: int
    bbox: tuple[float, float, float, float] | None
    area: float | None
    iscrowd: bool = False
    rle: str | None = None
    score: float | None = None
    extra: str | None = None

    @property
    def part_of(self) -> int | None:
        """The id of the object that this one is a part of; None for a whole.

        Raises:
            BadAnnotation: `extra` is no JSON object, or names no id.
        """
        if self.extra is None or '"part_of"' not in self.extra:
            return None
        try:
            value = json.loads(self.extra).get("part_of")
            return None if value is None else int(value)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            cause = f"`extra` is not JSON that names a whole by its id: {self.extra[:80]!r}"
            mend = "convert the image again"
            raise BadAnnotation(f"object {self.id}", cause, mend) from None


@dataclass(frozen=True, slots=True)
class Depth:
    """A depth map: the source's file, a cell (`pipeline.depth`), metres for one of its units."""

    path: str | None = None
    bytes: bytes | None = None
    metres_per_unit: float | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a label.

    `model` and `model_digest` are the identity of the labeller: for `kind="truth"` the connector's
    format and a digest of the annotation files, so that a changed annotation is read again.
    """

    kind: Kind = "truth"
    model: str | None = None
    model_digest: str | None = None
    run: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One image and everything known about its labels; the columns of `SCHEMA` in Python.

    `mask` and `confidence` hold mask cells (`pipeline.masks`). None means that the source has no
    such label; an empty tuple of instances means that it has none in this image.
    """

    image_id: str
    dataset: str
    split: str
    image: File
    fingerprint: str
    height: int
    width: int
    label_space: str
    mask: File | None = None
    confidence: File | None = None
    classes: tuple[ClassPixels, ...] | None = None
    instances: tuple[Instance, ...] | None = None
    image_labels: tuple[int, ...] | None = None
    depth: Depth | None = None
    provenance: Provenance = field(default_factory=Provenance)
    extra: str | None = None

    @classmethod
    def truth(
        cls,
        sample: Sample,
        label_space: str,
        size: tuple[int, int],
        *,
        image: bytes | None = None,
        mask: File | None = None,
        classes: tuple[ClassPixels, ...] | None = None,
        instances: tuple[Instance, ...] | None = None,
        depth: Depth | None = None,
        extra: Mapping[str, Any] | str | None = None,
    ) -> Record:
        """Return what a connector read of a sample; `size` is height and width.

        `image` has the image's bytes where no path leads to them. An empty `extra` is None.
        """
        if extra is not None and not isinstance(extra, str):
            extra = json.dumps(extra, sort_keys=True) if extra else None
        return cls(
            image_id=sample.image_id,
            dataset=sample.dataset,
            split=sample.split,
            image=File(sample.path, image),
            fingerprint=sample.fingerprint,
            height=size[0],
            width=size[1],
            label_space=label_space,
            mask=mask,
            classes=classes,
            instances=instances,
            depth=depth,
            provenance=Provenance("truth", sample.dataset, sample.digest),
            extra=extra,
        )

    @property
    def held_bytes(self) -> int:
        """About how many bytes the row takes: those of its cells, run lengths and texts."""
        cells = (self.image, self.mask, self.confidence, self.depth)
        size = sum(len(c.bytes) for c in cells if c is not None and c.bytes is not None)
        objects = self.instances or ()
        size += sum(_OBJECT_BYTES + len(i.rle or "") + len(i.extra or "") for i in objects)
        return _ROW_BYTES + size + len(self.extra or "")

    def extras(self) -> dict[str, Any]:
        """Return what the source format holds beyond the columns; empty when it holds nothing."""
        return dict(json.loads(self.extra)) if self.extra else {}

    @property
    def relabelled(self) -> bool:
        """Whether the labels are in other classes than were read: `extra` may contradict them."""
        if not self.extra or f'"{RELABELLED}"' not in self.extra:
            return False
        return self.extras().get(RELABELLED) is True

    def own(self, *formats: str) -> dict[str, Any]:
        """Return what a record read from one of the formats keeps in `extra`; else nothing.

        That may hold labels as they were read: a writer takes those from `own_labels`.
        """
        if self.dataset not in formats:
            return {}
        return {key: value for key, value in self.extras().items() if key != RELABELLED}

    def own_labels(self, *formats: str) -> dict[str, Any]:
        """Return the same, and nothing once the labels are in other classes than were read."""
        return {} if self.relabelled else self.own(*formats)

    def as_relabelled(self) -> Record:
        """Return the record with the mark of `relabelled`; one without `extra` needs none.

        The text behind the mark stays as it is, with every digit.
        """
        if not self.extra or self.relabelled or not (text := self.extra[1:]).strip(" }"):
            return self
        return replace(self, extra=f'{{"{RELABELLED}": true, {text}')


@dataclass(frozen=True, slots=True)
class Sample:
    """One listed input, not yet read: an image and where its annotation lies.

    `digest` is the identity of what will label it: the model digest, or a digest of the annotation
    files. A store holds the sample's label when it holds (path, fingerprint, digest). `payload` is
    the lister's own note to the reader: small, and plain JSON, as a run's plan is written down.
    """

    image_id: str
    path: str
    fingerprint: str
    digest: str = ""
    dataset: str = ""
    split: str = "unlabelled"
    payload: Any = None


_NAMES: Final = {
    kind: tuple(f.name for f in fields(kind))
    for kind in (Record, File, ClassPixels, Instance, Depth, Provenance)
}


def _plain(value: Any) -> Any:
    """Turn the dataclasses in a column's value into the dicts and lists that Arrow takes."""
    if type(value) is tuple:
        return [_plain(v) for v in value]
    names = _NAMES.get(type(value))
    if names is None:
        return value
    return {name: _plain(getattr(value, name)) for name in names}


def to_table(records: Iterable[Record]) -> pa.Table:
    """Return the records as a table of `SCHEMA`, in their order."""
    import pyarrow as pa

    rows = list(records)
    columns = [
        pa.array([_plain(getattr(row, name)) for row in rows], type=kind)
        for name, kind in _types().items()
    ]
    return pa.Table.from_arrays(columns, schema=_schema())


def _file(value: dict[str, Any] | None) -> File | None:
    return None if value is None else File(**value)


def _from_row(row: dict[str, Any]) -> Record:
    """Build a record from a full row in Arrow's Python form."""
    classes, instances, labels = row["classes"], row["instances"], row["image_labels"]
    return Record(
        **{k: row[k] for k in ("image_id", "dataset", "split", "fingerprint", "height", "width")},
        label_space=row["label_space"],
        extra=row["extra"],
        image=_file(row["image"]) or File(),
        mask=_file(row["mask"]),
        confidence=_file(row["confidence"]),
        classes=None if classes is None else tuple(ClassPixels(**c) for c in classes),
        instances=None if instances is None else tuple(_instance(i) for i in instances),
        image_labels=None if labels is None else tuple(labels),
        depth=None if row["depth"] is None else Depth(**row["depth"]),
        provenance=Provenance(**(row["provenance"] or {})),
    )


def _instance(value: dict[str, Any]) -> Instance:
    box = value["bbox"]
    return Instance(**(value | {"bbox": None if box is None else tuple(box)}))


def from_batch(batch: pa.RecordBatch | pa.Table) -> Iterator[Record]:
    """Yield the rows of a batch that holds every column of `SCHEMA`."""
    for row in batch.to_pylist():
        yield _from_row(row)
