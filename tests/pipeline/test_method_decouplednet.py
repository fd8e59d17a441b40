"""DecoupledNet: its bridge, its passes, and that each network learns in its own turn."""

from __future__ import annotations

import pytest
import torch

from pipeline.models import load_model
from pipeline.training.methods.decouplednet import _figure
from tests.pipeline.methods_made import VOID, made, moved, state, streams
from tests.streets import make_streets


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("streets"), 1, 1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


NET = "zoo:decouplednet?width=4"


def test_saliency_is_the_gradient_of_the_classes_score():
    network = load_model(f"{NET}&classes=6").module
    seen = network.see(torch.randn(2, 3, 64, 96))
    asked = torch.eye(6)[[3, 5, 3]]
    asked[2, 1] = 1  # two classes at once
    which = torch.tensor([0, 1, 1])
    found = network.classifier.saliency(seen, which, asked)
    top = seen.top[which].detach().requires_grad_()
    head = network.classifier
    maps = head.score(torch.relu(head.second(torch.relu(head.first(top)))))
    best = maps.amax((2, 3))
    (wanted,) = torch.autograd.grad((best * best.sigmoid().detach() * asked).sum(), top)
    assert torch.allclose(found, wanted, atol=1e-7)
    assert wanted.abs().max() > 1e-5


def test_class_maps_differ_by_class():
    network = load_model(f"{NET}&classes=6").module
    seen = network.see(torch.randn(1, 3, 64, 64))
    maps = network.classifier.saliency(seen, torch.zeros(6, dtype=torch.int64), torch.eye(6))
    for a in range(6):
        for b in range(a):
            assert not torch.allclose(maps[a], maps[b])
    network.segmenter.train()
    figures = network.figure(seen, torch.zeros(6, dtype=torch.int64), torch.eye(6))
    assert not torch.allclose(figures[0], figures[1])


@pytest.mark.parametrize("background", [None, 0])
def test_k_classes_cost_k_passes(background):
    ground = "" if background is None else "&background=0"
    network = load_model(f"{NET}{ground}&classes=40").module
    with torch.no_grad():
        network.classifier.score.bias.copy_(torch.where(torch.arange(40) % 2 == 1, 9.0, -9.0))
    passes = []
    network.segmenter.register_forward_hook(lambda _, __, out: passes.append(len(out)))
    with torch.inference_mode():
        out = network(torch.randn(2, 3, 32, 64))
    assert sum(passes) == 2 * (20 + (background is not None))
    assert out.shape == (2, 40, 32, 64)
    assert torch.allclose(out.exp().sum(1), torch.ones(2, 32, 64), atol=1e-4)
    absent = [c for c in range(40) if c % 2 == 0 and c != background]
    assert out[:, absent].max() < out[:, 1::2].amax(1).min()


def test_one_class_is_kept_where_none_is_sure():
    network = load_model(f"{NET}&classes=5").module
    with torch.no_grad():
        network.classifier.score.bias.copy_(torch.tensor([-99.0, -99, -50, -99, -99]))
    with torch.inference_mode():
        assert (network(torch.randn(1, 3, 32, 32)).argmax(1) == 2).all()


def test_each_stage_trains_its_own_network(store):
    method = made(store, "decouplednet", "zoo:decouplednet?width=2")
    classifier, segmenter = method.module.classifier, method.module.segmenter
    data = streams()
    before = state(segmenter), state(classifier)
    method.step(data, 0, 0.1)
    assert not moved(before[0], segmenter)
    assert moved(before[1], classifier)
    before = state(segmenter), state(classifier)
    for number in range(2):
        method.module.train()
        method.step(data, number, 0.7)
    assert moved(before[0], segmenter)
    assert not moved(before[1], classifier)  # statistics included


def test_nothing_but_void_is_survived(store):
    method = made(store, "decouplednet", "zoo:decouplednet?width=2")
    blank = streams(labels=torch.full((2, 32, 40), VOID, dtype=torch.uint8))
    before = state(method.module.segmenter)
    loss, _ = method.step(blank, 0, 0.7)
    assert loss.item() == 0
    assert not moved(before, method.module.segmenter)


def test_figure_and_ground_of_the_classes_asked_for():
    labels = torch.tensor([[[0, 1, 2, VOID]], [[2, 2, 0, 1]]])
    asked = torch.tensor([[False, True, False], [True, False, True]])
    assert _figure(labels, asked, VOID).tolist() == [[[0, 1, 0, -1]], [[1, 1, 1, 0]]]


def test_an_image_is_asked_for_one_of_its_classes(store):
    method = made(store, {"name": "decouplednet", "together": 1.0}, "zoo:decouplednet?width=2")
    present = torch.zeros(50, 11)
    present[:49, [2, 5]] = 1
    asked = method._asked(present)
    assert asked.sum(1).tolist() == [1] * 49 + [0]
    assert asked.any(0).nonzero()[:, 0].tolist() == [2, 5]
    ground = made(store, {"name": "decouplednet", "together": 1.0},
                  "zoo:decouplednet?width=2&background=2")  # fmt: skip
    assert ground._asked(present)[0].nonzero()[:, 0].tolist() == [5]
