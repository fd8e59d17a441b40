"""SUNRGBDtoolbox: the official split, the order of the images, and the labels in one HDF5 file.

    Metadata/SUNRGBDMeta.mat         the images in order: sequenceName, rgbname, ... (MATLAB v5)
    Metadata/SUNRGBD2Dseg.mat        SUNRGBD2Dseg/seglabel: a reference for each image in that order
                                     to a (width, height) array of 0..37 (MATLAB v7.3)
    traintestSUNRGBD/allsplit.mat    alltrain 5285, alltest 5050; trainvalsplit cuts train into
                                     train 2666, val 2619 (MATLAB v5)

Paths in them start with where the authors kept the data, and end in none, one or more slashes.
`write` adds `allval` and `allunlabelled` to the lists, for images of other datasets.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors import matlab5
from pipeline.errors import CorruptMask, InputError, LayoutError, SizeMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from pipeline.files import Tree
    from pipeline.label_space import LabelMap
    from pipeline.trees.sinks import Sink

LISTS: Final = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
META: Final = "SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat"
LABELS: Final = "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
HOME: Final = "/n/fs/sun3d/data/SUNRGBD/"
"""What paths in the toolbox start with; its scripts replace just this."""

TRAIN_PART, VAL_PART = "trainvalsplit.train", "trainvalsplit.val"
PARTS: Final = (TRAIN_PART, VAL_PART)

_SPLIT_OF: Final = {"alltest": "test", "alltrain": "train", "allval": "val"}
_LIST_OF: Final = {split: name for name, split in _SPLIT_OF.items()}
_ABOVE: Final = re.compile(r".*?(?:^|/)SUNRGBD/+", re.DOTALL)
_USERBLOCK: Final = 512
_HEAD: Final = b"MATLAB 7.3 MAT-file, written by segmill".ljust(124) + b"\x00\x02IM"
_FIELDS: Final = ("sequenceName", "rgbpath", "depthpath", "rgbname", "depthname", "K")
_BLOCK: Final = 4096
_MOST_BYTES: Final = 1 << 28


def sequence(path: str) -> str:
    """Return the part of a toolbox's path that names the frame.

    >>> sequence("/n/fs/sun3d/data/SUNRGBD/kv1/b3dodata//img_0063/")
    'kv1/b3dodata/img_0063'
    """
    return "/".join(part for part in _ABOVE.sub("", path, count=1).split("/") if part)


@cache
def official() -> dict[str, str]:
    """Return the official place of each of the 10,335 frames: `alltest` or a part of train."""
    data = Path(__file__).with_name("sunrgbd_split.tsv.gz").read_bytes()
    kinds = {"test": "alltest", "train": TRAIN_PART, "val": VAL_PART}
    rows = (line.split("\t") for line in gzip.decompress(data).decode().splitlines())
    return {name: kinds[kind] for name, kind in rows}


def places(tree: Tree, root: str) -> dict[str, str]:
    """Return by frame the list that names it, of the toolbox or else the official ones.

    A name is a key of allsplit.mat; the parts of train go before alltrain.

    Raises:
        LayoutError: allsplit.mat is damaged.
    """
    if not tree.exists(root + LISTS):
        return official()
    found: dict[str, str] = {}
    path = tree.url_of(root + LISTS)
    try:
        for variable in matlab5.variables(tree.read(root + LISTS), path):
            for name, text in _named(variable):
                key = sequence(text)
                if _rank(name) >= _rank(found.get(key)):
                    found[key] = name
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: not a list of splits ({error})") from None
    return found


def _rank(name: str | None) -> int:
    """Return which list decides where several name an image: train is cut, never the others."""
    if name is None:
        return 0
    return 2 if name in PARTS else 1 if name == "alltrain" else 3


def _named(variable: matlab5.Matrix) -> Iterator[tuple[str, str]]:
    if variable.name == "trainvalsplit":
        for part in PARTS:
            for cell in matlab5.fields(variable, part.rpartition(".")[2]):
                for text in matlab5.texts(cell):
                    yield part, text
    elif variable.name in (*_SPLIT_OF, "allunlabelled"):
        for text in matlab5.texts(variable):
            yield variable.name, text


def split_of(place: str | None, *, labelled: bool) -> str:
    """Return the split that a list stands for; without a list, train if there are labels."""
    if place is None:
        return "train" if labelled else "unlabelled"
    return _SPLIT_OF.get(place, "unlabelled" if place == "allunlabelled" else "train")


def order(tree: Tree, root: str) -> dict[str, int]:
    """Return each frame's row in SUNRGBD2Dseg.mat; nothing where the toolbox lacks labels or order.

    Raises:
        LayoutError: SUNRGBDMeta.mat is damaged.
    """
    if not (tree.exists(root + META) and tree.exists(root + LABELS)):
        return {}
    path = tree.url_of(root + META)
    try:
        for variable in matlab5.variables(tree.read(root + META), path):
            if variable.name.startswith("SUNRGBDMeta"):
                names = matlab5.fields(variable, "sequenceName")
                return {sequence(matlab5.text(name)): row for row, name in enumerate(names)}
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: not the list of images ({error})") from None
    raise LayoutError(f"{path}: holds no variable SUNRGBDMeta")


def read_labels(
    tree: Tree, name: str, fingerprint: str, row: int, shape: tuple[int, int]
) -> LabelMap | None:
    """Return one image's labels [H, W]; None where the file has none for it.

    Raises:
        CorruptMask: the file is damaged, or the labels are no class ids.
        SizeMismatch: they are not of the image's size.
    """
    import h5py

    path = f"{tree.url_of(name)}#{row}"
    try:
        file = _opened(tree, name, fingerprint, os.getpid())
        rows = file["SUNRGBD2Dseg/seglabel"]
        if rows.dtype != h5py.ref_dtype:  # MATLAB's way of writing a struct array of one
            found = rows if row == 0 else None
        else:
            reference = rows[row, 0]
            found = file[reference] if reference else None
        if found is None or "MATLAB_empty" in found.attrs:
            return None
        if found.shape != shape[::-1]:
            size = "x".join(map(str, found.shape))
            raise SizeMismatch(
                path,
                f"the labels have {size} pixels, their image {shape[1]}x{shape[0]}",
                "replace one of the two",
            )
        if found.dtype.kind not in "uif" or found.size * found.dtype.itemsize > _MOST_BYTES:
            raise CorruptMask(path, f"labels of type {found.dtype}", "replace the file")
        return class_ids(found[()].T, path)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
        # An error with a number is the disk's or the network's, and may pass.
        if isinstance(error, InputError) or getattr(error, "errno", None):
            raise
        raise CorruptMask(path, f"no labels can be read ({error})", "replace the file") from None


@lru_cache(maxsize=4)
def _opened(tree: Tree, name: str, fingerprint: str, process: int) -> Any:
    """Open the labels once a process, as a forked handle would share its place in the file."""
    import h5py

    path = tree.url_of(name)
    return h5py.File(path if path[:1] == "/" else tree.open(name), "r")


def class_ids(values: np.ndarray[Any, np.dtype[Any]], path: str) -> LabelMap:
    """Return MATLAB's numbers as [H, W] uint8, or uint16 where they need it.

    Raises:
        CorruptMask: not two dimensions, or not whole numbers in 0..65535.
    """
    if values.ndim != 2 or not values.size or values.dtype.kind not in "uifb":
        raise _not_ids(path, f"{values.dtype} of shape {values.shape}")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):
        raise _not_ids(path, f"values {low}..{high}")
    ids: LabelMap = values.astype(np.uint8 if high <= 255 else np.uint16, order="C")
    if values.dtype.kind == "f" and not np.array_equal(ids, values):
        raise _not_ids(path, "fractions")
    return ids


def _not_ids(path: str, cause: str) -> CorruptMask:
    return CorruptMask(path, f"no class ids: {cause}", "write whole numbers from 0 to 65535")


def packed(ids: LabelMap) -> bytes:
    """Return [H, W] as the one compressed chunk of an HDF5 dataset, which is (width, height)."""
    import imagecodecs

    flat = np.ascontiguousarray(ids.T)
    return bytes(imagecodecs.zlib_encode(flat.astype(flat.dtype.newbyteorder("<")).tobytes(), 6))


class Toolbox:
    """Writes the toolbox's three files, an image at a time, by way of this machine's disk."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self._stack, self._count = sink, ExitStack(), 0
        names = ("alltrain", "alltest", "allval", "allunlabelled")
        enter = self._stack.enter_context
        self._lists = {n: enter(matlab5.Variable(n)) for n in names}
        self._parts = {n.rpartition(".")[2]: enter(matlab5.Variable("")) for n in PARTS}
        self._meta = enter(matlab5.Variable("SUNRGBDMeta", _FIELDS))

    def __enter__(self) -> Toolbox:
        import h5py

        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="segmill-"))
        self._path = f"{folder}/seg.mat"
        self._file = h5py.File(self._path, "w", userblock_size=_USERBLOCK)
        self._stack.callback(self._file.close)
        self._refs = self._file.create_group("#refs#")
        self._empty = self._refs.create_dataset("empty", data=np.zeros(2, np.uint64))
        self._empty.attrs["MATLAB_class"] = np.bytes_("uint8")
        self._empty.attrs["MATLAB_empty"] = np.uint8(1)
        return self

    def add(self, name: str, split: str, entry: bytes) -> None:
        """Add one image by what `entry_of` returned."""
        head, _, chunk = entry.partition(b"\n")
        said = json.loads(head)
        path = matlab5.chars(HOME + name)
        self._lists[_LIST_OF.get(split, "allunlabelled")].add(path)
        # The cut of train holds every image that may be learned from.
        part = {"val": "val", "train": said["part"]}.get(split)
        if part:
            self._parts[part].add(path)
        self._meta.add(
            *(matlab5.chars(text) for text in _paths(name, said["image"], said["depth"])),
            matlab5.doubles(said["K"] or (), *((3, 3) if said["K"] else (0, 0))),
        )
        if chunk:
            self._add_labels(said["size"], said["type"], chunk)
        self._count += 1

    def _add_labels(self, size: list[int], kind: str, chunk: bytes) -> None:
        shape = (size[1], size[0])
        labels = self._refs.create_dataset(
            str(self._count), shape, kind, chunks=shape, compression="gzip"
        )
        labels.attrs["MATLAB_class"] = np.bytes_(np.dtype(kind).name)
        labels.id.write_direct_chunk((0, 0), chunk)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is None:
                self._write_labels()
                self._write_lists()

    def _write_labels(self) -> None:
        import h5py

        group = self._file.create_group("SUNRGBD2Dseg")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        rows = group.create_dataset("seglabel", (self._count, 1), h5py.ref_dtype)
        for start in range(0, self._count, _BLOCK):
            stop = min(start + _BLOCK, self._count)
            there = (str(row) for row in range(start, stop))
            found = [self._refs[n].ref if n in self._refs else self._empty.ref for n in there]
            block = np.empty((len(found), 1), h5py.ref_dtype)
            block[:, 0] = found
            rows[start:stop] = block
        self._file.close()
        with open(self._path, "r+b") as file:
            file.write(_HEAD)
            file.seek(0)
            with self._sink.stream(LABELS) as target:
                shutil.copyfileobj(file, target, 1 << 20)

    def _write_lists(self) -> None:
        with self._sink.stream(META) as target:
            target.write(matlab5.header())
            self._meta.write(target)
        with self._sink.stream(LISTS) as target:
            target.write(matlab5.header())
            for name, images in self._lists.items():
                if images.count or name in ("alltrain", "alltest"):
                    images.write(target)
            matlab5.write_struct(target, "trainvalsplit", self._parts)


def _paths(name: str, image: str, depth: str | None) -> tuple[str, ...]:
    """Return the texts of an image's entry in SUNRGBDMeta, in the order of its fields."""
    below = f"{HOME}{name}/"
    rgb, measured = image.rpartition("/")[2], (depth or "").rpartition("/")[2]
    return f"SUNRGBD/{name}", below + image, below + depth if depth else "", rgb, measured


def entry_of(
    image: str,
    depth: str | None,
    intrinsics: list[float] | None,
    part: str | None,
    labels: LabelMap | None,
) -> bytes:
    """Return what `Toolbox.add` needs of an image: names below its folder, K, part of train."""
    said: dict[str, Any] = {"image": image, "depth": depth, "K": intrinsics, "part": part}
    if labels is not None:
        said |= {"size": list(labels.shape), "type": labels.dtype.str}
    return json.dumps(said).encode() + b"\n" + (b"" if labels is None else packed(labels))
