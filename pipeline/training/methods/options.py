"""The methods that a recipe can name, and their options; no torch here.

`method: mean-teacher`, or with options `method: {name: mean-teacher, threshold: 0.9}`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]

Stream: TypeAlias = Literal["unlabelled", "weak"]
"""Images beside the labelled ones: random crops of them, or whole ones with image-level labels."""


class _Method(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def needs(self) -> frozenset[Stream]:
        """The streams that it learns from beside labelled images."""
        return frozenset({"unlabelled"})


class Supervised(_Method):
    """Labelled images alone."""

    name: Literal["supervised"] = "supervised"

    @property
    def needs(self) -> frozenset[Stream]:
        """None."""
        return frozenset()


class MeanTeacher(_Method):
    """Mean Teacher with CutMix."""

    name: Literal["mean-teacher"] = "mean-teacher"
    decay: Part = 0.99
    """Of the moving average that is the teacher, and is what is saved; the recipe's `ema` is not
    used."""
    weight: Weight = 1.0
    ramp: Share = 0.2
    """The share of the run over which the weight grows."""
    threshold: Share = 0.97
    """The teacher's least confidence in a pixel that counts."""
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    """On the sure pixels' classes, or on all probabilities scaled by the share of sure pixels."""
    area: tuple[Share, Share] = (0.25, 0.5)
    """The share of an image that the box of another one covers."""


class UniMatch(_Method):
    """UniMatch (version 1) and UniMatch V2."""

    name: Literal["unimatch"] = "unimatch"
    version: Literal[1, 2] = 1
    threshold: Share = 0.95
    """The least confidence in a pixel that counts."""
    drop: Part = 0.5
    """Version 1: the share of feature channels that are dropped."""
    decay: Part = 0.996
    """Version 2: of the moving average that labels and is saved, instead of the recipe's `ema`."""


class SelfTraining(_Method):
    """Self-training in three stages, reliable images first (ST++)."""

    name: Literal["self-training"] = "self-training"
    reliable: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the images that teach the first student."""
    weight: Weight = 1.0
    threshold: Share = 0.0
    """The teacher's least confidence in a pixel that counts."""


class AdvSemiSeg(_Method):
    """Adversarial learning with a discriminator of label maps."""

    name: Literal["advsemiseg"] = "advsemiseg"
    adversarial: Weight = 0.01
    adversarial_unlabelled: Weight = 0.001
    weight: Weight = 0.1
    """Of the loss on trusted pixels."""
    threshold: Share = 0.2
    """The discriminator's least belief in a pixel that is trusted."""
    start: Share = 0.25
    """The share of the run after which trusted pixels are learned."""
    critic_lr: Rate = 1e-4


class GanSS(_Method):
    """The segmenter as a discriminator of K + 1 classes against a generator of images."""

    name: Literal["gan-ss"] = "gan-ss"
    form: Literal["semi", "weak"] = "semi"
    """Images without labels, or images with image-level labels, which the generator is given."""
    weight: Weight = 0.5
    """Of "not fake" and "fake" against the labelled loss."""
    generator_lr: Rate = 2e-4
    width: Annotated[int, Field(gt=0)] = 32
    """Channels of the generator's last features."""

    @property
    def needs(self) -> frozenset[Stream]:
        """What its form learns from."""
        return frozenset({"weak" if self.form == "weak" else "unlabelled"})


class DecoupledNet(_Method):
    """Classification from image-level labels, figure and ground from masks."""

    name: Literal["decouplednet"] = "decouplednet"
    classify: Part = 0.4
    """The share of the run in which the classification network learns."""
    together: Share = 0.25
    """How often all of an image's classes are one figure, where the model has a background."""

    @property
    def needs(self) -> frozenset[Stream]:
        """Images with image-level labels."""
        return frozenset({"weak"})


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Options: TypeAlias = Annotated[
    Supervised | MeanTeacher | UniMatch | SelfTraining | AdvSemiSeg | GanSS | DecoupledNet,
    Field(discriminator="name"),
]
AnyMethod: TypeAlias = Annotated[_Options, BeforeValidator(_by_name)]
"""A method's options; its name alone stands for the defaults."""
