"""What the peers of benchmarks/label.py share: a batch of pixels to PNGs of class ids, plainly."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from pipeline.models import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Plain:
    """A model on some threads; pixels uint8 [H, W, 3] of one size in, palette PNGs out."""

    def __init__(self, model: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        loaded = load_model(model)
        self.net = loaded.module.eval().to(memory_format=torch.channels_last)
        self.mean = torch.tensor(loaded.preprocessing.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(loaded.preprocessing.std).view(1, 3, 1, 1)
        self.palette = loaded.label_space.palette()

    def tensors(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Return the images as the network's input."""
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[bytes]:
        """Label a batch."""
        logits = self.net(self.tensors(images))
        ids = F.interpolate(logits, images[0].shape[:2], mode="bilinear").argmax(1)
        return [png(one, self.palette) for one in ids.to(torch.uint8).numpy()]


def png(ids: NDArray[np.uint8], palette: bytes) -> bytes:
    """Return class ids as a palette PNG."""
    image = Image.fromarray(ids)
    image.putpalette(palette)
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def files(images: str, part: int = 0, parts: int = 1) -> list[Path]:
    """Return every `parts`-th JPEG of a folder."""
    return sorted(Path(images).glob("*.jpg"))[part::parts]
