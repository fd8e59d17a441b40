"""Each kind of finding is made on purpose and found, once; a clean store has none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import masks
from pipeline.checks.findings import FINDINGS, KINDS
from pipeline.checks.identities import Identities, equal_runs
from pipeline.record import EMBEDDED, File, Provenance, from_batch, to_table
from pipeline.runner import LocalRunner
from pipeline.tables.fragment import write_fragment
from pipeline.validation import validate
from tests import broken_rows as broken

ONE = LocalRunner(1)


def kinds(store, **options):
    """Return what is found: the kinds, and the rows that they are about."""
    found = validate(store, runner=ONE, **options)
    return {k: [f.row.image_id for f in fs if f.row] for k, fs in found.examples.items()}, found


@pytest.mark.parametrize("images", ["none", "header", "decode"])
def test_a_clean_store_has_no_finding(tmp_path, images):
    seen, found = kinds(broken.store_of(tmp_path, broken.good_rows(tmp_path)), images=images)
    assert seen == {}
    assert (found.inputs, found.failed, found.findings) == (6, 0, [])


@pytest.mark.parametrize("kind", sorted(broken.BREAKS))
def test_each_break_is_found_and_nothing_else(tmp_path, kind):
    rows = broken.good_rows(tmp_path)
    rows[2] = broken.BREAKS[kind](rows[2])
    seen, found = kinds(broken.store_of(tmp_path, rows))
    assert seen == {kind: ["good-2"]}
    bad = KINDS[kind].severity == "error"
    assert (found.inputs, found.failed) == (6, int(bad))
    assert KINDS[kind].mend in found.findings[0].message


def test_a_background_mask_is_told(tmp_path):
    from pipeline.checks.rows import row_problems
    from pipeline.label_space import label_space
    from pipeline.record import ClassPixels

    voc = label_space("voc-21")
    row = broken.good_row(tmp_path, "a", 1)
    cell = File(bytes=masks.encode(broken.blank(0)))
    count = (ClassPixels(0, broken.HEIGHT * broken.WIDTH),)
    row = replace(row, label_space="voc-21", mask=cell, classes=count, instances=None)
    assert [p.kind for p in row_problems(row, {"voc-21": voc})] == ["mask-background"]


def test_overlaps_parts_and_crowds_are_no_contradiction(tmp_path):
    rows = broken.good_rows(tmp_path)
    # A sign lies on the car, and the mask says so: the car is explained by it.
    ids = masks.decode(rows[0].mask.bytes)
    over = broken.box_of(slice(42, 58), slice(22, 48))
    sign = broken.SPACE.by_name["SignSymbol"].id
    ids[over == 1] = sign
    rows[0] = broken._also(broken.with_mask(rows[0], ids), broken.instance_of(over, 2, sign))
    # A wheel lies on the car, the mask says car; a crowd of cars is loose.
    part = replace(broken.instance_of(over, 2, sign), extra='{"part_of": 1}')
    rows[1] = broken._also(rows[1], part, replace(broken.SKY_CAR, id=3, iscrowd=True))
    assert kinds(broken.store_of(tmp_path, rows))[0] == {}
    # Without the object that explains it, the same mask contradicts the car.
    rows[0] = replace(rows[0], instances=rows[0].instances[:1])
    shutil.rmtree(tmp_path / "store")
    store = broken.store_of(tmp_path, rows)
    assert kinds(store)[0] == {"instance-mask": ["good-0"]}
    assert kinds(store, tolerance=0.9)[0] == {}


def test_one_row_may_be_wrong_in_several_ways(tmp_path):
    rows = broken.good_rows(tmp_path)
    for kind in ("split", "image-labels", "classes"):
        rows[1] = broken.BREAKS[kind](rows[1])
    seen, found = kinds(broken.store_of(tmp_path, rows))
    assert set(seen) == {"split", "image-labels", "classes"}
    assert found.failed == 1


def test_of_a_thousand_bad_objects_a_few_are_told_and_the_rest_counted(tmp_path):
    rows = broken.good_rows(tmp_path)
    (car,) = rows[0].instances
    cars = [replace(car, id=n, area=6000.0) for n in range(1000)]
    rows[0] = replace(rows[0], instances=(*cars, replace(car, id=1000, category=99)))
    _, found = kinds(broken.store_of(tmp_path, rows))
    assert dict(found.counts) == {"instance-area": 11, "instance-class": 1}
    assert found.findings[10].what == "990 more like these in this row"
    assert found.failed == 1


# --- images ---------------------------------------------------------------------------------------


def test_images_that_are_missing_torn_or_of_another_size(tmp_path):
    import cv2

    rows = broken.good_rows(tmp_path)
    paths = [tmp_path / "images" / r.split / f"{r.image_id}.png" for r in rows]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    cv2.imwrite(str(paths[2]), np.zeros((10, 20, 3), np.uint8))
    data = bytearray(paths[3].read_bytes())
    data[len(data) // 2] ^= 255  # the header and the end are whole, the pixels are not
    paths[3].write_bytes(bytes(data))
    paths[4].write_bytes(b"")
    store = broken.store_of(tmp_path, rows)
    assert kinds(store)[0] == {}
    seen, found = kinds(store, images="header")
    assert seen == {
        "image-missing": ["good-0", "good-4"], "image-corrupt": ["good-1"],
        "image-size": ["good-2"],
    }  # fmt: skip
    assert found.failed == 4
    assert kinds(store, images="decode")[0]["image-corrupt"] == ["good-1", "good-3"]


def test_embedded_images_are_read_from_the_store(tmp_path):
    rows = broken.good_rows(tmp_path)
    rows = [replace(r, image=File(r.image.path, Path(r.image.path).read_bytes())) for r in rows]
    rows[1] = replace(rows[1], image=File(rows[1].image.path, b"no image"))
    shutil.rmtree(tmp_path / "images")
    seen, _ = kinds(broken.store_of(tmp_path, rows), images="decode")
    assert seen == {"image-corrupt": ["good-1"]}


# --- several rows ---------------------------------------------------------------------------------


def copied(root, row, name, **fields):
    """Return a row with a copy of another one's image."""
    path = root / "images" / f"{name}.png"
    shutil.copyfile(row.image.path, path)
    changes = {"image_id": name, "image": File(str(path)), "fingerprint": f"f-{name}", **fields}
    return replace(row, **changes)


@pytest.mark.parametrize(
    ("fields", "images", "kind"),
    [
        ({}, "header", "duplicate"),
        ({"split": "val"}, "header", "leakage"),
        ({"split": "unlabelled"}, "header", "duplicate"),
        ({"dataset": "other"}, "header", "shared-image"),
        ({"dataset": "other", "split": "test"}, "header", "leakage"),
        ({"fingerprint": "f-good-0"}, "none", "fingerprint-duplicate"),
        ({"fingerprint": "f-good-0", "split": "val"}, "none", "fingerprint-leakage"),
        ({"fingerprint": ""}, "none", None),
    ],
)
def test_the_same_image_twice(tmp_path, fields, images, kind):
    rows = broken.good_rows(tmp_path)
    rows.append(copied(tmp_path, rows[0], "copy", **fields))
    seen, found = kinds(broken.store_of(tmp_path, rows), images=images)
    expected = {} if kind is None else {kind: 1}
    assert dict(found.counts) == expected, seen
    if kind:
        (finding,) = found.findings
        assert {finding.row.image_id, finding.other.image_id} == {"copy", "good-0"}
        assert found.failed == (2 if kind == "leakage" else 0)


def test_rows_twice_ids_twice_and_paths_shared(tmp_path):
    rows = broken.good_rows(tmp_path)
    again = [
        rows[0],  # the whole row
        replace(rows[1], dataset="other"),  # the same file in another dataset
        replace(rows[2], dataset="other", split="test"),  # and in another split
        copied(tmp_path, rows[3], "new", image_id="good-3"),  # another file under one name
        copied(tmp_path, rows[4], "newer", image_id="good-4", split="train"),
    ]
    _, found = kinds(broken.store_of(tmp_path, [*rows, *again], pieces=3))
    # The row twice has its fingerprint twice and its name twice, too: told once.
    assert dict(found.counts) == {
        "row-repeated": 1, "shared-image": 1, "leakage": 1, "id-repeated": 1, "id-leakage": 1,
    }  # fmt: skip
    assert found.failed == 6


def test_look_alikes_are_found_by_their_looks_alone(tmp_path):
    import cv2

    rows = broken.good_rows(tmp_path)
    paths = [tmp_path / "images" / r.split / f"{r.image_id}.png" for r in rows]
    y, x = np.mgrid[: broken.HEIGHT, : broken.WIDTH]
    picture = (127 + 90 * np.sin(x / 9 + y / 17) * np.cos(y / 8)).astype(np.uint8)
    cv2.imwrite(str(paths[1]), np.repeat(picture[..., None], 3, 2))
    cv2.imwrite(str(paths[2]), np.repeat((picture // 2 + 60)[..., None], 3, 2))
    for path in paths[3:5]:  # two flat ones: all alike, and no finding
        cv2.imwrite(str(path), np.full((broken.HEIGHT, broken.WIDTH, 3), len(str(path)), np.uint8))
    store = broken.store_of(tmp_path, rows)
    assert kinds(store, images="header")[0] == {}
    seen, _ = kinds(store, images="decode")
    assert seen["near-duplicate"] == ["good-2"]


def test_equal_runs_against_a_plain_loop():
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 40, 200)
    expected = {}
    for row, value in enumerate(hashes.tolist()):
        if value:
            expected.setdefault(value, []).append(row)
    expected = [rows for rows in expected.values() if len(rows) > 1]
    assert [run.tolist() for run in equal_runs(hashes)] == expected
    assert list(equal_runs(np.zeros(5, np.int64))) == []


def test_identities_take_some_tens_of_bytes_a_row():
    rows = 10_000
    columns = {
        name: [f"{name}-{n}" for n in range(rows)]
        for name in ("image_id", "dataset", "split", "path", "fingerprint")
    }
    columns |= {"dataset": ["d"] * rows, "split": ["train"] * rows}
    known = Identities.joined([Identities.of(columns), Identities.of(columns)])
    held = sum(h.nbytes for h in known.hashes.values()) + known.datasets.nbytes
    assert held + known.splits.nbytes <= 2 * rows * 48


# --- classes --------------------------------------------------------------------------------------


def test_classes_unseen_untrained_unscored_and_rare(tmp_path):
    rows = broken.good_rows(tmp_path)
    plain = broken.blank(broken.ROAD)
    for at, row in enumerate(rows):
        ids = plain.copy()
        if row.split == "train":
            ids[0, 0] = broken.CAR
        if row.split == "test":
            ids[:20] = broken.SKY
        rows[at] = broken.with_mask(replace(row, instances=None), ids)
    _, found = kinds(broken.store_of(tmp_path, rows))
    told = {f.kind: f.what for f in found.findings}
    assert set(told) == {"class-unseen", "class-untrained", "class-unscored", "class-rare"}
    assert "8 of 11 classes" in told["class-unseen"]
    assert "test shows 1 of 11 classes (Sky); train does not" in told["class-untrained"]
    assert "(Car)" in told["class-unscored"]
    assert "in train" in told["class-rare"]
    assert found.failed == 0


# --- the store ------------------------------------------------------------------------------------


def test_a_torn_fragment_is_one_finding_and_the_others_are_checked(tmp_path):
    rows = broken.good_rows(tmp_path)
    rows[0] = broken.BREAKS["classes"](rows[0])
    store = broken.store_of(tmp_path, rows, pieces=3)
    torn = next(f for f in store.fragments() if f.min_id == "good-2")
    (tmp_path / "store" / torn.path).write_bytes(b"PAR1 torn")
    seen, found = kinds(store)
    assert (seen["classes"], found.counts["fragment"]) == (["good-0"], 1)
    assert (found.inputs, found.failed) == (6, 3)


def test_pairs_are_named_rightly_beside_a_fragment_with_damaged_masks(tmp_path):
    """Its names can be read, its masks not: its rows must not shift the numbers of the others."""
    rows = broken.good_rows(tmp_path)
    rows[5] = replace(rows[5], fingerprint=rows[4].fingerprint)
    store = broken.store_of(tmp_path, rows, pieces=3)
    damaged = next(f for f in store.fragments() if f.min_id == "good-2")
    path = tmp_path / "store" / damaged.path
    file = pq.ParquetFile(path).metadata.row_group(0)
    columns = {file.column(n).path_in_schema: file.column(n) for n in range(file.num_columns)}
    data = bytearray(path.read_bytes())
    at = columns["mask.bytes"].data_page_offset
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))
    _, found = kinds(store)
    assert found.counts["fragment"] == 1
    (finding,) = [f for f in found.findings if f.kind == "fingerprint-leakage"]
    assert {finding.row.image_id, finding.other.image_id} == {"good-4", "good-5"}


def test_rows_that_no_reader_expects_are_rows_not_crashes(tmp_path):
    rows = broken.good_rows(tmp_path)
    table = to_table(rows)
    empty = {
        "image_id": "x", "dataset": None, "split": None, "image": None, "fingerprint": None,
        "height": None, "width": None, "label_space": "camvid-11", "mask": {"bytes": b""},
        "provenance": None, "extra": '{"orientation": "up"}',
        "instances": [{"id": None, "category": None, "bbox": [None], "rle": "~~", "extra": "[]"}],
    }  # fmt: skip
    odd = pa.Table.from_pylist([empty], schema=table.schema)
    from pipeline.store import Store

    store = Store.create(tmp_path / "store", [broken.SPACE])
    made = write_fragment(store.sink(), "data/t/x.parquet", pa.concat_tables([table, odd]))
    seen, found = kinds(store.commit([made]), images="decode")
    assert set(seen) >= {"split", "row"}
    assert {i for ids in seen.values() for i in ids} == {"x"}
    assert found.failed == 1


def test_the_order_and_the_findings_do_not_depend_on_the_workers(tmp_path):
    rows = [broken.good_row(tmp_path, f"n{n:03d}", n % 7) for n in range(24)]
    breaks = list(broken.BREAKS.values())
    rows = [breaks[n % len(breaks)](row) if n % 2 else row for n, row in enumerate(rows)]
    store = broken.store_of(tmp_path, rows, pieces=8)

    def told(workers):
        batches = []
        found = validate(store, runner=LocalRunner(workers), on_findings=batches.append)
        assert all(b.schema == FINDINGS for b in batches)
        return [row for b in batches for row in b.to_pylist()], dict(found.counts)

    assert told(1) == told(4)
    findings, counts = told(2)
    assert len(findings) == sum(counts.values()) > 10
    json.dumps(findings)


def test_only_some_fragments_are_checked_but_against_all_rows(tmp_path):
    rows = broken.good_rows(tmp_path)
    rows[0] = broken.BREAKS["classes"](rows[0])
    late = copied(tmp_path, rows[1], "z-late", fingerprint=rows[1].fingerprint, split="val")
    store = broken.store_of(tmp_path, rows)
    made = write_fragment(store.sink(), "data/t/late.parquet", to_table([late]))
    newer = store.commit([made])
    found = validate(newer, runner=ONE, only=[made.path])
    assert dict(found.counts) == {"fingerprint-leakage": 1}
    assert (found.inputs, found.failed) == (1, 0)


def test_an_empty_store_is_clean(tmp_path):
    from pipeline.store import Store

    found = validate(Store.create(tmp_path / "s", [broken.SPACE]), runner=ONE)
    assert (found.inputs, found.failed, dict(found.counts)) == (0, 0, {})


def test_statistics_count_by_hand(tmp_path):
    from pipeline.tables.statistics import statistics

    rows = broken.good_rows(tmp_path)
    rows[1] = replace(rows[1], depth=None, provenance=Provenance("truth", "t", f"d{EMBEDDED}"))
    rows[2] = replace(rows[2], instances=None)
    store = broken.store_of(tmp_path, rows, pieces=2)
    found = statistics(store).to_dict("split")
    for line in found["classes"]:
        number = broken.SPACE.by_name[line["class"]].id
        here = [masks.decode(r.mask.bytes) for r in rows if r.split == line["split"]]
        assert line["pixels"] == sum(int((m == number).sum()) for m in here)
        assert line["images"] == sum(bool((m == number).any()) for m in here)
        cars = sum(len(r.instances or ()) for r in rows if r.split == line["split"])
        assert line["objects"] == (cars if line["class"] == "Car" else 0)
    shares = [line["share"] for line in found["classes"] if line["split"] == "train"]
    assert sum(s for s in shares if s is not None) == pytest.approx(1, abs=1e-4)
    assert shares[0] == max(s for s in shares if s is not None)
    assert (found["rows"], found["with_objects"]) == (6, 5)
    assert (found["depth_share"], found["embedded_share"]) == pytest.approx(
        (5 / 6, 1 / 6), abs=1e-5
    )
    for where in ("split = 'train'", pa.compute.field("split") == "train"):
        part = statistics(store, where).to_dict("split")
        expected = [line for line in found["classes"] if line["split"] == "train"]
        assert part["classes"] == expected


def test_records_read_without_image_bytes_are_records(tmp_path):
    from pipeline.checks.parts import Part, batches

    row = replace(broken.good_row(tmp_path, "a", 1), image=File("/a.png", b"\xff\xd8"))
    store = broken.store_of(tmp_path, [row])
    part = Part(0, store.fragments()[0].path, 0, 1, 1)
    columns = ["image.path" if c == "image" else c for c in to_table([row]).column_names]
    (batch,) = batches(store, part, columns)
    assert next(from_batch(batch)) == replace(row, image=File("/a.png", None))


def test_the_work_travels_to_other_processes(tmp_path):
    import pickle

    from pipeline.checks.parts import Part, PartCheck

    rows = broken.good_rows(tmp_path)
    rows[1] = broken.BREAKS["classes"](rows[1])
    store = broken.store_of(tmp_path, rows)
    check = pickle.loads(pickle.dumps(PartCheck(store, "decode", 0.25)))
    result = pickle.loads(pickle.dumps(check()(Part(0, store.fragments()[0].path, 0, 1, 6))))
    assert [f.row.image_id for f in result.findings] == ["good-1"]
    assert result.bad.tolist() == [False, True, False, False, False, False]
