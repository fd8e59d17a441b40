"""`hf:` models: semantic and universal segmentation of transformers, from a directory or the hub.

Mask2Former and its kin predict queries, each with a class and a mask. A pixel's score for a class
is the sum over queries of class probability times mask probability; its logarithm is the logit
here, so that softmax gives each class its share of the score (and arg-max is the library's own).
With ?task=instance or ?task=panoptic the queries become objects: `pipeline.predict.instances`.
"""

from __future__ import annotations

import json
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import ModelError, SegmillError, UnknownName, UsageError
from pipeline.models.asked import CLASSES, INPUT, OBJECTS, asked_input, asked_objects
from pipeline.models.classes import check_count, named_space, numbered_space, space_of_size
from pipeline.models.hub import explained, source_of
from pipeline.models.loaded import Architecture, LoadedModel, QueryMasks
from pipeline.models.processors import flips_channels, preprocessing_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.label_space import LabelSpace
    from pipeline.models.hub import Source
    from pipeline.models.uri import ModelUri

_BROKEN: Final = (SafetensorError, UnpicklingError)
_TINY: Final = 1e-6  # below every score that matters; keeps the logarithm finite
TASKED: Final = "oneformer"
"""The model type that is told its task in words, beside the image."""
UNIVERSAL: Final = ("eomt", "eomt_dinov3", "mask2former", "maskformer", TASKED)
"""Model types whose output is class queries and mask queries."""
_OURS: Final = ("bgr", "objects", "task_tokens")
"""What an architecture holds beside transformers' configuration, where it is not the default."""
_NOT_ARCHITECTURE: Final = frozenset(
    {"_name_or_path", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version"}
)


class Semantic(nn.Module):
    """A network with per-pixel logits."""

    def __init__(self, net: nn.Module, *, bgr: bool = False) -> None:
        super().__init__()
        self.net, self._bgr = net, bgr

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [N, C, h, w], usually at a quarter of the input's size."""
        out: Tensor = self.net(pixel_values=image.flip(1) if self._bgr else image).logits
        return out


class Queries(nn.Module):
    """A network that predicts queries; the last class of a query is "no object"."""

    task_tokens: Tensor | None

    def __init__(self, net: nn.Module, task_tokens: list[int] | None = None) -> None:
        super().__init__()
        self.net = net
        tokens = None if task_tokens is None else torch.tensor([task_tokens])
        self.register_buffer("task_tokens", tokens, persistent=False)

    def queries(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [N, Q, C + 1] and mask logits [N, Q, h, w]."""
        told = {}
        if self.task_tokens is not None:
            told["task_inputs"] = self.task_tokens.expand(len(image), -1)
        found = self.net(pixel_values=image, **told)
        return found.class_queries_logits.float(), found.masks_queries_logits.float()


class Universal(Queries):
    """Queries summed up to a score for each class and pixel."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the logarithm of the pixels' class scores [N, C, h, w]."""
        classes, masks = self.queries(image)
        share = classes.softmax(dim=-1)[..., :-1]
        return torch.einsum("nqc,nqhw->nchw", share, masks.sigmoid()).clamp_min(_TINY).log()


class QueryObjects(Queries):
    """Queries as they are."""

    def forward(self, image: Tensor) -> list[QueryMasks]:
        """Return the queries of each image."""
        return [QueryMasks(*one) for one in zip(*self.queries(image), strict=True)]


def load(uri: ModelUri, space: LabelSpace | None, *, pretrained: bool) -> LoadedModel:
    """Return the model of a directory or hub id; its id2label names the classes.

    With `?head=new` the last layer is new and random, for the label space asked for: to train.

    Raises:
        ModelError: the files are not there, the hub cannot be reached, or no known head fits.
        UsageError: nothing says which classes it has, or an option is not one.
    """
    uri.only(*INPUT, *CLASSES, *OBJECTS, "head", "revision", "seed", "task")
    disable_progress_bar()
    source = source_of(uri)
    try:
        return _load(uri, space, source, pretrained=pretrained)
    except SegmillError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, *_BROKEN) as error:
        raise explained(uri, source, error) from error


def _load(
    uri: ModelUri, space: LabelSpace | None, source: Source, *, pretrained: bool
) -> LoadedModel:
    config = AutoConfig.from_pretrained(source.name, **source.options)
    new_head = uri.options.get("head") == "new"
    known = space_of_size(uri, space) if new_head else space or _own_space(uri, config)
    if new_head:
        config.num_labels = len(known.train_ids)
    check_count(uri.text, int(config.num_labels), known)
    objects = asked_objects(uri, uri.options.get("task", "semantic"))
    processor = _processor(source)
    preprocessing = asked_input(uri, preprocessing_of(processor, config.to_dict()))
    ours: dict[str, Any] = {"bgr": True} if flips_channels(processor) else {}
    if objects is not None:
        ours["objects"] = True
        if config.model_type not in UNIVERSAL:
            raise UsageError(
                f"{uri.text}: a {config.model_type} finds no objects; leave ?task= out"
            )
    if config.model_type == TASKED:
        task = "semantic" if objects is None else objects.task
        ours["task_tokens"] = _task_tokens(uri, source, config, task)
    architecture = _architecture(config, ours)
    if pretrained:
        net = _pretrained(uri, source, config, new_head=new_head)
        module = _wrap(config, net.float(), ours)
    else:
        module = build(architecture, int(config.num_labels))
    return LoadedModel(module, known, preprocessing, uri.text, "", architecture, objects)


def _pretrained(uri: ModelUri, source: Source, config: Any, *, new_head: bool) -> nn.Module:
    """Return the network with its weights; a new head's are random, of the URI's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(uri.seed)
        net, report = _class(config).from_pretrained(
            source.name,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **source.options,
        )
    built: nn.Module = net
    if new_head:
        return built
    misfits = sorted(report["mismatched_keys"])
    if misfits:
        name, found, own = misfits[0]
        raise ModelError(
            f"{uri.text}: {len(misfits)} tensors have other shapes than config.json says, "
            f"{name!r} first: {tuple(found)}, not {tuple(own)}; restore the config.json of these "
            "weights"
        )
    if report["missing_keys"]:
        raise ModelError(
            f"{uri.text}: {len(report['missing_keys'])} tensors are missing "
            f"({min(report['missing_keys'])!r} first), so it has no trained head; train it with "
            "?head=new&label_space=NAME"
        )
    return built


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build a network from its configuration, without weights."""
    options = dict(architecture.options)
    ours: dict[str, Any] = {key: options.pop(key) for key in _OURS if key in options}
    config = AutoConfig.for_model(options.pop("model_type"), **options, num_labels=classes)
    return _wrap(config, _class(config)(config).float(), ours)  # some of it may be float64


def _class(config: Any) -> Any:
    """Return transformers' class for a configuration."""
    if type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[type(config)]
    if config.model_type in UNIVERSAL:
        return MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
    semantic = [kind.model_type for kind in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING]
    raise UnknownName("transformers segmentation model", config.model_type, [*semantic, *UNIVERSAL])


def _wrap(config: Any, net: nn.Module, ours: Mapping[str, Any]) -> nn.Module:
    if config.model_type not in UNIVERSAL:
        return Semantic(net, bgr=bool(ours.get("bgr")))
    return (QueryObjects if ours.get("objects") else Universal)(net, ours.get("task_tokens"))


def _architecture(config: Any, ours: Mapping[str, Any]) -> Architecture:
    """Return the network's class and its whole configuration: all that building it takes."""
    options = {k: v for k, v in config.to_dict().items() if k not in _NOT_ARCHITECTURE}
    return Architecture("hf", _class(config).__name__, json.loads(json.dumps(options)) | ours)


def _own_space(uri: ModelUri, config: Any) -> LabelSpace:
    count = uri.integer("classes")
    if count is not None:
        return numbered_space(count)
    try:
        return named_space([str(config.id2label[i]) for i in range(int(config.num_labels))])
    except UsageError as error:
        raise UsageError(f"{uri.text}: {error}") from None


def _processor(source: Source) -> Mapping[str, Any] | None:
    """Return the image processor's configuration, None where there is none.

    A hub that does not answer is an error: the same model would get another preprocessing.
    """
    files = (
        cached_file(
            source.name, name, _raise_exceptions_for_missing_entries=False, **source.options
        )
        for name in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)
    )
    if not any(files):
        return None
    return dict(AutoImageProcessor.from_pretrained(source.name, **source.options).to_dict())


def _task_tokens(uri: ModelUri, source: Source, config: Any, task: str) -> list[int]:
    """Return OneFormer's task in words, as the numbers that its tokenizer makes of them."""
    length = int(config.task_seq_len)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.options)
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{uri.text}: a OneFormer needs its tokenizer's files beside the weights ({cause})"
        ) from None
    told = tokenizer(
        f"the task is {task}", padding="max_length", max_length=length, truncation=True
    )
    pairs = zip(told["input_ids"], told["attention_mask"], strict=True)
    return [int(token) * int(seen) for token, seen in pairs]
