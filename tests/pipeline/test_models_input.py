"""Sizes and classes that models come with, judged by the libraries that trained them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights
from torchvision.transforms.functional import _compute_resized_output_size

from pipeline.errors import UsageError
from pipeline.label_space import LABEL_SPACES, label_space
from pipeline.models import load_model
from pipeline.models.classes import named_space
from pipeline.models.loaded import Preprocessing, ShortestEdge
from pipeline.models.processors import preprocessing_of
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Predictor
from pipeline.training.learner import open_model
from tests.pictures import picture

LRASPP = "torchvision:lraspp_mobilenet_v3_large?weights=DEFAULT"
SIDES = st.integers(1, 4000)


@given(SIDES, SIDES, st.integers(16, 1000), st.none() | st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_the_shorter_side_is_theirs(height, width, edge, more):
    from transformers.image_transforms import get_size_with_aspect_ratio

    longest = None if more is None else edge + more
    theirs = get_size_with_aspect_ratio((height, width), edge, longest)
    assume(min(theirs) > 0)  # of an image some thousand times as long as wide; ours keeps a pixel
    assert ShortestEdge(edge, longest).of(height, width) == theirs
    if longest is None:
        assert list(theirs) == _compute_resized_output_size((height, width), [edge])


def test_a_divisor_stretches_as_mask2former_does():
    from transformers import Mask2FormerImageProcessor

    size = {"shortest_edge": 75, "longest_edge": 111}
    processor = Mask2FormerImageProcessor(size=size, size_divisor=32)
    edge = preprocessing_of(processor.to_dict(), {}).edge
    for shape in ((50, 60), (200, 90), (30, 300)):
        image = torch.zeros(1, 3, *shape)
        theirs = processor.resize(image, processor.size, size_divisor=32).shape[2:]
        assert edge.of(*shape) == tuple(theirs)


def test_preprocessing_survives_json():
    for one in (
        Preprocessing((0.1,) * 3, (0.2,) * 3, (4, 5), 1),
        Preprocessing((0.1,) * 3, (0.2,) * 3, None, 32, ShortestEdge(520)),
        Preprocessing((0.1,) * 3, (0.2,) * 3, None, 32, ShortestEdge(800, 1333, 32)),
    ):
        assert Preprocessing.from_dict(one.to_dict()) == one
    assert "edge" not in Preprocessing((0.1,) * 3, (0.2,) * 3).to_dict()  # digests of old stay


@pytest.fixture(scope="module")
def lraspp():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).eval()


def test_torchvisions_weights_from_a_file_are_the_downloaded_ones(lraspp, tmp_path, monkeypatch):
    path = "torchvision.models._api.WeightsEnum.get_state_dict"
    monkeypatch.setattr(path, lambda *_, **__: lraspp.state_dict())
    fetched = load_model(LRASPP)
    torch.save(lraspp.state_dict(), tmp_path / "w.pth")

    def unreachable(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(path, unreachable)
    model = load_model(LRASPP, weights=str(tmp_path / "w.pth"))
    assert model.digest == fetched.digest
    assert model.label_space.name == "voc-21"
    assert model.preprocessing.edge == ShortestEdge(520)
    with pytest.raises(Exception, match=r"no route to host.*download.*pytorch\.org.*--weights"):
        load_model(LRASPP)


def test_torchvisions_transforms_are_ours(lraspp, tmp_path):
    """Their preset makes the same input of an image, up to the rounding of its resize to bytes."""
    torch.save(lraspp.state_dict(), tmp_path / "w.pth")
    model = load_model(f"{LRASPP}&edge=60", weights=str(tmp_path / "w.pth"))
    seen = []
    module = model.module
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    Predictor(model, torch.device("cpu"), LabelOptions()).predict([picture(image)])
    preset = LRASPP_MobileNet_V3_Large_Weights.DEFAULT.transforms(resize_size=60)
    theirs = preset(torch.from_numpy(image).permute(2, 0, 1))[None]
    assert seen[0].shape == theirs.shape == (1, 3, 60, 100)
    assert float((seen[0] - theirs).abs().max()) < 0.02


def test_input_size_wins(lraspp, tmp_path):
    torch.save(lraspp.state_dict(), tmp_path / "w.pth")
    model = load_model(LRASPP, weights=str(tmp_path / "w.pth"))
    for options, want in ((LabelOptions(), (520, 1040)), (LabelOptions(input_size=(64, 32)), None)):
        predictor = Predictor(model, torch.device("cpu"), options)
        assert predictor.input_shape(100, 200) == (want or (64, 32))
    native = load_model(f"{LRASPP}&size=native", weights=str(tmp_path / "w.pth"))
    assert native.preprocessing.inside(77, 99) == (77, 99)
    assert native.digest != model.digest


# --- classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_every_synonym_finds_its_label_space(name):
    """As hub models name them: the first synonym, another one, in capitals, with odd spaces."""
    space = label_space(name)
    names = [space.by_id[i].name for i in space.train_ids]
    own = named_space(names)
    shared = [i for i in LABEL_SPACES if i != name and named_space(names).name == i]
    assert own.name == name or shared  # two spaces may train on one list
    for pick in (0, -1):
        said = [n.split(",")[pick].split(";")[0].upper() + " " for n in names]
        if len(set(said)) == len(said):
            assert named_space(said).name == own.name


def test_other_names_are_another_space():
    names = [label_space("cityscapes-19").by_id[i].name for i in range(19)]
    assert named_space(names).name == "cityscapes-19"
    assert named_space([*names[:-1], "kite"]).name.startswith("classes-19-")
    assert named_space(names[::-1]).name.startswith("classes-19-")


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    ["torchvision:maskrcnn_resnet50_fpn?label_space=camvid-11", "onnx:m.onnx", "export:m.pt2"],
)
def test_what_cannot_be_trained_is_refused(uri):
    recipe = SimpleNamespace(model=uri, seed=0, label_space=None, start_from=None, input_size=None)
    with pytest.raises(UsageError, match="training"):
        open_model(recipe, SimpleNamespace(url="s", label_spaces={}))
