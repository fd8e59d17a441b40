"""seg.mat: a frame's labels as the annotators named them, and its objects.

MATLAB v5: `names` is a cell of strings; `seglabel` [H, W] has for each pixel a place in it from 1,
0 for none; `seginstances` [H, W], which may be absent, numbers the objects of a name from 1. An
object is thus a pair of a name and a number. Toolbox and this file agree: a pixel's class is the
one of the 37 that its name maps to, 38 names do; all others are 0.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from connectors import matlab5
from connectors.sunrgbd_toolbox import class_ids
from pipeline import masks
from pipeline.errors import CorruptMask, LabelOutOfRange, SizeMismatch
from pipeline.label_space import label_space
from pipeline.labels.label_tables import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.label_space import LabelMap, LabelSpace
    from pipeline.record import Instance, Record

NATIVE: Final = "sunrgbd-37"
MOST_OBJECTS: Final = 2000
"""More objects of one image than that are noise; each costs a look at every pixel."""

_DENSE: Final = 1 << 22  # pairs that may be counted in an array; more are sorted
_ARRAYS: Final = ("seglabel", "seginstances")
_LIMIT: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Seg:
    """One seg.mat: `label` and `objects` are [H, W], `types` their types in the file."""

    names: tuple[str, ...]
    label: LabelMap
    objects: LabelMap | None
    types: dict[str, str]
    left: tuple[str, ...] = ()


def read(data: bytes, path: str) -> Seg:
    """Read a seg.mat.

    Raises:
        CorruptMask: it is no whole MATLAB v5 file with names and labels.
        LabelOutOfRange: a pixel has a number that no name has.
    """
    try:
        held = {m.name: m for m in matlab5.variables(data, path, _LIMIT)}
        names = tuple(matlab5.texts(held["names"]))
        maps: dict[str, NDArray[Any]] = {
            name: matlab5.numbers(held[name]) for name in _ARRAYS if name in held
        }
    except CorruptMask:
        raise
    except KeyError:
        raise _corrupt(path, "it holds no variable 'names'") from None
    except (ValueError, struct.error, RecursionError) as error:
        raise _corrupt(path, f"names or labels cannot be read ({error})") from None
    if "seglabel" not in maps:
        raise _corrupt(path, "it holds no variable 'seglabel'")
    ids = {name: class_ids(values, path) for name, values in maps.items()}
    label, objects = ids["seglabel"], ids.get("seginstances")
    if objects is not None and objects.shape != label.shape:
        raise _corrupt(path, f"seginstances is {objects.shape}, seglabel {label.shape}")
    types: dict[str, str] = {n: str(v.dtype) for n, v in maps.items() if v.dtype != ids[n].dtype}
    left = tuple(sorted(set(held) - {"names", *_ARRAYS, ""}))
    return _checked(Seg(names, label, objects, types, left), path)


def _corrupt(path: str, cause: str) -> CorruptMask:
    return CorruptMask(path, cause, "replace the file")


def _checked(seg: Seg, path: str) -> Seg:
    top = int(seg.label.max())
    if top > len(seg.names):
        raise LabelOutOfRange(
            path,
            f"pixels have label {top}, and there are {len(seg.names)} names",
            "replace the file",
        )
    return seg


def render(seg: Seg) -> bytes:
    """Return a seg.mat; equal contents are equal bytes."""
    import scipy.io

    names = np.empty((1, len(seg.names)), dtype=object)
    names[0, :] = seg.names
    arrays: dict[str, Any] = {"names": names, "seglabel": _typed(seg, "seglabel", seg.label)}
    if seg.objects is not None:
        arrays["seginstances"] = _typed(seg, "seginstances", seg.objects)
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=True)
    return matlab5.header() + file.getvalue()[matlab5.HEAD :]


def _typed(seg: Seg, name: str, values: LabelMap) -> NDArray[Any]:
    return values.astype(seg.types.get(name, values.dtype))


def to_json(seg: Seg) -> dict[str, Any]:
    """Return what a record's extra keeps of a seg.mat: all of it, the arrays as mask cells."""
    kept: dict[str, Any] = {"names": list(seg.names), "seglabel": _cell(seg.label)}
    if seg.objects is not None:
        kept["seginstances"] = _cell(seg.objects)
    return kept | ({"types": seg.types} if seg.types else {})


def from_json(kept: dict[str, Any], path: str) -> Seg:
    """Return the seg.mat that `to_json` kept.

    Raises:
        CorruptMask: a cell is damaged.
    """
    maps = {n: masks.decode(base64.b64decode(kept[n]), path) for n in _ARRAYS if n in kept}
    names, types = tuple(kept["names"]), dict(kept.get("types", {}))
    return Seg(names, maps["seglabel"], maps.get("seginstances"), types)


def _cell(values: LabelMap) -> str:
    return base64.b64encode(masks.encode(values)).decode()


def class_of(name: str, space: LabelSpace) -> int:
    """Return the class of a name: by its table in the dataset's own space, as spelt in others."""
    if space == label_space(NATIVE):
        name = table("sunrgbd-raw", NATIVE).get(name, "")
    found = space.by_name.get(name)
    return space.ignore_index if found is None else found.id


def to_ids(seg: Seg, space: LabelSpace) -> LabelMap:
    """Return the class ids [H, W] of a frame's labels."""
    classes = [space.ignore_index, *(class_of(name, space) for name in seg.names)]
    lut: LabelMap = np.array(classes, dtype=space.dtype)
    return lut[seg.label]


def objects_of(
    seg: Seg, ids: LabelMap, space: LabelSpace, path: str
) -> tuple[tuple[Instance, ...], LabelMap]:
    """Return the objects that have a class, and the map [H, W] of their ids.

    An object's id is its number where no other object of the image has it; otherwise all are
    numbered. `seg` in their extra is the pair of place in the names and number.

    Raises:
        CorruptMask: there are too many of them.
    """
    numbers = np.zeros_like(seg.label) if seg.objects is None else seg.objects
    step = int(numbers.max()) + 1
    keys = seg.label.astype(np.int64) * step + numbers
    if step * (len(seg.names) + 1) <= _DENSE:
        places = found = np.flatnonzero(np.bincount(keys.ravel()))
    else:
        found, inverse = np.unique(keys, return_inverse=True)
        places, keys = np.arange(len(found)), inverse.reshape(keys.shape)
    known = zip(places.tolist(), found.tolist(), strict=True)
    pairs = {place: divmod(key, step) for place, key in known if key >= step and key % step}
    if len(pairs) > MOST_OBJECTS:
        raise _corrupt(path, f"{len(pairs)} objects in one image")
    unique = len({number for _, number in pairs.values()}) == len(pairs)
    lut = np.zeros(int(places[-1]) + 1, np.uint16)
    names: dict[int, tuple[int, int]] = {}
    for count, (place, (at, number)) in enumerate(pairs.items(), 1):
        if class_of(seg.names[at - 1], space) != space.ignore_index:
            name = number if unique else count
            names[name], lut[place] = (at, number), name
    drawn = lut[keys]
    instances = masks.instances_from_maps(ids, drawn, space)
    return tuple(_named(i, names[i.id], seg) for i in instances), drawn


def _named(instance: Instance, pair: tuple[int, int], seg: Seg) -> Instance:
    extra = {"name": seg.names[pair[0] - 1], "seg": list(pair)}
    return replace(instance, extra=json.dumps(extra, sort_keys=True))


def of_record(record: Record, space: LabelSpace) -> tuple[Seg | None, dict[str, int]]:
    """Return a seg.mat in the names of a space's classes, and what it could not express.

    Objects keep their numbers where they fit; only pixels that have the object's class are its.

    Raises:
        InputError: the mask or the run lengths are damaged.
    """
    if record.mask is None or record.mask.bytes is None:
        lost = len(record.instances or ())
        return None, {"instances": lost} if lost else {}
    ids = masks.decode(record.mask.bytes, record.image_id)
    present = np.flatnonzero(np.bincount(ids.ravel())).tolist()
    kept = [i for i in present if i != space.ignore_index and i in space.by_id]
    lut: LabelMap = np.zeros(65536, np.uint8 if len(kept) < 256 else np.uint16)
    lut[kept] = np.arange(1, len(kept) + 1)
    names = tuple(space.by_id[i].name for i in kept)
    objects: LabelMap | None = None
    loss: dict[str, int] = {}
    if record.instances is not None:
        objects, loss = _numbers(record, ids, space)
    return Seg(names, lut[ids], objects, {}), loss


def _numbers(record: Record, ids: LabelMap, space: LabelSpace) -> tuple[LabelMap, dict[str, int]]:
    """Return the object map of a record, and the objects and their traits that it does not show."""
    whole = [i for i in record.instances or () if i.rle and i.part_of is None]
    numbers = [i.id for i in whole]
    if len(set(numbers)) < len(numbers) or not all(0 < n < 65536 for n in numbers):
        whole = [replace(i, id=n) for n, i in enumerate(whole, 1)]
    drawn = masks.object_map_from_instances(whole, record.height, record.width, record.image_id)
    category = np.full(65536, -1, np.int64)
    category[[i.id for i in whole]] = [i.category for i in whole]
    drawn = np.where(category[drawn] == ids, drawn, 0).astype(drawn.dtype)
    drawn[ids == space.ignore_index] = 0
    seen = np.bincount(drawn.ravel(), minlength=65536)
    covered = sum(0 < int(seen[i.id]) < masks.rle_area(i.rle or "") for i in whole)
    gone = len(record.instances or ()) - sum(bool(seen[i.id]) for i in whole)
    loss = {
        "instances": gone,
        "instances_covered": covered,
        "instance_scores": sum(i.score is not None for i in whole),
        "instance_crowds": sum(i.iscrowd for i in whole),
    }
    return drawn, {name: count for name, count in loss.items() if count}


def check_size(seg: Seg, shape: tuple[int, int], path: str) -> None:
    """Make sure that the labels are of the image's size.

    Raises:
        SizeMismatch: they are not.
    """
    if seg.label.shape != shape:
        height, width = seg.label.shape
        raise SizeMismatch(
            path,
            f"the labels have {width}x{height} pixels, their image {shape[1]}x{shape[0]}",
            "replace one of the two",
        )
