"""Depth maps in a record: one TIFF that keeps every bit of the source's values.

A cell holds one or two pages of one size and type, uint16 or float32: first the depth to use, then,
where the source tells both, the one as the sensor gave it. 0 is "no measurement". Values times
`Depth.metres_per_unit` are metres.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pipeline.errors import CorruptMask, MissingFile, SizeMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.record import Depth

DepthMap: TypeAlias = "NDArray[np.uint16] | NDArray[np.float32]"
"""Depth of pixels: [H, W], uint16 or float32."""

_ERRORS: Final = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError,
    AttributeError, MemoryError, struct.error,
)  # fmt: skip
"""What Pillow's TIFF decoder trips over in damaged files, besides its bomb error."""

_LEVEL: Final = 4
"""Two thirds of the time of the usual 6, for 2 % more bytes."""


def encode(depth: DepthMap, raw: DepthMap | None = None) -> bytes:
    """Return the cell of a depth map [H, W], and of the sensor's own where there is one.

    Raises:
        ValueError: not two dimensions, not uint16 or float32, or the two differ in size or type.
    """
    import tifffile

    if depth.ndim != 2 or depth.dtype not in (np.uint16, np.float32):
        raise ValueError(f"depth is {depth.dtype} {depth.shape}; expected uint16 or float32 [H, W]")
    if raw is not None and (raw.shape, raw.dtype) != (depth.shape, depth.dtype):
        raise ValueError(f"raw depth is {raw.dtype} {raw.shape}, depth {depth.dtype} {depth.shape}")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        for page in (depth, raw):
            if page is not None:
                tiff.write(
                    page,
                    photometric="minisblack",
                    compression="adobe_deflate",
                    compressionargs={"level": _LEVEL},
                    predictor=True,
                    rowsperstrip=len(page),
                    metadata=None,
                    software=False,
                )
    return file.getvalue()


def decode(cell: bytes, path: str = "depth cell") -> tuple[DepthMap, DepthMap | None]:
    """Return the depth map of a cell and the sensor's own, None where there is none.

    Raises:
        CorruptMask: it is damaged, or no depth map.
    """
    from PIL import Image

    pages: list[Any] = []
    try:
        with Image.open(io.BytesIO(cell), formats=("TIFF",)) as file:
            for page in range(min(getattr(file, "n_frames", 1), 2)):
                file.seek(page)
                pages.append(np.array(file))
    except (*_ERRORS, Image.DecompressionBombError) as error:
        raise CorruptMask(path, f"not a depth map ({error!r})", "ingest it again") from None
    if any(p.ndim != 2 or p.dtype not in (np.uint16, np.float32) for p in pages):
        kinds = ", ".join(f"{p.dtype} {p.shape}" for p in pages)
        raise CorruptMask(path, f"not a depth map ({kinds})", "ingest it again")
    return pages[0], pages[1] if len(pages) > 1 else None


def metres(depth: Depth, path: str = "depth cell") -> NDArray[np.float32] | None:
    """Return a record's depth in metres: float32 [H, W], 0 for none; None where none is held."""
    if depth.bytes is None:
        return None
    values, _ = decode(depth.bytes, path)
    scale = 1.0 if depth.metres_per_unit is None else depth.metres_per_unit
    if scale == 1.0:
        return values.astype(np.float32, copy=False)
    return (values.astype(np.float64) * scale).astype(np.float32)


def beside(depth: Depth | None, shape: tuple[int, ...], image_id: str) -> NDArray[np.float32]:
    """Return what a network gets of a record's depth: metres, float32 [H, W].

    0 where nothing sound was measured. `shape` is that of the image it lies on.

    Raises:
        MissingFile: the record holds none.
        CorruptMask: it is damaged.
        SizeMismatch: it has another size than the image.
    """
    found = None if depth is None else metres(depth, f"{image_id}: depth")
    if found is None:
        raise MissingFile(
            image_id, "the store holds no depth map of it",
            "ingest a dataset with depth (nyuv2, sunrgbd), or take a model of colours",
        )  # fmt: skip
    if found.shape != shape:
        raise SizeMismatch(
            image_id,
            f"its depth map is {found.shape[0]}x{found.shape[1]}, its image {shape[0]}x{shape[1]}",
            "ingest the image again, it changed since",
        )
    return np.where(np.isfinite(found) & (found > 0), found, np.float32(0))
