"""Ranges of a store's rows: each row once, each row group read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from connectors import exporting
from connectors.exporting import RowRange, RowReader, matching, ranges
from pipeline.label_space import label_space
from pipeline.record import File, Provenance, Record, to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 1100


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One fragment of several row groups, whose borders are not those of ranges."""
    monkeypatch.setattr("pipeline.tables.fragment.ROW_GROUP_BYTES", 60_000)
    monkeypatch.setattr(exporting, "_GROUPS", exporting._Groups())
    made = Store.create(str(tmp_path / "store"), [label_space("voc-21")])
    rows = [
        Record(
            image_id=f"i{n:05d}",
            dataset="d",
            split="val" if n % 3 else "train",
            image=File(f"/x/i{n:05d}.jpg"),
            fingerprint="f",
            height=4,
            width=4,
            label_space="voc-21",
            provenance=Provenance("truth", "d", "x"),
        )
        for n in range(ROWS)
    ]
    return made.commit([write_fragment(made.sink(), "data/x/0.parquet", to_table(rows))])


def test_every_row_comes_once_and_every_row_group_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pq.ParquetFile.read_row_group
    read: list[int] = []

    def noted(self: Any, number: int, **options: Any) -> Any:
        read.append(number)
        return real(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    pieces, rows = list(ranges(store)), RowReader(store, None)()
    found = [record.image_id for piece in pieces for _, record in rows(piece)]
    assert found == [f"i{n:05d}" for n in range(ROWS)]
    assert len(pieces) > 3
    assert len(read) > 2
    assert len(read) == len(set(read))


def test_a_condition_picks_rows_and_what_is_lost_has_names(store: Store) -> None:
    keys = matching(store, "split = 'train'")
    reader, (piece, *_) = RowReader(store, keys), ranges(store)
    names = [f"i{n:05d}" for n in range(0, piece.stop, 3)]
    assert [record.image_id for _, record in reader()(piece)] == names
    assert [(s.image_id, s.split) for s in reader.samples(piece)] == [(n, "train") for n in names]


def test_halves_are_the_whole_and_have_names_of_their_own(store: Store) -> None:
    whole = next(iter(ranges(store)))
    one, two = whole.halves()
    assert (one.start, one.stop, two.stop) == (whole.start, two.start, whole.stop)
    assert len({whole.identity(), one.identity(), two.identity()}) == 3
    single = RowRange(whole.fragment, 5, 6)
    assert single.halves() == [single]
