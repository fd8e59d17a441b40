"""NYU Depth v2: 1449 labelled Kinect frames of 640x480, 795 train and 654 test, 894 classes.

Both formats read the same things: nyu_depth_v2_labeled.mat, 2.8 GB of MATLAB v7.3, with splits.mat
beside it (Silberman, Hoiem, Kohli, Fergus 2012), or the folders that it is mostly passed around as
(`connectors.nyuv2_folder`). `nyuv2` writes such folders, `nyuv2-mat` a .mat with the same keys,
axis order and types, and its splits.mat. A .mat is read image by image, and held open.

Of the .mat: an image is `PATH.mat#17`, from 1, and called `0017`; its record holds the pixels as a
PNG, since nothing else leads to them. The white frame of the photos stays. Depth is float32 metres,
filled in and as measured. Objects are pairs of a label and a number (`connectors.nyuv2_objects`).
scenes, sceneTypes, file names and accelData are in the record's extra under the keys of the file.
Images that splits.mat does not name are unlabelled; without a splits.mat the official split holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from connectors import nyuv2_folder, nyuv2_hdf5
from connectors.image_files import rgb_png
from connectors.layout import digest, find_root
from connectors.nyuv2_mat import NATIVE, Mat, open_mat
from connectors.nyuv2_objects import instances_of
from connectors.nyuv2_splits import splits_file, splits_of
from pipeline import depth, masks
from pipeline.errors import LayoutError, UnknownName
from pipeline.record import EMBEDDED, SPLITS, Depth, File, Record, Sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from connectors.base import Written
    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace
    from pipeline.loss import Loss
    from pipeline.trees.sinks import Sink

READER_VERSION: Final = 1
"""Raised by one when the same files give other records: a store then reads them again."""

_MAT: Final = "nyu_depth_v2_labeled"


def _is_mat(name: str) -> bool:
    return name.startswith(_MAT) and name.endswith(".mat")


def _fits(names: Collection[str]) -> bool:
    alone = len(names) == 1 and all(name.endswith(".mat") for name in names)
    return alone or any(map(_is_mat, names)) or nyuv2_folder.fits(names)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a dataset lies: a prefix, and the .mat's name below it, if there is one."""

    root: str
    mat: str | None
    splits: str | None = None


def _place(tree: Tree) -> _Place:
    root = find_root(tree, f"{_MAT}.mat, or folders image and label, label40 or label13", _fits)
    names = tree.names(root.rstrip("/"))
    mats = [n for n in names if _is_mat(n)] or [n for n in names if n.endswith(".mat")]
    if nyuv2_folder.fits(names) and not any(map(_is_mat, names)):
        return _Place(root, None)
    if len(mats) > 1 and f"{_MAT}.mat" not in mats:
        raise LayoutError(f"{tree.url_of(root)}: several .mat files: {', '.join(mats)}; name one")
    mat = f"{_MAT}.mat" if f"{_MAT}.mat" in mats else mats[0]
    beside = splits_file(names, mat)
    if beside is None and tree.exists(root + "splits.mat"):  # the tree is of the .mat alone
        beside = "splits.mat"
    return _Place(root, root + mat, beside and root + beside)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What both formats read."""

    format: ClassVar[str]
    native: ClassVar[str] = NATIVE
    row_bytes: ClassVar[int] = 2_000_000
    objects_only: ClassVar[bool] = False

    def label_spaces(self, tree: Tree) -> tuple[LabelSpace, ...]:
        """Return nyu-894, nyu-40 or nyu-13 by what there is, or the dataset's own classes."""
        place = _place(tree)
        if place.mat is None:
            return (nyuv2_folder.space_of(tree, place.root),)
        return (open_mat(tree, place.mat, tree.entry(place.mat).fingerprint).space,)

    def facts(self, tree: Tree) -> dict[str, Any]:
        """Return nothing: names and namesToIds are the label space."""
        return {}

    def list(self, tree: Tree, splits: Collection[str]) -> Iterator[Sample]:
        """Yield the images by row of the .mat, or sorted by name."""
        for split in splits:
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        place = _place(tree)
        if place.mat is None:
            listed = nyuv2_folder.listed(tree, place.root, self.format, READER_VERSION)
        else:
            listed = self._rows(tree, place.mat, place.splits)
        for sample in listed:
            if not splits or sample.split in splits:
                yield sample

    def _rows(self, tree: Tree, name: str, splits: str | None) -> Iterator[Sample]:
        mark = tree.entry(name).fingerprint
        mat, path = open_mat(tree, name, mark), tree.url_of(name)
        for row, split in enumerate(splits_of(tree, splits, mat.images, path)):
            yield Sample(
                image_id=mat.note(row).get("image_id") or f"{row + 1:04d}",
                path=f"{path}#{row + 1}",
                fingerprint=f"{mark}#{row + 1}",
                # The fingerprint is of images and labels alike; the record has the image's bytes.
                digest=digest(self.format, READER_VERSION, split) + EMBEDDED,
                dataset=self.format,
                split=split,
                payload=[name, mark, row],
            )

    def read(self, tree: Tree, sample: Sample) -> Record:
        """Read one image's arrays."""
        if isinstance(sample.payload, dict):
            return nyuv2_folder.read(tree, sample)
        name, mark, row = sample.payload
        return _record(open_mat(tree, name, mark), sample, row)


def _record(mat: Mat, sample: Sample, row: int) -> Record:
    space, absent = mat.space, mat.note(row).get("absent", ())
    image = mat.row("images", row)
    assert image is not None
    extra = mat.texts(row)
    mask, classes, instances = None, None, None
    if "labels" not in absent:
        labels = mat.labels(row)
        classes = masks.class_pixels(labels, space, path=sample.path)
        palette = space.palette() if labels.dtype.itemsize == 1 else None
        mask = File(sample.path, masks.encode(labels, palette))
        numbers = None if "instances" in absent else mat.row("instances", row)
        if numbers is not None:
            instances, unlabelled = instances_of(labels, numbers, space.ignore_index)
            extra |= {"unlabelled_instances": unlabelled} if unlabelled else {}
    return Record.truth(
        sample,
        space.name,
        (mat.height, mat.width),
        image=rgb_png(image),
        mask=mask,
        classes=classes,
        instances=instances,
        depth=_depth(mat, sample, row, absent),
        extra=extra,
    )


def _depth(mat: Mat, sample: Sample, row: int, absent: Collection[str]) -> Depth | None:
    filled = None if "depths" in absent else mat.row("depths", row)
    raw = None if "rawDepths" in absent else mat.row("rawDepths", row)
    if filled is None:
        filled, raw = raw, None
    if filled is None:
        return None
    return Depth(sample.path, depth.encode(filled, raw), 1.0)


@dataclass(frozen=True, slots=True)
class NyuV2(_Reader):
    """Written as folders of images."""

    format: ClassVar[str] = "nyuv2"

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's image, labels, objects and depth."""
        return nyuv2_folder.write(sink, record, space)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Write the split lists."""
        nyuv2_folder.finish(sink, written, space)
        return None


@dataclass(frozen=True, slots=True)
class NyuV2Mat(_Reader):
    """Written as one .mat, the way the dataset is released."""

    format: ClassVar[str] = "nyuv2-mat"

    def write(self, sink: Sink, record: Record, space: LabelSpace) -> Written:
        """Write a record's arrays, compressed, to a hidden file for `finish`."""
        return nyuv2_hdf5.write(sink, record, space)

    def finish(
        self, sink: Sink, written: Iterable[Written], space: LabelSpace, facts: Mapping[str, Any]
    ) -> Loss | None:
        """Put the arrays together; images of another size than most are left out and counted.

        Raises:
            InputError: no size is that of more than half of the images.
        """
        return nyuv2_hdf5.finish(sink, written, space)


NYUV2: Final = NyuV2()
NYUV2_MAT: Final = NyuV2Mat()
