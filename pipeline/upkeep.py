"""Looking after a store: statistics, differences, validation, merging, compaction."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline import masks
from pipeline.errors import InputError, UsageError
from pipeline.fragment import Fragment, write_fragment
from pipeline.ledger import row_key
from pipeline.record import SCHEMA, to_table
from pipeline.relabel import Relabeller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow.compute as pc

    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.record import Record
    from pipeline.store import Store

SMALL_BYTES: Final = 32 << 20
GOOD_BYTES: Final = 128 << 20


@dataclass(slots=True)
class Statistics:
    """What a store holds, from its narrow columns: no pixel is decoded.

    `classes` has, by label space and class name, the images that show it and its pixels.
    """

    rows: int = 0
    groups: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    classes: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unlabelled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        keys = ("dataset", "split", "label_space", "kind")
        return {
            "rows": self.rows,
            "without_mask": self.unlabelled,
            "groups": [
                dict(zip(keys, group, strict=True)) | {"rows": count}
                for group, count in sorted(self.groups.items())
            ],
            "classes": [
                {"label_space": space, "class": name, "images": images, "pixels": pixels}
                for (space, name), (images, pixels) in self.classes.items()
            ],
            "sizes": [
                {"height": h, "width": w, "rows": n} for (h, w), n in self.sizes.most_common()
            ],
        }


def statistics(store: Store, where: pc.Expression | str | None = None) -> Statistics:
    """Count rows by dataset, split, label space and kind, and pixels by class."""
    total = Statistics()
    pixels: Counter[tuple[str, int]] = Counter()
    images: Counter[tuple[str, int]] = Counter()
    columns = [
        "dataset", "split", "label_space", "provenance.kind", "height", "width", "classes",
    ]  # fmt: skip
    for batch in store.scan(columns, where, batch_rows=4096):
        rows = [column.to_pylist() for column in batch.columns]
        for dataset, split, space, kind, height, width, classes in zip(*rows, strict=True):
            total.rows += 1
            total.groups[dataset, split, space, kind] += 1
            total.sizes[height, width] += 1
            total.unlabelled += classes is None
            for c in classes or ():
                pixels[space, c["id"]] += c["pixels"]
                images[space, c["id"]] += 1
    for space, number in sorted(images):
        name = store.space(space).by_id[number].name
        total.classes[space, name] = [images[space, number], pixels[space, number]]
    return total


@dataclass(frozen=True, slots=True)
class Difference:
    """The rows by which two snapshots differ, as (dataset, image_id)."""

    added: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, str], ...]


def difference(old: Store, new: Store) -> Difference:
    """Compare two snapshots by the labels of their rows; some hundred bytes a row are held.

    Fragments that both hold are not read. A row is changed when its mask, instances, label space or
    image labels are others; who made it and when does not count.
    """
    shared = {f.path for f in old.fragments()} & {f.path for f in new.fragments()}
    before, after = _digests(old, shared), _digests(new, shared)
    names = {key: value[1] for key, value in (*before.items(), *after.items())}
    changed = [k for k in before.keys() & after.keys() if before[k][0] != after[k][0]]

    def told(keys: Any) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(names[k] for k in keys))

    return Difference(
        told(after.keys() - before.keys()), told(before.keys() - after.keys()), told(changed)
    )


def _digests(store: Store, leave_out: set[str]) -> dict[bytes, tuple[bytes, tuple[str, str]]]:
    """Return, by row, a digest of its label and its name."""
    found = {}
    columns = ["dataset", "image_id", "image.path", "label_space", "mask.bytes", "instances",
               "image_labels"]  # fmt: skip
    for path, batch in store.scan_fragments(columns, batch_rows=256):
        if path in leave_out:
            continue
        rows = [column.to_pylist() for column in batch.columns]
        for dataset, image_id, image, space, mask, instances, labels in zip(*rows, strict=True):
            digest = hashlib.blake2b(repr((space, instances, labels)).encode(), digest_size=16)
            digest.update(mask or b"")
            found[row_key(dataset, image)] = (digest.digest(), (dataset, image_id))
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one row."""

    dataset: str
    image_id: str
    problem: str


def validate(store: Store) -> Iterator[Finding]:
    """Check every row: cells decode, sizes and ids fit, counts are right, no row stands twice."""
    seen: set[bytes] = set()
    for record in store.records():
        key = row_key(record.dataset, record.image.path or "")
        problems = list(_problems(record, store))
        if key in seen:
            problems.append("the row stands twice in the store")
        seen.add(key)
        for problem in problems:
            yield Finding(record.dataset, record.image_id, problem)


def _problems(record: Record, store: Store) -> Iterator[str]:
    space = store.label_spaces.get(record.label_space)
    if space is None:
        yield f"label space {record.label_space!r} is not described in the store"
        return
    size = (record.height, record.width)
    if record.mask is not None and record.mask.bytes is not None:
        try:
            ids = masks.decode(record.mask.bytes, record.image_id)
            masks.check_ids(ids, space, record.image_id)
        except InputError as error:
            yield f"mask: {error.cause}"
            return
        if ids.shape != size:
            yield "mask is {1}x{0}, image is {3}x{2}".format(*ids.shape, *size)
        held = {c.id: c.pixels for c in record.classes or ()}
        if held != {c.id: c.pixels for c in masks.class_pixels(ids, space)}:
            yield "the column `classes` does not say what the mask holds"
    if record.confidence is not None and record.confidence.bytes is not None:
        shape = masks.decode(record.confidence.bytes, record.image_id).shape
        if shape != size:
            yield "confidence is {1}x{0}, image is {3}x{2}".format(*shape, *size)
    for instance in record.instances or ():
        if instance.category not in space.by_id:
            yield f"instance {instance.id}: class {instance.category} is not in {space.name}"


def compact(store: Store) -> tuple[Store, int]:
    """Join small fragments into good ones, in the order of their ids; return how many went.

    The rows stay what they are; one commit for each fragment that results.
    """
    small = [f for f in store.fragments() if f.size < SMALL_BYTES]
    gone = 0
    while small:
        group: list[Fragment] = []
        size = 0
        while small and (size < GOOD_BYTES or len(group) < 2):
            group.append(small.pop(0))
            size += group[-1].size
        if len(group) < 2:
            break
        store = _join(store, group)
        gone += len(group)
    return store, gone


def _join(store: Store, group: Sequence[Fragment]) -> Store:
    import pyarrow.parquet as pq

    tree = store.tree()
    tables = [pq.read_table(pa.BufferReader(tree.read(f.path))).cast(SCHEMA) for f in group]
    digest = hashlib.blake2b("\0".join(f.path for f in group).encode(), digest_size=12).hexdigest()
    joined = write_fragment(store.sink(), f"data/joined/{digest}.parquet", pa.concat_tables(tables))
    return store.commit([joined], group, note={"compact": len(group), "rows": joined.rows})


def merge(
    sources: Sequence[Store],
    make_target: Callable[[LabelSpace], Store],
    space: LabelSpace | None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Store, Loss]:
    """Bring the rows of several stores into one, in `space` or in the one that all share.

    A row that the target holds already (dataset and image path) is replaced.

    Raises:
        UsageError: the stores have several label spaces and none was named.
    """
    from pipeline.ledger import Ledger
    from pipeline.loss import Loss

    used = [s for source in sources for s in source.used_spaces()]
    if space is None:
        if len({s.name for s in used}) > 1:
            names = ", ".join(sorted({s.name for s in used}))
            raise UsageError(f"the stores have several label spaces ({names}); name one")
        if not used:
            raise UsageError("the stores have no rows to merge; name a label space with rows in it")
        space = used[0]
    relabel, loss, done = Relabeller.to(space, used), Loss(), 0
    target = make_target(space)
    for source in sources:
        target = target.with_facts(source.facts)
        for fragment in source.fragments():
            records, keys = [], set()
            for record in source.rows(fragment):
                moved, lost = relabel(record)
                loss += lost
                records.append(moved)
                keys.add(row_key(moved.dataset, moved.image.path or ""))
            name = hashlib.blake2b(digest_size=12)
            name.update(f"{source.url}\0{fragment.path}\0{space.to_json()}".encode())
            path = f"data/merged/{name.hexdigest()}.parquet"
            made = write_fragment(target.sink(), path, to_table(records))
            left, gone = Ledger.of(target).displaced(target, keys, [made])
            note = {"merged": source.url, "rows": made.rows}
            target = target.commit([made, *left], gone, note=note)
            done += made.rows
            on_progress(done)
    return target, loss
