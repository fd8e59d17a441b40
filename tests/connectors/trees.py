"""Small datasets, records and files that the connectors' tests make and compare.

Made with Pillow and the standard library, not with the code under test.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline import masks
from pipeline.files import open_sink
from pipeline.record import File, Provenance, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from connectors.base import Connector, Written
    from pipeline.label_space import LabelSpace


def bare(record: Record) -> Record:
    """Leave out where a record's files lie and what made it."""
    return replace(
        record,
        image=File(),
        fingerprint="",
        mask=File(bytes=record.mask.bytes) if record.mask else None,
        depth=replace(record.depth, path=None) if record.depth else None,
        provenance=Provenance(),
    )


def tree_bytes(record: Record) -> bytes:
    """Return a record's image: the bytes it holds, or those at the local path that it names."""
    return record.image.bytes or Path(record.image.path or "").read_bytes()


def rewrite(
    connector: Connector,
    records: Iterable[Record],
    target: Path | str,
    space: LabelSpace,
    *,
    backwards: bool = False,
    facts: dict[str, Any] | None = None,
) -> list[Written]:
    """Write records as the runner does: in any order, then the index in the records' order.

    `facts` are what a dataset of the same format says of itself.
    """
    sink, rows = open_sink(str(target)), list(records)
    order = range(len(rows))[::-1] if backwards else range(len(rows))
    written = {at: connector.write(sink, rows[at], space) for at in order}
    index = [replace(written[at], loss={}) for at in range(len(rows))]  # the spool keeps no loss
    connector.finish(sink, index, space, {} if facts is None else {connector.format: facts})
    return [written[at] for at in range(len(rows))]


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a directory by its name."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def pack(root: Path, archive: Path) -> Path:
    """Put a directory's files into a .zip or .tar."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in contents(root).items():
                file.writestr(name, data)
    else:
        with tarfile.open(archive, "w") as tar:
            for name in sorted(contents(root)):
                tar.add(root / name, name)
    return archive


def copy_tree(source: Path, target: Path) -> Path:
    """Copy real data, so that a test may change it."""
    return Path(shutil.copytree(source, target))


def photo(shape: tuple[int, int], suffix: str = ".png", seed: int = 0) -> bytes:
    """Return an image file of noise, [H, W]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format={".png": "PNG", ".jpg": "JPEG"}[suffix])
    return data.getvalue()


def grey(ids: NDArray[Any]) -> bytes:
    """Return a mask as a grey PNG."""
    data = io.BytesIO()
    Image.fromarray(ids.astype(np.uint8)).save(data, format="PNG")
    return data.getvalue()


def rgb_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return [H, W, 3] as a PNG."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return data.getvalue()


def palette(ids: NDArray[Any], entries: bytes) -> bytes:
    """Return a mask as a PNG with a palette of 256 RGB entries."""
    data = io.BytesIO()
    image = Image.fromarray(ids.astype(np.uint8), "P")
    image.putpalette(entries)
    image.save(data, format="PNG")
    return data.getvalue()


def put(root: Path, name: str, data: bytes | str) -> None:
    """Write a file below a root, its directories made."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def random_ids(values: Iterable[int], shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Return a mask in which every value occurs, in blobs."""
    rng = np.random.default_rng(seed)
    choices = np.array(list(values), np.uint8)
    small = rng.choice(choices, (-(-shape[0] // 4), -(-shape[1] // 4)))
    ids = np.kron(small, np.ones((4, 4), np.uint8))[: shape[0], : shape[1]].copy()
    ids.flat[: len(choices)] = choices
    return ids


def class_maps(
    space: LabelSpace, shape: tuple[int, int] | None = None
) -> st.SearchStrategy[NDArray[Any]]:
    """Draw masks with ids of a space and its ignore index, of up to 12x12 pixels unless told."""
    values = sorted({*space.ids, space.ignore_index})
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
    return hnp.arrays(space.dtype, shape or shapes, elements=st.sampled_from(values))


def make_record(
    ids: NDArray[Any] | None, space: LabelSpace, image_id: str, split: str, suffix: str = ".png"
) -> Record:
    """Return a record with an embedded image, as another format would give it."""
    shape = (5, 7) if ids is None else ids.shape
    return Record(
        image_id=image_id,
        dataset="elsewhere",
        split=split,
        image=File(None, photo((shape[0], shape[1]), suffix)),
        fingerprint="f",
        height=shape[0],
        width=shape[1],
        label_space=space.name,
        mask=None if ids is None else File(None, masks.encode(ids, space.palette())),
        classes=None if ids is None else masks.class_pixels(ids, space),
    )
