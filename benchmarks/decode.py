"""Decode JPEG and PNG: ours against OpenCV, Pillow, torchvision.io and imagecodecs.

    python benchmarks/decode.py                 # generated street scenes
    python benchmarks/decode.py DIR_OR_PATTERN  # your own images

CPU milliseconds an image on one thread, the best of several rounds, all to uint8 RGB in memory; the
ratio is to the fastest. Ours includes what the others leave out: the check that the file is whole,
the pixel limit and EXIF orientation. A second table times `header` against Pillow's `open`.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import imagecodecs
import numpy as np
import torch
import torchvision.io
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.files import read_url
from pipeline.images import decode, header
from pipeline.streetscenes import scene
from pipeline.trees.listing import list_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROUNDS = 9
SIZES = ((360, 480), (1024, 2048))
MOST_FILES = 32

Images = dict[str, list[bytes]]


def main(source: str | None = None) -> None:
    """Print both tables."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = _from(source) if source else dict(_generated())
    print(f"{'images':24} {'decoder':16} {'ms/image':>9} {'MPixel/s':>9} {'ratio':>6}")
    for kind, files in images.items():
        pixels = sum(h.height * h.width for h in (header(f, kind) for f in files)) / len(files)
        _table(kind, _times(_decoders(kind.split()[0]), files), pixels)
    print()
    for kind, files in images.items():
        readers: dict[str, Callable[[bytes], object]] = {
            "segmill": lambda data: header(data, "x"),
            "Pillow": lambda data: Image.open(io.BytesIO(data)).size,
        }
        _table(f"{kind}, header", _times(readers, files), None)


def _generated() -> Iterator[tuple[str, list[bytes]]]:
    """Yield street scenes with a camera's noise, as JPEG and as PNG."""
    for height, width in SIZES:
        noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
        pictures = [
            Image.fromarray(np.clip(scene(seed, height, width)[0] + noise, 0, 255).astype(np.uint8))
            for seed in range(4)
        ]
        for format, options in (("jpeg", {"quality": 90}), ("png", {})):
            files = []
            for picture in pictures:
                out = io.BytesIO()
                picture.save(out, format, **options)
                files.append(out.getvalue())
            yield f"{format} {width}x{height}", files


def _from(source: str) -> Images:
    """Return a source's first images by format."""
    images: Images = {}
    for sample, _ in zip(list_images(source), range(MOST_FILES), strict=False):
        data = read_url(sample.path)
        images.setdefault(f"{header(data, sample.path).format} yours", []).append(data)
    return images


def _decoders(format: str) -> dict[str, Callable[[bytes], object]]:
    found: dict[str, Callable[[bytes], object]] = {
        "segmill": lambda data: decode(data, "x"),
        "OpenCV": lambda data: cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        ),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    if format in ("jpeg", "png"):
        codec = imagecodecs.jpeg8_decode if format == "jpeg" else imagecodecs.png_decode
        found["imagecodecs"] = codec
        found["torchvision.io"] = lambda data: torchvision.io.decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
        )
    return found


def _times(
    functions: dict[str, Callable[[bytes], object]], files: Sequence[bytes]
) -> dict[str, float]:
    """Return each function's CPU seconds a file, the best round's; rounds take turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.thread_time()
            for data in files:
                function(data)
            best[name] = min(best[name], (time.thread_time() - start) / len(files))
    return best


def _table(kind: str, seconds: dict[str, float], pixels: float | None) -> None:
    fastest = min(seconds.values())
    for name, value in sorted(seconds.items(), key=lambda item: item[1]):
        rate = f"{pixels / value / 1e6:9.1f}" if pixels else " " * 9
        print(f"{kind:24} {name:16} {value * 1e3:9.3f} {rate} {value / fastest:6.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
