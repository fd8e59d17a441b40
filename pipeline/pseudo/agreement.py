"""Where several teachers agree: label stores of the same images, as one with less confidence.

Teachers are other models, other views of test-time augmentation, or earlier nights' checkpoints
(free for a nightly job: PrevMatch, Shin et al., 2024). The first store's labels stand; where others
say something else, their confidence is lowered to its share of the votes, or they are ignored.

    report = agree([Store.open("night-3"), Store.open("night-2")], Store.create("agreed", spaces))

Rows are of one image where id, dataset and path agree, as they do for labels of one source; they
are read in chunks. The work is a run like any labelling: it resumes, and leaves what is there.
"""

from __future__ import annotations

import hashlib
import json
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from pipeline import masks
from pipeline.errors import InputError, SizeMismatch, UsageError
from pipeline.labelling import list_sample_batches
from pipeline.pseudo.held_out import one_space
from pipeline.pseudo.rows import confidence_map
from pipeline.record import ClassPixels, File, Provenance, from_batch
from pipeline.run import Run
from pipeline.runs.drive import execute
from pipeline.tables.rows import RowKey, list_rows, place_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Record, Sample
    from pipeline.runner import Runner
    from pipeline.runs.report import RunReport
    from pipeline.store import Store

Rule = Literal["lower", "ignore"]
RULES: Final = get_args(Rule)
"""lower: confidence times the share of teachers that say the same. ignore: only where all do."""
VERB: Final = "agree"
_SHARD: Final = 64
_IDENTITY: Final = ("image_id", "dataset")


def agreed(
    ids: LabelMap, confidence: LabelMap, others: Sequence[LabelMap], rule: Rule, ignore: int
) -> tuple[LabelMap, LabelMap, float]:
    """Return ids and confidence [H, W] after a vote, and the mean share that agrees, 0..1.

    `others` are the ids [H, W] that other teachers gave; where one gave `ignore` it does not vote.
    """
    votes = np.ones(ids.shape, np.int16)
    same = np.ones(ids.shape, np.int16)
    for other in others:
        votes += other != ignore
        same += (other == ids) & (other != ignore)
    share = same / votes
    labelled = ids != ignore
    mean = float(share[labelled].mean()) if labelled.any() else 1.0
    lowered: LabelMap = np.round(confidence * share).astype(np.uint8)
    if rule == "lower":
        return ids, lowered, mean
    kept: LabelMap = np.where(same == votes, ids, ids.dtype.type(ignore))
    return kept, confidence, mean


def agree(
    stores: Sequence[Store],
    out: Store,
    *,
    choose_runner: Callable[[int], Runner],
    rule: Rule = "lower",
    watch: Callable[[RunReport], None] = lambda report: None,
) -> RunReport:
    """Write the first store's labels to `out`, weighed by what the others say of the same images.

    An image that another store lacks has no vote of it. Bad rows are failures of the run.

    Raises:
        UsageError: fewer than two stores, `out` is one of them, several label spaces, no such
            rule, or a store that has no image of the first one.
    """
    if len(stores) < 2 or rule not in RULES:
        raise UsageError(f"agreement takes two stores or more, and {' or '.join(RULES)}")
    if out.url in {s.url for s in stores}:
        raise UsageError(f"{out.url}: the labels would replace the rows they are made from")
    listings = [list_rows(s) for s in stores]
    spaces = {one_space(s, r.label_spaces()) for s, r in zip(stores, listings, strict=True)}
    if len(spaces) != 1:
        names = ", ".join(sorted(s.name for s in spaces))
        raise UsageError(f"the stores use several label spaces: {names}")
    mine = listings[0].hashes(*_IDENTITY)
    for store, listing in zip(stores[1:], listings[1:], strict=True):
        if not np.isin(mine, listing.hashes(*_IDENTITY)).any():
            raise UsageError(
                f"{store.url}: has no image of {stores[0].url}; rows are of the same image where "
                "id, dataset and path agree"
            )
    digest = _digest(stores, rule)
    factory = _Factory(tuple(stores), spaces.pop(), rule)
    run = Run.begin(out, VERB, kind="pseudo", identity=[digest])
    samples: Iterator[pa.RecordBatch] = list_sample_batches(stores[0].url, digest)
    return execute(
        out,
        samples,
        factory,
        run=run,
        choose_runner=choose_runner,
        shard_rows=_SHARD,
        watch=watch,
        facts={"stores": [f"{s.url}, version {s.version}" for s in stores], "rule": rule},
    )


def _digest(stores: Sequence[Store], rule: str) -> str:
    parts = [[s.url, s.version] for s in stores]
    return hashlib.sha256(json.dumps([VERB, rule, parts]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Factory:
    """Makes the worker; picklable."""

    stores: tuple[Store, ...]
    space: LabelSpace
    rule: Rule

    def __call__(self) -> _Worker:
        return _Worker(tuple(copy(s) for s in self.stores), self.space, self.rule)


@dataclass(frozen=True, slots=True)
class _Worker:
    stores: tuple[Store, ...]
    space: LabelSpace
    rule: Rule

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Record | InputError]]:
        keys = [RowKey(s.image_id, s.dataset, place_of(s.path)) for s in samples]
        first = _records(self.stores[0], keys)
        others = [_masks(store, keys) for store in self.stores[1:]]
        for sample, key in zip(samples, keys, strict=True):
            try:
                yield sample, self._record(sample, first[key], [o.get(key.place) for o in others])
            except InputError as error:
                yield sample, error

    def _record(self, sample: Sample, row: Record, others: Sequence[bytes | None]) -> Record:
        path = row.image.path or row.image_id
        mask, sure = (None if c is None else c.bytes for c in (row.mask, row.confidence))
        if mask is None or sure is None:
            mend = "label the image again with --confidence"
            raise InputError(path, "the row has no mask with confidence", mend)
        ids = masks.decode(mask, path)
        confidence = confidence_map(sure, ids.shape, path)
        said = [masks.decode(cell, path) for cell in others if cell is not None]
        for other in said:
            if other.shape != ids.shape:
                cause = f"teachers' masks are {ids.shape} and {other.shape}"
                raise SizeMismatch(path, cause, "label the image again with each of them")
        ids, confidence, share = agreed(ids, confidence, said, self.rule, self.space.ignore_index)
        notes: Mapping[str, Any] = row.extras() | {
            "agreement": round(share, 6),
            "teachers": 1 + len(said),
        }
        classes: tuple[ClassPixels, ...] = masks.class_pixels(ids, self.space, confidence, path)
        return replace(
            row,
            mask=File(bytes=masks.encode(ids, self.space.cell_palette())),
            # Without the margin, which was the first teacher's alone.
            confidence=File(bytes=masks.encode(confidence)),
            classes=classes,
            provenance=Provenance("pseudo", row.provenance.model, sample.digest),
            extra=json.dumps(notes, sort_keys=True),
        )


def _records(store: Store, keys: Sequence[RowKey]) -> dict[RowKey, Record]:
    import pyarrow.compute as pc

    ids = sorted({key.image_id for key in keys})
    name, wanted = pc.field("image_id"), set(keys)
    found = {}
    for batch in store.scan(None, (name >= ids[0]) & (name <= ids[-1]) & name.isin(ids), 64):
        for row in from_batch(batch):
            key = RowKey(row.image_id, row.dataset, place_of(row.image.path))
            if key in wanted:
                found[key] = row
    return found


def _masks(store: Store, keys: Sequence[RowKey]) -> dict[int, bytes]:
    """Return the mask cells of the images, by the hashes of their paths."""
    found = rows_of(store, keys, ["mask.bytes"])
    return {key.place: row[0] for key, row in found if row[0] is not None}
