"""Bulk labelling: the plan from a listing of images, less what is done, to segmenters.

report = label("images/", Store.create("labels", [space]), factory, ...)
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from pipeline.drive import execute
from pipeline.record import Sample
from pipeline.run import Run, RunReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.runner import Runner
    from pipeline.segmenter import LabelOptions, SegmenterFactory
    from pipeline.store import Store

SHARD_IMAGES: Final = 128


def label_digest(model_digest: str, options: LabelOptions) -> str:
    """Return the identity of a labeller: the model and everything else that changes its output."""
    parts = [model_digest, *options.output_identity()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def list_samples(
    source: str, digest: str, *, dataset: str = "", where: str | None = None
) -> Iterator[Sample]:
    """List the images of a directory, archive, manifest or bucket, or of a label store's rows.

    Rows of a store keep their image_id, dataset and split, and are labelled on the pixel grid that
    their truth lies on.
    """
    from dataclasses import replace

    from pipeline.images import list_images

    if _is_store(source):
        yield from _stored_samples(source, digest, where)
        return
    for sample in list_images(source, dataset=dataset):
        yield replace(sample, digest=digest)


def _is_store(source: str) -> bool:
    from deltalake import DeltaTable

    from pipeline.store import locate

    if source.endswith((".zip", ".tar", ".txt", ".csv", ".parquet")) or "*" in source:
        return False
    return bool(DeltaTable.is_deltatable(locate(source)))


def _stored_samples(source: str, digest: str, where: str | None) -> Iterator[Sample]:
    from pipeline.store import Store

    store = Store.open(source)
    note = {"as_stored": True, "store": store.url, "version": store.version}
    columns = ["image_id", "dataset", "split", "fingerprint", "image.path"]
    for batch in store.scan(columns, where, batch_rows=4096):
        for row in batch.to_pylist():
            yield Sample(path=row.pop("image.path"), **row, digest=digest, payload=note)


def label(
    source: str,
    store: Store,
    factory: SegmenterFactory,
    digest: str,
    *,
    choose_runner: Callable[[int], Runner],
    dataset: str = "",
    where: str | None = None,
    shard_images: int = SHARD_IMAGES,
    publish: str = "as they come",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunReport:
    """Label the images of `source` that the store does not hold under this digest."""
    identity = [source, where or "", digest, str(shard_images)]
    run = Run.begin(store, "label", kind=factory.options.kind, identity=identity)
    samples = list_samples(source, digest, dataset=dataset, where=where)
    return execute(
        store,
        samples,
        factory,
        run=run,
        choose_runner=choose_runner,
        shard_rows=shard_images,
        publish=publish,
        on_progress=on_progress,
    )
