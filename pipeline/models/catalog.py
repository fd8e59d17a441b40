"""Every network that can be named: the zoo's and the libraries', with what each costs.

Networks are built without memory for their numbers (torch's meta device), so that the largest takes
no longer than the smallest; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.architectures import MODELS
from pipeline.models.heads import parameters_in_use
from pipeline.models.loaded import Architecture
from pipeline.models.shipped import KIND, SHIPPED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

Size = tuple[int, int]
"""Height and width."""

_FLOPS_PER_MAC: Final = 2
_ENCODER: Final = "resnet34"
_ENCODER_STRIDE: Final = 32
_SMP: Final[Mapping[str, tuple[str, str]]] = {
    "DeepLabV3": (_ENCODER, "Chen 2017, arXiv 1706.05587"),
    "DeepLabV3Plus": (_ENCODER, "Chen 2018, arXiv 1802.02611"),
    "DPT": ("tu-vit_base_patch16_224.augreg_in21k", "Ranftl 2021, arXiv 2103.13413"),
    "FPN": (_ENCODER, "Kirillov 2019, arXiv 1901.02446"),
    "Linknet": (_ENCODER, "after Chaurasia 2017; the paper's is zoo:linknet"),
    "MAnet": (_ENCODER, "Fan 2020, IEEE Access 8"),
    "PAN": (_ENCODER, "Li 2018, arXiv 1805.10180"),
    "PSPNet": (_ENCODER, "after Zhao 2017; the paper's is zoo:pspnet101"),
    "Segformer": ("mit_b0", "Xie 2021, arXiv 2105.15203"),
    "Unet": (_ENCODER, "after Ronneberger 2015; the paper's is zoo:unet"),
    "UnetPlusPlus": (_ENCODER, "Zhou 2018, arXiv 1807.10165"),
    "UPerNet": (_ENCODER, "Xiao 2018, arXiv 1807.10221"),
}
"""Encoder and source of each architecture of segmentation_models_pytorch."""
_TORCHVISION: Final[Mapping[str, str]] = {
    "deeplabv3_mobilenet_v3_large": "Chen 2017, arXiv 1706.05587",
    "deeplabv3_resnet50": "Chen 2017, arXiv 1706.05587",
    "deeplabv3_resnet101": "Chen 2017, arXiv 1706.05587",
    "fcn_resnet50": "after Shelhamer 2017: dilated, no skips; the paper's are zoo:fcn8s ...",
    "fcn_resnet101": "after Shelhamer 2017: dilated, no skips; the paper's are zoo:fcn8s ...",
    "lraspp_mobilenet_v3_large": "Howard 2019, arXiv 1905.02244",
    "maskrcnn_resnet50_fpn": "He 2017, arXiv 1703.06870",
    "maskrcnn_resnet50_fpn_v2": "Li 2021, arXiv 2111.11429",
}
_TRANSFORMERS: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "beit": ({"out_indices": [3, 5, 7, 11]}, "Bao 2022, arXiv 2106.08254"),
    "dpt": ({}, "Ranftl 2021, arXiv 2103.13413"),
    "eomt": ({}, "Kerssies 2025, arXiv 2503.19108"),
    "mask2former": ({}, "Cheng 2022, arXiv 2112.01527"),
    "maskformer": ({}, "Cheng 2021, arXiv 2107.06278"),
    "mobilenet_v2": ({}, "Sandler 2018, arXiv 1801.04381"),
    "mobilevit": ({}, "Mehta 2022, arXiv 2110.02178"),
    "oneformer": ({}, "Jain 2023, arXiv 2211.06220"),
    "segformer": ({}, "Xie 2021, arXiv 2105.15203"),
    "upernet": ({}, "Xiao 2018, arXiv 1807.10221"),
}
"""Model types of transformers in their default configuration, and what it needs beside."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A network that can be named: `kind:name` is its URI, but for "hf", which names a directory.

    `options` are those that its figures are of; `library` is where its code comes from.
    """

    kind: str
    name: str
    library: str
    source: str
    options: Mapping[str, Any]

    @property
    def uri(self) -> str:
        """What `--model` takes; for transformers, what is to stand there."""
        if self.kind == "hf":
            return f"hf:(a {self.name} model)"
        text = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.kind}:{self.name}" + (f"?{text}" if text else "")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs for one image of `size`, height and width.

    `multiply_adds` counts convolutions and matrix products; `stride` is the image's height over the
    logits'. Both are None where they cannot be had without running the network.
    """

    parameters: int
    size: Size
    multiply_adds: int | None
    stride: int | None


def entries() -> Iterator[Entry]:
    """Yield all networks by kind and name; imports no library."""
    for name, spec in MODELS.items():
        yield Entry("zoo", name, "segmill", spec.source, {})
    for name, shipped in SHIPPED.items():
        yield Entry(KIND, name, "segmill", shipped.source, {})
    library = f"segmentation-models-pytorch {version('segmentation-models-pytorch')}"
    for name, (encoder, source) in _SMP.items():
        yield Entry("smp", name, library, source, {"encoder_name": encoder})
    library = f"torchvision {version('torchvision').partition('+')[0]}"
    for name, source in _TORCHVISION.items():
        yield Entry("torchvision", name, library, source, {})
    library = f"transformers {version('transformers')}"
    for name, (options, source) in _TRANSFORMERS.items():
        yield Entry("hf", name, library, source, options)


def cost(entry: Entry, size: Size, classes: int) -> Cost:
    """Return what an entry costs; `size` is brought to one that the network takes."""
    net, multiple, fixed = _unfilled(entry, classes)
    with torch.device("meta"), torch.no_grad():
        high, wide = fixed or tuple(-(-side // multiple) * multiple for side in size)
        parameters = parameters_in_use(net)
        image = torch.zeros(1, int(getattr(net, "in_channels", 3)), high, wide)
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                logits = net(image)
        except (RuntimeError, NotImplementedError):  # it asks for a number, where there is none
            return Cost(parameters, (high, wide), None, None)
        total = counter.get_total_flops() // _FLOPS_PER_MAC
        return Cost(parameters, (high, wide), total, round(high / logits.shape[2]))


def _unfilled(entry: Entry, classes: int) -> tuple[nn.Module, int, Size | None]:
    """Return what `_build` does, in eval mode, without memory for its numbers."""
    try:
        with torch.device("meta"):
            net, multiple, fixed = _build(entry, classes)
    except RuntimeError:  # its constructor computes with numbers
        net, multiple, fixed = _build(entry, classes)
    return net.eval().to("meta"), multiple, fixed


def _build(entry: Entry, classes: int) -> tuple[nn.Module, int, Size | None]:
    """Return a network, what its input's sides divide by, and its input's size if it has one."""
    architecture = Architecture(entry.kind, entry.name, entry.options)
    if entry.kind == KIND:
        architecture = Architecture("zoo", SHIPPED[entry.name].network)
    if architecture.kind == "zoo":
        from pipeline.models import zoo

        return zoo.build(architecture, classes), MODELS[architecture.name].input_multiple, None
    if entry.kind == "smp":
        from pipeline.models import smp

        fixed = (224, 224) if entry.name == "DPT" else None
        return smp.build(architecture, classes), _ENCODER_STRIDE, fixed
    if entry.kind == "torchvision":
        from pipeline.models import torchvision

        return torchvision.build(architecture, classes), 1, None
    return _transformer(entry, classes)


def _transformer(entry: Entry, classes: int) -> tuple[nn.Module, int, Size | None]:
    """Return a network of transformers in its default configuration."""
    from transformers import (
        AutoConfig,
        AutoModelForSemanticSegmentation,
        AutoModelForUniversalSegmentation,
    )

    from pipeline.models import hf

    config = AutoConfig.for_model(entry.name, num_labels=classes, **entry.options)
    side = getattr(config, "image_size", None)
    fixed = (side, side) if isinstance(side, int) else None
    if entry.name in hf.UNIVERSAL:
        net = AutoModelForUniversalSegmentation.from_config(config)
        tokens = [0] * config.task_seq_len if entry.name == hf.TASKED else None
        return hf.Universal(net, tokens), _ENCODER_STRIDE, fixed
    net = AutoModelForSemanticSegmentation.from_config(config)
    return hf.Semantic(net), _ENCODER_STRIDE, fixed
