"""Bulk labelling: the plan from a listing of images, less what is done, to segmenters.

report = label("images/", Store.create("labels", [space]), factory, ...)
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError
from pipeline.record import EMBEDDED, Sample
from pipeline.run import Run, RunReport
from pipeline.runs.drive import execute
from pipeline.tables.location import locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.predict.options import LabelOptions
    from pipeline.runner import Runner
    from pipeline.segmenter import SegmenterFactory
    from pipeline.store import Store

SHARD_IMAGES: Final = 128


def label_digest(model_digest: str, options: LabelOptions) -> str:
    """Return the identity of a labeller: the model and everything else that changes its output."""
    parts = [model_digest, *options.output_identity()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def void_share(store: Store, run: str) -> float:
    """Return the share of pixels that are void in the rows that a run wrote, 0 where it has none.

    Read from the rows' class counts: the masks are left alone.
    """
    import pyarrow.compute as pc

    void = pixels = 0
    of_run = pc.field("provenance", "run") == run
    for batch in store.scan(["label_space", "classes"], of_run, 4096):
        for row in batch.to_pylist():
            ignored = store.space(row["label_space"]).ignore_index
            pixels += sum(c["pixels"] for c in row["classes"])
            void += sum(c["pixels"] for c in row["classes"] if c["id"] == ignored)
    return void / pixels if pixels else 0.0


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
        if dataset:
            raise UsageError("--dataset is for images; the rows of a store keep their own")
        yield from _stored_samples(source, digest, where)
        return
    if where is not None:
        raise UsageError(f"--where chooses rows of a store, and {source} is none")
    for sample in list_images(source, dataset=dataset):
        yield replace(sample, digest=digest)


def _is_store(source: str) -> bool:
    from deltalake import DeltaTable

    if source.endswith((".zip", ".tar", ".txt", ".csv", ".parquet")) or "*" in source:
        return False
    return bool(DeltaTable.is_deltatable(locate(source)))


def _stored_samples(source: str, digest: str, where: str | None) -> Iterator[Sample]:
    from pipeline.store import Store

    store = Store.open(source)
    outside: dict[str, Any] = {"as_stored": True}
    inside = outside | {"store": store.url, "version": store.version}
    columns = ["image_id", "dataset", "split", "fingerprint", "image.path"]
    columns.append("provenance.model_digest")
    for batch in store.scan(columns, where, batch_rows=4096):
        for row in batch.to_pylist():
            embedded = (row.pop("provenance.model_digest") or "").endswith(EMBEDDED)
            note = inside if embedded else outside
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
    on_listed: Callable[[int, int], None] = lambda listed, todo: None,
) -> RunReport:
    """Label the images of `source` that the store does not hold under this digest."""
    if locate(source) == store.url:
        raise UsageError(f"{source}: the labels would replace the rows they are made from")
    place = source if "://" in source else os.path.abspath(source)
    identity = [place, dataset, where or "", digest, str(shard_images)]
    run = Run.begin(store, "label", kind=factory.options.kind, identity=identity)
    samples = list_samples(source, digest, dataset=dataset, where=where)
    return execute(
        store,
        samples,
        factory,
        run=run,
        choose_runner=choose_runner,
        shard_rows=shard_images,
        ramp=True,
        publish=publish,
        on_progress=on_progress,
        on_listed=on_listed,
    )
