"""Bulk labelling: the plan from a listing of images, less what is done, to segmenters.

report = label(LabelJob("images/", digest), Store.create("labels", [space]), factory, ...)
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError
from pipeline.files import local_path
from pipeline.record import EMBEDDED
from pipeline.run import Run
from pipeline.runs.choice import Choice
from pipeline.runs.drive import execute
from pipeline.runs.outlook import foresee
from pipeline.samples import of_batch, with_digest
from pipeline.tables.location import is_table, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pyarrow as pa

    from pipeline.models.loaded import LoadedModel
    from pipeline.predict.options import LabelOptions
    from pipeline.record import Sample
    from pipeline.runner import Runner
    from pipeline.runs.outlook import Outlook
    from pipeline.runs.report import RunReport
    from pipeline.segmenter import SegmenterFactory
    from pipeline.store import Store

SHARD_IMAGES: Final = 128
VERB: Final = "label"
_STORED_ROWS: Final = 16384
_NO_STORES: Final = (".zip", ".tar", ".txt", ".csv", ".parquet")


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
    for batch in list_sample_batches(source, digest, dataset=dataset, where=where):
        yield from of_batch(batch)


def list_sample_batches(
    source: str, digest: str, *, dataset: str = "", where: str | None = None
) -> Iterator[pa.RecordBatch]:
    """List the same as batches (`pipeline.samples`), for millions of them."""
    from pipeline.trees.listing import list_batches

    if not source:  # an unset variable of a shell: not the working directory
        raise UsageError("the images are '': name a directory, list, archive, bucket or store")
    if _is_store(source):
        if dataset:
            raise UsageError("--dataset is for images; the rows of a store keep their own")
        yield from _stored_batches(source, digest, where)
        return
    if where is not None:
        raise UsageError(f"--where chooses rows of a store, and {source} is none")
    for batch in list_batches(source, dataset=dataset):
        yield with_digest(batch, digest)


def check_source(source: str, *, dataset: str = "", where: str | None = None) -> None:
    """Look at the first image of a source, so that a wrong name is told before models are loaded.

    Raises:
        UsageError, MissingFile, ...: what listing it would raise.
    """
    next(list_sample_batches(source, "", dataset=dataset, where=where), None)


def check_depth(source: str, model: LoadedModel) -> None:
    """Check that a source can have what a model of colours and depth takes.

    Raises:
        UsageError: it holds images alone.
    """
    if model.preprocessing.depth is not None and not _is_store(source):
        raise UsageError(
            f"{model.uri} takes colours and depth, and {source} holds images alone; name a label "
            "store whose rows have depth, or a model of colours"
        )


def _is_store(source: str) -> bool:
    """Tell whether a source is a label store; Delta is asked only of what could be one."""
    path = local_path(source)
    if path is not None:
        return os.path.isdir(os.path.join(path, "_delta_log"))
    if source.lower().endswith(_NO_STORES) or "*" in source or "::" in source or "%" in source:
        return False
    return is_table(locate(source))


def _place(source: str) -> str:
    """Return where a source lies, in one form."""
    path = local_path(source)
    return source.rstrip("/") if path is None else os.path.realpath(path)


def _stored_batches(source: str, digest: str, where: str | None) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.samples import SCHEMA, coded
    from pipeline.store import Store

    store = Store.open(source)
    outside: dict[str, Any] = {"as_stored": True, "row_of": [store.url, store.version]}
    inside = json.dumps(outside | {"store": store.url, "version": store.version})
    columns = ["image_id", "dataset", "split", "fingerprint", "image.path"]
    columns.append("provenance.model_digest")
    for batch in store.scan(columns, where, batch_rows=_STORED_ROWS):
        made = batch["provenance.model_digest"].cast(pa.string()).fill_null("")
        notes = pc.if_else(pc.ends_with(made, EMBEDDED), inside, json.dumps(outside))
        given = {
            "image_id": batch["image_id"].cast(pa.string()),
            "path": batch["image.path"].cast(pa.string()),
            "fingerprint": batch["fingerprint"].cast(pa.string()),
            "digest": coded(digest, batch.num_rows),
            "dataset": coded(batch["dataset"], batch.num_rows),
            "split": coded(batch["split"], batch.num_rows),
            "payload": coded(notes, batch.num_rows),
        }
        yield pa.RecordBatch.from_arrays([given[n] for n in SCHEMA.names], schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class LabelJob:
    """What is to be labelled, by what, and where the labels go."""

    source: str
    digest: str
    """Of the labeller: `label_digest`."""
    dataset: str = ""
    where: str | None = None
    choice: Choice = field(default_factory=Choice)
    shard_images: int = SHARD_IMAGES

    def identity(self) -> list[str]:
        """Return what makes two commands the same run."""
        place = self.source if "://" in self.source else os.path.abspath(self.source)
        plain = [place, self.dataset, self.where or "", self.digest, str(self.shard_images)]
        return plain + self.choice.identity

    def samples(self) -> Iterator[pa.RecordBatch]:
        """List the images that were chosen, as batches."""
        listed = list_sample_batches(
            self.source, self.digest, dataset=self.dataset, where=self.where
        )
        return self.choice.of(listed)

    def check(self, store: str) -> None:
        """Raise UsageError when the labels would replace the rows that they are made from."""
        if _place(self.source) == _place(store):
            raise UsageError(f"{self.source}: the labels would replace the rows they are made from")


def foresee_labels(
    job: LabelJob,
    store: Store | None,
    kind: str,
    on_listed: Callable[[int, int], None] = lambda listed, todo: None,
) -> Outlook:
    """Return what `label` would do; `store` is None where there is none yet. Nothing is written."""
    run = None
    if store is not None:
        job.check(store.url)
        run = Run.unfinished(store, VERB, kind=kind, identity=job.identity())
    return foresee(store, run, job.samples(), job.shard_images, on_listed)


def label(
    job: LabelJob,
    store: Store,
    factory: SegmenterFactory,
    *,
    choose_runner: Callable[[int], Runner],
    publish: str = "as they come",
    facts: Mapping[str, Any] | None = None,
    on_listed: Callable[[int, int], None] = lambda listed, todo: None,
    watch: Callable[[RunReport], None] = lambda report: None,
    spent: Mapping[str, float] | None = None,
) -> RunReport:
    """Label the images of a job that the store does not hold under its digest.

    `facts` go into the run's record, beside the digest; `pipeline.runs.outlook` reads them.
    `spent` are the seconds that went before, by stage of the driver (`pipeline.spent`).
    """
    job.check(store.url)
    run = Run.begin(store, VERB, kind=factory.options.kind, identity=job.identity())
    return execute(
        store,
        job.samples(),
        factory,
        run=run,
        choose_runner=choose_runner,
        shard_rows=job.shard_images,
        ramp=True,
        publish=publish,
        on_listed=on_listed,
        watch=watch,
        facts={"model": factory.uri, "model_digest": job.digest, **(facts or {})},
        spent=spent,
    )
