"""Labels straight from a predictor on the CPU, and images for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.models import load_model
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Picture, Predictor
from pipeline.streetscenes import scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ENET = "zoo:enet?label_space=camvid-11&seed=3"
PLAIN = "python:tests.tiny_net:plain?label_space=camvid-11&seed=1"
OTHER = "python:tests.tiny_net:plain?label_space=camvid-11&seed=2"
CPU = torch.device("cpu")


def labels_of(uri: str, images: Sequence[NDArray[np.uint8]], **options: Any) -> Any:
    predictor = Predictor(load_model(uri), CPU, LabelOptions(**options))
    return predictor.predict([Picture(i, i.shape[:2], f"{n}.png") for n, i in enumerate(images)])


def street(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(scene(seed, height, width)[0])


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def softmax_by_hand(uri: str, image: NDArray[np.uint8], inside: tuple[int, int]) -> torch.Tensor:
    """Probabilities [C, H, W] in plain torch: resize, normalise, forward, resize back, soft-max."""
    model, size = load_model(uri), image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    if inside != size:
        pixels = torch.nn.functional.interpolate(pixels, inside, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1)
                 for v in (model.preprocessing.mean, model.preprocessing.std))  # fmt: skip
    with torch.inference_mode():
        logits = model.module((pixels - mean) / std)
        return torch.nn.functional.interpolate(logits, size, mode="bilinear").softmax(1)[0]


def assert_labels(found: Any, p: torch.Tensor) -> None:
    """Check ids and confidence against probabilities [C, H, W]; near ties may fall either way."""
    two = p.topk(2, dim=0).values
    tied = (two[0] - two[1]).numpy() < 1e-4
    assert ((found.ids == p.argmax(0).numpy()) | tied).all()
    expected = np.round(255 * p.max(0).values.numpy())
    assert np.abs(found.confidence.astype(int) - expected).max() <= 1
