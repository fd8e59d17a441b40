"""Recipes: what a training run does, as a YAML file checked before anything starts.

A recipe that ships with segmill goes by its name (`--recipe camvid-fpn`), any other by its path.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UnknownName, UsageError
from pipeline.training.methods.options import AnyMethod, Supervised

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
"""Height and width in pixels."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Jitter(_Part):
    """Colour changes: each a factor drawn from 1 - x to 1 + x."""

    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0


class Augment(_Part):
    """What is drawn anew for each sample: scale, place of the crop, mirroring, colours."""

    crop: Size
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """The image's magnification, drawn evenly on a logarithmic scale."""
    flip: Share = 0.5
    """How often the image is mirrored left to right."""
    jitter: Jitter = Jitter()
    focus: Share = 0.0
    """How often the crop lies over a pixel of a class drawn evenly from those in the image."""
    paste: Share = 0.0
    """How often a sample gets the things of the one before it in the batch pasted over it.

    Things are what the label space says; where it says nothing, half of the sample's classes.
    """

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale is [least, greatest]")
        return self


class Optimiser(_Part):
    """How weights move, and how fast over the run, be it one of epochs or of minutes."""

    name: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    """adamw decays weights apart from the gradient (1711.05101), the others through it."""
    lr: Positive = 1e-3
    backbone_lr: Positive = 1.0
    """What the rate is multiplied by in the network's backbone, for one that starts trained."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Not applied to biases, norms and other one-dimensional parameters."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; the others have their usual moments."""
    nesterov: bool = False
    schedule: Literal["cosine", "poly", "step", "exponential", "constant"] = "cosine"
    """From `lr` down to `final` times it: cosine, (1 - share) ** power, by `gamma` at each share
    of `milestones`, by the same factor all along, or not at all."""
    power: Positive = 0.9
    milestones: tuple[Share, ...] = ()
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Share = 0.03
    """The share of the run in which the rate rises from nothing."""
    final: Share = 0.0
    """Of cosine, poly and exponential."""
    clip_norm: Positive | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule: step and milestones: [shares of the run] go together")
        if self.schedule == "exponential" and not self.final:
            raise ValueError("schedule: exponential needs final, the factor at the end, above 0")
        if self.nesterov and not (self.name == "sgd" and self.momentum):
            raise ValueError("nesterov is for sgd with momentum")
        return self


class LossTerm(_Part):
    """One loss of the sum; in a recipe its name alone will do (`loss: [cross-entropy, dice]`)."""

    name: str
    """One of `pipeline.training.losses.LOSSES`."""
    weight: float = 1.0
    ramp_to: float | None = None
    """The weight at the end of the run, reached evenly; None: it stays the same."""
    class_weights: bool = True
    """Whether the recipe's class weights go into this loss."""
    options: dict[str, float | bool] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class DepthScale(_Part):
    """How depth becomes the fourth channel: (metres - mean) / std, 0 where nothing was measured."""

    mean: float
    std: Positive


class Recipe(_Part):
    """One training run; either `epochs` or `minutes` ends it, or whichever comes first."""

    model: str
    """A model URI; the recipe's seed is that of its initial weights unless it names one."""
    start_from: str | None = None
    """A weights file or model directory; tensors of the same name and shape are taken from it."""
    label_space: str | None = None
    """Classes to learn, masks are remapped on the fly; None: the model's own, or the store's."""
    input_size: Size | None = None
    """Size that all images are brought to, now and in use; None: the model's, or their own."""
    depth: DepthScale | None = None
    """For models of colour and depth: reads the store's depth maps beside the images."""
    method: AnyMethod = Supervised()
    """How it learns: from labels alone, or with one of `pipeline.training.methods`."""
    augment: Augment
    optimiser: Optimiser = Optimiser()
    loss: Annotated[tuple[LossTerm, ...], Field(min_length=1)] = (LossTerm(name="cross-entropy"),)
    """What is made small: a sum of losses, each with its weight."""
    class_weights: Literal[
        "none", "median-frequency", "enet", "inverse-sqrt", "effective-number"
    ] = "none"
    oversample: Annotated[float, Field(gt=0, le=1)] | None = None
    """Images of a class that fewer than this share of the images show are repeated, the rarer the
    more: sqrt(share / its share) times for the rarest class in it (LVIS, 1908.03195)."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Samples in a step of one worker."""
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Steps whose gradients are added up before the weights change."""
    epochs: Annotated[int, Field(gt=0)] | None = None
    minutes: Positive | None = None
    steps_per_epoch: Annotated[int, Field(gt=0)] | None = None
    """None: as many as the split has full batches."""
    validate_every: Annotated[int, Field(gt=0)] = 1
    """Epochs from one validation to the next."""
    early_stop: Annotated[int, Field(gt=0)] | None = None
    """Validations in a row without a better mIoU that end the run."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, which is then what is validated and saved."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 (or fp16) on a GPU, fp32 on the CPU."""
    seed: Annotated[int, Field(ge=0)] = 0
    shuffle_rows: Annotated[int, Field(gt=0)] = 2048
    """Rows held to draw the next one from; fewer where they are large."""
    cache: Literal["none", "memory"] = "none"
    """memory: decoded images of `train` stay in each worker's memory from epoch to epoch."""
    cache_mib: Annotated[int, Field(gt=0)] = 1024
    """As many as fit into it; the others are decoded each time."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.epochs is None and self.minutes is None:
            raise ValueError("name epochs, minutes or both: the run would have no end")
        return self

    @model_validator(mode="after")
    def _colours_alone(self) -> Self:
        if self.depth is not None and self.method.name != "supervised":
            raise ValueError(
                f"method {self.method.name!r} learns from colours alone; leave depth out"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return dict(json.loads(self.model_dump_json()))


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with segmill, by name."""
    folder = Path(str(files("pipeline.training"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(source: str, **overrides: Any) -> Recipe:
    """Read a recipe from a YAML file, or a shipped one by name; overrides of None don't count.

    Raises:
        UnknownName: no such file and no such name.
        UsageError: the text is no recipe; says which key is wrong and why.
    """
    path = Path(source)
    if not path.is_file():
        if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
            raise UsageError(f"{source}: no such recipe file")
        shipped = shipped_recipes()
        if source not in shipped:
            raise UnknownName("recipe", source, shipped)
        path = shipped[source]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{source}: a recipe is a mapping of keys to values")
    values |= {k: v for k, v in overrides.items() if v is not None}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: {_complaints(error)}") from None


def _complaints(error: ValidationError) -> str:
    """Name each wrong key, what is wrong and what was found, in one line."""
    texts = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"])) or "recipe"
        found = "" if item["type"] in {"missing", "value_error"} else f", not {item['input']!r}"
        texts.append(f"{key}: {item['msg']}{found}")
    return "; ".join(texts)
