"""Refinement against brute force: each window's regression solved, each pair of pixels visited."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import ImageTooLarge, MissingExtra
from pipeline.models import load_model
from pipeline.predict import refine, views
from pipeline.predict.crf import DenseCrf
from pipeline.predict.options import LabelOptions, check_model
from pipeline.predict.refine import GuidedFilter, guided
from tests.pipeline.predicting import PLAIN, labels_of, noise, street


def brute_guided(p, guide, radius, epsilon):
    """Equations (16) to (18) of He et al. 2013, window by window, by a linear solver in float64."""
    height, width = p.shape
    slope, offset = np.zeros((height, width, 3)), np.zeros((height, width))

    def window(y, x):
        rows = slice(max(0, y - radius), y + radius + 1)
        return rows, slice(max(0, x - radius), x + radius + 1)

    for y in range(height):
        for x in range(width):
            colours = guide[window(y, x)].reshape(-1, 3)
            values = p[window(y, x)].ravel()
            spread = np.cov(colours.T, bias=True) + epsilon * np.eye(3)
            both = ((colours - colours.mean(0)) * (values - values.mean())[:, None]).mean(0)
            slope[y, x] = np.linalg.solve(spread, both)
            offset[y, x] = values.mean() - slope[y, x] @ colours.mean(0)
    found = np.zeros_like(p)
    for y in range(height):
        for x in range(width):
            a = slope[window(y, x)].reshape(-1, 3).mean(0)
            found[y, x] = a @ guide[y, x] + offset[window(y, x)].mean()
    return found


@pytest.mark.parametrize(
    ("radius", "epsilon", "contrast", "colour"),
    [(1, 1e-3, 1, 1), (6, 1e-4, 1, 1), (4, 1e-4, 0.02, 1), (6, 1e-4, 5, 0), (30, 1e-2, 1, 1)],
    ids=["small", "usual", "flat", "grey", "larger than the image"],
)
def test_the_guided_filter_is_every_windows_regression(radius, epsilon, contrast, colour):
    image = torch.from_numpy(street(1, 23, 31)).permute(2, 0, 1)[None].float() / 255
    grey = image.mean(dim=1, keepdim=True)
    image = grey + (image - grey) * colour
    image = 0.9 + (image - 0.5) * contrast * 0.2  # far from 0: squares cancel in float32
    p = noise(0, 1, 2, 23, 31).softmax(1)
    found = guided(p, image, radius, epsilon)[0].numpy()
    plain = image[0].permute(1, 2, 0).double().numpy()
    for channel in range(2):
        expected = brute_guided(p[0, channel].double().numpy(), plain, radius, epsilon)
        np.testing.assert_allclose(found[channel], expected, atol=1e-5)


@pytest.mark.parametrize("radius", [1, 8, 40])
def test_means_of_windows_are_the_same_on_a_gpu_and_a_cpu(radius):
    """The way that a GPU takes, run on the CPU; windows larger than the image too."""
    maps = noise(2, 2, 3, 19, 33)
    here = refine._box_on_cpu(maps, radius)
    torch.testing.assert_close(refine._box_by_torch(maps, radius), here, atol=2e-6, rtol=0)


def test_probabilities_stay_probabilities():
    image = torch.from_numpy(street(3, 40, 50)).permute(2, 0, 1)[None]
    p = (noise(3, 1, 5, 40, 50) * 5).softmax(1)
    for q in (GuidedFilter()(p, image), GuidedFilter()(p[:, :1] * 0 + 1, image)):
        assert q.min() >= 0
        torch.testing.assert_close(q.sum(1), torch.ones(1, 40, 50))


def test_a_blurred_border_moves_onto_the_images_edge():
    """Two grey halves; the probabilities' border lies 3 pixels off and is soft."""
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    image[..., 20:] = 200
    left = torch.sigmoid((23.0 - torch.arange(40)) / 3).expand(1, 1, 40, 40)
    p = torch.cat([left, 1 - left], 1)
    assert (p.argmax(1)[0, 5] == 1).nonzero()[0] == 24
    assert (GuidedFilter(8, 1e-3)(p, image).argmax(1)[0, 5] == 1).nonzero()[0] == 20


def brute_crf(p, rgb, crf):
    """Mean field on all pairs (Algorithm 1), kernels normalised symmetrically, in float64."""
    classes, height, width = p.shape
    y, x = np.mgrid[:height, :width]
    place = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    colour = rgb.reshape(-1, 3).astype(float)

    def kernel(features):
        k = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        scale = 1 / np.sqrt(k.sum(1))
        return k * scale[:, None] * scale[None]

    near = crf.smooth_weight * kernel(place / crf.smooth_xy)
    alike = crf.colour_weight * kernel(
        np.concatenate([place / crf.colour_xy, colour / crf.colour_rgb], 1)
    )
    unary = -np.log(p.reshape(classes, -1))
    q = p.reshape(classes, -1)
    for _ in range(crf.steps):
        q = np.exp(-unary + q @ (near + alike))
        q /= q.sum(0)
    return q.reshape(p.shape)


@pytest.mark.parametrize("seed", range(3))
def test_the_dense_crf_is_mean_field_on_all_pairs(seed):
    """To what the lattice approximates; steps amplify it where two classes are nearly even.

    After one step 0.1 of a probability at most and 0.005 on average, after five 0.01 on average.
    """
    pytest.importorskip("pydensecrf")
    rgb = street(seed, 64, 64)[24:40, 20:36]
    p = (noise(seed, 3, 16, 16) * 0.7).softmax(0).numpy()
    for steps, mean, most in ((1, 0.005, 0.1), (5, 0.01, 1)):
        crf = DenseCrf(steps, smooth_weight=1, colour_weight=2, colour_rgb=20, colour_xy=8)
        found, expected = crf.marginals(p, rgb), brute_crf(p.astype(float), rgb, crf)
        assert np.abs(found - expected).max() < most
        assert np.abs(found - expected).mean() < mean
        assert np.abs(p - expected).mean() > 5 * np.abs(found - expected).mean(), "it did something"


def test_the_dense_crf_labels_and_refuses_what_it_cannot_hold(monkeypatch):
    pytest.importorskip("pydensecrf")
    images = [street(5, 48, 64), street(6, 80, 64)]
    monkeypatch.setattr(views, "CRF_BYTES", 4 * 11 * 50 * 64)
    found, refused = labels_of(PLAIN, images, refine="densecrf", window=(32, 32))
    assert found.ids.shape == (48, 64)
    assert isinstance(refused, ImageTooLarge)
    assert "3,200 pixels" in str(refused)


def test_a_missing_package_is_named_before_work_starts(monkeypatch):
    monkeypatch.setattr("pipeline.predict.options.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"segmill\[crf\]"):
        check_model(load_model(PLAIN), LabelOptions(refine="densecrf"))
