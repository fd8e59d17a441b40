"""What planning takes: a manifest of many images against a store that holds most of them.

    python benchmarks/planning.py --rows 10000000 --held 9900000

The store has the real schema and tiny cells; the images that it lacks lie scattered. The plan is
made by what `segmill label` calls, up to the shards' being written; no image is read. Time and peak
memory are of a process of its own that imports, lists, reads the store and plans.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

DIGEST = "0123456789abcdef" * 4
BATCH = 1 << 18


def listed(start: int, rows: int) -> tuple[pa.Array, pa.Array]:
    """Return paths and fingerprints of a range of images, in order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pa.array(np.arange(start, start + rows))
    text = pc.utf8_lpad(numbers.cast(pa.string()), 9, "0")
    folder = pc.utf8_slice_codeunits(text, 0, 5)
    root = "s3://bucket/photos/2026/part-"
    paths = pc.binary_join_element_wise(root, folder, "/image_", text, ".jpg", "")
    prints = pc.binary_join_element_wise("d41d8cd98f00b204e98009", text, "a", "")
    return paths, prints


def write_manifest(path: str, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("path", pa.string()), ("fingerprint", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for start in range(0, rows, BATCH):
            columns = listed(start, min(BATCH, rows - start))
            out.write_table(pa.table(dict(zip(schema.names, columns, strict=True))))


def held_rows(rows: int, held: int, each: int) -> Iterator[pa.Table]:
    """Yield tables of `each` rows of the store; which are left out is spread evenly."""
    import numpy as np
    import pyarrow as pa

    left, waiting = rows - held, None
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        number = np.arange(start, start + count, dtype=np.int64)
        gone = number * left // rows != (number + 1) * left // rows
        table = pa.table(dict(zip(("path", "fingerprint"), listed(start, count), strict=True)))
        table = table.filter(pa.array(~gone))
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= each:
            yield waiting.slice(0, each)
            waiting = waiting.slice(each)
    if waiting is not None and waiting.num_rows:
        yield waiting


def row_table(rows: pa.Table, cell: bytes) -> pa.Table:
    """Return rows of the store's schema."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.record import SCHEMA

    count, paths = rows.num_rows, rows["path"].combine_chunks()

    def same(value: object, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), count)

    made = {"kind": "model", "model": "zoo:enet", "model_digest": DIGEST, "run": "label-bench"}
    given = {
        "image_id": pc.utf8_slice_codeunits(paths, 12, -4),
        "dataset": same("photos", pa.string()),
        "split": same("unlabelled", pa.string()),
        "fingerprint": rows["fingerprint"].combine_chunks(),
        "height": same(480, pa.int32()),
        "width": same(640, pa.int32()),
        "label_space": same("camvid-11", pa.string()),
    }
    arrays = []
    for field in SCHEMA:
        if field.name in given:
            arrays.append(given[field.name].cast(field.type))
        elif field.name == "provenance":
            parts = [same(made.get(f.name), f.type) for f in field.type]
            arrays.append(pa.StructArray.from_arrays(parts, fields=list(field.type)))
        elif field.name in {"image", "mask"}:
            text = paths if field.name == "image" else same(None, pa.string())
            data = same(None if field.name == "image" else cell, pa.binary())
            arrays.append(pa.StructArray.from_arrays([text, data], fields=list(field.type)))
        else:
            arrays.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def write_store(url: str, rows: int, held: int, each: int) -> int:
    """Write the store and return how many fragments it has."""
    from pipeline.label_space import label_space
    from pipeline.store import Store
    from pipeline.tables.fragment import Fragment, parquet_options

    store = Store.create(url, [label_space("camvid-11")])
    os.makedirs(f"{url}/data/bench")
    import pyarrow.parquet as pq

    fragments, options = [], None
    for number, part in enumerate(held_rows(rows, held, each)):
        table, path = row_table(part, b"\x89PNG....."), f"data/bench/{number:07d}.parquet"
        options = options or parquet_options(table)
        pq.write_table(table, f"{url}/{path}", **options)
        size = os.path.getsize(f"{url}/{path}")
        ids = table["image_id"]
        fragments.append(Fragment(path, len(table), size, ids[0].as_py(), ids[-1].as_py()))
    for start in range(0, len(fragments), 20_000):
        store = store.commit(fragments[start : start + 20_000])
    return len(fragments)


def plan(manifest: str, url: str) -> None:
    """Plan as `segmill label` does; print what it took."""
    start, cpu = time.perf_counter(), time.process_time()
    from pipeline.labelling import VERB, LabelJob
    from pipeline.run import Run
    from pipeline.runs.drive import Drive
    from pipeline.store import Store

    job = LabelJob(manifest, DIGEST, dataset="photos")
    store = Store.open(url)
    run = Run.begin(store, VERB, kind="model", identity=job.identity())
    drive = Drive(store, run, "as they come", {})
    read = time.perf_counter() - start
    todo = drive.plan(job.samples(), job.shard_images)
    wall, spent = time.perf_counter() - start, time.process_time() - cpu
    shards = sum(1 for _ in drive.shards())
    drive.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"store s": round(read, 1), "plan s": round(wall - read, 1), "all s": round(wall, 1)}
    figures |= {"cpu s": round(spent, 1), "peak MiB": round(peak), "to do": todo, "shards": shards}
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--held", type=int, default=990_000)
    parser.add_argument("--fragment-rows", type=int, default=4096)
    parser.add_argument("--shuffled", action="store_true", help="the manifest is in no order")
    parser.add_argument("--plan", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        plan(*args.plan)
        return
    with tempfile.TemporaryDirectory() as root:
        manifest, store = f"{root}/photos.parquet", f"{root}/store"
        write_manifest(manifest, args.rows)
        if args.shuffled:
            shuffle(manifest)
        fragments = write_store(store, args.rows, args.held, args.fragment_rows)
        print(f"{args.rows} listed, {args.held} held in {fragments} fragments", flush=True)
        command = [sys.executable, __file__, "--plan", manifest, store]
        subprocess.run(command, check=True)


def shuffle(manifest: str) -> None:
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(manifest)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), manifest)


if __name__ == "__main__":
    main()
