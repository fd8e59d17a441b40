"""What a loaded model is: module, label space, input normalisation, identity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pipeline.label_space import LabelSpace


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How RGB pixels become a model's input: (pixel / 255 - mean) / std, resized, padded.

    `size` is the model's input height and width, None for the image's own; `multiple` is what both
    must divide by (the caller pads).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    multiple: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": None if self.size is None else list(self.size),
            "multiple": self.multiple,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return what `to_dict` described."""
        size = values.get("size")
        return cls(
            mean=tuple(float(v) for v in values["mean"]),
            std=tuple(float(v) for v in values["std"]),
            size=None if size is None else (int(size[0]), int(size[1])),
            multiple=int(values.get("multiple", 1)),
        )


IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a network is without its weights: enough to build it again, as plain JSON values."""

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": self.kind, "name": self.name, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Return what `to_dict` described."""
        return cls(str(values["kind"]), str(values["name"]), dict(values.get("options", {})))


@dataclass(slots=True)
class LoadedModel:
    """A network in eval mode and what it needs to be used.

    `module(float [N, 3, H, W])` returns logits [N, C, h, w]; channel i is class
    `label_space.train_ids[i]`. `digest` names the weights and everything above that changes the
    output: the same weights have the same digest wherever they were loaded from.
    """

    module: nn.Module
    label_space: LabelSpace
    preprocessing: Preprocessing
    uri: str
    digest: str
    architecture: Architecture = Architecture("python", "unnamed")
