from __future__ import annotations

import json
import pickle
import threading

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CommitConflict, NotAStore, StoreError, StoreTooNew, UsageError
from pipeline.label_space import LabelSpace, label_space
from pipeline.merging import merge
from pipeline.record import SCHEMA, Depth, File, Instance, from_batch, to_table
from pipeline.runs.failures import Failure
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from pipeline.tables.upkeep import compact, difference
from tests.samples import SPACE, record_of, sample


def put(store: Store, name: str, ids: list[str], value: int = 3):
    """Write a fragment as a worker would, without committing it."""
    rows = to_table(record_of(sample(i), value) for i in ids)
    return write_fragment(store.sink(), f"data/t/{name}.parquet", rows)


@pytest.fixture
def store(tmp_path):
    """Give a store of four rows in two fragments, at version 1."""
    empty = Store.create(tmp_path / "labels", [SPACE])
    return empty.commit([put(empty, "a", ["a2", "a1"]), put(empty, "b", ["b1", "b2"])])


def test_a_snapshot_holds_what_was_committed_and_nothing_staged(store):
    put(store, "staged", ["c1"])
    assert store.latest().version == 1
    assert [r.image_id for r in store.records()] == ["a1", "a2", "b1", "b2"]
    assert store.count() == 4


def test_every_column_survives_the_store(tmp_path):
    full = record_of(sample("full"))
    instance = Instance(7, 8, (0.5, 1.0, 2.25, 3.0), 6.5, True, "04", 0.5, '{"pose": "Left"}')
    fields = {f: getattr(full, f) for f in full.__slots__}
    fields |= {
        "instances": (instance, Instance(8, 9, None, None)),
        "image_labels": (1, 8),
        "depth": Depth("d.png", b"\x00\x01", 0.001),
        "image": File("/images/full.png", b"\xff\xd8"),
        "confidence": full.mask,
        "extra": '{"k": [1, "ü"]}',
    }
    full = type(full)(**fields)
    empty = Store.create(tmp_path / "s", [SPACE])
    fragment = write_fragment(empty.sink(), "data/t/x.parquet", to_table([full]))
    found = next(empty.commit([fragment]).records())
    assert found == full


def test_fragments_are_plain_parquet_that_any_reader_takes(store):
    files = [f"{store.url}/{f.path}" for f in store.fragments()]
    table = pa.concat_tables([pq.read_table(f) for f in files])
    assert sorted(table["image_id"].to_pylist()) == ["a1", "a2", "b1", "b2"]
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(SCHEMA.names)
    assert features["mask"] == {"_type": "Image"}
    blob = pq.ParquetFile(files[0]).metadata.row_group(0)
    paths = {blob.column(i).path_in_schema: blob.column(i) for i in range(blob.num_columns)}
    assert paths["mask.bytes"].compression == "UNCOMPRESSED"
    assert paths["mask.bytes"].statistics is None
    assert paths["image_id"].statistics.min == "a1"


def test_the_same_rows_give_the_same_bytes(store, tmp_path):
    other = Store.create(tmp_path / "other", [SPACE])
    put(other, "a", ["a1", "a2"])
    first = (tmp_path / "labels/data/t/a.parquet").read_bytes()
    assert first == (tmp_path / "other/data/t/a.parquet").read_bytes()


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        (None, ["a1", "a2", "b1", "b2"]),
        (pc.field("image_id") >= "b", ["b1", "b2"]),
        (pc.field("split") == "train", ["a1", "a2", "b1", "b2"]),
        (pc.field("height").isin([5, 6]), []),
        (pc.field("provenance", "kind") == "truth", ["a1", "a2", "b1", "b2"]),
        ("image_id LIKE '%1' AND height = 4", ["a1", "b1"]),
        ("image['path'] = '/images/b2.png'", ["b2"]),
        ("split = 'val'", []),
    ],
)
def test_scan_pushes_conditions_down(store, where, ids):
    batches = list(store.scan(["image_id", "image.path", "mask.bytes"], where))
    assert sorted(i for b in batches for i in b["image_id"].to_pylist()) == ids
    assert store.count(where) == len(ids)
    if batches:
        assert batches[0].schema.names == ["image_id", "image.path", "mask.bytes"]
        assert batches[0].schema.field("mask.bytes").type == pa.binary()


def test_scan_of_whole_rows_by_sql_gives_records(store):
    found = [r for b in store.scan(None, "image_id = 'a1'") for r in from_batch(b)]
    assert found == [record_of(sample("a1"))]


def test_a_wrong_condition_is_named(store):
    with pytest.raises(UsageError, match="no_such_column"):
        list(store.scan(["image_id"], "no_such_column = 1"))


def test_reading_ranges_of_a_fragment(store):
    fragment = store.fragments()[0]
    assert [r.image_id for r in store.rows(fragment, 1, 2)] == ["a2"]
    assert [r.image_id for r in store.rows(fragment)] == ["a1", "a2"]


def test_replace_is_one_step_and_time_travel_keeps_the_old(store):
    old = next(f for f in store.fragments() if f.min_id == "a1")
    new = store.commit([put(store, "a-new", ["a1", "a2"], value=5)], [old])
    assert new.version == store.version + 1
    assert {r.image_id: r.classes[0].id for r in new.records()} == {
        "a1": 5, "a2": 5, "b1": 3, "b2": 3,
    }  # fmt: skip
    assert {r.classes[0].id for r in Store.open(store.url, 1).records()} == {3}


def test_repeating_a_commit_changes_nothing(store):
    again = store.commit(store.fragments())
    assert (again.version, again.count()) == (1, 4)


def test_of_two_drivers_that_replace_the_same_fragment_one_is_refused(store):
    first, second = store.latest(), store.latest()
    old = [f for f in store.fragments() if f.min_id == "a1"]
    first.commit([put(store, "x", ["a1", "a2"], 4)], old)
    with pytest.raises(CommitConflict):
        second.commit([put(store, "y", ["a1", "a2"], 5)], old)
    assert {r.classes[0].id for r in store.latest().records() if r.image_id < "b"} == {4}


def test_two_drivers_that_add_both_keep_their_rows(store):
    first, second = store.latest(), store.latest()
    first.commit([put(store, "x", ["c1"])])
    late = [put(store, "y", ["d1"])]
    with pytest.raises(CommitConflict):
        second.commit(late)
    second.commit(late, rebase=lambda newest: (late, []))
    assert store.latest().count() == 6


def test_restore_tag_and_vacuum(store):
    store.tag("good")
    old = [f for f in store.fragments() if f.min_id == "a1"]
    newer = store.commit([put(store, "z", ["a1", "a2"], 6)], old)
    put(newer, "orphan", ["q"])
    listed = newer.vacuum(hours=0)
    assert any("orphan" in f for f in listed)
    assert not any(f.endswith("/a.parquet") for f in listed), "a tag names the version with it"
    newer.vacuum(hours=0, delete=True)
    assert Store.open(store.url, "good").count() == 4
    back = newer.restore("good")
    assert {r.classes[0].id for r in back.records()} == {3}
    assert next(c.operation for c in back.history()) == "RESTORE"
    assert back.tags() == {"good": 1}


@pytest.mark.parametrize("name", ["", "12", "a/b", ".hidden"])
def test_odd_tags_are_refused(store, name):
    with pytest.raises(UsageError):
        store.tag(name)


def test_opening_what_is_no_store(tmp_path, store):
    with pytest.raises(NotAStore, match="no label store here"):
        Store.open(tmp_path / "absent")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(NotAStore, match="not empty"):
        Store.create(tmp_path / "full", [SPACE])
    with pytest.raises(StoreError):
        Store.open(store.url, 99)
    with pytest.raises(UsageError, match="no tag"):
        Store.open(store.url, "nightly")


def test_a_store_of_a_newer_schema_is_refused(store):
    store._table.alter.set_table_properties(
        {"segmill.schema_version": "99"}, raise_if_not_exists=False
    )
    with pytest.raises(StoreTooNew, match="schema version 99"):
        Store.open(store.url)


def test_label_spaces_are_described_once_under_a_name(store):
    voc = label_space("voc-21")
    more = store.with_spaces([voc, SPACE])
    assert set(more.label_spaces) == {"camvid-11", "voc-21"}
    assert more.label_spaces["voc-21"] == voc
    with pytest.raises(StoreError, match="other classes"):
        more.with_spaces([LabelSpace("voc-21", voc.classes[:3], 255)])


def test_a_store_travels_as_its_version(store):
    copy = pickle.loads(pickle.dumps(store))
    store.commit([put(store, "late", ["z"])])
    assert copy.version == 1
    assert copy.count() == 4


def test_failures_are_written_once_under_a_name(store):
    from datetime import UTC, datetime

    failed = [Failure.of(sample("bad"), "read", ValueError("torn\nfile"))]
    for _ in range(2):
        store.add_failures(failed, "run-1", datetime.now(UTC), "run-1/x")
    rows = store.failures().to_pylist()
    assert [(r["path"], r["error"], r["message"]) for r in rows] == [
        ("/images/bad.png", "ValueError", "torn file")
    ]


def test_delta_tools_read_the_table(store):
    from deltalake import DeltaTable

    dataset = DeltaTable(store.url).to_pyarrow_dataset()
    assert isinstance(dataset, ds.Dataset)
    assert dataset.count_rows() == 4


def test_difference_by_label_not_by_maker(store):
    old = [f for f in store.fragments() if f.min_id == "a1"]
    new = store.commit([put(store, "n", ["a1", "c9"], 3)], old)
    assert difference(store, new).added == (("toy", "c9"),)
    assert difference(store, new).removed == (("toy", "a2"),)
    assert difference(store, new).changed == ()
    old = [f for f in new.fragments() if "c9" in (f.min_id, f.max_id)]
    newer = new.commit([put(new, "m", ["a1", "c9"], 5)], old)
    assert difference(new, newer).changed == (("toy", "a1"), ("toy", "c9"))


def test_compact_keeps_the_rows(store):
    before = list(store.records())
    joined, gone = compact(store)
    assert gone == 2
    assert len(joined.fragments()) == 1
    assert list(joined.records()) == before


def test_merge_remaps_and_replaces(store, tmp_path):
    unified = label_space("unified")

    def make(space):
        return Store.create(tmp_path / "all", [space])

    merged, _ = merge([store], make, unified)
    assert merged.count() == 4
    road = unified.by_name["road"].id
    assert {c.id for r in merged.records() for c in r.classes} == {road}
    again, _ = merge([store], make, unified)
    assert again.count() == 4


class Counted:
    """A file system on which three files must be opened at once, past the first."""

    def __init__(self, files, at_once: int) -> None:
        self._files, self._meet = files, threading.Barrier(at_once)
        self._lock, self._opened = threading.Lock(), 0

    def open_input_file(self, path: str):
        with self._lock:
            self._opened += 1
            first = self._opened == 1
        if not first:
            self._meet.wait(timeout=10)
        return self._files.open_input_file(path)


def test_far_fragments_are_opened_many_at_once_and_come_in_order(tmp_path, monkeypatch):
    from pipeline.tables import scan

    empty = Store.create(tmp_path / "s", [SPACE])
    store = empty.commit([put(empty, f"f{n}", [f"{n}a", f"{n}b"]) for n in range(7)])
    plain = list(store.scan_fragments(["image_id", "image.path"]))
    assert [b["image_id"].to_pylist() for _, b in plain] == [[f"{n}a", f"{n}b"] for n in range(7)]
    local = scan._file_system(store.url, {}, store.fragments())
    for names, at_once in ((["image_id", "image.path"], 3), (["image_id", "mask.bytes"], 1)):
        files = Counted(local, at_once)
        monkeypatch.setattr(scan, "_file_system", lambda *_, files=files: files)
        found = scan.scan_by_fragment("s3://far", {}, store.fragments(), names, 1)
        assert [(path, b["image_id"].to_pylist()) for path, b in found] == [
            (f"data/t/f{n}.parquet", [f"{n}{x}"]) for n in range(7) for x in "ab"
        ]


def test_label_spaces_that_rows_name(store):
    assert Store.create(store.url, [label_space("voc-21")]).used_spaces() == [SPACE]
    assert store.used_spaces("split = 'val'") == store.used_spaces(pc.field("height") < 0) == []
