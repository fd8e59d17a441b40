"""Datumaro as the judge of what segmill writes: the same images, pixels and objects?

    python -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/peers/requirements.txt
    python benchmarks/judge_datumaro.py --peers .venv-peers/bin/python

Generated street scenes are written in each format that Datumaro reads. Pixels are equal where both
name the same class, or none: background and void are no class. Objects are equal where class and
every pixel are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from convert_data import write_sets
from measure import once, segmill

from connectors import connector
from pipeline import masks
from pipeline.files import open_tree
from pipeline.streetscenes.dataset import write_dataset

if TYPE_CHECKING:
    from pipeline.label_space import LabelSpace
    from pipeline.record import Record

PEER = Path(__file__).parent / "peers/datumaro_read.py"
HEIGHT, WIDTH = 120, 160


@dataclass(frozen=True, slots=True)
class Case:
    """A format of ours, Datumaro's name for it, what it is made from, and where its root lies.

    `links` are names that Datumaro looks for where the format has others; `things` is what the
    format calls all objects, where it has stuff alone. `note` says why Datumaro does not agree.
    """

    format: str
    theirs: str
    source: str
    root: str = ""
    links: tuple[tuple[str, str], ...] = ()
    keep: bool = False
    things: str | None = None
    note: str = ""


THEIR_NAMES = {"trafficsign": "traffic sign"}
"""Classes to which Datumaro gives other names than the datasets' own tables."""

_INSTANCE_IDS = "it looks for class ids among instanceIds, where a car is 26001"
_LISTS = "SegNet's lists say /SegNet/CamVid/train/..., which it looks for below the root"
_INDICES = "with such a link; it reads SegNet's grey indices by a table of its own"
_NO_LISTS = "it knows SegNet's layout alone"

CASES = (
    Case("voc", "voc_segmentation", "objects", "VOCdevkit/VOC2012"),
    Case("voc", "voc_instance_segmentation", "objects", "VOCdevkit/VOC2012"),
    Case("coco-instances", "coco_instances", "objects", links=(("images", "."),)),
    Case("coco-panoptic", "coco_panoptic", "labels", links=(("images", "."),)),
    Case("coco-stuff", "coco_stuff", "labels", links=(("images", "."),), things="other"),
    Case("cityscapes", "cityscapes", "labels"),
    Case("cityscapes", "cityscapes", "objects", note=_INSTANCE_IDS),
    Case("camvid-11", "camvid", "labels", note=_LISTS),
    Case("camvid-11", "camvid", "labels", links=(("SegNet/CamVid", ".."),), note=_INDICES),
    Case("camvid", "camvid", "labels", note=_NO_LISTS),
    Case("ade20k-full", "ade20k2020", "objects", "ADE20K_2021_17_01/images/ADE", keep=True),
)


@dataclass(slots=True)
class Verdict:
    """What of a dataset Datumaro reads as it was written."""

    images: int = 0
    found: int = 0
    pixels: int = 0
    same_pixels: int = 0
    objects: int = 0
    same_objects: int = 0
    cause: str = ""

    def row(self, case: Case) -> str:
        notes = "; ".join(filter(None, (self.cause, case.note)))
        share = f"{self.same_pixels / self.pixels:.2%}" if self.pixels else "-"
        return (
            f"| {case.format} of {case.source} | {case.theirs} | {self.found} of {self.images} "
            f"| {share} | {self.same_objects} of {self.objects} | {notes} |"
        )


def ours(case: Case, root: Path) -> dict[str, tuple[Record, LabelSpace]]:
    """Read a dataset by segmill: each record and its label space, by the image's file name."""
    reader, tree = connector(case.format), open_tree(str(root))
    spaces = {space.name: space for space in reader.label_spaces(tree)}
    records = [reader.read(tree, sample) for sample in reader.list(tree, ())]
    return {Path(r.image.path or "").name: (r, spaces[r.label_space]) for r in records}


def class_names(record: Record, space: LabelSpace, things: str | None) -> np.ndarray[Any, Any]:
    """Return the name of the class of each pixel, [H, W]; "" for background and void."""
    assert record.mask is not None
    table = np.full(65536, "", dtype=object)
    for c in space.classes:
        if not c.void and c.id != space.ignore_index and c.name != "background":
            table[c.id] = things if things and c.isthing else c.name
    named: np.ndarray[Any, Any] = table[masks.decode(record.mask.bytes or b"")]
    return named


def object_list(record: Record, space: LabelSpace) -> Counter[tuple[str, str]]:
    """Return class and a hash of the pixels of each object that has some."""
    found: Counter[tuple[str, str]] = Counter()
    for instance in record.instances or ():
        if instance.rle and masks.rle_area(instance.rle):
            region = masks.rle_decode(instance.rle, record.height, record.width)
            shown = hashlib.sha1(np.packbits(region != 0).tobytes()).hexdigest()
            found[space.by_id[instance.category].name, shown] += 1
    return found


def judge(case: Case, root: Path, peers: str, folder: Path) -> Verdict:
    """Let Datumaro read a dataset and compare."""
    written = ours(case, root)
    verdict = Verdict(images=len(written))
    for name, place in case.links:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(place)
    command = [peers, str(PEER), str(root / case.root), case.theirs, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        verdict.cause = "refused"
        return verdict
    said, maps = json.loads((folder / "said.json").read_text()), np.load(folder / "maps.npz")
    names = np.array([*(THEIR_NAMES.get(n, n) for n in said["names"]), ""], dtype=object)
    names[names == "background"] = ""
    for image, (record, space) in written.items():
        theirs = said["items"].get(image)
        if theirs is None:
            continue
        verdict.found += 1
        if record.mask is not None:
            expected = class_names(record, space, case.things)
            verdict.pixels += expected.size
            verdict.same_pixels += int((names[maps[theirs["map"]]] == expected).sum())
        objects = object_list(record, space)
        read = Counter((name, shown) for name, area, shown in theirs["objects"] if area)
        verdict.objects += objects.total()
        verdict.same_objects += (objects & read).total()
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--peers", required=True, help="The Python of the peers' environment.")
    args = parser.parse_args()
    print("| written | read as | images | pixels equal | objects equal | |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write_sets(args.images, HEIGHT, WIDTH, voc=top / "objects")
        write_dataset(top / "labels", args.images, height=HEIGHT, width=WIDTH)
        formats = {"objects": "voc", "labels": "camvid-11"}
        for number, case in enumerate(CASES):
            root, out = top / f"{number}", top / f"{number}-read"
            out.mkdir()
            words = ["--from", formats[case.source], "--to", case.format]
            words += ["--label-space", "keep"] if case.keep else []
            once(segmill("convert", str(top / case.source), str(root), *words))
            print(judge(case, root, args.peers, out).row(case), flush=True)


if __name__ == "__main__":
    main()
