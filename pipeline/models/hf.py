"""`hf:` models: semantic and universal segmentation of transformers, from a directory or the hub.

Mask2Former and its kin predict queries, each with a class and a mask. A pixel's score for a class
is the sum over queries of class probability times mask probability; its logarithm is the logit
here, so that softmax gives each class its share of the score (and arg-max is the library's own).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import ModelError, SegmillError, UnknownName
from pipeline.models.classes import check_count, named_space, space_of_size
from pipeline.models.loaded import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    LoadedModel,
    Preprocessing,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.uri import ModelUri

_MULTIPLE: Final = 32
_TINY: Final = 1e-6  # below every score that matters; keeps the logarithm finite
_UNIVERSAL: Final = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
"""Model types whose output is class queries and mask queries, and that need the image alone."""
_NOT_ARCHITECTURE: Final = frozenset(
    {"_name_or_path", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version"}
)


class Semantic(nn.Module):
    """A network with per-pixel logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, C, h, w], usually at a quarter of the input's size."""
        out: Tensor = self.net(pixel_values=image).logits
        return out


class Universal(nn.Module):
    """A network that predicts queries; the last class of a query is "no object"."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the logarithm of the pixels' class scores [N, C, h, w]."""
        found = self.net(pixel_values=image)
        classes = found.class_queries_logits.float().softmax(dim=-1)[..., :-1]
        masks = found.masks_queries_logits.float().sigmoid()
        return torch.einsum("nqc,nqhw->nchw", classes, masks).clamp_min(_TINY).log()


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the model of a directory or hub id; its id2label names the classes.

    With `?head=new` the last layer is new and random, for the label space asked for: to train.

    Raises:
        ModelError: the files are not there, the hub cannot be reached, or no known head fits.
    """
    local = os.path.isdir(uri.name)
    disable_progress_bar()
    try:
        return _load(uri, space, local=local, pretrained=pretrained)
    except SegmillError:
        raise
    except (OSError, ValueError, ImportError) as error:
        cause = str(error).strip().splitlines()[0]
        what = (
            "holds no whole model" if local else "is no directory, and the hub gives no such model"
        )
        raise ModelError(
            f"{uri.text}: {what} ({cause}); give a directory written by save_pretrained"
        ) from None


def _load(uri: ModelUri, space: LabelSpace | None, *, local: bool, pretrained: bool) -> LoadedModel:
    config = AutoConfig.from_pretrained(uri.name, local_files_only=local)
    new_head = uri.options.get("head") == "new"
    known = space_of_size(uri, space) if new_head else space or _own_space(config)
    if new_head:
        config.num_labels = len(known.train_ids)
    check_count(uri.text, int(config.num_labels), known)
    preprocessing = _preprocessing(uri.name, config, local=local)
    architecture = _architecture(config)
    if not pretrained:
        module = build(architecture, int(config.num_labels))
        return LoadedModel(module, known, preprocessing, uri.text, "", architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        net, report = _class(config).from_pretrained(
            uri.name,
            config=config,
            local_files_only=local,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
        )
    if report["missing_keys"] and not new_head:
        raise ModelError(
            f"{uri.text}: {len(report['missing_keys'])} tensors are missing, so it has no trained "
            "head; train it with ?head=new&label_space=NAME"
        )
    module = _wrap(config, net.float())
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build a network from its configuration, without weights."""
    options = dict(architecture.options)
    config = AutoConfig.for_model(options.pop("model_type"), **options, num_labels=classes)
    return _wrap(config, _class(config)(config))


def _class(config: Any) -> Any:
    """Return transformers' class for a configuration."""
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)]
    if config.model_type in _UNIVERSAL:
        return MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
    semantic = [kind.model_type for kind in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING]
    raise UnknownName(
        "transformers segmentation model", config.model_type, [*semantic, *_UNIVERSAL]
    )


def _wrap(config: Any, net: nn.Module) -> nn.Module:
    return Universal(net) if config.model_type in _UNIVERSAL else Semantic(net)


def _architecture(config: Any) -> Architecture:
    """Return the network's class and its whole configuration: all that building it takes."""
    options = {k: v for k, v in config.to_dict().items() if k not in _NOT_ARCHITECTURE}
    return Architecture("hf", _class(config).__name__, json.loads(json.dumps(options)))


def _own_space(config: Any) -> LabelSpace:
    return named_space([str(config.id2label[i]) for i in range(int(config.num_labels))])


def _preprocessing(name: str, config: Any, *, local: bool) -> Preprocessing:
    """Read the image processor's configuration; ImageNet's normalisation where there is none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError):
        return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, multiple=_MULTIPLE)
    mean, std = _normalisation(processor)
    size = _size(processor) or _fixed_size(config)
    multiple = int(getattr(processor, "size_divisor", None) or _MULTIPLE)
    return Preprocessing(mean, std, size, 1 if size else multiple)


def _normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for pixels in 0..1, whatever the processor scales by."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if getattr(processor, "do_normalize", True):
        mean = tuple(map(float, getattr(processor, "image_mean", None) or IMAGENET_MEAN))
        std = tuple(map(float, getattr(processor, "image_std", None) or IMAGENET_STD))
    rescale = getattr(processor, "do_rescale", True)
    scale = 255 * float(getattr(processor, "rescale_factor", None) or 1 / 255) if rescale else 255.0
    return tuple(v / scale for v in mean), tuple(v / scale for v in std)


def _size(processor: Any) -> tuple[int, int] | None:
    """Return a fixed input size; None where the processor keeps the image's shape."""
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", True) or size is None:
        return None
    height, width = (
        (size.get("height"), size.get("width"))
        if hasattr(size, "get")
        else (getattr(size, "height", None), getattr(size, "width", None))
    )
    return (int(height), int(width)) if height and width else None


def _fixed_size(config: Any) -> tuple[int, int] | None:
    """Return the only input size that a plain vision transformer takes."""
    size = getattr(config, "image_size", None)
    if config.model_type not in {"eomt", "eomt_dinov3"} or size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
