"""`shipped:` models: trained model directories that come with segmill; nothing is fetched.

Weights are kept in half precision and loaded as float32. Each directory has a README.md, the card:
data, licence, metrics, limits. `benchmarks/ship_model.py` makes one from what `train` wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.label_space import LabelSpace
    from pipeline.models.loaded import LoadedModel
    from pipeline.models.uri import ModelUri

KIND: Final = "shipped"
ROOT: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """What a shipped model is, and what is to be told where nobody chose it."""

    network: str
    source: str
    limits: str


SHIPPED: Final[Mapping[str, ShippedModel]] = {
    "camvid-lite": ShippedModel(
        network="lite-fpn",
        source="trained by us on CamVid, 11 classes",
        limits="it knows 11 street classes (sky, building, pole, road, sidewalk, tree, sign, "
        "fence, car, pedestrian, bicyclist) as a car sees them by day, and gives every pixel one "
        "of them",
    ),
}
"""Models by name; `shipped:NAME` loads one."""
DEFAULT: Final = f"{KIND}:camvid-lite"
"""What labels where no model is named."""


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return a shipped model.

    Raises:
        UnknownName: none is called so.
        ModelError: the label space asked for has another number of classes.
    """
    from pipeline.models import directory
    from pipeline.models.asked import CLASSES

    uri.only(*CLASSES)
    return directory.load(replace(uri, name=folder(uri.name)), space, pretrained=pretrained)


def folder(name: str) -> str:
    """Return the model directory of a shipped model.

    Raises:
        UnknownName: none is called so.
    """
    if name not in SHIPPED:
        raise UnknownName("shipped model", name, SHIPPED)
    return str(ROOT / name)


def announcement(uri: str) -> str:
    """Return what to tell who named no model."""
    name = uri.removeprefix(f"{KIND}:")
    return (
        f"no --model: {uri} labels, a small network that comes with segmill; "
        f"{SHIPPED[name].limits}; its card: {ROOT / name / 'README.md'}"
    )
