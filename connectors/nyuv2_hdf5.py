"""nyu_depth_v2_labeled.mat written: arrays deflated in parallel, put together one by one.

HDF5 takes one writer. So `write` deflates an image's arrays, each as the chunk that it will be,
into a hidden file of the target; `finish` copies the chunks as they are. Keys, axis order and types
are those of the release, but for namesToIds, an object that only MATLAB can write. What the release
has no key for is in the struct `segmill` (`connectors.nyuv2_mat`), left out when there is nothing
to say.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from connectors.base import Written
from connectors.class_table import render
from connectors.image_files import not_expressed, pixels_of
from connectors.list_files import OnePlaceEach, one_line
from connectors.nyuv2_folder import FORMATS
from connectors.nyuv2_mat import ARRAYS, NATIVE, NOTES, TEXTS, ids_of_labels
from connectors.nyuv2_objects import numbers_of
from connectors.nyuv2_splits import splits_mat
from pipeline import depth, masks
from pipeline.errors import InputError
from pipeline.files import read_url, safe_name
from pipeline.label_space import label_space
from pipeline.labels.derive import with_mask
from pipeline.loss import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Record
    from pipeline.trees.sinks import Sink

NAME: Final = "nyu_depth_v2_labeled.mat"
_USER_BLOCK: Final = 512
_LEVEL: Final = 3
_NOT_HELD: Final = ("image_labels", "confidence")
_SEEN: Final = 10_000
_COMPACT: Final = 32_768
_MATLAB: Final = {"u1": "uint8", "u2": "uint16", "f4": "single", "f8": "double"}


def write(sink: Sink, record: Record, space: LabelSpace) -> Written:
    """Write one image's chunks to a hidden file, to be read again by `finish`."""
    safe_name(one_line(record.image_id), sink.url)
    extra = record.own(*FORMATS)
    pixels = pixels_of(record)
    height, width = pixels.shape[:2]
    arrays: dict[str, NDArray[Any]] = {"images": pixels}
    loss = not_expressed(record, *_NOT_HELD)
    loss |= _labels(record, space, extra.get("unlabelled_instances", {}), arrays)
    loss |= _depths(record, arrays)
    for key, values in arrays.items():
        if values.shape[:2] != (height, width):
            raise InputError(
                record.image_id,
                f"{key} of {values.shape[1]}x{values.shape[0]}, its image has {width}x{height} "
                "pixels",
                "replace one of the two",
            )
    blobs = {key: _deflated(values, ARRAYS[key][0]) for key, values in arrays.items()}
    part = f".segmill-{hashlib.blake2b(record.image_id.encode(), digest_size=12).hexdigest()}.part"
    sink.write(part, b"".join(blobs.values()))
    entry = {
        "part": part,
        "size": [height, width],
        "chunks": {key: len(blob) for key, blob in blobs.items()},
        "absent": [key for key in ARRAYS if key not in arrays],
        "texts": {key: extra[key] for key in (*TEXTS, "accelData") if key in extra},
    }
    return Written(record.image_id, record.split, json.dumps(entry).encode(), loss)


def _labels(
    record: Record, space: LabelSpace, unlabelled: dict[str, str], arrays: dict[str, NDArray[Any]]
) -> dict[str, int]:
    """Add labels and numbers of objects; return what they cannot hold."""
    mask = with_mask(record, space).mask
    if mask is None or mask.bytes is None:
        return {"instances": len(record.instances)} if record.instances else {}
    ids = masks.decode(mask.bytes, record.image_id)
    arrays["labels"] = np.take(_labels_of_ids(space), ids)
    if record.instances is None:
        return {}
    arrays["instances"], loss = numbers_of(
        record.instances, ids, space.ignore_index, unlabelled, record.image_id
    )
    return loss


def _labels_of_ids(space: LabelSpace) -> LabelMap:
    """Return the label of every id: NYU's own are as they are, others count from 1."""
    ids = ids_of_labels(space)
    table = np.zeros(65536 if space.dtype is np.uint16 else 256, np.uint16)
    table[ids] = np.arange(len(ids))
    return table


def _depths(record: Record, arrays: dict[str, NDArray[Any]]) -> dict[str, int]:
    """Add depth in metres; return what is lost where the map is of another size than the image."""
    if record.depth is None:
        return {}
    if record.depth.bytes is None:
        return {"depth": 1}
    shape = arrays["images"].shape[:2]
    pages = depth.decode(record.depth.bytes, record.depth.path or record.image_id)
    if pages[0].shape != shape:
        return {"depth": 1}
    usual = 1.0 if pages[0].dtype == np.float32 else 0.001
    unit = record.depth.metres_per_unit or usual
    for key, page in zip(("depths", "rawDepths"), pages, strict=True):
        if page is not None and unit == 1.0:
            arrays[key] = page.astype(np.float32, copy=False)
        elif page is not None:
            arrays[key] = (page.astype(np.float64) * unit).astype(np.float32)
    return {}


def _deflated(values: NDArray[Any], kind: np.dtype[Any]) -> bytes:
    """Return [H, W] or [H, W, 3] as a chunk of MATLAB's axis order; nothing when all is zero."""
    import imagecodecs

    chunk = np.ascontiguousarray(values.T, dtype=kind)
    if not chunk.view(np.uint8).any():
        return b""  # HDF5 fills in what was never written
    encode = cast("Callable[..., bytes]", imagecodecs.deflate_encode)  # its stubs know no arrays
    return bytes(encode(chunk, level=_LEVEL, raw=False))


def finish(sink: Sink, written: Iterable[Written], space: LabelSpace) -> Loss | None:
    """Put the images' chunks into one .mat in the order of `written`, and write splits.mat.

    The file holds one size: that of most images. The others are left out and counted in the loss
    as `images_of_another_size`.

    Raises:
        InputError: no size is that of more than half of the images.
    """
    size, odd = _size(sink, written)
    if size is None:
        return None
    kept = _Kept(written, size)
    splits, noted = _survey(kept)
    import h5py

    with sink.stream(NAME) as stream:
        with h5py.File(stream, "w", userblock_size=_USER_BLOCK) as file:
            _Writer(file, len(splits), size).fill(sink, kept, space, noted=noted)
        stream.seek(0)
        head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, written by segmill"
        stream.write(head.ljust(116) + bytes(8) + b"\0\2IM")
    sink.write("splits.mat", splits_mat(splits))
    return Loss(attributes={"images_of_another_size": odd}) if odd else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """The images of one size, gone through as often as is needed."""

    written: Iterable[Written]
    size: tuple[int, int]

    def __iter__(self) -> Iterator[Written]:
        return (w for w in self.written if _size_of(w) == self.size)


def _size_of(written: Written) -> tuple[int, int]:
    height, width = json.loads(written.entry)["size"]
    return height, width


def _size(sink: Sink, written: Iterable[Written]) -> tuple[tuple[int, int] | None, int]:
    """Return the size of most images, and how many have another; those files are removed."""
    sizes = Counter(_size_of(w) for w in written)
    if not sizes:
        return None, 0
    size, count = sizes.most_common(1)[0]
    total = sizes.total()
    few = 2 * count <= total
    example = ""
    for w in written if len(sizes) > 1 else ():
        height, width = found = _size_of(w)
        if few or found != size:
            sink.remove(json.loads(w.entry)["part"])
        if found != size:
            example = example or f"{w.image_id}: {width}x{height}"
    if example and few:
        raise InputError(
            sink.url_of(NAME),
            f"{total - count} of {total} images are not of {size[1]}x{size[0]} pixels ({example}), "
            "and the file holds one size",
            "write --format nyuv2, or choose images of one size",
        )
    return size, total - count


def _survey(written: Iterable[Written]) -> tuple[list[str], bool]:
    """Return the splits, and whether any image needs a note."""
    places = OnePlaceEach("nyuv2-mat")
    splits: list[str] = []
    noted = False
    for w in written:
        places.check(w.image_id)
        splits.append(w.split)
        noted = noted or bool(_note(w.image_id, len(splits), json.loads(w.entry)))
    return splits, noted


def _note(image_id: str, number: int, entry: dict[str, Any]) -> dict[str, Any]:
    """Return what the release has no key for."""
    note = {} if image_id == f"{number:04d}" else {"image_id": image_id}
    return note | ({"absent": entry["absent"]} if entry["absent"] else {})


class _Writer:
    """The .mat while it is written."""

    def __init__(self, file: Any, images: int, size: tuple[int, int]) -> None:
        self._file, self._images = file, images
        self._cells = file.create_group("#refs#")
        self._known: dict[str, Any] = {}
        height, width = size
        for key, (kind, _) in ARRAYS.items():
            shape = (3, width, height) if key == "images" else (width, height)
            self._array(
                key, (images, *shape), kind, chunks=(1, *shape), compression="gzip",
                compression_opts=_LEVEL,
            )  # fmt: skip

    def _array(self, key: str, shape: tuple[int, ...], kind: Any, **options: Any) -> Any:
        array = self._file.create_dataset(key, shape, kind, **options)
        array.attrs["MATLAB_class"] = np.bytes_(_MATLAB[np.dtype(kind).str[1:]])
        return array

    def fill(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, *, noted: bool
    ) -> None:
        """Write all images and the names of the classes."""
        import h5py

        classes = [space.by_id[int(i)].name for i in ids_of_labels(space)[1:]]
        self._cell("names", len(classes))[0, :] = np.array(
            [self._text(name) for name in classes], dtype=h5py.ref_dtype
        )
        cells = {key: self._cell(key, self._images) for key in TEXTS}
        accel = self._array("accelData", (4, self._images), np.float32)
        foreign = space != label_space(NATIVE)
        if noted or foreign:
            self._file.create_group(NOTES).attrs["MATLAB_class"] = np.bytes_("struct")
        if noted:
            cells[f"{NOTES}/records"] = self._cell(f"{NOTES}/records", self._images)
        if foreign:
            self._char(f"{NOTES}/classes", render(space))
        for row, w in enumerate(written):
            entry = json.loads(w.entry)
            self._chunks(read_url(sink.url_of(entry["part"])), entry["chunks"], row)
            sink.remove(entry["part"])
            note = _note(w.image_id, row + 1, entry)
            texts = entry["texts"] | {f"{NOTES}/records": json.dumps(note) if note else ""}
            for key, cell in cells.items():
                cell[0, row] = self._text(str(texts.get(key, "")))
            if "accelData" in texts:
                accel[:, row] = [np.nan if v is None else v for v in texts["accelData"]]

    def _chunks(self, data: bytes, sizes: dict[str, int], row: int) -> None:
        at = 0
        for key, size in sizes.items():
            if size:
                place = (row, *(0 for _ in self._file[key].shape[1:]))
                self._file[key].id.write_direct_chunk(place, data[at : at + size])
            at += size

    def _cell(self, key: str, count: int) -> Any:
        import h5py

        cell = self._file.create_dataset(key, (1, count), h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
        return cell

    def _text(self, text: str) -> Any:
        """Return a reference to a text; scenes and empty texts repeat, and are written once."""
        if text not in self._known:
            if len(self._known) >= _SEEN:
                self._known.clear()
            name = f"#refs#/r{len(self._cells)}"
            self._known[text] = self._char(name, text)
        return self._known[text]

    def _char(self, name: str, text: str) -> Any:
        """Write a MATLAB char array: a row of UTF-16 units; an empty one is its dimensions."""
        from h5py import h5a, h5d, h5p, h5r, h5s, h5t

        # Without h5py's upper layer, which takes four times as long.
        units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
        data = np.ascontiguousarray(units[:, None]) if text else np.zeros(2, np.uint64)
        space = h5s.create_simple(data.shape)
        path, kind = name.encode(), h5t.py_create(data.dtype)
        timeless = h5p.create(h5p.DATASET_CREATE)
        timeless.set_obj_track_times(False)  # equal datasets are to be equal files
        if data.nbytes < _COMPACT:
            timeless.set_layout(h5d.COMPACT)  # beside its header: one access instead of two
        array = h5d.create(self._file.id, path, kind, space, timeless)
        array.write(h5s.ALL, h5s.ALL, data)
        marks = {b"MATLAB_class": np.bytes_("char"), b"MATLAB_int_decode": np.int32(2)}
        for mark, value in (marks if text else marks | {b"MATLAB_empty": np.uint8(1)}).items():
            held = np.asarray(value)
            scalar = h5s.create(h5s.SCALAR)
            h5a.create(array, mark, h5t.py_create(held.dtype), scalar).write(held)
        return h5r.create(self._file.id, path, h5r.OBJECT)
