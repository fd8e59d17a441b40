"""Each method's mechanism: where gradients go, losses by hand, averages, classes and passes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import load_model
from pipeline.training.methods import features, views
from pipeline.training.methods.advsemiseg import Discriminator, truthful
from pipeline.training.methods.gan_ss import Generator, among_loss, fake_loss, real_loss
from pipeline.training.methods.self_training import agreement
from tests.pipeline.methods_made import VOID, gradients, made, moved, state, streams
from tests.streets import MODEL, make_streets

if TYPE_CHECKING:
    from torch import Tensor


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("streets"), 1, 1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- views, boxes, pseudo-labels ------------------------------------------------------------------


def test_boxes_cover_the_share_that_was_asked_for():
    inside = views.boxes((200, 40, 60), 0.1, 0.3)
    shares = inside.float().mean((1, 2)).numpy()
    assert 0.08 < shares.min() < 0.15
    assert 0.25 < shares.max() < 0.32
    for box in inside[:20].numpy():
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_mixing_takes_the_next_image_inside_the_box():
    values, inside = torch.arange(3).view(3, 1, 1).expand(3, 4, 4), torch.zeros(3, 4, 4).bool()
    inside[:, :2] = True
    out = views.mixed(values, inside)
    assert out[:, 0, 0].tolist() == [2, 0, 1]
    assert out[:, 3, 3].tolist() == [0, 1, 2]
    assert views.mixed(values[..., None].expand(3, 4, 4, 3), inside).shape == (3, 4, 4, 3)


def test_hard_views_change_colours_and_never_shapes():
    images = torch.randint(0, 256, (40, 16, 24, 3), dtype=torch.uint8)
    images[:, 4:12, 6:18] = 30  # something to see the blur by
    out = views.hardened(images)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 255
    changed = (out - images).abs().amax((1, 2, 3)) > 1
    assert int(changed.sum()) >= 25
    grey = (out - out.mean(-1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3
    assert 1 <= int(grey.sum()) < 20
    torch.manual_seed(5)
    one = views.hardened(images)
    torch.manual_seed(5)
    assert torch.equal(one, views.hardened(images))


def test_only_trusted_pixels_count_over_all_that_are_shown():
    logits = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).clone().requires_grad_()
    target = torch.tensor([[[0, 1], [1, 0]]])
    trusted = torch.tensor([[[True, True], [False, True]]])
    shown = torch.tensor([[[True, True], [True, False]]])
    loss = views.pseudo_loss(logits, target, trusted, shown)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert loss.item() == pytest.approx((right + wrong) / 3, rel=1e-6)
    loss.backward()
    assert logits.grad[0, 0].bool().tolist() == [[True, True], [False, False]]
    assert views.pseudo_loss(logits, target, trusted, torch.zeros_like(shown)).item() == 0


def test_the_ramp_rises_from_little_to_one():
    assert views.ramp(0, 0.2) == pytest.approx(math.exp(-5))
    assert views.ramp(0.1, 0.2) == pytest.approx(math.exp(-1.25))
    assert views.ramp(0.2, 0.2) == views.ramp(0.9, 0.2) == views.ramp(0, 0) == 1


# --- Mean Teacher ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_the_teacher_is_the_average_of_the_student(store, loss):
    method = made(store, {"name": "mean-teacher", "decay": 0.9, "loss": loss, "threshold": 0})
    wanted = state(method.module)
    data = streams()
    for number in range(4):
        method.step(data, number, number / 4)
        keep = min(0.9, (1 + number) / (10 + number))
        for name, value in method.module.state_dict().items():
            if value.is_floating_point():
                wanted[name] = keep * wanted[name] + (1 - keep) * value
    for name, value in method.best_guess.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, wanted[name], atol=1e-6), name
    assert moved(wanted, method.module)


def test_unlabelled_images_move_the_student_alone(store):
    method = made(store, {"name": "mean-teacher", "threshold": 0, "ramp": 0})
    blank = streams(labels=torch.full((2, 32, 40), VOID, dtype=torch.uint8))
    losses = method.losses(blank, 0.5)
    assert losses["loss_labelled"].item() == 0
    assert losses["loss_unlabelled"].item() > 0
    before = state(method.teacher)
    sum(losses.values()).backward()
    assert gradients(method.module)
    assert all(p.grad is None for p in method.teacher.parameters())
    assert not moved(before, method.teacher)


def test_pixels_that_the_teacher_doubts_teach_nothing(store):
    method = made(store, {"name": "mean-teacher", "threshold": 1.0, "ramp": 0})
    assert method.losses(streams(), 0.5)["loss_unlabelled"].item() == 0
    assert method.figures()["kept"] == 0


# --- UniMatch -------------------------------------------------------------------------------------


class Sums(nn.Module):
    """A network whose encoder hands on the image and two features; logits are their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, images: Tensor) -> Tensor:
        parts = self.encoder(images)
        return torch.stack([p.sum(1) for p in parts], 1)


class Encoder(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, torch.ones(len(images), 400, 2, 2), torch.ones(len(images), 800, 2, 2)]


def test_features_are_dropped_by_channel_and_appended():
    images = torch.rand(3, 3, 2, 2)
    with features.changed(Sums(), features.with_dropped(1, 0.5)):
        pass
    network = Sums()
    with features.changed(network, features.with_dropped(1, 0.5)):
        out = network(images)
    assert out.shape == (5, 3, 2, 2)
    assert torch.equal(out[:3], network(images))  # the hook is gone, and the originals are whole
    assert torch.equal(out[3:, 0], images[1:].sum(1))  # the image itself is not perturbed
    dropped = out[3:, 1:]
    assert torch.equal(dropped, dropped[..., :1, :1].expand_as(dropped))  # whole channels
    assert not torch.equal(dropped[0], dropped[1])  # each image's own
    assert dropped[:, 0].mean().item() == pytest.approx(400, rel=0.2)
    assert (dropped[:, 0] != 400).any()


def test_complementary_halves_add_up():
    ones = torch.ones(64, 50, 2, 2)
    out = features.complementary(ones)
    assert torch.equal(out[:32] + out[32:], 2 * ones[:32])
    whole = (out == 1).all(-1).all(-1).all(-1)
    assert int(whole.sum()) == 32  # half of the pairs keep everything
    assert set(out[~whole].unique().tolist()) == {0.0, 2.0}
    image = torch.rand(4, 3, 5, 5)
    assert torch.equal(features.complementary(image), image)


@pytest.mark.parametrize(
    "uri",
    [
        "smp:FPN?encoder_name=resnet18", "smp:Unet?encoder_name=resnet18", "zoo:enet",
        "zoo:lite-fpn", "torchvision:lraspp_mobilenet_v3_large", MODEL,
    ],
)  # fmt: skip
def test_features_of_any_segmenter_can_be_perturbed(uri):
    network = load_model(f"{uri}{'&' if '?' in uri else '?'}classes=4").module
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        plain = network(images)
        with features.changed(network, features.with_dropped(1, 0.5)):
            out = network(images)
        assert torch.allclose(out[:2], plain, atol=1e-4)
        assert len(out) == 3
        assert not torch.allclose(out[2], plain[1], atol=1e-4)
        assert torch.equal(network(images), plain)


@pytest.mark.parametrize("version", [1, 2])
def test_unimatch_learns_from_pictures_and_labels_alike(store, version):
    method = made(store, {"name": "unimatch", "version": version, "threshold": 0})
    losses = method.losses(streams(), 0.5)
    assert losses.keys() == {"loss_labelled", "loss_unlabelled"}
    losses["loss_unlabelled"].backward()
    assert gradients(method.module)
    if version == 2:
        assert all(p.grad is None for p in method.best_guess.parameters())
    strict = made(store, {"name": "unimatch", "version": version, "threshold": 1})
    assert strict.losses(streams(), 0.5)["loss_unlabelled"].item() == 0


# --- self-training --------------------------------------------------------------------------------


def test_agreement_is_the_mean_iou_of_what_either_shows():
    one = np.array([[0, 0, 1, 1]])
    other = np.array([[0, 2, 1, 1]])
    assert agreement(one, other) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert agreement(one, one) == 1


def test_the_first_student_learns_from_steady_images_alone(store):
    """Images on which earlier checkpoints agree with the last are chosen; void ones teach none."""
    method = made(store, {"name": "self-training", "reliable": 0.5})
    data = streams(labels=torch.full((2, 32, 40), VOID, dtype=torch.uint8))
    images = {name: np.random.default_rng(i).integers(0, 256, (32, 40, 3), np.uint8)
              for i, name in enumerate("abcd")}  # fmt: skip
    data.everything = lambda: iter(images.items())
    for number in range(5):
        method.step(data, number, number / 15)
    assert len(method._earlier) == 2
    answers = {"a": 0, "b": 9, "c": 9, "d": 0}  # how many pixels change between checkpoints
    teacher = method.best_guess
    method._labels = lambda network, image: _answer(
        network is method.teacher, image, images, answers
    )
    method._advance(data)
    assert method._stage == 1
    assert method._may_teach(("a", "b", "c", "d")).tolist() == [True, False, False, True]
    assert not moved(method._initial, method.module)  # the student starts anew
    assert not moved(state(teacher), method.teacher) or teacher is method.module
    before = state(method.teacher)
    method.module.train()
    shown = method._pictures(data)
    assert shown[0].shape[0] == 2
    losses = method.losses(data, 0.4)
    losses["loss_unlabelled"].backward()
    assert gradients(method.module)
    assert not moved(before, method.teacher)
    method._advance(data)
    assert method._may_teach(("b", "c")).all()


def _answer(last: bool, image: Any, images: Any, answers: Any) -> Any:
    name = next(n for n, other in images.items() if np.array_equal(other, image))
    out = np.zeros((4, 4), np.int64)
    if not last:
        out.ravel()[: answers[name]] = 1
    return out


# --- AdvSemiSeg -----------------------------------------------------------------------------------


def test_the_discriminator_is_the_papers():
    network = Discriminator(21)
    assert sum(p.numel() for p in network.parameters()) == 2_783_169
    assert network(torch.rand(1, 21, 64, 96)).shape == (1, 1, 64, 96)


def test_truthful_is_binary_cross_entropy_on_valid_pixels():
    logits, valid = torch.randn(2, 1, 5, 6), torch.rand(2, 5, 6) < 0.5
    wanted = nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0][valid], torch.ones(int(valid.sum()))
    )
    assert truthful(logits, valid).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_segmenter_and_discriminator_learn_apart(store):
    method = made(store, {"name": "advsemiseg", "start": 0.5, "threshold": 0.0})
    data = streams()
    early = method.losses(data, 0.4)
    assert "loss_unlabelled" not in early
    late = method.losses(data, 0.6)
    sum(late.values()).backward()
    assert gradients(method.module)
    assert all(p.grad is None for p in method.discriminator.parameters())
    method.module.zero_grad()
    before = state(method.module)
    own = state(method.discriminator)
    method.also(data, 0.6)
    assert moved(own, method.discriminator)
    assert not moved(before, method.module)
    assert not gradients(method.module)


def test_only_pixels_that_pass_for_truth_are_learned(store):
    method = made(store, {"name": "advsemiseg", "start": 0, "threshold": 0.5, "adversarial": 0})
    last = method.discriminator.layers[-1]
    nn.init.zeros_(last.weight)
    for bias, kept in ((5.0, 1), (-5.0, 0)):
        nn.init.constant_(last.bias, bias)
        loss = method.losses(streams(), 0.5)["loss_unlabelled"]
        assert (loss.item() > 0) is bool(kept)
        assert method.figures()["kept"] == kept


# --- GAN-SS ---------------------------------------------------------------------------------------


def test_losses_of_k_plus_one_classes_by_hand():
    """Softmax over two classes and fake, whose logit is 0: odds e^1, e^-1 and 1."""
    logits = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    total = math.e + 1 / math.e + 1
    fake = 1 / total
    assert fake_loss(logits).item() == pytest.approx(-math.log(fake), rel=1e-6)
    assert real_loss(logits).item() == pytest.approx(-math.log(1 - fake), rel=1e-6)
    first = among_loss(logits, torch.tensor([[1.0, 0.0]]))
    assert first.item() == pytest.approx(-math.log(math.e / total), rel=1e-6)
    both = among_loss(logits, torch.tensor([[1.0, 1.0]]))
    none = among_loss(logits, torch.tensor([[0.0, 0.0]]))
    assert both.item() == none.item() == pytest.approx(real_loss(logits).item(), rel=1e-6)


def test_losses_stay_finite_and_smooth_for_large_logits():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    total = real_loss(-logits) + fake_loss(logits) + among_loss(logits, torch.tensor([[0.0, 1.0]]))
    total.sum().backward()
    assert total.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("form", ["semi", "weak"])
def test_segmenter_and_generator_learn_apart(store, form):
    method = made(store, {"name": "gan-ss", "form": form, "width": 2})
    data = streams()
    sum(method.losses(data, 0.5).values()).backward()
    assert gradients(method.module)
    assert all(p.grad is None for p in method.generator.parameters())
    method.module.zero_grad()
    before, own = state(method.module), state(method.generator)
    method.also(data, 0.5)
    assert moved(own, method.generator)
    assert not moved({k: v for k, v in before.items() if "num_batches" not in k}
                     | {k: v for k, v in method.module.state_dict().items() if "num_batches" in k},
                     method.module)  # fmt: skip
    assert not gradients(method.module)


def test_generated_images_leave_the_running_statistics_alone(store):
    method = made(store, {"name": "gan-ss", "width": 2, "weight": 1.0})
    data = streams()
    method.losses(data, 0.5)
    before = state(method.module)
    method.also(data, 0.5)
    for name, value in method.module.state_dict().items():
        if "running" in name:
            assert torch.equal(value, before[name])


def test_the_generator_listens_to_its_classes():
    network = Generator((40, 56), labels=3, width=2).eval()
    noise = torch.randn(2, 100)
    one, other = (torch.cat([noise, torch.eye(3)[[i, i]]], 1) for i in (0, 1))
    images = network(one)
    assert images.shape == (2, 40, 56, 3)
    assert images.min() >= 0
    assert images.max() <= 255
    assert not torch.equal(images, network(other))
