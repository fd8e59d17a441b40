"""Architectures of the zoo: parameters as published, any size of image, gradients, training heads.

What needs no numbers runs on torch's meta device, so that all of them are tested.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pipeline.models import load_model
from pipeline.models.architectures import MODELS
from pipeline.models.heads import WeightedHeads, parameters_in_use
from pipeline.models.layers import bilinear_deconv, mirrored, unpool
from pipeline.models.loaded import Architecture
from pipeline.models.zoo import build
from tests.pipeline.zoo_checks import channels

if TYPE_CHECKING:
    from torch import Tensor

NUMBERS_DECIDE = ("decouplednet",)
"""Whose layers run as often as their numbers say: these need some."""


def unfilled(name: str, classes: int = 5, **options: object) -> nn.Module:
    """Return an architecture, where it can be without memory for its numbers."""
    with torch.device("cpu" if name in NUMBERS_DECIDE else "meta"):
        return build(Architecture("zoo", name, options), classes).eval()


@cache
def of_five(name: str) -> nn.Module:
    """Return an architecture of five classes, built once: its size is checked, then its slopes."""
    return unfilled(name)


def device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


# --- parameters ----------------------------------------------------------------------------------


def conv(fan_in: int, out: int, kernel: int = 3, *, bias: bool = True) -> int:
    return fan_in * out * kernel**2 + out * bias


VGG = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16 = sum(conv(a, b) for a, b in pairwise(VGG))
WIDE = conv(512, 4096, 7) + conv(4096, 4096, 1)
RESNET = {50: 25_557_032, 101: 44_549_160, 152: 60_192_808}  # torchvision's, with 1000 classes
TRUNK = {depth: count - (2048 * 1000 + 1000) for depth, count in RESNET.items()}
REFINENET50 = 99_060_309  # C=21, four pools a chain


def light(depth: int, classes: int) -> int:
    """Light-Weight RefineNet: 1x1 without bias, four pools a chain, 3x3 head (its figure 2)."""
    reduce = (2048 * 512) + (1024 + 512 + 256) * 256
    chains = 4 * 512**2 + 3 * 4 * 256**2
    between = 512 * 256 + 2 * 256**2 + 3 * 256**2
    return TRUNK[depth] + reduce + chains + between + conv(256, classes)


def rdfnet(depth: int, classes: int) -> int:
    """Two ResNets, four fusion blocks, RefineNet with two pools a chain instead of four."""
    fusion = 2_425_344 + 9_700_352 + 38_799_360 + 155_193_344  # by width, from the authors' network
    decoder = REFINENET50 - TRUNK[50] - conv(256, 21) + conv(256, classes)
    spared = 2 * 9 * (512**2 + 3 * 256**2)
    return 2 * TRUNK[depth] + fusion + decoder - spared


def msc(classes: int) -> int:
    """DeepLab v1 with the branches of its section 4.2 on the image and on four pools."""
    branches = sum(conv(width, 128) + conv(128, 128, 1) for width in (3, 64, 128, 256, 512))
    top = conv(512, 1024) + conv(1024, 1024, 1)
    return VGG16 + top + branches + conv(1024 + 5 * 128, classes, 1)


def dilation7(classes: int) -> int:
    return VGG16 + WIDE + conv(4096, classes, 1) + 6 * conv(classes, classes) + classes**2 + classes


def frrn(plan: list[tuple[int, int]], classes: int) -> int:
    """FRRN of (units, width) levels: table 1, with batch norm and no bias before it."""

    def normed(fan_in: int, out: int, kernel: int = 3) -> int:
        return conv(fan_in, out, kernel, bias=False) + 2 * out

    total = normed(3, 48, 5) + 6 * 2 * normed(48, 48) + 48 * 32 + (96 + 32) * 48
    width = 48
    for units, out in plan:
        for _ in range(units):
            total += normed(width + 32, out) + normed(out, out) + conv(out, 32, 1)
            width = out
    return total + conv(48, classes, 1)


A = [(3, 96), (4, 192), (2, 384), (2, 384), (2, 192), (2, 192), (2, 96)]
B = [(3, 96), (4, 192), (2, 384), (2, 384), (2, 384), (2, 192), (2, 192), (2, 192), (2, 96)]
UNET_SKIPS = sum(9 * width**2 for width in (64, 128, 256, 512))

PARAMETERS = [  # name, options, classes, count, where the count is from
    ("attention_unet", {}, 1, 34_878_573, "LeeJunHyun/Image_Segmentation: AttU_Net"),
    ("cenet", {}, 1, 29_003_093, "Guzaiwang/CE-Net: CE_Net_"),
    ("decouplednet", {}, 11, 2_430_333, "ours, after the paper"),
    ("decouplednet", {}, 19, 2_432_389, "ours, after the paper"),
    ("deeplab_v1", {}, 21, 20_505_429, "kazuto1011/deeplab-pytorch: deeplabv1.py; paper 20.5 M"),
    ("deeplab_v1_msc", {}, 21, msc(21), "formula, section 4.2 of the paper"),
    ("deeplab_v2", {}, 21, 44_048_532, "kazuto1011/deeplab-pytorch: deeplabv2.py"),
    ("deeplab_v2", {"scales": [0.5, 0.75, 1]}, 21, 44_048_532, "the same, scales share weights"),
    ("deeplab_v2_vgg16", {}, 21, 37_877_652, "the paper's ASPP-L; counted from its layers"),
    ("denseaspp121", {}, 19, 8_280_851, "DeepMotionAIResearch/DenseASPP"),
    ("denseaspp161", {}, 19, 35_395_427, "DeepMotionAIResearch/DenseASPP"),
    ("denseaspp169", {}, 19, 18_420_675, "DeepMotionAIResearch/DenseASPP"),
    ("denseaspp201", {}, 19, 28_639_987, "DeepMotionAIResearch/DenseASPP"),
    ("dilation7", {}, 11, dilation7(11), "formula, fyu/dilation: dilation7_kitti_deploy"),
    ("dilation8", {}, 11, 134_313_443, "fyu/dilation: dilation8_camvid_deploy"),
    ("dilation8_large", {}, 21, 141_149_720, "fyu/dilation: dilation8_pascal_voc_deploy"),
    ("dilation10", {}, 19, 134_373_043, "fyu/dilation: dilation10_cityscapes_deploy"),
    ("dilation_frontend", {}, 21, VGG16 + WIDE + conv(4096, 21, 1), "formula: FCN-32s' layers"),
    ("enet", {}, 11, 350_508, "davidtvs/PyTorch-ENet"),
    ("enet", {}, 12, 350_652, "davidtvs/PyTorch-ENet"),
    ("enet", {}, 19, 351_660, "davidtvs/PyTorch-ENet"),
    ("enet", {}, 20, 351_804, "davidtvs/PyTorch-ENet"),
    ("fc_densenet56", {}, 11, 1_376_795, "SimJeg/FC-DenseNet; paper 1.5 M"),
    ("fc_densenet67", {}, 11, 3_463_243, "SimJeg/FC-DenseNet; paper 3.5 M"),
    ("fc_densenet103", {}, 11, 9_322_091, "SimJeg/FC-DenseNet; paper 9.4 M"),
    ("fcn8s", {}, 21, 134_489_759, "shelhamer/fcn.berkeleyvision.org: voc-fcn8s/net.py"),
    ("fcn16s", {}, 21, 134_815_994, "shelhamer/fcn.berkeleyvision.org: voc-fcn16s/net.py"),
    ("fcn32s", {}, 21, 136_152_917, "shelhamer/fcn.berkeleyvision.org: voc-fcn32s/net.py"),
    ("frrn_a", {}, 19, frrn(A, 19), "formula, table 1; paper 17.7 M"),
    ("frrn_b", {}, 19, frrn(B, 19), "formula, table 1: 24.7 M where the paper says 24.8 M"),
    ("gfrnet", {}, 11, 29_194_090, "mrochan/gfrnet: train_camvid_gate.prototxt"),
    # The prototxt has 6 more: scale and shift of an input layer that only copies the image.
    ("icnet", {}, 19, 6_699_993 - 6, "hszhao/ICNet: icnet_cityscapes_bnnomerge.prototxt"),
    ("lite-fpn", {}, 11, 1_498_635, "ours"),
    ("lite-fpn", {}, 19, 1_499_411, "ours"),
    ("lite-lraspp", {}, 11, 1_452_366, "ours"),
    ("linknet", {}, 11, 11_535_659, "e-lab/LinkNet: model.lua; paper 11.5 M"),
    ("linknet", {}, 19, 11_536_691, "e-lab/LinkNet: model.lua"),
    ("linknet", {}, 20, 11_536_820, "e-lab/LinkNet: model.lua"),
    ("pspnet50", {}, 150, 46_782_550, "hszhao/PSPNet: pspnet50_ADE20K_473.prototxt"),
    ("pspnet101", {}, 21, 65_708_501, "hszhao/PSPNet: pspnet101_VOC2012_473.prototxt"),
    ("r2_attention_unet", {}, 1, 39_442_925, "LeeJunHyun/Image_Segmentation: R2AttU_Net"),
    ("r2unet", {}, 1, 39_091_393, "LeeJunHyun/Image_Segmentation: R2U_Net"),
    ("rdfnet50", {}, 40, rdfnet(50, 40), "formula from the authors' fusion blocks and RefineNet"),
    ("rdfnet50", {"depth_channels": 3}, 40, rdfnet(50, 40), "HHA: the same layers"),
    ("rdfnet101", {}, 40, rdfnet(101, 40), "formula"),
    ("rdfnet152", {}, 40, rdfnet(152, 40), "formula"),
    ("recurrent_unet", {}, 1, 39_091_393, "R2U_Net's: the residual has no parameters"),
    ("refinenet50", {}, 21, REFINENET50, "DrSleep/refinenet-pytorch"),
    ("refinenet101", {}, 21, 118_052_437, "DrSleep/refinenet-pytorch"),
    ("refinenet152", {}, 21, 133_696_085, "DrSleep/refinenet-pytorch"),
    ("refinenet_light50", {}, 21, light(50, 21), "formula; paper 27 M"),
    ("refinenet_light101", {}, 21, light(101, 21), "formula; paper 46 M"),
    ("refinenet_light152", {}, 21, light(152, 21), "formula; paper 62 M"),
    ("segnet", {}, 11, 29_449_355, "alexgkendall/SegNet-Tutorial; paper 29.46 M"),
    (
        "segnet_basic",
        {},
        11,
        1_416_587,
        "alexgkendall/SegNet-Tutorial: segnet_basic_train.prototxt",
    ),
    ("unet", {"in_channels": 1}, 2, 31_030_658, "the paper's figure 1"),
    ("unet", {"padding": "same"}, 21, 31_033_045, "the paper's figure 1"),
    ("unet_autoencoder", {}, 1, 34_527_041 - UNET_SKIPS, "U_Net's, without what skips add"),
    ("unet_norm", {}, 1, 34_527_041, "LeeJunHyun/Image_Segmentation: U_Net"),
]


@pytest.mark.parametrize(("name", "options", "classes", "count", "source"), PARAMETERS)
def test_parameters_are_as_published(name, options, classes, count, source):
    assert parameters_in_use(unfilled(name, classes, **options)) == count, source


def test_every_architecture_is_in_the_table():
    assert {row[0] for row in PARAMETERS} == set(MODELS)


def test_published_millions_are_near():
    """The formulas that stand alone agree with what the papers print."""
    assert [round(frrn(plan, 19) / 1e6, 1) for plan in (A, B)] == [17.7, 24.7]
    assert [int(light(depth, 21) / 1e6) for depth in (50, 101, 152)] == [27, 46, 61]
    assert round(light(152, 21) / 1e6) == 62


# --- sizes and gradients -------------------------------------------------------------------------

EVEN = (64, 96)
STRIDES = {
    "decouplednet": 1,
    "dilation10": 1,
    "enet": 1,
    "icnet": 4,
    "lite-fpn": 4,
    "lite-lraspp": 8,
}
"""Where logits are denser than what sides of the input divide by."""
ODD = [(321, 243), (32, 32)]
DEEPER = ("67", "101", "103", "152", "161", "169", "201")
"""What the names of those end in that differ from another in nothing but depth."""
SHALLOW = [name for name in MODELS if not name.endswith(DEEPER)]


def covers(logits: Tensor, image: Tensor, name: str) -> bool:
    """Tell whether logits lie on all of an image, at the network's stride."""
    stride = STRIDES.get(name, MODELS[name].input_multiple)
    sides = zip(image.shape[2:], logits.shape[2:], strict=True)
    whole = all(cells in {side // stride, -(-side // stride)} for side, cells in sides)
    return whole and logits.shape[:2] == (len(image), 5)


@pytest.mark.parametrize("name", MODELS)
def test_any_size_gives_logits_that_cover_the_image(name):
    net = of_five(name).eval()
    for size in ODD if name in SHALLOW else ODD[:1]:
        image = torch.zeros(1, channels(net), *size, device=device(net))
        with torch.no_grad():
            assert covers(net(image), image, name)


@pytest.mark.parametrize("name", SHALLOW)
def test_gradients_reach_every_parameter_that_learns(name):
    net = of_five(name).train()
    image = torch.zeros(2, channels(net), *EVEN, device=device(net))
    heads = WeightedHeads(net)(image)
    assert covers(heads[0][1], image, name)
    torch.stack([weight * logits.sum() for weight, logits in heads]).sum().backward()
    learned = {n: p for n, p in net.named_parameters() if p.requires_grad}
    assert not [n for n, p in learned.items() if p.grad is None]
    fixed = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert fixed <= {"up.weight"}  # FCN's and Dilation10's last up-sampling


@pytest.mark.parametrize("name", ["enet", "icnet", "linknet", "segnet_basic"])
def test_odd_sizes_with_numbers(name):
    net = load_model(f"zoo:{name}?classes=3").module
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 33, 47)).isfinite().all()


# --- training heads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("pspnet50", {}, [1, 0.4]),
        ("icnet", {}, [1, 0.4, 0.16]),
        ("gfrnet", {}, [1] * 6),
        ("deeplab_v2", {"scales": [0.5, 0.75, 1]}, [1] * 4),
        ("deeplab_v2", {}, [1]),
        ("linknet", {}, [1]),
    ],
)
def test_heads_and_their_weights(name, options, weights):
    net = unfilled(name, **options)
    image = torch.zeros(2, 3, 96, 128, device="meta")
    found = WeightedHeads(net)(image)
    assert [weight for weight, _ in found] == weights
    assert found[0][1].shape == net(image).shape
    assert all(logits.shape[:2] == (2, 5) for _, logits in found)


def test_the_first_head_is_what_labels():
    net = load_model("zoo:icnet?classes=3").module
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(WeightedHeads(net)(image)[0][1], net(image))


def test_auxiliary_heads_are_not_counted():
    net = unfilled("pspnet50", 150)
    everything = sum(p.numel() for p in net.parameters())
    head = conv(1024, 256, bias=False) + 2 * 256 + conv(256, 150, 1)
    assert everything - parameters_in_use(net) == head


# --- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 0), (11, 26), (0, 0)])
def test_mirrored_is_numpys_reflection(before, after):
    x = torch.arange(2 * 5 * 4).reshape(1, 2, 5, 4)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (before, after), (1, 2)), mode="reflect")
    assert np.array_equal(mirrored(x, (before, 1), (after, 2)).numpy(), expected)


@pytest.mark.parametrize("stride", [2, 8, 16])
def test_deconvolution_starts_as_bilinear(stride):
    x = torch.randn(1, 3, 6, 5)
    up = bilinear_deconv(3, stride)(x)
    half = stride // 2
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    inside = expected[:, :, half:-half, half:-half]  # torch repeats the border, Caffe has zeros
    assert torch.allclose(up[:, :, stride:-stride, stride:-stride], inside, atol=1e-6)
    grouped = bilinear_deconv(3, stride, groups=3, padding=half)(x)
    assert torch.allclose(grouped[:, :, half:-half, half:-half], inside, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_exported_unpooling_is_torchs(size, monkeypatch):
    x = torch.randn(2, 3, *size)
    pooled, where = F.max_pool2d(x, 2, return_indices=True)
    eager = unpool(pooled, where, size)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(unpool(pooled, where, size), eager)
    assert set(eager[eager != 0].tolist()) <= set(x.flatten().tolist())


def test_fcn_stages_start_from_one_another():
    """All that 32s learns fits into 16s, and all of 16s into 8s, but for the last up-sampling."""
    stages = [dict(unfilled(f"fcn{s}s").state_dict()) for s in (32, 16, 8)]
    for earlier, later in pairwise(stages):
        lost = {n for n, t in earlier.items() if n not in later or later[n].shape != t.shape}
        assert lost == {"up.weight"}


@pytest.mark.parametrize("padding", ["mirror", "same"])
def test_unets_logits_lie_on_their_pixels(padding):
    """Its shortest way through, made to pass the first channel on, gives the image itself."""
    net = load_model(f"zoo:unet?classes=2&padding={padding}").module
    with torch.no_grad():
        for layer in [*net.down[0].modules(), *net.merge[-1].modules(), net.head]:
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
                middle = layer.kernel_size[0] // 2
                layer.weight[0, 0, middle, middle] = 1
    image = torch.rand(1, 3, 39, 34)
    with torch.inference_mode():
        assert torch.equal(net(image)[:, 0], image[:, 0])


def test_the_seed_is_the_network():
    one, same, other = (
        load_model(f"zoo:fc_densenet56?classes=3&seed={seed}").digest for seed in (1, 1, 2)
    )
    assert one == same != other
