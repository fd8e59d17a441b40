"""Generated scenes as a dataset on disk."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import cv2

from pipeline.streetscenes.street import scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_PREFIX: Final = "/SegNet/CamVid/"
_CHUNK: Final = 64
_ENCODER: Final = {
    "png": (cv2.IMWRITE_PNG_COMPRESSION, 1),  # noise hardly shrinks further, and takes 5x as long
    "jpg": (cv2.IMWRITE_JPEG_QUALITY, 92),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """Scenes that go to one folder, with labels beside it or without."""

    folder: str
    indices: range
    suffix: str
    labelled: bool

    def name(self, index: int) -> str:
        return f"street_{index:06d}.{self.suffix}"

    def chunks(self) -> list[_Part]:
        """Cut the part in pieces of about a second of work."""
        starts = range(0, len(self.indices), _CHUNK)
        return [
            _Part(self.folder, self.indices[s : s + _CHUNK], self.suffix, self.labelled)
            for s in starts
        ]


def write_dataset(
    root: str | Path,
    images: int,
    *,
    height: int = 240,
    width: int = 320,
    seed: int = 0,
    splits: tuple[float, float, float] = (0.6, 0.2, 0.2),
    layout: Literal["camvid", "flat"] = "camvid",
    suffix: Literal["png", "jpg"] | None = None,
    unlabelled: int = 0,
    workers: int = 1,
) -> dict[str, int]:
    """Write a dataset of generated scenes; return how many images each split holds.

    "camvid" is SegNet's layout of CamVid: train/, trainannot/, train.txt and so on, which format
    camvid-11 reads; `splits` are the shares of train, val and test; images are PNG unless `suffix`
    says otherwise. `unlabelled` more images go to unlabelled/ as JPEG, without labels. "flat" is a
    folder of JPEG images and nothing else. Image k is scene (seed, k), and the same call writes
    the same bytes; `workers` processes share the work.
    """
    folder = Path(root)
    if layout == "flat":
        parts = [_Part("", range(images), suffix or "jpg", labelled=False)]
    else:
        ends = [round(images * share / sum(splits)) for share in accumulate(splits)]
        spans = zip(("train", "val", "test"), pairwise((0, *ends)), strict=True)
        parts = [_Part(name, range(a, b), suffix or "png", labelled=True) for name, (a, b) in spans]
    if unlabelled:
        more = range(images, images + unlabelled)
        parts.append(_Part("unlabelled", more, "jpg", labelled=False))
    _draw(folder, parts, seed, (height, width), workers)
    for part in parts:
        if part.folder:
            _write_list(folder, part)
    return {part.folder or "unlabelled": len(part.indices) for part in parts}


def _draw(
    root: Path, parts: Sequence[_Part], seed: int, size: tuple[int, int], workers: int
) -> None:
    """Draw and write the images of all parts, in this process or in several."""
    for part in parts:
        (root / part.folder).mkdir(parents=True, exist_ok=True)
        if part.labelled:
            (root / f"{part.folder}annot").mkdir(exist_ok=True)
    chunks = [chunk for part in parts for chunk in part.chunks()]
    work = partial(_draw_chunk, root, seed, size)
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            work(chunk)
        return
    # Not forked: the caller may hold threads, whose locks a fork would copy in any state.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(work, chunks):
            pass


def _draw_chunk(root: Path, seed: int, size: tuple[int, int], part: _Part) -> None:
    for index in part.indices:
        rgb, ids = scene((seed, index), *size)
        _put(root / part.folder / part.name(index), rgb[..., ::-1])
        if part.labelled:
            path = root / f"{part.folder}annot" / part.name(index)
            _put(path.with_suffix(".png"), ids)


def _put(path: Path, pixels: NDArray[np.uint8]) -> None:
    suffix = path.suffix[1:]
    path.write_bytes(cv2.imencode(f".{suffix}", pixels, _ENCODER[suffix])[1].tobytes())


def _write_list(root: Path, part: _Part) -> None:
    """Write a split's list as SegNet does; it comes last, so a list stands for whole images."""
    lines = []
    for index in part.indices:
        line = f"{_PREFIX}{part.folder}/{part.name(index)}"
        if part.labelled:
            label = Path(part.name(index)).with_suffix(".png")
            line += f" {_PREFIX}{part.folder}annot/{label}"
        lines.append(f"{line}\n")
    (root / f"{part.folder}.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
