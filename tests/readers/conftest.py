"""One store that every reader opens: rows replaced, a file removed, stale files beside it all."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from pipeline import masks
from pipeline.record import ClassPixels, File, Instance, Record, to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from tests.streets import SPACE, street

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class World:
    """A store, and what a reader of its newest version must find."""

    store: Store
    records: dict[str, Record]
    masks: dict[str, NDArray[np.uint8]]
    images: dict[str, NDArray[np.uint8]]
    """RGB, by OpenCV."""

    @property
    def url(self) -> str:
        return self.store.url


def _record(root: Path, number: int, value: int | None = None) -> Record:
    row = street(root, "train" if number % 3 else "val", number, embed=True)
    row = replace(row, instances=(Instance(1, 3, (0.0, 1.0, 2.0, 3.0), 6.0),), image_labels=(1, 3))
    if value is None:
        return row
    ids = np.full((row.height, row.width), value, np.uint8)
    cell = File(bytes=masks.encode(ids, SPACE.palette()))
    return replace(row, mask=cell, classes=(ClassPixels(value, ids.size),))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("readers")
    store = Store.create(root / "stores" / "voc", [SPACE])

    def put(name: str, records: list[Record]):
        return write_fragment(store.sink(), f"data/t/{name}.parquet", to_table(records))

    first = [_record(root, i) for i in range(6)]
    fragments = [put("a", first[:3]), put("b", first[3:]), put("c", [_record(root, 6)])]
    made = store.commit(fragments)
    replaced = [_record(root, i, value=3) for i in range(3)]
    made = made.commit([put("a-again", replaced)], [fragments[0], fragments[2]])
    put("staged", [_record(root, 7, value=1)])  # written by a worker, committed by nobody
    records = {r.image_id: r for r in (*replaced, *first[3:])}
    assert made.count() == 6
    found, images = {}, {}
    for name, record in records.items():
        found[name] = cv2.imdecode(np.frombuffer(_samples(record), np.uint8), cv2.IMREAD_UNCHANGED)
        images[name] = cv2.imdecode(np.frombuffer(record.image.bytes, np.uint8), 1)[..., ::-1]
    return World(made, records, found, images)


def _samples(record: Record) -> bytes:
    """Return the mask as a grey PNG: OpenCV turns palettes into colours."""
    out = io.BytesIO()
    ids = masks.decode(record.mask.bytes)
    assert len(np.unique(ids)) > 1 or record.classes[0].id == 3
    from PIL import Image

    Image.fromarray(ids).save(out, "png")
    return out.getvalue()
