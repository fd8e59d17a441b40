from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ModelError, UnknownName, UsageError
from pipeline.label_space import label_space
from pipeline.models import Preprocessing, load_model
from pipeline.models.classes import named_space
from pipeline.models.directory import read_description, save_model
from pipeline.models.hf import Universal
from pipeline.models.slope import Slope
from pipeline.models.uri import parse
from pipeline.models.weights import digest

ZOO = [f"zoo:{name}?classes=5" for name in ("enet", "fc_densenet56", "linknet", "segnet_basic")]
OTHERS = [
    "smp:Unet?encoder_name=resnet18&classes=5",
    "smp:Linknet?encoder_name=tu-tf_efficientnet_lite0&classes=5",
    "torchvision:lraspp_mobilenet_v3_large?classes=5",
]
CAMVID = label_space("camvid-11")


def some_input(model, n=2):
    high, wide = (-(-size // model.preprocessing.multiple) * model.preprocessing.multiple
                  for size in (64, 96))  # fmt: skip
    return torch.randn(n, 3, high, wide, generator=torch.Generator().manual_seed(0))


def logits(model, inputs):
    with torch.inference_mode():
        return model.module(inputs)


# --- every kind (all architectures of the zoo: test_zoo.py) --------------------------------------


@pytest.mark.parametrize(
    ("uri", "count"),  # segmentation-models-pytorch 0.6 and torchvision 0.29, C = 21
    [
        ("smp:Linknet?encoder_name=resnet34&classes=21", 21_772_597),
        ("torchvision:lraspp_mobilenet_v3_large?classes=21", 3_221_538),
    ],
)
def test_parameters_of_libraries_are_theirs(uri, count):
    assert sum(p.numel() for p in load_model(uri).module.parameters()) == count


@pytest.mark.parametrize("uri", ZOO + OTHERS)
def test_contract(uri):
    model = load_model(uri)
    inputs = some_input(model)
    out = logits(model, inputs)
    assert out.shape[:2] == (2, 5)
    assert not model.module.training
    assert torch.equal(out, logits(model, inputs))
    assert model.label_space.name == "classes-5"
    assert len(model.label_space.train_ids) == 5
    assert model.uri == uri
    assert load_model(uri).digest == model.digest
    assert load_model(uri + "&seed=1").digest != model.digest


@pytest.mark.parametrize("uri", ZOO + OTHERS)
def test_gradient_reaches_every_parameter(uri):
    model = load_model(uri)
    model.module.train()
    model.module(some_input(model)).square().sum().backward()
    without = [n for n, p in model.module.named_parameters() if p.grad is None]
    assert not without
    dead = [n for n, p in model.module.named_parameters() if not p.grad.isfinite().all()]
    assert not dead


def test_enet_is_wide_as_the_paper_says():
    """Output strides 2, 4, 8, 8, 4, 2, 1, and the encoder's 128 channels in the middle."""
    module = load_model("zoo:enet?classes=11").module
    shapes = {}
    for name, child in module.named_children():
        child.register_forward_hook(
            lambda _m, _i, out, name=name: shapes.update(
                {name: tuple((out[0] if isinstance(out, tuple) else out).shape[1:])}
            )
        )
    with torch.inference_mode():
        module(torch.zeros(1, 3, 64, 128))
    assert shapes == {
        "initial": (16, 32, 64), "down1": (64, 16, 32), "stage1": (64, 16, 32),
        "down2": (128, 8, 16), "stage2": (128, 8, 16), "stage3": (128, 8, 16),
        "up4": (64, 16, 32), "stage4": (64, 16, 32), "up5": (16, 32, 64), "stage5": (16, 32, 64),
        "head": (11, 64, 128),
    }  # fmt: skip


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_slope_is_prelu(memory_format):
    ours, torchs = Slope().double(), nn.PReLU().double()
    with torch.no_grad():
        ours.weight.fill_(-0.3), torchs.weight.fill_(-0.3)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    upstream = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    results = []
    for module in (ours, torchs):
        mine = x.clone().requires_grad_()
        out = module(mine)
        out.backward(upstream)
        results.append((out.detach(), mine.grad, module.weight.grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other)


# --- URIs and label spaces ---------------------------------------------------------------------


def test_uri_options_are_typed():
    uri = parse("smp:Unet?a=3&b=0.5&c=true&d=none&e=(1,2)&f=resnet34")
    assert uri.options == {"a": 3, "b": 0.5, "c": True, "d": None, "e": [1, 2], "f": "resnet34"}


@pytest.mark.parametrize("text", ["models/a", "/models/a", "s3://bucket/a", "run:models/a"])
def test_a_bare_path_is_a_model_directory(text):
    uri = parse(text)
    assert (uri.kind, uri.name) == ("run", text.removeprefix("run:"))


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("zooo:enet?classes=3", UnknownName, "zoo"),
        ("zoo:e-net?classes=3", UnknownName, "enet"),
        ("smp:Unett?classes=3", UnknownName, "UnetPlusPlus"),
        ("smp:Unet?classes=3&encoder_name=resnet19", UsageError, "resnet18"),
        ("smp:Unet?classes=3&deepth=3", UsageError, "deepth"),
        ("torchvision:fcn?classes=3", UnknownName, "fcn_resnet50"),
        ("torchvision:fcn_resnet50?weights=BEST", UnknownName, "DEFAULT"),
        ("zoo:enet", UsageError, "classes=N"),
        ("zoo:enet?classes=many", UsageError, "'many'"),
        ("zoo:enet?label_space=camvid", UnknownName, "camvid-11"),
        ("zoo:enet?classes=12&label_space=camvid-11", ModelError, "12 classes.*'camvid-11' has 11"),
        ("run:/nowhere/at/all", ModelError, "no model directory"),
        ("hf:/nowhere/at/all", ModelError, "save_pretrained"),
        ("python:no_such_package:make?classes=3", ModelError, "PYTHONPATH"),
        ("python:os.path:no_such_name?classes=3", ModelError, "no_such_name"),
        ("zoo:", UsageError, "zoo:enet"),
    ],
)
def test_mistakes_are_told_in_one_line(uri, error, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=words) as caught:
        load_model(uri)
    assert "\n" not in str(caught.value)


def test_the_caller_names_the_label_space():
    model = load_model("zoo:enet?classes=11", label_space="camvid-11")
    assert model.label_space == CAMVID
    assert load_model("zoo:enet?label_space=camvid-11").digest == model.digest
    assert load_model("zoo:enet?classes=11").digest != model.digest


def test_a_label_space_of_the_users_own(tmp_path):
    space = replace(CAMVID, name="mine", classes=CAMVID.classes[:4])
    (tmp_path / "mine.json").write_text(space.to_json())
    assert load_model("zoo:enet", label_space=str(tmp_path / "mine.json")).label_space == space


def test_class_names_find_their_label_space():
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    assert named_space(FCN_ResNet50_Weights.DEFAULT.meta["categories"]).name == "voc-21"
    own = named_space(["cat", "dog", "dog"])
    assert [c.name for c in own.classes] == ["cat", "dog", "dog (2)"]
    assert (own.train_ids, own.ignore_index) == ((0, 1, 2), 255)
    assert named_space(["cat", "dog"]).name != named_space(["dog", "cat"]).name


def test_many_classes_take_a_wide_void():
    assert load_model("zoo:enet?classes=300").label_space.ignore_index == 65535


# --- weights and directories -------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["zoo:enet?label_space=camvid-11", OTHERS[0], OTHERS[2]])
def test_a_directory_holds_the_same_model(uri, tmp_path):
    model = load_model(uri)
    save_model(model, str(tmp_path / "m"), {"note": "é"})
    again = load_model(f"run:{tmp_path / 'm'}")
    assert again.digest == model.digest
    assert (again.label_space, again.preprocessing) == (model.label_space, model.preprocessing)
    assert read_description(str(tmp_path / "m"))["training"] == {"note": "é"}
    inputs = some_input(model)
    assert torch.equal(logits(again, inputs), logits(model, inputs))


def test_the_same_weights_from_anywhere_have_one_digest(tmp_path, memory):
    model = load_model("zoo:enet?classes=3&seed=5")
    save_model(model, "memory://models/a")
    torch.save({"state_dict": model.module.state_dict()}, tmp_path / "a.pt")
    ddp = {f"module.{k}": v for k, v in model.module.state_dict().items()}
    torch.save(ddp, tmp_path / "b.pth")
    for weights in ("memory://models/a", "memory://models/a/weights.safetensors",
                    str(tmp_path / "a.pt"), str(tmp_path / "b.pth")):  # fmt: skip
        assert load_model("zoo:enet?classes=3", weights=weights).digest == model.digest
    assert load_model("memory://models/a").digest == model.digest


def test_all_that_changes_the_output_changes_the_digest():
    model = load_model("zoo:enet?classes=3")
    names = {digest(model)}
    with torch.no_grad():
        next(model.module.parameters()).view(-1)[0] += 1e-3
    names.add(digest(model))
    names.add(digest(replace(model, preprocessing=replace(model.preprocessing, size=(64, 64)))))
    names.add(digest(replace(model, label_space=replace(model.label_space, ignore_index=9))))
    names.add(digest(replace(model, architecture=replace(model.architecture, options={"x": 1}))))
    assert len(names) == 5


class Evil:
    def __reduce__(self):
        return (print, ("ran code",))


def test_pickled_code_is_not_run(tmp_path, capsys):
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="safetensors"):
        load_model("zoo:enet?classes=3", weights=str(tmp_path / "evil.pt"))
    assert "ran code" not in capsys.readouterr().out


def test_weights_that_do_not_fit(tmp_path):
    save_model(load_model("zoo:enet?classes=12"), str(tmp_path / "twelve"))
    with pytest.raises(ModelError, match="12 classes, label space 'camvid-11' has 11"):
        load_model("zoo:enet?label_space=camvid-11", weights=str(tmp_path / "twelve"))
    with pytest.raises(ModelError, match=r"12 classes.*'camvid-11' has 11"):
        load_model(f"run:{tmp_path / 'twelve'}", label_space="camvid-11")
    with pytest.raises(ModelError, match="not those of smp:Unet"):
        load_model(OTHERS[0], weights=str(tmp_path / "twelve"))
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(ModelError, match="not a whole weights file"):
        load_model("zoo:enet?classes=3", weights=str(tmp_path / "torn.safetensors"))
    with pytest.raises(ModelError, match="no such file"):
        load_model("zoo:enet?classes=3", weights=str(tmp_path / "none.safetensors"))


def test_torchvisions_own_file_fits(tmp_path):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    torch.save(net.state_dict(), tmp_path / "tv.pth")
    model = load_model(OTHERS[2], weights=str(tmp_path / "tv.pth"))
    inputs = some_input(model)
    with torch.inference_mode():
        assert torch.equal(net(inputs)["out"], logits(model, inputs))


def test_a_damaged_description(tmp_path):
    save_model(load_model("zoo:enet?classes=3"), str(tmp_path))
    (tmp_path / "model.json").write_text('{"format": 99, "architecture": 1')
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(tmp_path))
    (tmp_path / "model.json").write_text('{"format": 1}')
    with pytest.raises(ModelError, match="lacks architecture"):
        load_model(str(tmp_path))


# --- a function of the user's own --------------------------------------------------------------

FACTORY = """
import torch
from torch import nn
def make(classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))
def wrong(classes):
    return make(classes + 1)
def text(classes):
    return "a model"
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_nets", None)


@pytest.mark.usefixtures("own_package")
def test_python_factory(tmp_path):
    model = load_model("python:own_nets:make?classes=11&width=6", label_space="camvid-11")
    assert model.module[0].out_channels == 6
    assert model.label_space == CAMVID
    save_model(model, str(tmp_path / "m"))
    assert load_model(str(tmp_path / "m")).digest == model.digest
    with pytest.raises(ModelError, match=r"has 6 classes.*'classes-5' has 5"):
        load_model("python:own_nets:wrong?classes=5")
    with pytest.raises(ModelError, match="returned str"):
        load_model("python:own_nets:text?classes=5")
    with pytest.raises(UsageError, match="depth"):
        load_model("python:own_nets:make?classes=5&depth=2")


# --- transformers ------------------------------------------------------------------------------


def names_of(space):
    return {i: space.by_id[k].name for i, k in enumerate(space.train_ids)}


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    root = tmp_path_factory.mktemp("segformer")
    names = names_of(label_space("cityscapes-19"))
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1] * 4,
        decoder_hidden_size=16, id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    net = SegformerForSemanticSegmentation(config).eval()
    net.save_pretrained(root)
    SegformerImageProcessor(
        size={"height": 64, "width": 96}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(root)
    return root, net


def test_hf_semantic(segformer, tmp_path):
    root, net = segformer
    model = load_model(f"hf:{root}")
    assert model.label_space.name == "cityscapes-19"
    assert model.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3, (64, 96), 1)
    inputs = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(net(pixel_values=inputs).logits, logits(model, inputs))
    save_model(model, str(tmp_path / "m"))
    assert load_model(str(tmp_path / "m")).digest == model.digest
    with pytest.raises(ModelError, match=r"19 classes.*'camvid-11' has 11"):
        load_model(f"hf:{root}", label_space="camvid-11")
    new = load_model(f"hf:{root}?head=new&label_space=camvid-11")
    assert logits(new, inputs).shape[1] == 11


def test_universal_scores_are_the_papers_sum():
    """Mask2Former, semantic inference: sum over queries of p(class) · p(mask), not "no object"."""
    rng = np.random.default_rng(0)
    classes, queries = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 5, 7))
    out = SimpleNamespace(
        class_queries_logits=torch.tensor(classes), masks_queries_logits=torch.tensor(queries)
    )
    p = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    m = 1 / (1 + np.exp(-queries))
    want = (p[:, :, :-1, None, None] * m[:, :, None]).sum(1)

    class Queries(nn.Module):
        def forward(self, pixel_values):
            return out

    module = Universal(Queries())
    found = module(torch.zeros(2, 3, 8, 8))
    assert np.allclose(found.exp(), want, rtol=1e-5)
    assert np.allclose(found.softmax(1), want / want.sum(1, keepdims=True), rtol=1e-5)


def test_hf_universal(tmp_path):
    pytest.importorskip("scipy", reason="transformers' Mask2Former imports scipy")
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2,
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
    )  # fmt: skip
    names = {i: f"thing {i}" for i in range(4)}
    config = Mask2FormerConfig(
        backbone_config=backbone, hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16,
        encoder_feedforward_dim=16, num_queries=5, id2label=names,
        label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    net = Mask2FormerForUniversalSegmentation(config).eval()
    net.save_pretrained(tmp_path)
    processor = Mask2FormerImageProcessor()
    processor.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    assert [c.name for c in model.label_space.classes] == list(names.values())
    inputs = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        theirs = processor.post_process_semantic_segmentation(
            net(pixel_values=inputs), target_sizes=[(384, 384)]
        )[0]
    ours = nn.functional.interpolate(logits(model, inputs), (384, 384), mode="bilinear")
    assert (ours[0].argmax(0) == theirs).float().mean() > 0.99


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub"):
        load_model("hf:nvidia/no-such-model")


def test_importing_the_package_imports_no_torch():
    code = "import sys, pipeline.models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
