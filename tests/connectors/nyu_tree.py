"""NYU Depth v2 made small: the .mat with h5py and SciPy, the folders with Pillow."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat

from pipeline.label_space import label_space
from tests.connectors.trees import put

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (12, 16)
NAMES = [c.name for c in label_space("nyu-894").classes if c.id]
TEXTS = ("scenes", "sceneTypes", "rawRgbFilenames", "rawDepthFilenames")


def frames(count: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> dict[str, NDArray[Any]]:
    """Return arrays [N, H, W, ...]; some of label 0 have numbers, some labels have none."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, *shape), np.uint16)
    numbers = np.zeros((count, *shape), np.uint8)
    values = np.array([0, 1, 7, 64, 255, 256, 894], np.uint16)
    for n in range(count):
        labels[n] = np.kron(rng.choice(values, (3, 4)), np.ones((shape[0] // 3, shape[1] // 4)))
        numbers[n] = np.kron(rng.integers(0, 4, (6, 8)), np.ones((shape[0] // 6, shape[1] // 8)))
        numbers[n, 0, 0] = 255
    depths = rng.random((count, *shape), np.float32) * 10
    raw = np.where(rng.random((count, *shape)) < 0.2, 0, depths).astype(np.float32)
    return {
        "images": rng.integers(0, 256, (count, *shape, 3), np.uint8),
        "labels": labels, "instances": numbers, "depths": depths, "rawDepths": raw,
    }  # fmt: skip


def write_mat(path: Path, arrays: dict[str, NDArray[Any]], names: list[str] | None = None) -> None:
    """Write a .mat as the release is: axes reversed, texts by reference."""
    count = len(arrays["images"])
    path.write_bytes(_named(tuple(NAMES if names is None else names)))
    with h5py.File(path, "r+") as file:
        for key, values in arrays.items():
            turned = values.transpose(0, *range(values.ndim - 1, 0, -1))
            file.create_dataset(key, data=turned, chunks=(1, *turned.shape[1:]), compression=1)
        for key in TEXTS:
            _write_texts(file, key, [f"{key} {n}" for n in range(count)])
        accel = np.random.default_rng(1).random((4, count), np.float32)
        accel[0, 0] = np.nan
        file.create_dataset("accelData", data=accel)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, made for a test".ljust(124) + b"\0\2IM")


@cache
def _named(names: tuple[str, ...]) -> bytes:
    """Return a .mat that has names only; making 894 takes long."""
    data = io.BytesIO()
    with h5py.File(data, "w", userblock_size=512) as file:
        _write_texts(file, "names", list(names))
    return data.getvalue()


def _write_texts(file: Any, key: str, texts: list[str]) -> None:
    cells = file.create_dataset(key, (1, len(texts)), h5py.ref_dtype)
    for n, text in enumerate(texts):
        units = np.frombuffer(text.encode("utf-16-le"), np.uint16)[:, None]
        cells[0, n] = file.create_dataset(f"#refs#/{key}{n}", data=units).ref


def write_splits(path: Path, train: list[int], test: list[int]) -> None:
    """Write splits.mat, numbers from 1."""
    columns = {"trainNdxs": train, "testNdxs": test}
    savemat(path, {key: np.array(rows, np.uint16)[:, None] for key, rows in columns.items()})


def read_mat(path: Path) -> dict[str, Any]:
    """Read a .mat by h5py alone: arrays [N, H, W, ...], texts as lists."""
    with h5py.File(path, "r") as file:
        held: dict[str, Any] = {}
        for key in file:
            if key in TEXTS or key == "names":
                held[key] = [_text(file[ref]) for ref in file[key][0]]
            elif isinstance(file[key], h5py.Dataset) and file[key].ndim > 2:
                values = file[key][()]
                held[key] = values.transpose(0, *range(values.ndim - 1, 0, -1))
        held["accelData"] = file["accelData"][()]
        return held


def _text(dataset: Any) -> str:
    if "MATLAB_empty" in dataset.attrs:
        return ""
    return "".join(map(chr, dataset[()].ravel()))


def read_splits(path: Path) -> dict[str, list[int]]:
    """Read splits.mat by SciPy."""
    return {k: v.ravel().tolist() for k, v in loadmat(path).items() if k[0] != "_"}


def png16(values: NDArray[Any]) -> bytes:
    """Return [H, W] as a 16-bit PNG."""
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(data, format="PNG")
    return data.getvalue()


def png(values: NDArray[Any]) -> bytes:
    """Return [H, W] or [H, W, 3] as an 8-bit PNG."""
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(data, format="PNG")
    return data.getvalue()


def write_folders(root: Path, names: list[str], arrays: dict[str, NDArray[Any]]) -> None:
    """Write the folders of PNGs."""
    for n, name in enumerate(names):
        put(root, f"image/{name}.png", png(arrays["images"][n]))
        put(root, f"label/{name}.png", png16(arrays["labels"][n]))
        put(root, f"instance/{name}.png", png(arrays["instances"][n]))
        for folder, key in (("depth_mm", "depths"), ("depth_raw_mm", "rawDepths")):
            put(root, f"{folder}/{name}.png", png16(np.round(arrays[key][n] * 1000)))
        put(root, f"meta/{name}.json", json.dumps({"scenes": f"kitchen {n}"}))
