"""Shapes of a labelling tool: from masks and objects to shapes over one another, and back.

Objects become shapes, larger ones first; what a mask shows beside them becomes a shape for each
class. Painted in their order over the ground (`tool_labels.ground_of`) shapes give the mask again,
to the pixel. A shape of a void class or of background is in the mask only; any other is an object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.image_files import not_expressed
from connectors.tool_labels import ground_of, is_object
from pipeline import masks
from pipeline.errors import BadAnnotation, LabelOutOfRange
from pipeline.labels.regions import Regions
from pipeline.record import File, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Instance, Sample

_NONE: Final = -1


@dataclass(frozen=True, slots=True)
class Region:
    """One class's pixels, as compressed run lengths of the image."""

    category: int
    rle: str


@dataclass(slots=True)
class Shapes:
    """What a record becomes: objects with their layer (higher is nearer), then regions on top.

    Objects without run lengths have a box. `loss` is what shapes cannot express.
    """

    objects: list[tuple[Instance, int]] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    loss: dict[str, int] = field(default_factory=dict)

    @property
    def top(self) -> int:
        """The layer of the regions: above every object."""
        return max((layer for _, layer in self.objects), default=-1) + 1


def shapes_of(
    record: Record, space: LabelSpace, layer_of: Callable[[Instance], int | None]
) -> Shapes:
    """Return the shapes of a record; `layer_of` knows the layer of objects that had one before.

    Raises:
        InputError: run lengths or the mask are bad, or of classes that the space does not have.
    """
    wholes = [i for i in record.instances or () if i.part_of is None]
    shapes = Shapes(loss=_lost(record, wholes, space))
    _check_classes(wholes, record, space)
    shapes.objects = list(zip(wholes, _layers(wholes, record, layer_of), strict=True))
    if record.mask is not None and record.mask.bytes is not None:
        shapes.regions = _regions(record, space, shapes)
        made = sum(is_object(space, r.category) for r in shapes.regions)
        if made:
            shapes.loss["objects_from_mask_regions"] = made
    return shapes


def _lost(record: Record, wholes: Sequence[Instance], space: LabelSpace) -> dict[str, int]:
    lost = not_expressed(record, "image_labels", "confidence", "depth")
    lost["parts_of_objects"] = len(record.instances or ()) - len(wholes)
    lost["crowds"] = sum(i.iscrowd for i in wholes)
    lost["scores"] = sum(i.score is not None for i in wholes)
    lost["objects_of_void"] = sum(not is_object(space, i.category) for i in wholes)
    return {name: count for name, count in lost.items() if count}


def _check_classes(wholes: Sequence[Instance], record: Record, space: LabelSpace) -> None:
    stray = {i.category for i in wholes} - {*space.by_id, space.ignore_index}
    if stray:
        raise LabelOutOfRange(
            record.image_id,
            f"objects of classes {sorted(stray)}, which label space {space.name!r} does not define",
            "fix the objects, or read them with the label space that they were made for",
        )


def _layers(
    wholes: Sequence[Instance], record: Record, layer_of: Callable[[Instance], int | None]
) -> list[int]:
    """Return a layer for each object: its own, else 0, or its rank by size where some overlap."""
    own = [layer_of(i) for i in wholes]
    if any(layer is not None for layer in own):
        return [layer or 0 for layer in own]
    areas = [masks.rle_area(i.rle, record.image_id) if i.rle else 0 for i in wholes]
    canvas = np.zeros((record.height, record.width), dtype=np.bool_)
    for instance in wholes:
        if instance.rle:
            crop, (row, column) = masks.rle_crop(
                instance.rle, record.height, record.width, record.image_id
            )
            canvas[row : row + crop.shape[0], column : column + crop.shape[1]] |= crop
    if int(np.count_nonzero(canvas)) == sum(areas):
        return [0] * len(wholes)
    ranks = [0] * len(wholes)
    for rank, at in enumerate(sorted(range(len(wholes)), key=lambda at: -areas[at])):
        ranks[at] = rank
    return ranks


def _regions(record: Record, space: LabelSpace, shapes: Shapes) -> list[Region]:
    """Return what the mask shows beside the objects, a region for each class."""
    assert record.mask is not None
    assert record.mask.bytes is not None
    ids = masks.decode(record.mask.bytes, record.image_id)
    masks.check_ids(ids, space, record.image_id)
    size = record.height, record.width
    ordered = sorted(shapes.objects, key=lambda o: o[1])
    drawn = picture([(i.category, i.rle) for i, _ in ordered if i.rle], size, space)
    differs = np.where(drawn != ids, ids.astype(np.int32), np.int32(_NONE))
    found = Regions.of(differs)
    regions = [
        Region(int(number), found.rle(place))
        for place, number in enumerate(found.numbers.tolist())
        if number != _NONE
    ]
    if not regions and not shapes.objects:  # an image without a shape is one without labels
        whole = np.ones(size, dtype=np.bool_)
        regions = [Region(ground_of(space), masks.rle_encode(whole))]
    return regions


def picture(
    layers: Iterable[tuple[int, str]], size: tuple[int, int], space: LabelSpace, path: str = "shape"
) -> LabelMap:
    """Return the class map [H, W] of shapes (class, run lengths), each drawn over those before it.

    Raises:
        BadAnnotation: run lengths are malformed, or of another size.
    """
    canvas: LabelMap = np.full(size, ground_of(space), dtype=space.dtype)
    for category, rle in layers:
        crop, (row, column) = masks.rle_crop(rle, *size, path)
        here = canvas[row : row + crop.shape[0], column : column + crop.shape[1]]
        np.copyto(here, category, where=crop)
    return canvas


@dataclass(slots=True)
class Layer:
    """A shape that was read: an object's, or a region of the mask only when it has no object."""

    category: int
    rle: str | None
    instance: Instance | None
    order: int = 0


def record_of(
    sample: Sample,
    space: LabelSpace,
    size: tuple[int, int],
    layers: Sequence[Layer],
    path: str,
    extra: dict[str, Any],
    format: str,
    *,
    labelled: bool | None = None,
) -> Record:
    """Return the record of an image's shapes, in the tool's order; `path` is of their file.

    `labelled` tells whether somebody looked at the image. Where the tool does not say, an image
    without a shape has no label in split test or unlabelled, and is one without objects in train
    or val.

    Raises:
        BadAnnotation: run lengths are malformed.
    """
    objects = tuple(layer.instance for layer in layers if layer.instance is not None)
    drawn = [layer for layer in sorted(layers, key=lambda layer: layer.order) if layer.rle]
    cell = classes = None
    if drawn:
        ids = picture([(x.category, x.rle) for x in drawn if x.rle], size, space, path)
        cell = File(path, masks.encode(ids, space.cell_palette()))
        classes = masks.class_pixels(ids, space)
    if labelled is None:
        labelled = bool(layers) or sample.split in ("train", "val")
    record = Record.truth(
        sample,
        space.name,
        size,
        mask=cell,
        classes=classes,
        instances=objects if labelled else None,
        extra=extra,
    )
    # The row may be of another dataset's image; what its labels were read from is this format.
    return replace(record, provenance=replace(record.provenance, model=format))


def union(rles: Sequence[str], size: tuple[int, int]) -> str:
    """Return the pixels of any of some shapes of an image [H, W]."""
    if len(rles) == 1:
        return rles[0]
    canvas = np.zeros(size, dtype=np.bool_)
    for rle in rles:
        crop, (row, column) = masks.rle_crop(rle, *size)
        canvas[row : row + crop.shape[0], column : column + crop.shape[1]] |= crop
    return masks.rle_encode(canvas)


def own_of(instance: Instance, format: str) -> list[Any] | None:
    """Return what a format keeps of an object in `extra` (a list); None for objects of others."""
    if instance.extra is None or f'"{format}"' not in instance.extra:
        return None
    found = json.loads(instance.extra).get(format)
    return found if isinstance(found, list) else None


def not_kept(record: Record) -> dict[str, int]:
    """Count an empty label that would come back as none."""
    empty = record.instances == () and record.mask is None
    return {"images_without_objects": 1} if empty and record.split not in ("train", "val") else {}


def refuse(where: str, cause: str) -> BadAnnotation:
    """Return the error of a bad shape."""
    return BadAnnotation(where, cause, "correct it in the tool and export again, or leave it out")
