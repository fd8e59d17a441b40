"""nyu_depth_v2_labeled.mat read by rows: a MATLAB v7.3 file, which is HDF5 with its axes reversed.

h5py sees images as [N, 3, W, H]; what is returned here is [H, W, 3] and [H, W]. The file is opened
once a process and never read whole. Besides the release's keys, files written by segmill may have a
struct `segmill`: `classes`, the text of a classes.tsv, for labels that are not NYU's, and
`records`, JSON for each image with its `image_id` and which arrays are `absent`.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors import class_table
from pipeline.errors import BadAnnotation, LabelOutOfRange, LayoutError
from pipeline.images import PIXEL_LIMIT
from pipeline.label_space import LabelClass, LabelSpace, label_space, voc_colour
from pipeline.trees.local import LocalTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.files import Tree
    from pipeline.label_space import LabelMap

NATIVE: Final = "nyu-894"
ARRAYS: Final[dict[str, tuple[np.dtype[Any], int]]] = {
    "images": (np.dtype("u1"), 4),
    "labels": (np.dtype("u2"), 3),
    "instances": (np.dtype("u1"), 3),
    "depths": (np.dtype("f4"), 3),
    "rawDepths": (np.dtype("f4"), 3),
}
"""Type and dimensions of the arrays; the first two must be there."""

TEXTS: Final = ("scenes", "sceneTypes", "rawRgbFilenames", "rawDepthFilenames")
"""The texts of each image, which a record keeps under the same names in its extra."""

NOTES: Final = "segmill"
_NEEDED: Final = ("images", "labels")
_LONGEST: Final = 1 << 20
_MOST_OPEN: Final = 4
_FETCH: Final = "fetch the file again"


@dataclass(frozen=True)
class Mat:
    """An open .mat; threads may share it, as h5py has one lock for all files.

    It is closed when nobody refers to it: closing it by hand would break a thread that reads.
    """

    file: Any
    path: str
    images: int
    height: int
    width: int

    def row(self, key: str, row: int) -> NDArray[Any] | None:
        """Return one image's array, [H, W] or [H, W, 3]; None where the file has no such key.

        Raises:
            BadAnnotation: the file is damaged there.
        """
        if key not in self.file:
            return None
        try:
            values = self.file[key][row]
        except Exception as error:  # HDF5's filters fail with errors of many kinds
            raise BadAnnotation(
                f"{self.path}#{row + 1}", f"{key} cannot be read ({_say(error)})", _FETCH
            ) from None
        pixels: NDArray[Any] = np.ascontiguousarray(values.T, dtype=ARRAYS[key][0])
        return pixels

    def labels(self, row: int) -> LabelMap:
        """Return one image's class ids in the file's label space.

        Raises:
            LabelOutOfRange: a label is no entry of a class table that is not NYU's own.
        """
        labels = self.row("labels", row)
        assert labels is not None
        if self.space.name == NATIVE:
            return labels
        table = ids_of_labels(self.space)
        if int(labels.max()) >= len(table):
            raise LabelOutOfRange(
                f"{self.path}#{row + 1}",
                f"labels up to {labels.max()}, the file names {len(table) - 1} classes",
                "fix the labels or the names",
            )
        return np.take(table, labels)

    def texts(self, row: int) -> dict[str, Any]:
        """Return what is written of one image: names, and the accelerometer's four values."""
        extra: dict[str, Any] = {}
        try:
            for key in TEXTS:
                text = self._cell(key, row) if key in self.file else ""
                if text:
                    extra[key] = text
            accel = self._accel(row)
        except Exception as error:  # references into nowhere, wrong shapes and types
            raise BadAnnotation(
                f"{self.path}#{row + 1}", f"its texts cannot be read ({_say(error)})", _FETCH
            ) from None
        if accel.tobytes().strip(b"\0"):
            extra["accelData"] = [None if np.isnan(v) else float(v) for v in accel]
        return extra

    def _accel(self, row: int) -> NDArray[np.floating[Any]]:
        if "accelData" not in self.file:
            return np.zeros(0, np.float32)
        values: NDArray[np.floating[Any]] = self.file["accelData"][:, row]
        if values.dtype.kind != "f" or len(values) > 16:
            raise ValueError(f"accelData is {values.dtype} of {len(values)} rows")
        return values

    def _cell(self, key: str, at: int) -> str:
        cells = self.file[key]
        return _text(self.file, cells[0, at] if cells.shape[0] == 1 else cells[at, 0])

    def note(self, row: int) -> dict[str, Any]:
        """Return what segmill wrote of one image: `image_id`, `absent`."""
        if not self._has_notes:
            return {}
        try:
            note = json.loads(self._cell(f"{NOTES}/records", row) or "{}")
            if not isinstance(note.get("image_id", ""), str) or not all(
                isinstance(key, str) for key in note.get("absent", [])
            ):
                raise ValueError("image_id and absent are not text")
        except Exception as error:
            raise LayoutError(f"{self.path}: segmill/records: {_say(error)}; {_FETCH}") from None
        return dict(note)

    @cached_property
    def _has_notes(self) -> bool:
        return f"{NOTES}/records" in self.file

    @cached_property
    def space(self) -> LabelSpace:
        """The label space: nyu-894 when the names are NYU's, or those of the file.

        Raises:
            LayoutError: the names cannot be read, or one occurs twice.
        """
        try:
            if f"{NOTES}/classes" in self.file:
                classes = self.file[f"{NOTES}/classes"].ref
                return class_table.parse(_text(self.file, classes), self.path)
            cells = self.file["names"][()].ravel()[:65535] if "names" in self.file else ()
            return _space_of([_text(self.file, cell) for cell in cells])
        except LayoutError:
            raise
        except Exception as error:
            raise LayoutError(f"{self.path}: bad names of classes ({_say(error)})") from None


def _space_of(names: list[str]) -> LabelSpace:
    own = label_space(NATIVE)
    if not names or names == [c.name for c in own.classes if c.id]:
        return own
    classes = [LabelClass(0, "unlabelled", (0, 0, 0), void=True)]
    classes += [LabelClass(n, name, voc_colour(n & 255)) for n, name in enumerate(names, 1)]
    space = LabelSpace("nyu-names", tuple(classes), 0)
    mark = class_table.parse(class_table.render(space).split("\n", 1)[1], "names").name
    return LabelSpace(mark.replace("classes", "nyu-names"), tuple(classes), 0)


def ids_of_labels(space: LabelSpace) -> LabelMap:
    """Return the ids that labels 0, 1, ... stand for: the ignore index, then every other class."""
    ids = [space.ignore_index, *(i for i in space.ids if i != space.ignore_index)]
    return np.array(ids, dtype=space.dtype)


def _text(file: Any, reference: Any) -> str:
    """Return the MATLAB char array that a reference leads to; "" for an empty one or nowhere."""
    if not reference:
        return ""
    from h5py import h5a, h5r, h5s

    # Without h5py's upper layer, which takes five times as long: a file has 894 names.
    dataset = h5r.dereference(reference, file.id)
    if h5a.exists(dataset, b"MATLAB_empty"):  # its dimensions are in its place
        return ""
    shape, outside = dataset.shape, dataset.get_create_plist().get_external_count()
    if math.prod(shape) > _LONGEST or dataset.dtype != np.uint16 or outside:
        raise ValueError(f"{dataset.dtype} {shape} is no text")
    units = np.empty(shape, np.uint16)
    if units.size:
        dataset.read(h5s.ALL, h5s.ALL, units)
    # MATLAB's column-major rows of characters: one row is [n, 1] here.
    return str(units.ravel().astype("<u2").tobytes(), "utf-16-le")


def _say(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


_OPEN: Final[OrderedDict[tuple[int, str, str], Mat]] = OrderedDict()
_LOCK: Final = threading.Lock()


def open_mat(tree: Tree, name: str, fingerprint: str) -> Mat:
    """Return a .mat of a tree, opened once a process; `fingerprint` tells its versions apart.

    Raises:
        LayoutError: it is no HDF5 file, damaged, or lacks a key.
    """
    mark = os.getpid(), tree.url_of(name), fingerprint
    with _LOCK:
        if mark not in _OPEN:
            _OPEN[mark] = _opened(tree, name)
            while len(_OPEN) > _MOST_OPEN:
                _OPEN.popitem(last=False)
        _OPEN.move_to_end(mark)
        return _OPEN[mark]


def _opened(tree: Tree, name: str) -> Mat:
    import h5py

    path = tree.url_of(name)
    with tree.open(name) as stream:
        head = stream.read(128)
    if head[:10] == b"MATLAB 5.0":
        raise LayoutError(
            f"{path}: a MATLAB v5 file, not v7.3 (HDF5); fetch nyu_depth_v2_labeled.mat as it was "
            "released, or save it in MATLAB with the option -v7.3"
        )
    try:
        # h5py reads a path without the interpreter's lock, and any other file by Python calls.
        return _checked(h5py.File(path if isinstance(tree, LocalTree) else tree.open(name)), path)
    except LayoutError:
        raise
    except Exception as error:
        raise LayoutError(
            f"{path}: not a MATLAB v7.3 (HDF5) file that can be read ({_say(error)}); {_FETCH}"
        ) from None


def _checked(file: Any, path: str) -> Mat:
    """Make sure that the arrays are there, in this file, and fit together."""
    missing = [key for key in _NEEDED if key not in file]
    if missing:
        raise LayoutError(
            f"{path}: no {' and no '.join(missing)}; the file has {', '.join(file) or 'nothing'}; "
            "expected the keys of nyu_depth_v2_labeled.mat"
        )
    for key in (*file, *(f"{NOTES}/{key}" for key in ("classes", "records"))):
        if key in file or "/" not in key:
            _inside(file, key, path)
    shape = file["images"].shape
    for key, (kind, dimensions) in ARRAYS.items():
        if key not in file:
            continue
        found, dtype = file[key].shape, file[key].dtype
        wanted = shape if key == "images" else (shape[0], *shape[2:])
        if dtype != kind or len(found) != dimensions or found != wanted or 0 in found[1:]:
            raise LayoutError(
                f"{path}: {key} is {dtype} {found}, images {shape}; expected images [N, 3, W, H] "
                f"and {key} {kind} of the same images"
            )
    if shape[1] != 3 or shape[2] * shape[3] > PIXEL_LIMIT:
        raise LayoutError(f"{path}: images are {shape}; expected [N, 3, W, H]")
    return Mat(file, path, shape[0], shape[3], shape[2])


def _inside(file: Any, key: str, path: str) -> None:
    """Refuse links and storage that lead to other files."""
    import h5py

    own = isinstance(file.get(key, getlink=True), h5py.HardLink)
    if own and isinstance(file[key], h5py.Dataset):
        own = not file[key].external and not file[key].is_virtual
    if not own:
        raise LayoutError(f"{path}: {key} lies in another file; copy it into this one")
