"""What `benchmarks/convert.py` converts, and a look at what came out.

Both datasets are written here by NumPy and Pillow alone, from generated street scenes whose labels
are exact. Cars and people are objects, a region each.
"""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from pipeline.label_space import find_remap, label_space
from pipeline.streetscenes import scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.label_space import LabelSpace

VOC, CITY = label_space("voc-21"), label_space("cityscapes-34")
TOWN = "town"
DEVKIT = "VOCdevkit/VOC2012"
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")
LOOKED_AT = 5
_MASKS = frozenset({"SegmentationClass", "SegmentationObject"})


def write_sets(
    images: int, height: int, width: int, voc: Path | None = None, city: Path | None = None
) -> None:
    """Draw scenes, and write them as VOC2012, as Cityscapes, or as both."""
    classes = {s.name: find_remap(label_space("camvid-11"), s).lut for s in (VOC, CITY)}
    names = []
    for seed in range(images):
        rgb, labels = scene(seed, height, width)
        names.append(f"2007_{seed:06d}")
        if voc:
            _put_voc(voc / DEVKIT, names[-1], rgb, classes[VOC.name][labels])
        if city:
            _put_city(city, f"{TOWN}_{seed:06d}_000019", rgb, classes[CITY.name][labels])
    if voc:
        (voc / DEVKIT / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")


def _put_voc(root: Path, name: str, rgb: NDArray[np.uint8], ids: NDArray[Any]) -> None:
    ids = np.where(ids == VOC.ignore_index, 0, ids).astype(np.uint8)
    objects = np.zeros(ids.shape, np.int32)
    for value, region in _regions(ids, [int(v) for v in np.unique(ids) if v]):
        del value
        objects[region] = objects.max() + 1
    for folder in VOC_FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(root / f"JPEGImages/{name}.jpg", quality=90)
    for folder, values in (("SegmentationClass", ids), ("SegmentationObject", objects)):
        picture = Image.fromarray(np.minimum(values, 254).astype(np.uint8))
        picture.putpalette(VOC.palette())
        picture.save(root / f"{folder}/{name}.png")


def _put_city(root: Path, name: str, rgb: NDArray[np.uint8], ids: NDArray[Any]) -> None:
    """Write a frame as the official tools do: instanceIds are class * 1000 + n for objects."""
    ids = ids.astype(np.uint8)
    instances, counted = ids.astype(np.uint16), dict[int, int]()
    things = [c.id for c in CITY.classes if c.isthing]
    for value, region in _regions(ids, [v for v in things if (ids == v).any()]):
        instances[region] = value * 1000 + counted.setdefault(value, 0)
        counted[value] += 1
    photos, labels = root / f"leftImg8bit/train/{TOWN}", root / f"gtFine/train/{TOWN}"
    for folder in (photos, labels):
        folder.mkdir(parents=True, exist_ok=True)
    palette = np.frombuffer(CITY.palette(), np.uint8).reshape(-1, 3)
    Image.fromarray(rgb).save(photos / f"{name}_leftImg8bit.png")
    Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
    Image.fromarray(instances).save(labels / f"{name}_gtFine_instanceIds.png")
    Image.fromarray(palette[ids]).save(labels / f"{name}_gtFine_color.png")


def _regions(ids: NDArray[np.uint8], values: list[int]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    for value in values:
        count, found = cv2.connectedComponents((ids == value).astype(np.uint8))
        yield from ((value, found == k) for k in range(1, count))


@dataclass(frozen=True)
class Written:
    """What a tool left in a directory; `space` is that of palette masks without a table."""

    root: Path
    space: LabelSpace = VOC

    @cached_property
    def _files(self) -> list[Path]:
        return [p for p in self.root.rglob("*") if p.suffix in (".png", ".jpg")]

    def labels(self, kind: str) -> dict[str, Path]:
        """Return the masks of a kind, SegmentationClass or SegmentationObject, by name."""
        return {_key(p): p for p in self._files if kind in p.parts}

    @property
    def photos(self) -> int:
        """How many images there are."""
        return sum(_MASKS.isdisjoint(p.parts) for p in self._files)

    @cached_property
    def annotations(self) -> int | None:
        """How many annotations the COCO JSON has; None without one."""
        path = self._json()
        return None if path is None else len(json.loads(path.read_text())["annotations"])

    def _json(self) -> Path | None:
        return next(iter(sorted(self.root.glob("annotations/instances_*.json"))), None)

    def maps(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the first few images' class of each pixel, by name, "" where it is none."""
        if self._json() is not None:
            yield from self._coco()
            return
        named = self._colours()
        for key, path in sorted(self.labels("SegmentationClass").items())[:LOOKED_AT]:
            picture = Image.open(path)
            if picture.mode == "P" and named is None:
                yield key, _names(self.space)[np.array(picture)]
                continue
            rgb = np.array(picture.convert("RGB")).astype(np.int64) @ [65536, 256, 1]
            yield key, np.vectorize((named or {}).get, otypes=[object])(rgb, "")

    def _colours(self) -> dict[int, str] | None:
        """Return Datumaro's table of what it calls a colour."""
        path = next(iter(self.root.rglob("labelmap.txt")), None)
        if path is None:
            return None
        rows = [line.split(":") for line in path.read_text().splitlines() if line[:1] != "#"]
        usual = np.frombuffer(VOC.palette(), np.uint8).reshape(-1, 3)
        named: dict[int, str] = {}
        for number, (name, colour, *_) in enumerate(rows):
            rgb = map(int, colour.split(",")) if colour else usual[number].tolist()
            red, green, blue = rgb
            named.setdefault(red << 16 | green << 8 | blue, _plain(name))
        return named

    def _coco(self) -> Iterator[tuple[str, NDArray[Any]]]:
        from pycocotools.coco import COCO

        with redirect_stdout(None):
            coco = COCO(str(self._json()))
        for image in sorted(coco.dataset["images"], key=lambda i: i["file_name"])[:LOOKED_AT]:
            drawn = np.full((image["height"], image["width"]), "", object)
            shown = (a for a in coco.imgToAnns[image["id"]] if a["segmentation"])
            for one in shown:
                name = coco.cats[one["category_id"]]["name"]
                drawn[coco.annToMask(one).astype(bool)] = _plain(name)
            yield _key(Path(image["file_name"])), drawn


def agreement(written: Written, source: Path) -> dict[str, float]:
    """Return of each class in the first few images the share of its pixels that came out as it."""
    of: Callable[[str], NDArray[Any]] = _city_truth if (source / "gtFine").is_dir() else _voc_truth
    truth, found = [], []
    for key, drawn in written.maps():
        truth.append(of(str(source / key)))
        found.append(drawn)
    if not truth:
        return {}
    names, drawn = np.concatenate(truth, None), np.concatenate(found, None)
    return {n: float((drawn[names == n] == n).mean()) for n in np.unique(names[names != ""])}


def _voc_truth(place: str) -> NDArray[Any]:
    root, name = place.rsplit("/", 1)
    path = Path(root) / DEVKIT / f"SegmentationClass/2007_{name}.png"
    return np.asarray(_names(VOC)[np.array(Image.open(path))])


def _city_truth(place: str) -> NDArray[Any]:
    root, name = place.rsplit("/", 1)
    path = Path(root) / f"gtFine/train/{TOWN}/{TOWN}_{name}_000019_gtFine_labelIds.png"
    return np.asarray(_names(CITY)[np.array(Image.open(path))])


def _key(path: Path) -> str:
    """Return the scene's number in a file name."""
    return next(part for part in path.stem.split("_") if len(part) == 6 and part.isdigit())


def _names(space: LabelSpace) -> NDArray[Any]:
    table = np.full(256, "", object)
    for c in space.classes:
        if not c.void and c.name != "background" and c.id < 256:
            table[c.id] = _plain(c.name)
    return table


def _plain(name: str) -> str:
    name = name.replace(" ", "")
    return "" if name in {"background", "unlabeled"} else name
