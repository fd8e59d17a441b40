"""Exported models: ONNX, torch.export, TorchScript; what they say of themselves and may not do."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import MissingExtra, ModelError, UsageError
from pipeline.label_space import label_space
from pipeline.models import load_model
from pipeline.models.loaded import Preprocessing, ShortestEdge
from pipeline.models.pt2 import _is_plain
from pipeline.models.uri import absolute, parse
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Predictor
from tests.pictures import picture

FIVE = list("abcde")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 5, 1)
    ).eval()


def inputs(n=3, size=(64, 96)):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


def close(model, net, x):
    with torch.inference_mode():
        return torch.allclose(model.module(x), net(x), atol=1e-5)


def as_segmenters_do(model):
    model.module.requires_grad_(False).eval()
    model.module.to(torch.device("cpu")).to(memory_format=torch.channels_last)


def dims():
    sides = [torch.export.Dim(name, min=8, max=4096) for name in ("h", "w")]
    return ({0: torch.export.Dim("n"), 2: sides[0], 3: sides[1]},)


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    """Save the network as .pt2: all sizes dynamic, and all fixed with a batch of two."""
    root = tmp_path_factory.mktemp("export")
    told = {"id2label": json.dumps(dict(enumerate(FIVE)))}
    program = torch.export.export(net, (inputs(2),), dynamic_shapes=dims())
    torch.export.save(program, root / "dynamic.pt2", extra_files=told)
    torch.export.save(torch.export.export(net, (inputs(2),)), root / "fixed.pt2")
    return root


# --- torch.export ------------------------------------------------------------------------------


def test_a_dynamic_program(exported, net):
    model = load_model(f"export:{exported}/dynamic.pt2")
    assert [c.name for c in model.label_space.classes] == FIVE
    assert model.preprocessing.size is None
    assert close(model, net, inputs())
    assert close(model, net, inputs(1, (32, 128)))
    as_segmenters_do(model)
    assert close(model, net, inputs())


def test_a_program_of_one_size_takes_images_in_turns(exported, net):
    model = load_model(f"{exported}/fixed.pt2?classes=5")
    assert (model.preprocessing.size, model.preprocessing.multiple) == ((64, 96), 1)
    assert close(model, net, inputs(5))
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    one = Predictor(model, torch.device("cpu"), LabelOptions()).predict([picture(image)])[0]
    assert one.ids.shape == (90, 70)
    with pytest.raises(ModelError, match=r"\[2, 3, 32, 64\].*\?size="):
        model.module(inputs(2, (32, 64)))


def test_the_digest_is_of_the_bytes(exported, tmp_path):
    first = load_model(f"export:{exported}/dynamic.pt2")
    shutil.copy(exported / "dynamic.pt2", tmp_path / "other.pt2")
    assert load_model(str(tmp_path / "other.pt2")).digest == first.digest
    changed = load_model(f"{tmp_path}/other.pt2?mean=0.5")
    assert changed.digest != first.digest
    assert load_model(f"{exported}/fixed.pt2?classes=5").digest != first.digest


def test_the_file_beside_it_wins_over_metadata_and_the_uri_over_both(exported, tmp_path):
    path = tmp_path / "m.pt2"
    shutil.copy(exported / "dynamic.pt2", path)
    told = {"names": list("vwxyz"), "preprocessing": {"mean": [0, 0, 0], "edge": [64, None, 8]}}
    (tmp_path / "m.pt2.json").write_text(json.dumps(told))
    model = load_model(str(path))
    assert [c.name for c in model.label_space.classes] == list("abcde")  # id2label comes first
    (tmp_path / "m.pt2.json").write_text(json.dumps(told | {"id2label": dict(enumerate("vwxyz"))}))
    model = load_model(str(path))
    assert [c.name for c in model.label_space.classes] == list("vwxyz")
    assert model.preprocessing.mean == (0.0, 0.0, 0.0)
    assert model.preprocessing.edge == ShortestEdge(64, None, 8)
    model = load_model(f"{path}?mean=0.1,0.2,0.3&std=0.5&size=32x64&multiple=1", label_space=None)
    assert model.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3, (32, 64), 1)
    with pytest.raises(ModelError, match=r"5 classes.*'camvid-11' has 11"):
        load_model(str(path), label_space="camvid-11")


def test_what_optimum_writes_beside_it_is_read(net, exported, tmp_path):
    shutil.copy(exported / "fixed.pt2", tmp_path / "model.pt2")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "segformer", "id2label": dict(enumerate(FIVE))})
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 9}})
    )
    model = load_model(f"{tmp_path}/model.pt2")
    assert [c.name for c in model.label_space.classes] == FIVE
    assert model.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3, (64, 96), 1)


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("fixed.pt2", UsageError, r"which classes.*--label-space"),
        ("fixed.pt2?classes=4", ModelError, "5 classes"),
        ("fixed.pt2?classes=5&sise=3x4", UsageError, "no option sise.*size"),
        ("fixed.pt2?classes=5&size=3", UsageError, "HxW"),
        ("fixed.pt2?classes=5&mean=1,2", UsageError, "one number or three"),
        ("fixed.pt2?classes=5&std=0", UsageError, "above 0"),
        ("fixed.pt2?classes=5&edge=a", UsageError, "SHORTEST"),
        ("fixed.pt2?classes=5&edge=4&size=4x4", UsageError, "exclude"),
        ("fixed.pt2?classes=5&multiple=0", UsageError, "at least 1"),
        ("fixed.pt2?classes=5&output=ids", UsageError, "logits or probabilities"),
        ("none.pt2?classes=5", ModelError, "no such file"),
    ],
)
def test_mistakes_are_told(exported, uri, error, words):
    with pytest.raises(error, match=words) as caught:
        load_model(f"export:{exported}/{uri}")
    assert "\n" not in str(caught.value)


def test_weights_are_in_the_file(exported):
    with pytest.raises(UsageError, match="holds its weights"):
        load_model(f"{exported}/fixed.pt2?classes=5", weights="w.safetensors")


def test_probabilities_become_logits(net, tmp_path):
    whole = nn.Sequential(net, nn.Softmax(dim=1)).eval()
    torch.export.save(torch.export.export(whole, (inputs(1),)), tmp_path / "p.pt2")
    model = load_model(f"{tmp_path}/p.pt2?classes=5&output=probabilities")
    with torch.inference_mode():
        p = model.module(inputs(2)).softmax(1)
        assert torch.allclose(p, net(inputs(2)).softmax(1), atol=1e-4)


class ArgMax(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).argmax(1, keepdim=True)


def test_class_ids_are_no_logits(net, tmp_path):
    torch.export.save(torch.export.export(ArgMax(net), (inputs(1),)), tmp_path / "a.pt2")
    model = load_model(f"{tmp_path}/a.pt2?classes=1")
    with pytest.raises(ModelError, match="arg-max"):
        model.module(inputs(1))


# --- programs that would run code --------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("ran code",))


def rewritten(source, target, change):
    """Copy a .pt2, each record through `change(name, bytes)`; uncompressed, as torch needs it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name.split("/", 1)[1], old.read(name))
            if data is not None:
                new.writestr(f"{target.stem}/{name.split('/', 1)[1]}", data)
    return target


def pickled():
    held = io.BytesIO()
    torch.save({"x": Evil()}, held)
    return held.getvalue()


def with_pickled_weights(name, data):
    if name == "data/weights/model_weights_config.json":
        told = json.loads(data)
        for entry in told["config"].values():
            entry["use_pickle"] = True
        return json.dumps(told).encode()
    return pickled() if name.startswith("data/weights/") else data


def with_pickled_sample(name, data):
    return pickled() if name == "data/sample_inputs/model.pt" else data


def with_pickled_constant(name, data):
    if name == "data/constants/model_constants_config.json":
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
                 "tensor_meta": None}  # fmt: skip
        return json.dumps({"config": {"evil": entry}}).encode()
    return data


def with_an_expression(name, data):
    if name == "models/model.json":
        return data.replace(b"Symbol('s", b"print('ran code') or Symbol('s", 1)
    return data


@pytest.mark.parametrize(
    "change",
    [with_pickled_weights, with_pickled_sample, with_pickled_constant, with_an_expression],
    ids=lambda c: c.__name__,
)
def test_a_program_runs_no_python(exported, tmp_path, capfd, change):
    path = rewritten(exported / "dynamic.pt2", tmp_path / "evil.pt2", change)
    if change is with_pickled_constant:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("evil/data/constants/opaque_obj_0", pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="run code"):
        load_model(f"export:{path}?classes=5")
    assert "ran code" not in capfd.readouterr().out
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_copying_a_program_alone_leaves_it_whole(exported, net, tmp_path):
    path = rewritten(exported / "dynamic.pt2", tmp_path / "same.pt2", lambda _, data: data)
    assert close(load_model(str(path)), net, inputs())


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "eval('1')", "Integer('print()')", "().x", "S('1')", "Symbol('a b')",
     "[1]", "f'{x}'", "lambda: 0", "Symbol(x, a='print()')", "x.y", "(", "Add(1, print())"],
)  # fmt: skip
def test_odd_expressions_are_refused(text):
    assert not _is_plain(text)


@pytest.mark.parametrize("text", ["s0", "2*s0 + 1", "Eq(Mod(s1, 8), 0)", "Integer(-1)", "s0 < 4"])
def test_size_expressions_are_taken(text):
    assert _is_plain(text)


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04torn"])
@pytest.mark.parametrize("kind", ["export", "script"])
def test_a_damaged_file(tmp_path, kind, data):
    (tmp_path / "x.pt2").write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.pt2"):
        load_model(f"{kind}:{tmp_path}/x.pt2?classes=5")


# --- TorchScript -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_torchscript(net, tmp_path):
    told = {"segmill": json.dumps({"label_space": "camvid-11", "preprocessing": {"multiple": 8}})}
    wide = nn.Sequential(net, nn.Conv2d(5, 11, 1)).eval()
    torch.jit.save(torch.jit.script(wide), tmp_path / "m.pt", _extra_files=told)
    model = load_model(f"script:{tmp_path}/m.pt")
    assert model.label_space == label_space("camvid-11")
    assert model.preprocessing.multiple == 8
    assert close(model, wide, inputs())
    as_segmenters_do(model)
    assert close(model, wide, inputs())
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "m.pt", tmp_path / "b/m.pt")
    assert load_model(f"script:{tmp_path}/b/m.pt").digest == model.digest


# --- ONNX --------------------------------------------------------------------------------------


def onnx_file(path, *, n=None, size=(None, None), kind="FLOAT", last=False, metadata=()):
    """Write a 1x1 convolution with bias by hand: the judge is a few lines of NumPy."""
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    pytest.importorskip("onnxruntime", reason="pip install 'segmill[onnx]'")
    helper, types = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 3, 1, 1)), rng.normal(size=5)
    shape = [n or "n", 3, size[0] or "h", size[1] or "w"]
    out = [n or "n", 5, size[0] or "h", size[1] or "w"]
    if last:
        shape, out = [shape[i] for i in (0, 2, 3, 1)], [out[i] for i in (0, 2, 3, 1)]
    node = helper.make_node
    nodes = [node("Cast", ["image"], ["float"], to=types.FLOAT)]
    nodes += [node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3])]
    nodes += [node("Conv", ["x", "weight", "bias"], ["y"])]
    nodes += [node("Transpose", ["y"], ["logits"], perm=[0, 2, 3, 1] if last else [0, 1, 2, 3])]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("image", getattr(types, kind), shape)],
        [helper.make_tensor_value_info("logits", types.FLOAT, out)],
        [onnx.numpy_helper.from_array(weight.astype(np.float32), "weight"),
         onnx.numpy_helper.from_array(bias.astype(np.float32), "bias")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in dict(metadata).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))

    def judge(x):
        y = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x.numpy().astype(np.float64))
        return torch.tensor(y + bias[:, None, None], dtype=torch.float32)

    return judge


@pytest.mark.parametrize("n", [None, 1, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(None, None), (64, 96)])
def test_onnx(tmp_path, n, last, size):
    judge = onnx_file(tmp_path / "m.onnx", n=n, last=last, size=size)
    layout = "&layout=nhwc" if last else ""
    model = load_model(f"onnx:{tmp_path}/m.onnx?classes=5{layout}")
    assert model.preprocessing.size == (None if size[0] is None else size)
    assert torch.allclose(model.module(inputs()), judge(inputs()), atol=1e-4)


def test_onnx_names_its_classes_as_exporters_write_them(tmp_path):
    onnx_file(tmp_path / "m.onnx", metadata={"names": str(dict(enumerate(FIVE)))})
    assert [c.name for c in load_model(f"{tmp_path}/m.onnx").label_space.classes] == FIVE
    onnx_file(tmp_path / "s.onnx", metadata={"segmill": json.dumps({"names": FIVE})})
    assert [c.name for c in load_model(f"{tmp_path}/s.onnx").label_space.classes] == FIVE
    onnx_file(tmp_path / "bad.onnx", metadata={"id2label": '{"1": "a", "3": "b"}'})
    with pytest.raises(ModelError, match="numbered from 0"):
        load_model(f"{tmp_path}/bad.onnx")


def test_onnx_of_bytes_gets_bytes(tmp_path):
    judge = onnx_file(tmp_path / "m.onnx", kind="UINT8", metadata={"names": str(FIVE)})
    model = load_model(f"{tmp_path}/m.onnx?multiple=1")
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    one = Predictor(model, torch.device("cpu"), LabelOptions()).predict([picture(image)])[0]
    want = judge(torch.from_numpy(image).permute(2, 0, 1)[None]).argmax(1)[0]
    assert np.array_equal(one.ids, want)


def test_onnx_digest_is_of_the_bytes(tmp_path):
    onnx_file(tmp_path / "a.onnx")
    shutil.copy(tmp_path / "a.onnx", tmp_path / "b.onnx")
    first, second = (load_model(f"onnx:{tmp_path}/{n}.onnx?classes=5") for n in "ab")
    assert first.digest == second.digest
    assert load_model(f"onnx:{tmp_path}/a.onnx?classes=5&mean=0").digest != first.digest
    (tmp_path / "b.onnx.data").write_bytes(b"weights beside it")
    assert load_model(f"onnx:{tmp_path}/b.onnx?classes=5").digest != first.digest


def test_onnx_mistakes(tmp_path):
    onnx_file(tmp_path / "m.onnx")
    (tmp_path / "torn.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:50])
    with pytest.raises(ModelError, match="cannot open"):
        load_model(f"onnx:{tmp_path}/torn.onnx?classes=5")
    with pytest.raises(UsageError, match="which classes"):
        load_model(f"onnx:{tmp_path}/m.onnx")
    with pytest.raises(ModelError, match=r"5 classes.*'camvid-11' has 11"):
        load_model(f"onnx:{tmp_path}/m.onnx", label_space="camvid-11")
    with pytest.raises(UsageError, match="nchw or nhwc"):
        load_model(f"onnx:{tmp_path}/m.onnx?classes=5&layout=chw")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"segmill\[onnx\]"):
        load_model(f"onnx:{tmp_path}/m.onnx?classes=5")


# --- URIs --------------------------------------------------------------------------------------


def test_files_are_known_by_their_suffix():
    assert (parse("a/m.onnx?x=1").kind, parse("s3://b/m.PT2").kind) == ("onnx", "export")
    assert parse("onnx:s3://b/m.onnx").name == "s3://b/m.onnx"
    assert parse("a/m.pt").kind == "run"


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").touch()
    for given, want in (
        ("onnx:m.onnx?classes=5", f"onnx:{tmp_path}/m.onnx?classes=5"),
        ("m.onnx?classes=5", f"{tmp_path}/m.onnx?classes=5"),
        ("onnx:none.onnx", "onnx:none.onnx"),
        ("zoo:m.onnx", "zoo:m.onnx"),
        ("s3://b/m.onnx", "s3://b/m.onnx"),
        ("hf:owner/name?task=instance", "hf:owner/name?task=instance"),
    ):
        assert absolute(given) == want
