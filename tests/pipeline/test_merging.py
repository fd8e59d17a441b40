"""Stores of several label spaces become one to train on; no pixel is invented or lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import connectors
from pipeline import masks
from pipeline.errors import UsageError
from pipeline.label_space import label_space
from pipeline.merging import PAINTED, UNPAINTED, merge
from pipeline.record import ClassPixels, File, Instance, Provenance, Record, to_table
from pipeline.runner import LocalRunner
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from pipeline.validation import validate

UNIFIED = label_space("unified")
DENSE = ("voc-21", "camvid-11", "nyu-40", "cityscapes-34", "ade20k-150", "nyu-894", "sunrgbd-37")
HEIGHT, WIDTH = 40, 56


def photo(root: Path, name: str, seed: int) -> str:
    """Write an image of noise and return its path."""
    path = root / "images" / f"{name.replace('/', '-')}.png"
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3))
    cv2.imwrite(str(path), noise.astype(np.uint8))
    return str(path)


def dense_row(root: Path, space_name: str, seed: int) -> Record:
    """Return a row whose mask holds patches of many classes of the space."""
    space, rng = label_space(space_name), np.random.default_rng(seed)
    coarse = rng.choice(np.array(space.ids), (HEIGHT // 4, WIDTH // 4))
    ids = np.kron(coarse, np.ones((4, 4), np.int64)).astype(space.dtype)
    name = f"{space_name}-{seed}"
    palette = space.palette() if ids.dtype == np.uint8 else None
    return Record(
        image_id=name, dataset=space_name, split="train" if seed % 4 else "val",
        image=File(photo(root, name, seed)), fingerprint=f"f-{name}", height=HEIGHT, width=WIDTH,
        label_space=space_name, mask=File(bytes=masks.encode(ids, palette)),
        classes=masks.class_pixels(ids, space), provenance=Provenance("truth", "t", "d"),
    )  # fmt: skip


def object_row(root: Path, seed: int) -> Record:
    """Return a row of COCO objects without a mask: a small dog on a large couch."""
    space = label_space("coco-80")
    shapes = {"couch": (slice(10, 30), slice(5, 45)), "dog": (slice(15, 25), slice(20, 30))}
    objects = []
    for number, (name, (rows, columns)) in enumerate(shapes.items(), 1):
        shape = np.zeros((HEIGHT, WIDTH), np.uint8)
        shape[rows, columns] = 1
        rle = masks.rle_encode(shape)
        box = masks.rle_bbox(rle, HEIGHT, WIDTH)
        category = space.by_name[name].id
        objects.append(Instance(number, category, box, float(shape.sum()), rle=rle))
    name = f"coco-{seed}"
    return Record(
        image_id=name, dataset="coco-instances", split="train", image=File(photo(root, name, seed)),
        fingerprint=f"f-{name}", height=HEIGHT, width=WIDTH, label_space="coco-80",
        instances=tuple(objects), provenance=Provenance("truth", "t", "d"),
    )  # fmt: skip


def put(path: Path, rows: list[Record], pieces: int = 2) -> Store:
    spaces = {r.label_space for r in rows}
    store = Store.create(path, [label_space(s) for s in spaces])
    size = -(-len(rows) // pieces)
    made = [
        write_fragment(store.sink(), f"data/t/{at}.parquet", to_table(rows[at : at + size]))
        for at in range(0, len(rows), size)
    ]
    return store.commit(made)


def lut_of(name: str) -> np.ndarray:
    """Build the way to unified from the tables' text, by hand."""
    folder = Path(connectors.__file__).parent / "label_spaces"

    def cells(table: str) -> list[list[str]]:
        lines = (folder / f"{table}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        return [line.split("\t") for line in lines]

    numbers = {title: int(number) for number, title, *_ in cells("unified")}
    onward = {source: target for source, target, _ in cells(f"{name}_to_unified") if target}
    lut = np.full(1 << 16, 255, np.int64)
    for number, title, *_ in cells(name):
        lut[int(number)] = numbers.get(onward.get(title, ""), 255)
    return lut


@pytest.fixture
def sources(tmp_path):
    stores = [
        put(tmp_path / name, [dense_row(tmp_path, name, 10 * at + n) for n in range(5)])
        for at, name in enumerate(DENSE)
    ]
    return [*stores, put(tmp_path / "coco", [object_row(tmp_path, 900 + n) for n in range(4)])]


def into(path: Path):
    return lambda space: Store.create(path, [space])


def test_pixels_are_those_of_a_remap_by_hand(sources, tmp_path):
    merged, report = merge(sources, into(tmp_path / "all"), UNIFIED)
    assert merged.used_spaces() == [UNIFIED]
    assert (merged.count(), report.rows, report.painted) == (39, 39, 4)
    expected: Counter[tuple[str, int]] = Counter()
    for source in sources[:-1]:
        for record in source.records():
            moved = lut_of(record.label_space)[masks.decode(record.mask.bytes)]
            for number, count in zip(*np.unique(moved, return_counts=True), strict=True):
                expected[record.dataset, int(number)] += int(count)
    dog, couch = UNIFIED.by_name["dog"].id, UNIFIED.by_name["couch"].id
    expected["coco-instances", dog] = 4 * 100
    expected["coco-instances", couch] = 4 * (20 * 40 - 100)
    expected["coco-instances", 255] = 4 * (HEIGHT * WIDTH - 20 * 40)
    found: Counter[tuple[str, int]] = Counter()
    for record in merged.records():
        ids = masks.decode(record.mask.bytes)
        assert ids.dtype == np.uint8
        assert {c.id: c.pixels for c in record.classes} == dict(
            zip(*(a.tolist() for a in np.unique(ids, return_counts=True)), strict=True)
        )
        for c in record.classes:
            found[record.dataset, c.id] += c.pixels
    assert found == expected
    assert report.loss.attributes[PAINTED] == 4
    assert report.loss.pixels == 39 * HEIGHT * WIDTH


def test_the_merged_store_is_clean_and_a_training_batch_comes_out(sources, tmp_path):
    from pipeline.training.batches import Epoch, train_batches
    from pipeline.training.data import Channels, Reader
    from tests.streets import HERE, recipe

    merged, _ = merge(sources, into(tmp_path / "all"), UNIFIED)
    found = validate(merged, runner=LocalRunner(1), images="header")
    assert found.of_severity("error") == 0, found.counts
    reader = Reader(merged, "train", Channels(UNIFIED))
    rows = list(reader.rows())
    assert sum(row.label_space != "unified" for row in rows) == 0
    assert {row.image_id.rsplit("-", 1)[0] for row in rows} == {*DENSE, "coco"}
    plan = recipe(batch=4, augment={"crop": (32, 48)})
    batches = list(train_batches(reader, plan, Epoch(0, 2), HERE, None))
    assert [tuple(b.images.shape) for b in batches] == [(4, 32, 48, 3)] * 2
    held = {int(v) for b in batches for v in b.labels.unique()}
    assert held - {255} <= set(range(194))
    assert len(held) > 10
    assert reader.failures == {}


def test_merging_again_changes_nothing_and_a_newer_source_replaces(sources, tmp_path):
    make = into(tmp_path / "all")
    first, _ = merge(sources, make, UNIFIED)
    again, report = merge(sources, make, UNIFIED)
    assert {f.path for f in again.fragments()} == {f.path for f in first.fragments()}
    assert report.superseded == 0
    row = next(iter(sources[0].records()))
    ids = np.full((HEIGHT, WIDTH), label_space("voc-21").by_name["dog"].id, np.uint8)
    new = replace(
        row,
        mask=File(bytes=masks.encode(ids)),
        classes=masks.class_pixels(ids, label_space("voc-21")),
    )
    newer = put(tmp_path / "newer", [new], 1)
    replaced, _ = merge([newer], make, UNIFIED)
    assert replaced.count() == 39
    held = {r.image_id: r for r in replaced.records()}
    assert held[row.image_id].classes == (ClassPixels(UNIFIED.by_name["dog"].id, ids.size),)
    assert sorted(held) == sorted(r.image_id for r in first.records())


def test_of_rows_that_several_sources_hold_the_last_counts(sources, tmp_path):
    row = next(iter(sources[0].records()))
    other = put(tmp_path / "other", [replace(row, split="test", extra='{"late": 1}')], 1)
    merged, report = merge([*sources, other], into(tmp_path / "all"), UNIFIED)
    assert (merged.count(), report.rows, report.superseded) == (39, 39, 1)
    (held,) = [r for r in merged.records() if r.image_id == row.image_id]
    assert held.extra == '{"relabelled": true, "late": 1}'


def test_the_same_image_in_two_datasets_is_told_and_kept(sources, tmp_path):
    row = next(iter(sources[2].records()))
    twin = replace(row, dataset="sunrgbd", image=File("/elsewhere.png"))
    merged, report = merge(
        [*sources, put(tmp_path / "twin", [twin], 1)], into(tmp_path / "all"), UNIFIED
    )
    assert report.shared == {"fingerprint-duplicate": 1}
    assert merged.count() == 40


def test_without_painting_objects_stay_objects(sources, tmp_path):
    merged, report = merge(sources[-1:], into(tmp_path / "all"), UNIFIED, paint=False)
    assert report.painted == 0
    assert all(r.mask is None and len(r.instances) == 2 for r in merged.records())


def test_objects_with_bad_run_lengths_are_kept_and_counted(tmp_path):
    good, bad = object_row(tmp_path, 1), object_row(tmp_path, 2)
    bad = replace(bad, instances=(replace(bad.instances[0], rle="04"),))
    merged, report = merge([put(tmp_path / "s", [good, bad], 1)], into(tmp_path / "all"), UNIFIED)
    assert merged.count() == 2
    assert report.loss.attributes[PAINTED] == report.loss.attributes[UNPAINTED] == 1


def spoiled(row: Record, how: str) -> Record:
    """Return a row that cannot be moved into another label space."""
    if how == "torn mask":
        return replace(row, mask=File(bytes=row.mask.bytes[:40]))
    stray = Instance(1, 60_000 if how == "no such class" else -(1 << 30), None, None, rle="04")
    return replace(row, instances=(stray,))


@pytest.mark.parametrize("how", ["torn mask", "no such class", "class out of range"])
def test_a_row_that_cannot_be_moved_fails_alone_and_is_told_once(tmp_path, how):
    rows = [dense_row(tmp_path, "camvid-11", n) for n in range(6)]
    rows[2] = spoiled(rows[2], how)
    source, make = put(tmp_path / "s", rows, 3), into(tmp_path / "all")
    merged, report = merge([source], make, UNIFIED)
    assert (merged.count(), report.rows, report.held, report.failed) == (5, 5, 0, 1)
    for _ in range(2):
        again, report = merge([source], make, UNIFIED)
        # The bad row is tried again, with its neighbour; the rest is left alone.
        assert (report.rows, report.held, report.failed) == (1, 4, 1)
        assert again.version == merged.version
        (failure,) = again.failures().to_pylist()
    assert failure["stage"] == "merge"
    assert (failure["dataset"], failure["image_id"]) == ("camvid-11", rows[2].image_id)
    assert failure["path"] == rows[2].image.path
    assert sorted(r.image_id for r in again.records()) == sorted(
        r.image_id for r in rows if r is not rows[2]
    )


def test_a_repeated_merge_reads_no_row_that_the_target_holds(sources, tmp_path, monkeypatch):
    make = into(tmp_path / "all")
    first, _ = merge(sources, make, UNIFIED)
    read, whole = [], Store.rows
    monkeypatch.setattr(Store, "rows", lambda s, *args: read.append(args) or whole(s, *args))
    again, report = merge(sources, make, UNIFIED)
    assert (report.rows, report.held, read) == (0, 39, [])
    assert again.version == first.version
    more = put(tmp_path / "more", [dense_row(tmp_path, "voc-21", 800)], 1)
    _, report = merge([*sources, more], make, UNIFIED)
    assert (report.rows, report.held) == (1, 39)
    compare = into(tmp_path / "unpainted")
    merge(sources, compare, UNIFIED, paint=False)
    _, report = merge(sources, compare, UNIFIED)
    assert report.rows == 39


def test_a_merge_by_another_remap_is_made_anew(sources, tmp_path, monkeypatch):
    from pipeline.labels import relabel

    make, find = into(tmp_path / "all"), relabel.find_remap
    merge(sources[:2], make, UNIFIED)

    def other(source, target):
        remap = find(source, target)
        lut = remap.lut.copy()
        lut[:5] = 255
        return replace(remap, lut=lut) if source.name == "voc-21" else remap

    monkeypatch.setattr(relabel, "find_remap", other)
    merged, report = merge(sources[:2], make, UNIFIED)
    assert (report.rows, report.held, merged.count()) == (5, 5, 10)


def test_a_task_names_the_superseded_rows_of_its_own_fragment(tmp_path):
    """Of 600 rows in six fragments, among them keys that end in a zero byte."""
    from pipeline.merging import MergeReport, _survey, _tasks
    from pipeline.runs.ledger import row_key
    from tests.samples import record_of, sample

    rows = [record_of(sample(f"i{n:03d}")) for n in range(600)]
    keys = {row_key(r.dataset, r.image.path) for r in rows}
    assert any(key.endswith(b"\0") for key in keys)
    sources = [put(tmp_path / "old", rows, 6), put(tmp_path / "new", rows[50:], 1)]
    tasks = list(_tasks(sources, _survey(sources, MergeReport()), [b"", b""]))
    assert [len(t.superseded) for t in tasks] == [50, *[100] * 5, 0]
    assert frozenset().union(*(t.superseded for t in tasks)) == {
        row_key(r.dataset, r.image.path) for r in rows[50:]
    }
    merged, report = merge(sources, into(tmp_path / "all"), UNIFIED)
    assert (merged.count(), report.rows, report.superseded) == (600, 600, 550)


def test_the_result_does_not_depend_on_the_workers(sources, tmp_path):
    stores = [
        merge(sources, into(tmp_path / f"all{n}"), UNIFIED, runner=LocalRunner(n))[0]
        for n in (1, 4)
    ]
    rows = [sorted(s.records(), key=lambda r: (r.dataset, r.image_id)) for s in stores]
    assert rows[0] == rows[1]
    assert [f.path for f in stores[0].fragments()] == [f.path for f in stores[1].fragments()]


def test_the_work_grows_with_the_rows_and_not_with_their_square(tmp_path, monkeypatch):
    """The target's ledger is read once, and there are few commits, however many fragments come."""
    from pipeline.runs.ledger import Ledger

    rows = [dense_row(tmp_path, "camvid-11", n) for n in range(40)]
    source = put(tmp_path / "many", rows, pieces=40)
    reads, whole = [], Ledger.of
    monkeypatch.setattr(Ledger, "of", lambda store: reads.append(store) or whole(store))
    merged, _ = merge([source], into(tmp_path / "all"), UNIFIED)
    assert (merged.count(), len(merged.fragments()), len(reads)) == (40, 40, 1)
    commits = [c for c in merged.history() if "merged" in c.note]
    assert len(commits) == 2


def test_several_label_spaces_need_a_name(sources, tmp_path):
    with pytest.raises(UsageError, match="several label spaces"):
        merge(sources, into(tmp_path / "all"), None)
    with pytest.raises(UsageError, match="no rows"):
        merge([Store.create(tmp_path / "e", [UNIFIED])], into(tmp_path / "all"), None)
