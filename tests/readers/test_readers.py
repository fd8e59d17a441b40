"""Every reader opens the same store and finds the same rows, pixels and objects."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from PIL import Image

from pipeline import masks
from pipeline.record import to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from tests.streets import SPACE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.readers.conftest import World

_COLUMNS = ["image_id", "split", "image", "mask", "instances", "image_labels", "provenance"]
_MISSING = "pip install 'segmill[readers]'"


def by_segmill(world: World) -> list[dict[str, Any]]:
    return [row for batch in world.store.scan(_COLUMNS) for row in batch.to_pylist()]


def by_pyarrow(world: World) -> list[dict[str, Any]]:
    table = DeltaTable(world.url).to_pyarrow_dataset().to_table(columns=_COLUMNS)
    return list(table.to_pylist())


def by_file_list(world: World) -> list[dict[str, Any]]:
    files = DeltaTable(world.url).file_uris()
    return list(ds.dataset(files, format="parquet").to_table(columns=_COLUMNS).to_pylist())


def by_pandas(world: World) -> list[dict[str, Any]]:
    pytest.importorskip("pandas", reason=_MISSING)
    return list(DeltaTable(world.url).to_pandas(columns=_COLUMNS).to_dict("records"))


def by_duckdb(world: World) -> list[dict[str, Any]]:
    """Over the dataset of pyarrow: DuckDB's own `delta_scan` is an extension from the internet."""
    duckdb = pytest.importorskip("duckdb", reason=_MISSING)
    labels = DeltaTable(world.url).to_pyarrow_dataset()
    with duckdb.connect() as connection:
        connection.register("labels", labels)
        found = connection.sql(f"SELECT {', '.join(_COLUMNS)} FROM labels").fetchall()
    return [dict(zip(_COLUMNS, row, strict=True)) for row in found]


def by_duckdb_files(world: World) -> list[dict[str, Any]]:
    duckdb = pytest.importorskip("duckdb", reason=_MISSING)
    files = DeltaTable(world.url).file_uris()
    with duckdb.connect() as connection:
        query = f"SELECT {', '.join(_COLUMNS)} FROM read_parquet($files)"
        found = connection.execute(query, {"files": files}).fetchall()
    return [dict(zip(_COLUMNS, row, strict=True)) for row in found]


def by_polars(world: World) -> list[dict[str, Any]]:
    polars = pytest.importorskip("polars", reason=_MISSING)
    return list(polars.scan_delta(world.url).select(_COLUMNS).collect().to_dicts())


def by_ray_data(world: World) -> list[dict[str, Any]]:
    import ray.data

    files = DeltaTable(world.url).file_uris()
    return list(ray.data.read_parquet(files).select_columns(_COLUMNS).iter_rows())


READERS = (
    by_segmill,
    by_pyarrow,
    by_file_list,
    by_pandas,
    by_duckdb,
    by_duckdb_files,
    by_polars,
)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_newest_rows_and_their_pixels(world, reader):
    check(reader(world), world)


@pytest.mark.usefixtures("ray_session")
def test_so_does_ray_data(world):
    check(by_ray_data(world), world)


def test_so_does_spark_by_the_list_of_files(world):
    """Its Delta reader takes jars from Maven; without them it reads what the log lists."""
    sql = pytest.importorskip("pyspark.sql", reason="pip install pyspark; 450 MB, needs Java")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    session = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = session.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
    try:
        rows = spark.read.parquet(*DeltaTable(world.url).file_uris()).select(_COLUMNS).collect()
    finally:
        spark.stop()
    check([row.asDict(recursive=True) for row in rows], world)


def check(found: list[dict[str, Any]], world: World) -> None:
    """Compare rows with the records that were written."""
    assert len(found) == len(world.records)
    rows = {row["image_id"]: row for row in found}
    assert rows.keys() == world.records.keys()
    for name, row in rows.items():
        record = world.records[name]
        pixels = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
        np.testing.assert_array_equal(pixels, world.masks[name])
        image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        np.testing.assert_array_equal(image, world.images[name])
        assert row["image"]["path"] == record.image.path
        assert row["split"] == record.split
        assert [i["category"] for i in row["instances"]] == [3]
        assert list(row["instances"][0]["bbox"]) == [0.0, 1.0, 2.0, 3.0]
        assert list(row["image_labels"]) == [1, 3]
        assert row["provenance"]["kind"] == "truth"


def test_hugging_face_datasets_shows_images_and_masks_as_images(world, tmp_path):
    datasets = pytest.importorskip("datasets", reason=_MISSING)
    files = DeltaTable(world.url).file_uris()
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    for name in ("image", "mask", "confidence"):
        assert isinstance(rows.features[name], datasets.Image)
    found = {row["image_id"]: row for row in rows}
    assert found.keys() == world.records.keys()
    for name, row in found.items():
        assert row["mask"].mode == "P"
        np.testing.assert_array_equal(np.asarray(row["mask"]), world.masks[name])
        np.testing.assert_array_equal(np.asarray(row["image"]), world.images[name])
        assert row["confidence"] is None
        assert row["instances"][0]["category"] == 3


def test_a_glob_would_read_what_no_version_names(world):
    """The tests above would fail for a reader that goes past the log."""
    stale = ds.dataset(f"{world.url}/data", format="parquet").to_table(columns=["image_id"])
    assert stale.num_rows > len(world.records)
    assert set(stale["image_id"].to_pylist()) - world.records.keys()


def test_an_older_version_is_what_it_was(world):
    old = DeltaTable(world.url, version=1).to_pyarrow_dataset().to_table(columns=["mask"])
    assert old.num_rows == 7
    cells = [row["bytes"] for row in old["mask"].to_pylist()]
    assert sum(len(np.unique(masks.decode(cell))) > 1 for cell in cells) == 7


def test_the_files_describe_the_columns_that_they_have(world, tmp_path: Path):
    """`datasets` takes a feature for a column whose Arrow type is the feature's own."""
    datasets = pytest.importorskip("datasets", reason=_MISSING)
    for path in DeltaTable(world.url).file_uris():
        schema = pq.read_schema(path)
        features = datasets.Features.from_arrow_schema(schema)
        assert features.arrow_schema.remove_metadata() == schema.remove_metadata()
        assert isinstance(features["mask"], datasets.Image)


def test_files_with_the_fields_the_other_way_round_read_as_ever(world, tmp_path: Path):
    """Before the features' order was kept, a cell was struct<path, bytes>."""
    table = to_table(world.records.values())
    for name in ("image", "mask", "confidence"):
        column = table[name].combine_chunks()
        kind = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
        turned = pa.array(column.to_pylist(), kind)
        table = table.set_column(table.schema.get_field_index(name), name, turned)
    store = Store.create(tmp_path / "old", [SPACE])
    new = replace(next(iter(world.records.values())), image_id="newer")
    old = write_fragment(store.sink(), "data/t/old.parquet", table)
    store = store.commit([old, write_fragment(store.sink(), "data/t/new.parquet", to_table([new]))])
    expected = world.records | {"newer": new}
    for where in (None, "height > 0"):
        assert {r.image_id: r for r in store.records(where)} == expected
    for fragment in store.fragments():
        for record in store.rows(fragment):
            assert record == expected[record.image_id]
