"""The zoo: architectures of our own, by name, with where each comes from.

Nothing is imported until one is built. `docs/models.md` has their parameters, multiply-adds and the
options that they take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pipeline.models.loaded import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One architecture; `build` is `module:callable`, called with classes=C and the options."""

    build: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the name means; the URI's options add to them."""
    input_multiple: int = 1
    """What input sides divide by, so that logits lie evenly over the image; all sizes work."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


_ATTENTION: Final = "Oktay 2018, arXiv 1804.03999"
_DEEPLAB2: Final = "Chen 2017, arXiv 1606.00915"
_DENSEASPP: Final = "Yang 2018, CVPR"
_DILATION: Final = "Yu & Koltun 2016, arXiv 1511.07122"
_FCN: Final = "Shelhamer 2017, arXiv 1605.06211"
_FRRN: Final = "Pohlen 2017, arXiv 1611.08323"
_LIGHT: Final = "Nekrasov 2018, arXiv 1810.03272"
_PSPNET: Final = "Zhao 2017, arXiv 1612.01105"
_R2: Final = "Alom 2018, arXiv 1802.06955"
_RDFNET: Final = "Park 2017, ICCV"
_REFINENET: Final = "Lin 2017, arXiv 1611.06612"
_SEGNET: Final = "Badrinarayanan 2017, arXiv 1511.00561"
_TIRAMISU: Final = "Jégou 2017, arXiv 1611.09326"
_UNET: Final = "Ronneberger 2015, arXiv 1505.04597"


def _of(build: str, source: str, multiple: int = 1, **options: Any) -> ModelSpec:
    return ModelSpec(f"pipeline.models.{build}", source, options, multiple)


MODELS: Final[Mapping[str, ModelSpec]] = {
    "attention_unet": _of("unet_family:NormUNet", _ATTENTION, attention=True),
    "cenet": _of("cenet:CENet", "Gu 2019, arXiv 1903.02740"),
    "deeplab_v1": _of("deeplab:DeepLabV1", "Chen 2015, arXiv 1412.7062", 8),
    "deeplab_v1_msc": _of("deeplab:DeepLabV1", "Chen 2015, arXiv 1412.7062", 8, multiscale=True),
    "deeplab_v2": _of("deeplab:DeepLabV2", _DEEPLAB2, 8),
    "deeplab_v2_vgg16": _of("deeplab:DeepLabV2VGG", _DEEPLAB2, 8),
    "decouplednet": _of("decouplednet:DecoupledNet", "after Hong 2015, arXiv 1506.04924", 32),
    "denseaspp121": _of("denseaspp:DenseASPP", _DENSEASPP, 8, depth=121),
    "denseaspp161": _of("denseaspp:DenseASPP", _DENSEASPP, 8, depth=161),
    "denseaspp169": _of("denseaspp:DenseASPP", _DENSEASPP, 8, depth=169),
    "denseaspp201": _of("denseaspp:DenseASPP", _DENSEASPP, 8, depth=201),
    "dilation7": _of("dilation:Dilation", _DILATION, 8, layers=7),
    "dilation8": _of("dilation:Dilation", _DILATION, 8, layers=8),
    "dilation8_large": _of("dilation:Dilation", _DILATION, 8, layers=8, context="large"),
    "dilation10": _of("dilation:Dilation", _DILATION, 8, layers=10, deconv=True),
    "dilation_frontend": _of("dilation:Dilation", _DILATION, 8, context="none"),
    "enet": _of("enet:ENet", "Paszke 2016, arXiv 1606.02147", 8),
    "fc_densenet56": _of("tiramisu:FCDenseNet", _TIRAMISU, layers=56),
    "fc_densenet67": _of("tiramisu:FCDenseNet", _TIRAMISU, layers=67),
    "fc_densenet103": _of("tiramisu:FCDenseNet", _TIRAMISU, layers=103),
    "fcn8s": _of("fcn:FCN", _FCN, stride=8),
    "fcn16s": _of("fcn:FCN", _FCN, stride=16),
    "fcn32s": _of("fcn:FCN", _FCN, stride=32),
    "frrn_a": _of("frrn:FRRN", _FRRN, kind="A"),
    "frrn_b": _of("frrn:FRRN", _FRRN, kind="B"),
    "gfrnet": _of("gfrnet:GFRNet", "Islam 2017, CVPR"),
    "icnet": _of("icnet:ICNet", "Zhao 2018, arXiv 1704.08545", 32),
    "lite-fpn": ModelSpec(
        "pipeline.models.lite:LiteFPN",
        "ours, on Tan 2019, arXiv 1905.11946",
        input_multiple=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "lite-lraspp": ModelSpec(
        "pipeline.models.lite:LiteLRASPP",
        "ours, on Howard 2019, arXiv 1905.02244",
        input_multiple=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "linknet": _of("linknet:LinkNet", "Chaurasia 2017, arXiv 1707.03718"),
    "pspnet50": _of("pspnet:PSPNet", _PSPNET, 8, depth=50),
    "pspnet101": _of("pspnet:PSPNet", _PSPNET, 8, depth=101),
    "r2_attention_unet": _of(
        "unet_family:NormUNet", f"{_R2} and 1804.03999", block="residual", attention=True
    ),
    "r2unet": _of("unet_family:NormUNet", _R2, block="residual"),
    "rdfnet50": _of("rdfnet:RDFNet", _RDFNET, 4, depth=50),
    "rdfnet101": _of("rdfnet:RDFNet", _RDFNET, 4, depth=101),
    "rdfnet152": _of("rdfnet:RDFNet", _RDFNET, 4, depth=152),
    "recurrent_unet": _of("unet_family:NormUNet", _R2, block="recurrent"),
    "refinenet50": _of("refinenet:RefineNet", _REFINENET, 4, depth=50),
    "refinenet101": _of("refinenet:RefineNet", _REFINENET, 4, depth=101),
    "refinenet152": _of("refinenet:RefineNet", _REFINENET, 4, depth=152),
    "refinenet_light50": _of("refinenet:RefineNetLight", _LIGHT, 4, depth=50),
    "refinenet_light101": _of("refinenet:RefineNetLight", _LIGHT, 4, depth=101),
    "refinenet_light152": _of("refinenet:RefineNetLight", _LIGHT, 4, depth=152),
    "segnet": _of("segnet:SegNet", _SEGNET),
    "segnet_basic": _of("segnet:SegNetBasic", _SEGNET),
    "unet": _of("unet:UNet", _UNET),
    "unet_autoencoder": _of("unet_family:NormUNet", f"{_UNET}, without its skips", skips=False),
    "unet_norm": _of("unet_family:NormUNet", f"{_UNET}, with batch norm"),
}
"""Architectures by name; `zoo:NAME` loads one."""
