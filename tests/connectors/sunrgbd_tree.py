"""SUN RGB-D's files as tests make them, by scipy, h5py and Pillow; one frame read and written."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import cv2
import h5py
import numpy as np
import scipy.io
from PIL import Image

from connectors.sunrgbd import SUNRGBD
from pipeline.files import open_tree
from pipeline.label_space import label_space
from tests.connectors.trees import photo, put, random_ids, rewrite

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

SPACE = label_space("sunrgbd-37")
FRAME = "kv1/b3dodata/img_0063"
FOLDER = f"SUNRGBD/{FRAME}"
SHAPE = (12, 16)
NAMES = ("wall", "abinet", "shelf", "chair", "Floor", "floor")
CLASSES = (0, 1, 0, 15, 5, 0, 2)
"""The classes of no name and of NAMES: spelling counts."""

FRAMES = {
    "kv1/NYUdata/NYU0001": "test",
    "kv1/b3dodata/img_0063": "train",
    "realsense/lg/2014_10_26-15_27_38-1311000073": "test",
    "xtion/sun3ddata/harvard_c5/hv_c5_1/0001393-000046677846": "train",
}
"""Frames of the dataset, in the order of their paths, and where the official lists put them."""


def seg_mat(
    label: NDArray[Any],
    numbers: NDArray[Any] | None = None,
    names: Sequence[str] = NAMES,
    **more: Any,
) -> bytes:
    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    arrays = {"names": cells, "seglabel": label} | more
    if numbers is not None:
        arrays["seginstances"] = numbers
    file = io.BytesIO()
    scipy.io.savemat(file, arrays, do_compression=True)
    return file.getvalue()


def depth_png(millimetres: NDArray[np.uint16]) -> bytes:
    """Rotate by arithmetic on wider numbers, unlike the code under test."""
    wide = millimetres.astype(np.int64) * 8
    pixels = (wide % 65536 + wide // 65536).astype(np.uint16)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return data.getvalue()


def random_depth(shape: tuple[int, int], seed: int) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 65536, shape).astype(np.uint16)


def polygon(number: Any, box: tuple[float, float, float, float]) -> dict[str, Any]:
    left, top, right, bottom = box
    return {
        "x": [left, right, right, left],
        "y": [top, top, bottom, bottom],
        "object": number,
        "XYZ": [[0.1, 0.2, 0.3]],
    }


def index_json(polygons: Sequence[Any], names: Sequence[str | None]) -> str:
    objects = [None if name is None else {"name": name} for name in names]
    return json.dumps({"date": "x", "frames": [{"polygon": list(polygons)}], "objects": objects})


def write_frame(root: Path, name: str, seed: int, shape: tuple[int, int] = SHAPE) -> NDArray[Any]:
    """Write a whole frame and return its class ids."""
    folder, stem = f"SUNRGBD/{name}", name.rpartition("/")[2]
    label = random_ids(range(len(NAMES) + 1), shape, seed)
    numbers = np.where(label > 0, 1, 0).astype(np.uint8)
    put(root, f"{folder}/image/{stem}.jpg", photo(shape, ".jpg", seed))
    put(root, f"{folder}/depth/{stem}_raw.png", depth_png(random_depth(shape, seed)))
    put(root, f"{folder}/depth_bfx/{stem}_abs.png", depth_png(random_depth(shape, seed + 9)))
    put(root, f"{folder}/seg.mat", seg_mat(label, numbers))
    put(root, f"{folder}/intrinsics.txt", "5.1e2 0 2.7\n0 5.2e2 2.1 \n0 0 1 \n")
    put(root, f"{folder}/extrinsics/20140915.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n")
    put(root, f"{folder}/scene.txt", "caf\u00e9".encode("latin-1"))
    drawn = [polygon(0, (0, 0, 5, 5)), None, polygon(2, (-40, 1, 9, 100))]
    index = index_json(drawn, ["chair", None, "wall"])
    put(root, f"{folder}/annotation2Dfinal/index.json", index)
    put(root, f"{folder}/annotation3D/index.json", '{"objects": []}')
    return np.array(CLASSES, np.uint8)[label]


def cells(texts: Sequence[str]) -> NDArray[Any]:
    made = np.empty((1, len(texts)), dtype=object)
    made[0, :] = texts
    return made


def write_toolbox(root: Path, labels: dict[str, NDArray[Any]], lists: dict[str, list[str]]) -> None:
    """Write a toolbox as the authors did: other roots, slashes, references, (width, height)."""
    home = "/n/fs/sun3d/data/SUNRGBD/"
    folder = root / "SUNRGBDtoolbox"
    (folder / "Metadata").mkdir(parents=True)
    (folder / "traintestSUNRGBD").mkdir()
    listed: dict[str, Any] = {
        name: cells([f"{home}{frame}/" for frame in frames])
        for name, frames in lists.items()
        if name.startswith("all")
    }
    parts = {n: cells([home + f for f in lists[n]]).T for n in ("train", "val") if n in lists}
    if parts:
        listed["trainvalsplit"] = parts
    scipy.io.savemat(folder / "traintestSUNRGBD/allsplit.mat", listed)
    meta = np.zeros((1, len(labels)), dtype=[(n, object) for n in ("sequenceName", "rgbname", "K")])
    for at, name in enumerate(labels):
        meta[0, at] = (f"SUNRGBD/{name}/", "x.jpg", np.eye(3))
    scipy.io.savemat(folder / "Metadata/SUNRGBDMeta.mat", {"SUNRGBDMeta": meta})
    with h5py.File(folder / "Metadata/SUNRGBD2Dseg.mat", "w", userblock_size=512) as file:
        refs = [file.create_dataset(f"#refs#/{n}", data=m.T) for n, m in enumerate(labels.values())]
        rows = file.create_dataset("SUNRGBD2Dseg/seglabel", (len(refs), 1), h5py.ref_dtype)
        for at, dataset in enumerate(refs):
            rows[at, 0] = dataset.ref


def read(frame: Path) -> Record:
    tree = open_tree(str(frame.parents[3]))
    (sample,) = SUNRGBD.list(tree, ())
    return SUNRGBD.read(tree, sample)


def again(record: Record, target: Path, space: Any = SPACE) -> tuple[Record, dict[str, int]]:
    """Write a record and read it back."""
    (written,) = rewrite(SUNRGBD, [record], target, space)
    tree = open_tree(str(target))
    (sample,) = SUNRGBD.list(tree, ())
    return SUNRGBD.read(tree, sample), written.loss


def pixels(png: bytes) -> NDArray[Any]:
    found = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found)
