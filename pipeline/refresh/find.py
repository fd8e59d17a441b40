"""The first step: what the bucket holds tonight, against the labels in force.

The listing is written down once, so that a night that is taken up again labels the same images,
whatever arrives meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.labelling import list_sample_batches
from pipeline.refresh.keys import Listed, Rows, truth_paths
from pipeline.refresh.record import Images
from pipeline.runs.keys import text_numbers
from pipeline.samples import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.files import Tree
    from pipeline.refresh.config import Config
    from pipeline.store import Store
    from pipeline.trees.sinks import Sink

LISTING: Final = "listing.parquet"


@dataclass(frozen=True, slots=True)
class Found:
    """What the listing came to."""

    images: Images
    truth_version: int


def find(config: Config, truth: Store, base: Store | None, sink: Sink, name: str) -> Found:
    """List the bucket, write the listing down, and compare it with the labels in force.

    Images that people labelled are left out: by the path of a row of truth, in the store of truth
    or among the published labels.

    Raises:
        SegmillError: the bucket cannot be listed.
    """
    rows = Rows.of(base)
    by_people = np.union1d(truth_paths(truth), rows.truth)
    images, listed = Images(), []
    with (
        sink.stream(name) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer,
    ):
        for batch in _listing(config):
            mine = ~np.isin(text_numbers(batch["path"]), by_people)
            kept = batch.filter(pa.array(mine))
            images.listed += batch.num_rows
            images.of_truth += batch.num_rows - kept.num_rows
            listed.append(Listed.of(kept))
            writer.write_batch(kept)
    _compare(images, rows, Listed.joined(listed))
    return Found(images, truth.version)


def _listing(config: Config) -> Iterator[pa.RecordBatch]:
    asked = config.images
    return list_sample_batches(asked.source, "", dataset=asked.dataset, where=asked.where)


def _compare(images: Images, rows: Rows, listed: Listed) -> None:
    """Count what is the same, new, changed and gone; an image listed again counts once."""
    once = first_of_each(listed)
    places = rows.by_row.find(listed.high[once], listed.low[once])
    there = places >= 0
    same = rows.fingerprint[places[there]] == listed.fingerprint[once][there]
    images.repeated = len(listed.high) - len(once)
    images.same = int(same.sum())
    images.changed = int(there.sum()) - images.same
    images.new = len(once) - int(there.sum())
    images.gone = len(rows) - len(np.unique(places[there]))


def first_of_each(listed: Listed) -> NDArray[np.int64]:
    """Return the places of images in a listing, each once."""
    pairs = np.rec.fromarrays([listed.high, listed.low])
    return np.asarray(np.sort(np.unique(pairs, return_index=True)[1]))


def read_listing(tree: Tree, name: str) -> Iterator[pa.RecordBatch]:
    """Read a listing back, a batch at a time."""
    with tree.open(name) as file:
        for batch in pq.ParquetFile(file).iter_batches(65_536):
            yield batch.cast(SCHEMA)
