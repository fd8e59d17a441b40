"""Architectures of the zoo in use: exported, in half precision, learning, from a backbone.

What is slow here is swept over the whole zoo by benchmarks/export_models.py and overfit.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from pipeline.errors import ModelError, UsageError
from pipeline.models import catalog, load_model
from pipeline.models.architectures import MODELS
from pipeline.models.backbone import put_backbone
from pipeline.models.directory import read_description, save_model
from pipeline.models.shipped import SHIPPED
from pipeline.models.weights import finish
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Picture, Predictor
from tests.jobs.calls import call
from tests.pipeline.zoo_checks import (
    export_size,
    exported_difference,
    image_for,
    onnx_difference,
    overfitted,
    shaken,
)
from tests.streets import make_streets, run

CHEAP = ["deeplab_v1", "enet", "fc_densenet56", "icnet", "linknet", "segnet_basic"]


@pytest.mark.parametrize("name", CHEAP)
def test_exports_agree(name):
    net = shaken(f"zoo:{name}?classes=5")
    image = image_for(net, export_size(name), export_size(name))
    assert exported_difference(net, image) < 1e-4
    assert onnx_difference(net, image) < 1e-4


@pytest.mark.parametrize("name", ["enet", "linknet", "segnet_basic"])
def test_half_precision_is_near(name):
    net = shaken(f"zoo:{name}?classes=5")
    image = image_for(net, 64, 64)
    with torch.inference_mode():
        full = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(image)
    # A maximum that rounding moves to the next pixel is unpooled there: some pixels are far off.
    assert (full - half.float()).norm() < 0.25 * full.norm()
    with torch.autocast("cpu", torch.bfloat16):
        net.train()(image).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "lr", "most"), [("enet", 1e-2, 150), ("linknet", 2e-3, 100), ("icnet", 5e-3, 150)]
)
def test_four_images_are_learnt_by_heart(name, lr, most):
    net = load_model(f"zoo:{name}?classes=3&seed=1").module
    assert overfitted(net, size=64, lr=lr, most=most) > 0.95


def test_auxiliary_heads_learn_in_a_training(tmp_path):
    store = make_streets(tmp_path / "streets", train_rows=4, val_rows=1)
    seen = load_model("zoo:icnet?label_space=camvid-11&seed=3").module.state_dict()
    run(store, tmp_path / "out", model="zoo:icnet", epochs=1, ema=None)
    trained = load_model(str(tmp_path / "out")).module.state_dict()
    assert "auxiliary.1.weight" in trained
    assert not torch.equal(trained["auxiliary.1.weight"], seen["auxiliary.1.weight"])
    assert not torch.equal(trained["head.weight"], seen["head.weight"])


@pytest.mark.parametrize("name", ["deeplab_v1", "icnet", "linknet"])
def test_label_maps_have_the_images_size(name):
    model = load_model(f"zoo:{name}?classes=3")
    predictor = Predictor(model, torch.device("cpu"), LabelOptions())
    pixels = torch.randint(0, 256, (81, 63, 3), dtype=torch.uint8).numpy()
    (found,) = predictor.start([Picture(pixels, (81, 63), "a.png")]).result()
    assert found.ids.shape == (81, 63)


# --- depth ---------------------------------------------------------------------------------------


def test_a_network_with_depth_is_not_given_plain_images():
    model = load_model("zoo:enet?classes=3")
    model.module.in_channels = 4
    with pytest.raises(UsageError, match="takes 4 channels; images to label have 3, and depth"):
        Predictor(model, torch.device("cpu"), LabelOptions())


def test_rdfnet_says_which_channels_it_takes():
    with torch.device("meta"):
        from pipeline.models.rdfnet import RDFNet

        net = RDFNet(3)
        assert net.in_channels == 4
        with pytest.raises(ValueError, match="4 channels, not 3"):
            net(torch.zeros(1, 3, 32, 32))


# --- weights of a backbone -----------------------------------------------------------------------


def test_a_backbone_starts_from_torchvisions_file(tmp_path):
    theirs = get_model("resnet18", weights=None).state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    uri = f"zoo:linknet?classes=3&backbone_weights={tmp_path}/resnet18.pth"
    model = load_model(uri)
    own = model.module.backbone.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert model.digest != load_model("zoo:linknet?classes=3").digest
    save_model(model, str(tmp_path / "saved"))
    assert read_description(str(tmp_path / "saved"))["architecture"]["options"] == {}
    (tmp_path / "resnet18.pth").unlink()
    assert load_model(str(tmp_path / "saved")).digest == model.digest


def test_wrong_backbones_are_refused(tmp_path):
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "resnet18.pth")
    for name, words in (("cenet", "not the weights"), ("enet", "no backbone")):
        with pytest.raises(ModelError, match=words):
            load_model(f"zoo:{name}?classes=3&backbone_weights={tmp_path}/resnet18.pth")


def test_a_fully_connected_layer_is_a_convolution():
    linear = nn.Linear(2 * 3 * 3, 4)
    net = nn.Module()
    net.backbone = nn.Sequential(nn.Conv2d(2, 4, 3))
    put_backbone(net, {f"0.{n}": t for n, t in linear.state_dict().items()}, "somewhere")
    x = torch.randn(1, 2, 3, 3)
    assert torch.allclose(net.backbone(x).flatten(), linear(x.flatten()), atol=1e-6)


def test_old_names_of_densenets_are_known():
    theirs = get_model("densenet121", weights=None).state_dict()
    old = {
        n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for n, t in theirs.items()
    }
    assert set(old) != set(theirs)
    net = load_model("zoo:denseaspp121?classes=3").module
    put_backbone(net, old, "somewhere")
    own = net.backbone.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


# --- the list ------------------------------------------------------------------------------------


def test_the_list_has_all_that_there_is():
    from torchvision import models

    from pipeline.models import hf, maskrcnn, smp

    listed = {kind: set() for kind in ("zoo", "shipped", "smp", "torchvision", "hf")}
    for entry in catalog.entries():
        listed[entry.kind].add(entry.name)
    assert listed["zoo"] == set(MODELS)
    assert listed["shipped"] == set(SHIPPED)
    assert listed["smp"] == set(smp._NAMES)
    known = {*models.list_models(module=models.segmentation), *maskrcnn.NAMES}
    assert listed["torchvision"] == known
    assert set(hf.UNIVERSAL) - listed["hf"] == {"eomt_dinov3"}


def test_multiply_adds_are_those_of_the_convolutions():
    entry = next(e for e in catalog.entries() if e.uri == "zoo:linknet")
    found = catalog.cost(entry, (96, 64), 11)
    net, total = load_model("zoo:linknet?classes=11").module, 0

    def count(layer, inputs, out):
        nonlocal total
        each = layer.weight.numel()  # of a transposed one: for every pixel in, not out
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else out
        total += each * pixels.shape[2] * pixels.shape[3]

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        net(torch.zeros(1, 3, 96, 64))
    assert (found.parameters, found.multiply_adds, found.stride) == (11_535_659, total, 1)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("zoo:icnet", ((64, 96), 4)),
        ("shipped:camvid-lite", ((64, 96), 4)),
        ("smp:Segformer?encoder_name=mit_b0", ((64, 96), 1)),
        ("torchvision:lraspp_mobilenet_v3_large", ((50, 70), 1)),
        ("torchvision:maskrcnn_resnet50_fpn", ((50, 70), None)),
        ("hf:(a segformer model)", ((64, 96), 4)),
    ],
)
def test_costs_of_every_kind(uri, expected):
    entry = next(e for e in catalog.entries() if e.uri == uri)
    found = catalog.cost(entry, (50, 70), 4)
    assert (found.size, found.stride) == expected
    assert found.parameters > 1_000_000
    assert (found.multiply_adds is None) == (found.stride is None)


def test_the_verb(capsys):
    said, _ = call(capsys, "models", "zoo:enet", "--size", "64x128", "--classes", "12")
    (row,) = said["models"]
    assert (said["inputs"], said["done"], said["failed"]) == (1, 1, 0)
    assert (row["uri"], row["parameters"], row["size"]) == ("zoo:enet", 350_652, [64, 128])
    assert row["multiply_adds"] > 1_000_000
    _, error = call(capsys, "models", "no-such", code=2)
    assert "choose from" in error
    _, error = call(capsys, "models", "--size", "large", code=2)
    assert "360x480" in error


def test_the_weights_of_a_network_with_heads_make_the_round(tmp_path):
    model = finish(load_model("zoo:icnet?classes=3&seed=4"))
    save_model(model, str(tmp_path / "saved"))
    assert load_model(str(tmp_path / "saved")).digest == model.digest
