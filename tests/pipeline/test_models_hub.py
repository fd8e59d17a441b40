"""transformers models, small and random: saved here, loaded, compared with the library itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ModelError, UsageError
from pipeline.label_space import label_space
from pipeline.models import load_model
from pipeline.models.directory import save_model
from pipeline.models.loaded import QueryMasks
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Predictor
from tests.pictures import picture

transformers = pytest.importorskip("transformers")

NAMES = {i: f"thing {i}" for i in range(4)}
LABELS = {"id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}}


def swin():
    return transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2,
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
    )  # fmt: skip


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16,
        encoder_feedforward_dim=16, num_queries=5, **LABELS,
    )  # fmt: skip
    net = transformers.Mask2FormerForUniversalSegmentation(config)
    size = {"shortest_edge": 80, "longest_edge": 120}
    return net, transformers.Mask2FormerImageProcessor(size=size, size_divisor=32)


def maskformer():
    config = transformers.MaskFormerConfig(
        backbone_config=swin(), mask_feature_size=32, fpn_feature_size=32,
        decoder_config=transformers.DetrConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
        ), **LABELS,
    )  # fmt: skip
    net = transformers.MaskFormerForInstanceSegmentation(config)
    return net, transformers.MaskFormerImageProcessor(size={"height": 64, "width": 96})


def segformer():
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1] * 4,
        decoder_hidden_size=16, **LABELS,
    )  # fmt: skip
    net = transformers.SegformerForSemanticSegmentation(config)
    return net, transformers.SegformerImageProcessor(size={"height": 64, "width": 96})


def upernet():
    config = transformers.UperNetConfig(
        backbone_config=swin(), hidden_size=16, use_auxiliary_head=False, **LABELS
    )
    net = transformers.UperNetForSemanticSegmentation(config)
    return net, transformers.SegformerImageProcessor(size={"shortest_edge": 64})


def beit():
    config = transformers.BeitConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, out_indices=[1, 2, 3, 4], use_auxiliary_head=False,
        pool_scales=[1, 2], use_relative_position_bias=True, **LABELS,
    )  # fmt: skip
    net = transformers.BeitForSemanticSegmentation(config)
    size = {"height": 64, "width": 64}
    return net, transformers.BeitImageProcessor(size=size, do_center_crop=False)


def dpt():
    config = transformers.DPTConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, use_auxiliary_head=False, **LABELS,
    )  # fmt: skip
    net = transformers.DPTForSemanticSegmentation(config)
    return net, transformers.DPTImageProcessor(size={"height": 64, "width": 64})


def mobilevit():
    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2, aspp_out_channels=16, **LABELS,
    )  # fmt: skip
    net = transformers.MobileViTForSemanticSegmentation(config)
    size = {"shortest_edge": 64}
    return net, transformers.MobileViTImageProcessor(size=size, do_center_crop=False)


def eomt(**options):
    config = transformers.EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        image_size=64, patch_size=8, num_blocks=1, num_queries=5, num_upscale_blocks=1,
        num_register_tokens=0, **LABELS,
    )  # fmt: skip
    net = transformers.EomtForUniversalSegmentation(config)
    size = {"shortest_edge": 64, "longest_edge": 64}
    return net, transformers.EomtImageProcessor(size=size, do_pad=True, **options)


KINDS = [segformer, upernet, beit, dpt, mobilevit, mask2former, maskformer, eomt]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save each model once; give its directory, network and processor by name."""
    made = {}

    def get(kind):
        if kind.__name__ not in made:
            root = tmp_path_factory.mktemp(kind.__name__)
            torch.manual_seed(0)
            net, processor = kind()
            net.eval().save_pretrained(root)
            processor.save_pretrained(root)
            made[kind.__name__] = (root, net, processor)
        return made[kind.__name__]

    return get


class Spy(nn.Module):
    """Keeps what it is given, and answers with nothing of interest."""

    def forward(self, image):
        self.seen = image
        return torch.zeros(len(image), 4, 8, 8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("shape", [(100, 70), (48, 110)])
def test_the_input_is_the_processors(saved, kind, shape):
    """As their processor resizes, rescales, normalises and orders channels; we pad on top."""
    root, _, processor = saved(kind)
    model = load_model(f"hf:{root}")
    bgr = bool(getattr(model.module, "_bgr", False))
    model.module = spy = Spy()
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    Predictor(model, torch.device("cpu"), LabelOptions()).predict([picture(image)])
    ours = spy.seen.flip(1) if bgr else spy.seen
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    inside = model.preprocessing.inside(*shape)
    height, width = (min(a, b) for a, b in zip(inside, theirs.shape[2:], strict=True))
    if not getattr(processor, "do_pad", False):
        assert tuple(theirs.shape[2:]) == inside
    near = (ours[..., :height, :width] - theirs[..., :height, :width]).abs()
    scale = 1 / min(model.preprocessing.std)
    assert float(near.mean()) < 0.01 * scale  # theirs are rounded to bytes, or bicubic


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_logits_are_the_librarys(saved, kind, tmp_path):
    root, net, _ = saved(kind)
    model = load_model(f"hf:{root}")
    assert [c.name for c in model.label_space.classes] == list(NAMES.values())
    assert {c.isthing for c in model.label_space.classes} == {None}
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        ours = model.module(inputs)
        if model.module.__class__.__name__ == "Semantic":
            flipped = inputs.flip(1) if kind is mobilevit else inputs
            assert torch.equal(ours, net(pixel_values=flipped).logits)
        else:
            out = net(pixel_values=inputs)
            classes = out.class_queries_logits.softmax(-1)[..., :-1]
            score = torch.einsum("nqc,nqhw->nchw", classes, out.masks_queries_logits.sigmoid())
            assert torch.allclose(ours.exp(), score, atol=1e-5)
    save_model(model, str(tmp_path / "m"))
    again = load_model(str(tmp_path / "m"))
    assert again.digest == model.digest
    with torch.inference_mode():
        assert torch.equal(again.module(inputs), ours)


def test_tasks_give_queries(saved):
    root, net, _ = saved(mask2former)
    model = load_model(f"hf:{root}?task=panoptic&score=0.7&most=9")
    assert (model.objects.task, model.objects.score, model.objects.most) == ("panoptic", 0.7, 9)
    inputs = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        found, theirs = model.module(inputs), net(pixel_values=inputs)
    assert [type(one) for one in found] == [QueryMasks, QueryMasks]
    assert torch.equal(found[1].classes, theirs.class_queries_logits[1])
    assert torch.equal(found[1].masks, theirs.masks_queries_logits[1])
    uris = [f"hf:{root}{o}" for o in ("", "?task=instance", "?task=panoptic")]
    assert len({load_model(uri).digest for uri in uris} | {model.digest}) == 4
    with pytest.raises(UsageError, match="finds no objects"):
        load_model(f"hf:{saved(segformer)[0]}?task=instance")
    with pytest.raises(UsageError, match="semantic, instance or panoptic"):
        load_model(f"hf:{root}?task=things")
    with pytest.raises(UsageError, match="for models that find objects"):
        load_model(f"hf:{root}?score=0.5")


def test_oneformer_is_told_its_task(tmp_path):
    words = ["<|startoftext|>", "<|endoftext|>", "the</w>", "task</w>", "is</w>"]
    words += ["semantic</w>", "instance</w>", "panoptic</w>"]
    letters = sorted(set("thetaskissemanticinstancepanoptic"))
    vocabulary = [*words, *letters, *(c + "</w>" for c in letters)]
    config = transformers.OneFormerConfig(
        backbone_config=swin(), hidden_dim=32, mask_dim=32, conv_dim=32, encoder_layers=1,
        decoder_layers=2, query_dec_layers=1, num_attention_heads=2, dim_feedforward=16,
        encoder_feedforward_dim=16, num_queries=6, task_seq_len=24, text_encoder_width=16,
        text_encoder_n_ctx=4, text_encoder_num_layers=1, text_encoder_vocab_size=100,
        text_encoder_context_length=12, is_training=False, **LABELS,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.OneFormerForUniversalSegmentation(config).eval()
    net.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    tokenizer.save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}?task=instance")
    told = tokenizer("the task is instance", padding="max_length", max_length=24)
    tokens = torch.tensor(told["input_ids"]) * torch.tensor(told["attention_mask"])
    assert model.module.task_tokens[0].tolist() == tokens.tolist()
    inputs = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found = model.module(inputs)[0]
        theirs = net(pixel_values=inputs, task_inputs=tokens[None])
        other = load_model(f"hf:{tmp_path}").module.queries(inputs)[0]
    assert torch.equal(found.masks, theirs.masks_queries_logits[0])
    assert not torch.equal(theirs.class_queries_logits, other)
    save_model(model, str(tmp_path / "kept"))
    again = load_model(str(tmp_path / "kept"))
    assert again.digest == model.digest
    assert again.objects.task == "instance"


def test_eomt_semantic_is_not_padded(saved, tmp_path):
    """Its network takes one size; cut into patches is what windows are for."""
    root, _, _ = saved(eomt)
    assert load_model(f"hf:{root}").preprocessing.multiple == 64
    net, processor = eomt(do_split_image=True)
    processor.do_pad = False
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_model(f"hf:{tmp_path}").preprocessing.size == (64, 64)


# --- what is said when it does not work --------------------------------------------------------


def test_placeholders_are_no_class_names(tmp_path):
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8,
        num_labels=150,
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--label-space"):
        load_model(f"hf:{tmp_path}")
    model = load_model(f"hf:{tmp_path}", label_space="ade20k-150")
    assert model.label_space == label_space("ade20k-150")
    assert load_model(f"hf:{tmp_path}?classes=150").label_space.name == "classes-150"
    assert model.preprocessing.multiple == 32


def test_weights_of_another_size_name_the_tensor(saved, tmp_path):
    root, net, _ = saved(segformer)
    net.save_pretrained(tmp_path)
    config = json.loads((root / "config.json").read_text())
    config["decoder_hidden_size"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"other shapes.*decode_head.*first: \(.*\), not \("):
        load_model(f"hf:{tmp_path}")


def test_a_model_without_a_head_is_told(saved, tmp_path):
    _, net, _ = saved(segformer)
    net.segformer.save_pretrained(tmp_path)
    config = json.loads((saved(segformer)[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"decode_head.*no trained head.*head=new"):
        load_model(f"hf:{tmp_path}")


def test_a_damaged_directory(saved, tmp_path):
    _, net, _ = saved(segformer)
    net.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="holds no whole model"):
        load_model(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="holds no whole model"):
        load_model(f"hf:{tmp_path}")
    with pytest.raises(ModelError, match="no such directory"):
        load_model(f"hf:{tmp_path / 'none'}")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_out_of_reach(offline, monkeypatch, tmp_path):
    """The name, the host, the cache and the mend are told."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    if not offline:
        monkeypatch.setattr("pipeline.models.hf.AutoConfig.from_pretrained", refuse)
    with pytest.raises(ModelError) as caught:
        load_model("hf:owner/name")
    text = str(caught.value)
    assert "\n" not in text
    assert "hf:owner/name" in text
    assert hub.ENDPOINT in text
    assert str(tmp_path) in text
    assert "hf download owner/name" in text
    assert ("unset HF_HUB_OFFLINE" in text) is offline


def refuse(*_args, **_options):
    raise OSError("We couldn't connect to 'https://huggingface.co'")


def test_code_beside_the_weights_is_not_run(tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="not run"):
        load_model(f"hf:{tmp_path}")


def test_pickled_weights_are_not_run(saved, tmp_path, capfd):
    root, _, _ = saved(segformer)
    (tmp_path / "config.json").write_bytes((root / "config.json").read_bytes())
    torch.save({"x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="run code"):
        load_model(f"hf:{tmp_path}")
    assert "ran code" not in capfd.readouterr().out


class Evil:
    def __reduce__(self):
        return (print, ("ran code",))
