"""`smp:` models: segmentation_models_pytorch's architectures on any of its encoders.

Its constructors download encoder weights unless told otherwise; here `?encoder_weights=imagenet`
has to be asked for.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

import segmentation_models_pytorch
import torch

from pipeline.errors import ModelError, UnknownName, UsageError
from pipeline.models.classes import space_of_size
from pipeline.models.loaded import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    LoadedModel,
    Preprocessing,
)

if TYPE_CHECKING:
    from torch import nn

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

_OURS: Final = {"self", "kwargs", "classes", "in_channels"}
_TIMM: Final = "tu-"
_MULTIPLE: Final = 32  # the deepest stride of its encoders
_NAMES: Final = {
    known.__name__: name
    for name, known in segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING.items()
}


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the architecture with the random weights of its seed, or a pretrained encoder."""
    options = {"encoder_name": "resnet34"} | uri.build_options()
    encoder_weights = options.pop("encoder_weights", None) if pretrained else None
    architecture = Architecture("smp", uri.name, options)
    known = space_of_size(uri, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        module = build(architecture, len(known.train_ids), encoder_weights)
    multiple = max(_MULTIPLE, int(getattr(module.encoder, "output_stride", _MULTIPLE)))
    mean, std = _normalisation(str(options["encoder_name"]))
    preprocessing = Preprocessing(mean, std, multiple=multiple)
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


def build(
    architecture: Architecture, classes: int, encoder_weights: str | None = None
) -> nn.Module:
    """Build an architecture on its encoder; nothing is downloaded unless weights are named."""
    if architecture.name not in _NAMES:
        raise UnknownName("smp architecture", architecture.name, _NAMES)
    _check_options(architecture)
    try:
        built: nn.Module = segmentation_models_pytorch.create_model(
            _NAMES[architecture.name],
            encoder_weights=encoder_weights,
            in_channels=3,
            classes=classes,
            **architecture.options,
        )
    except KeyError as error:
        raise UsageError(f"{architecture}: {str(error.args[0]).splitlines()[0]}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{architecture}: {error}") from None
    except OSError as error:
        raise ModelError(
            f"{architecture}: the encoder's weights cannot be downloaded ({error}); leave "
            "?encoder_weights= out, or give --weights"
        ) from None
    return built


def _normalisation(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation that an encoder's published weights were trained with."""
    if not encoder.startswith(_TIMM):
        return IMAGENET_MEAN, IMAGENET_STD
    import timm

    told = timm.get_pretrained_cfg(encoder.removeprefix(_TIMM))
    return (IMAGENET_MEAN, IMAGENET_STD) if told is None else (tuple(told.mean), tuple(told.std))


def _check_options(architecture: Architecture) -> None:
    """Refuse options that the constructor would swallow; timm's encoders take any."""
    kind = segmentation_models_pytorch.MODEL_ARCHITECTURES_MAPPING[_NAMES[architecture.name]]
    known = inspect.signature(kind.__init__).parameters
    unknown = sorted(set(architecture.options) - set(known))
    if unknown and not str(architecture.options.get("encoder_name")).startswith("tu-"):
        raise UsageError(
            f"{architecture}: no option {', '.join(unknown)}; it takes: "
            + ", ".join(sorted(set(known) - _OURS))
        )
