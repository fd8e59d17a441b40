"""What a loaded model is: module, label space, input normalisation, identity, what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from pipeline.label_space import LabelSpace


@dataclass(frozen=True, slots=True)
class ShortestEdge:
    """Resize that keeps the shape: the shorter side becomes `edge`, the longer at most `longest`.

    Both sides are then stretched up to multiples of `divisor`. The rounding is that of torchvision
    and transformers.
    """

    edge: int
    longest: int | None = None
    divisor: int = 1

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of that size is resized to."""
        short, long = min(height, width), max(height, width)
        edge: float = self.edge
        if self.longest is not None and long / short * edge > self.longest:
            edge = self.longest * short / long
        sides = [max(1, round(edge)), max(1, int(edge * long / short))]  # theirs may be 0
        if sides[0] == short:
            sides[1] = long
        sides = [-(-side // self.divisor) * self.divisor for side in sides]
        return (sides[0], sides[1]) if height <= width else (sides[1], sides[0])


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How RGB pixels become a model's input: (pixel / 255 - mean) / std, resized, padded.

    `size` is the model's input height and width, `edge` a resize that keeps the image's shape; with
    neither it stays as large as it is. `multiple` is what both sides must divide by (the caller
    pads). `depth` is the mean and spread, in metres, by which a fourth channel is normalised; where
    there is no depth it is 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    multiple: int = 1
    edge: ShortestEdge | None = None
    depth: tuple[float, float] | None = None

    def inside(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is resized to, before it is padded."""
        if self.size is not None:
            return self.size
        return (height, width) if self.edge is None else self.edge.of(height, width)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": None if self.size is None else list(self.size),
            "multiple": self.multiple,
        }
        if self.edge is not None:
            values["edge"] = [self.edge.edge, self.edge.longest, self.edge.divisor]
        if self.depth is not None:
            values["depth"] = list(self.depth)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return what `to_dict` described."""
        size, edge, depth = values.get("size"), values.get("edge"), values.get("depth")
        return cls(
            mean=tuple(float(v) for v in values["mean"]),
            std=tuple(float(v) for v in values["std"]),
            size=None if size is None else (int(size[0]), int(size[1])),
            multiple=int(values.get("multiple", 1)),
            edge=None if edge is None else ShortestEdge(*edge),
            depth=None if depth is None else (float(depth[0]), float(depth[1])),
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


@dataclass(frozen=True, slots=True)
class Objects:
    """What is kept of what a model finds: objects of at least `score`, the `most` best of them.

    "instance" keeps objects that may overlap; "panoptic" gives each pixel to one segment.
    """

    task: Literal["instance", "panoptic"]
    score: float = 0.5
    most: int = 100

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"task": self.task, "score": self.score, "most": self.most}


@dataclass(slots=True)
class BoxMasks:
    """The objects of one image, each with a small mask that fills its box (Mask R-CNN).

    `boxes` float [n, 4]: x0, y0, x1, y1 in pixels of the model's input; `scores` float [n] in 0..1;
    `channels` int64 [n]: the class is `label_space.train_ids[channel]`; `masks` float [n, m, m]:
    probability of the object.
    """

    boxes: Tensor
    scores: Tensor
    channels: Tensor
    masks: Tensor


@dataclass(slots=True)
class QueryMasks:
    """The queries of one image (Mask2Former and its kin).

    `classes` float [Q, C + 1]: logits, the last is "no object"; `masks` float [Q, h, w]: logits
    over the model's whole input.
    """

    classes: Tensor
    masks: Tensor


@dataclass(slots=True)
class LoadedModel:
    """A network in eval mode and what it needs to be used.

    `module(float [N, 3, H, W])` returns logits [N, C, h, w]; channel i is class
    `label_space.train_ids[i]`. Where `objects` is set, it returns a list of N `BoxMasks` or
    `QueryMasks` instead. `digest` names the weights and everything above that changes the output:
    the same weights have the same digest wherever they were loaded from.
    """

    module: nn.Module
    label_space: LabelSpace
    preprocessing: Preprocessing
    uri: str
    digest: str
    architecture: Architecture = Architecture("python", "unnamed")
    objects: Objects | None = None
