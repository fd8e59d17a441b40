"""The objects of the full ADE20K releases: from masks and annotation to instances and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors.ade20k_layers import TOP_NUMBER, Patch, draw, numbering
from pipeline import masks
from pipeline.errors import BadAnnotation, CorruptMask, LabelOutOfRange, SizeMismatch
from pipeline.record import Instance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from connectors.ade20k_layers import Layer
    from connectors.ade20k_notes import Noted
    from pipeline.files import Tree
    from pipeline.label_space import LabelSpace

VISIBLE: Final = 255
HIDDEN: Final = 128

_REPLACE: Final = "replace the file, or write it again as the releases do"


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image's objects are read from: its layers by level (0 for `_seg.png`)."""

    layers: Mapping[int, Layer]
    space: LabelSpace
    shape: tuple[int, int]


def from_masks(
    tree: Tree, folder: str, noted: Sequence[Noted], scene: Scene, path: str
) -> tuple[tuple[Instance, ...], list[Patch]]:
    """Return the objects of a 2021 annotation, by their instance masks, and what they paint.

    `extra` has what the annotation does not: `rank` in blue, `level`, `part_of`, and run lengths
    of what other objects hide (`hidden`).

    Raises:
        InputError: a mask is missing or bad, or a class number unknown.
    """
    instances, patches = [], []
    for item in noted:
        in_range = 0 <= item.number <= TOP_NUMBER
        category = int(numbering(scene.space).to_id[item.number]) if in_range else -1
        if category not in scene.space.by_id:
            raise LabelOutOfRange(
                path,
                f"object {item.id} ({item.name!r}) has class number {item.number}, which label "
                f"space {scene.space.name!r} does not define",
                "correct name_ndx, or get the index file that belongs to the release",
            )
        extra: dict[str, Any] = {}
        if item.part_of is not None:
            extra = {"level": item.level, "part_of": item.part_of}
        if not item.mask:
            text = json.dumps(extra, sort_keys=True) if extra else None
            instances.append(Instance(item.id, category, item.box, None, extra=text))
            continue
        name = f"{folder}{item.mask}"
        seen, hidden, corner = _read_mask(tree.read(name), tree.url_of(name), scene.shape)
        rank = _rank(scene.layers.get(item.level), seen, corner)
        patches.append(Patch(item.level, rank, item.number, seen, corner))
        if hidden.any():
            extra["hidden"] = masks.rle_encode_at(hidden, corner, scene.shape)
        instances.append(_instance(item.id, category, patches[-1], extra, scene.shape))
    return tuple(instances), patches


def _read_mask(
    data: bytes, path: str, shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[int, int]]:
    """Return what is visible and what is hidden, bool, in the box of both, and its corner."""
    import cv2

    values = masks.read_label(data, path)
    if values.shape != shape:
        raise SizeMismatch(
            path,
            f"the instance mask has {values.shape[1]}x{values.shape[0]} pixels, its image "
            f"{shape[1]}x{shape[0]}",
            _REPLACE,
        )
    if values.dtype != np.uint8:
        raise CorruptMask(path, "16 bits, where instance masks have 8", _REPLACE)
    x, y, w, h = cv2.boundingRect(values)
    crop = values[y : y + h, x : x + w]
    seen, hidden = crop == VISIBLE, crop == HIDDEN
    if np.count_nonzero(seen) + np.count_nonzero(hidden) != np.count_nonzero(crop):
        stray = sorted(set(np.unique(crop).tolist()) - {0, HIDDEN, VISIBLE})
        raise LabelOutOfRange(
            path,
            f"values {', '.join(map(str, stray[:8]))}; instance masks hold 0, 128 (hidden) and 255",
            _REPLACE,
        )
    return seen, hidden, (y, x)


def _rank(layer: Layer | None, seen: NDArray[np.bool_], corner: tuple[int, int]) -> int:
    """Return the rank of an object's blue value, by its first visible pixel; 0 for none."""
    if layer is None or not seen.any():
        return 0
    row, column = np.unravel_index(int(seen.argmax()), seen.shape)
    return int(layer.ranks[layer.blue[corner[0] + row, corner[1] + column]])


def _instance(
    number: int, category: int, patch: Patch, extra: dict[str, Any], shape: tuple[int, int]
) -> Instance:
    if patch.rank:
        extra = extra | {"rank": patch.rank}
    rle = masks.rle_encode_at(patch.pixels, patch.corner, shape)
    return Instance(
        id=number,
        category=category,
        bbox=masks.rle_bbox(rle, *shape),
        area=float(np.count_nonzero(patch.pixels)),
        rle=rle,
        extra=json.dumps(extra, sort_keys=True) if extra else None,
    )


def from_blue(scene: Scene) -> tuple[tuple[Instance, ...], list[Patch]]:
    """Return the objects of a 2017 image by their blue values, level by level.

    A whole's id is its instance number; a part's is 65536 times its level more. A part belongs to
    the object of the level above that has most of its pixels, -1 where there is none. An object's
    class is the most frequent one at its pixels.
    """
    from scipy.ndimage import find_objects

    instances, patches = [], []
    above: NDArray[np.uint8] | None = None
    for level in sorted(scene.layers):
        layer = scene.layers[level]
        ranks = np.take(layer.ranks, layer.blue)
        for rank, box in enumerate(find_objects(ranks), 1):
            if box is None:
                continue
            pixels = ranks[box] == rank
            number = int(np.bincount(layer.numbers[box][pixels]).argmax())
            category = int(numbering(scene.space).to_id[number])
            if category not in scene.space.by_id:
                continue
            corner = (box[0].start, box[1].start)
            patches.append(Patch(level, rank, number, pixels, corner))
            extra: dict[str, Any] = {}
            if level:
                extra = {"level": level, "part_of": _owner(above, box, pixels, level)}
            instance_id = (level << 16) + rank
            instances.append(_instance(instance_id, category, patches[-1], extra, scene.shape))
        above = ranks
    return tuple(instances), patches


def _owner(
    above: NDArray[np.uint8] | None,
    box: tuple[slice, slice],
    pixels: NDArray[np.bool_],
    level: int,
) -> int:
    if above is None:
        return -1
    votes = np.bincount(above[box][pixels], minlength=1)
    votes[0] = 0
    return ((level - 1) << 16) + int(votes.argmax()) if votes.any() else -1


def not_redrawn(scene: Scene, patches: Sequence[Patch]) -> list[int]:
    """Return the levels whose mask is not what the objects paint: their files are to be kept."""
    kept = []
    for level, layer in sorted(scene.layers.items()):
        numbers, blue = draw(patches, level, scene.shape)
        same = np.array_equal(blue, layer.blue)
        if not same or (level and not np.array_equal(numbers, layer.numbers)):
            kept.append(level)
    return kept


def patches_of(
    instances: Sequence[Instance], space: LabelSpace, shape: tuple[int, int]
) -> list[Patch]:
    """Return what instances that were read from a full release paint."""
    patches = []
    for instance in instances:
        extra = json.loads(instance.extra) if instance.extra else {}
        if instance.rle is not None and extra.get("rank"):
            pixels, corner = masks.rle_crop(instance.rle, *shape, f"object {instance.id}")
            number = int(numbering(space).to_number[instance.category])
            level = int(extra.get("level", 0))
            patches.append(Patch(level, int(extra["rank"]), number, pixels, corner))
    return patches


def instance_png(seen: str, hidden: str | None, shape: tuple[int, int], path: str) -> bytes:
    """Return run lengths of what is visible and hidden as an instance mask."""
    canvas = np.zeros(shape, np.uint8)
    for counts, value in ((hidden, HIDDEN), (seen, VISIBLE)):
        if counts is not None:
            pixels, (y, x) = masks.rle_crop(counts, *shape, path)
            canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]][pixels] = value
    return masks.encode(canvas)


def hidden_of(instance: Instance, path: str) -> str | None:
    """Return the run lengths of an object's hidden part.

    Raises:
        BadAnnotation: they are no text.
    """
    hidden = json.loads(instance.extra).get("hidden") if instance.extra else None
    if hidden is not None and not isinstance(hidden, str):
        raise BadAnnotation(path, "hidden is no run lengths", "ingest the dataset again")
    return hidden
