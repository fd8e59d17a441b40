"""Fragments: the Parquet files of a store, each written once, by one worker, under a fixed name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.record import SCHEMA

if TYPE_CHECKING:
    from pipeline.files import Tree
    from pipeline.trees.sinks import Sink

ROW_GROUP_BYTES: Final = 64 << 20
_BLOBS: Final = ("image.bytes", "mask.bytes", "confidence.bytes", "depth.bytes")
_REPEATED: Final = (
    "dataset",
    "split",
    "label_space",
    "provenance.kind",
    "provenance.model",
    "provenance.model_digest",
    "provenance.run",
)
_WITH_STATISTICS: Final = ["image_id", "dataset", "split", "fingerprint", "height", "width"]


@dataclass(frozen=True, slots=True)
class Fragment:
    """One Parquet file of a store: its path below the store, size in bytes, and range of ids."""

    path: str
    rows: int
    size: int
    min_id: str = ""
    max_id: str = ""

    def statistics(self) -> str:
        """Return the file's statistics as Delta's log holds them."""
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": {"image_id": self.min_id},
                "maxValues": {"image_id": self.max_id},
                "nullCount": {"image_id": 0},
            }
        )


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the dotted paths of a schema's Parquet columns."""

    def walk(prefix: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_struct(kind):
            return [path for f in kind for path in walk(f"{prefix}.{f.name}", f.type)]
        if pa.types.is_list(kind):
            return walk(f"{prefix}.list.element", kind.value_type)
        return [prefix]

    return [path for f in schema for path in walk(f.name, f.type)]


def parquet_options(table: pa.Table) -> dict[str, Any]:
    """Return how a fragment is written: blobs as they are, row groups bounded, keys with ranges."""
    leaves = _leaves(table.schema)
    per_row = max(1, table.nbytes // max(1, table.num_rows))
    return {
        "compression": {path: "NONE" if path in _BLOBS else "ZSTD" for path in leaves},
        "use_dictionary": [path for path in leaves if path in _REPEATED],
        "write_statistics": [path for path in leaves if path in _WITH_STATISTICS],
        "row_group_size": max(1, ROW_GROUP_BYTES // per_row),
        "store_schema": True,
    }


def write_fragment(sink: Sink, path: str, table: pa.Table) -> Fragment:
    """Write a table of records, sorted by image_id, as one file that appears whole or not at all.

    The same rows give the same bytes under the same pyarrow.
    """
    table = table.sort_by([("image_id", "ascending"), ("dataset", "ascending")])
    buffer = pa.BufferOutputStream()
    pq.write_table(table.cast(SCHEMA), buffer, **parquet_options(table))
    data = buffer.getvalue()
    sink.write(path, memoryview(data))
    ids = pc.min_max(table["image_id"]).as_py() if table.num_rows else {"min": "", "max": ""}
    return Fragment(path, table.num_rows, data.size, ids["min"], ids["max"])


def open_fragment(tree: Tree, path: str) -> tuple[Fragment, pa.RecordBatch]:
    """Read a staged fragment back: what it is, and its rows' identities (no masks).

    The columns are dataset, path, fingerprint and digest.

    Raises:
        pyarrow.ArrowInvalid: the file is torn (another writer's crash, or a foreign file).
    """
    data = tree.read(path)
    names = ["image_id", "dataset", "image.path", "fingerprint", "provenance.model_digest"]
    table = pq.ParquetFile(pa.BufferReader(data)).read(columns=names).combine_chunks()
    ids = pc.min_max(table["image_id"]).as_py() if table.num_rows else {"min": "", "max": ""}
    columns = {
        "dataset": table["dataset"],
        "path": pc.struct_field(table["image"], "path"),
        "fingerprint": table["fingerprint"],
        "digest": pc.struct_field(table["provenance"], "model_digest"),
    }
    rows = pa.RecordBatch.from_pydict({n: c.combine_chunks() for n, c in columns.items()})
    return Fragment(path, table.num_rows, len(data), ids["min"], ids["max"]), rows
