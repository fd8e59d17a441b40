"""Sliding windows: what they cover, how they are blended, and how much is held meanwhile."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models import load_model
from pipeline.predict.options import LabelOptions
from pipeline.predict.predictor import Predictor
from pipeline.predict.tta import Augmentation
from pipeline.predict.views import Views
from pipeline.predict.windows import Strip, shares, starts
from tests.pipeline.predicting import CPU, ENET, PLAIN, labels_of, noise, street


def blended(network, images, window, overlap, batch):
    return Strip(network, images, window, overlap, batch=batch).rows(0, images.shape[2])


@given(st.integers(1, 400), st.integers(1, 100), st.floats(0, 0.9))
def test_windows_cover_all_and_overlap_enough(length, window, overlap):
    begins = starts(length, window, overlap)
    covered = np.zeros(max(length, window), bool)
    for begin in begins:
        covered[begin : begin + window] = True
    assert covered.all()
    assert begins[0] == 0
    assert begins[-1] == max(0, length - window), "shifted inwards, no further"
    assert begins == sorted(set(begins))
    for one, other in pairwise(begins):
        assert one + window - other >= np.floor(window * overlap) or other - one == 1


@given(st.integers(20, 300), st.integers(1, 20), st.floats(0, 0.9))
def test_weights_add_up_to_one(length, window, overlap):
    begins = starts(length, window, overlap)
    total = np.zeros(length)
    for begin, weights in zip(begins, shares(length, window, begins), strict=True):
        assert (weights > 0).all()
        total[begin : begin + window] += weights.numpy()
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
def test_blending_is_the_weighted_mean(overlap):
    """A few loops in NumPy: weights summed beside weighted logits, and divided at the end."""
    images, window = noise(0, 2, 3, 37, 50), (16, 24)

    def network(x):  # depends on where in the window a pixel lies, as a real one does
        ramp = torch.linspace(0, 1, x.shape[2])[:, None] * torch.linspace(1, 3, x.shape[3])
        return torch.cat([x * ramp, x.sum(1, keepdim=True)], 1)

    found = blended(network, images, window, overlap, batch=3)
    taper = [np.maximum(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2, 0.01) for n in window]
    weight = np.outer(*taper)
    total, norm = np.zeros((2, 4, 37, 50)), np.zeros((37, 50))
    for y in starts(37, 16, overlap):
        for x in starts(50, 24, overlap):
            at = np.s_[..., y : y + 16, x : x + 24]
            total[at] += weight * network(images[at]).numpy()
            norm[at] += weight
    np.testing.assert_allclose(found.numpy(), total / norm, atol=1e-5)


def test_windows_without_overlap_keep_their_logits_to_the_bit():
    images = noise(1, 1, 3, 32, 48)
    found = blended(lambda x: x * 3, images, (16, 16), 0.0, batch=2)
    assert torch.equal(found, images * 3)


@pytest.mark.parametrize("uri", [ENET, PLAIN])
@pytest.mark.parametrize("size", [(64, 96), (60, 90)], ids=["multiple", "padded"])
def test_a_window_as_large_as_the_image_is_the_plain_way(uri, size):
    images = [street(s, *size) for s in range(2)]
    plain = labels_of(uri, images)
    windowed = labels_of(uri, images, window=size, overlap=0)
    for a, b in zip(plain, windowed, strict=True):
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.confidence, b.confidence)


def test_an_image_smaller_than_the_window_is_padded_up_to_it():
    seen = []

    def network(x):
        seen.append(tuple(x.shape))
        return x

    image = noise(2, 1, 3, 20, 70)
    found = blended(network, image, (32, 32), 0.25, batch=8)
    assert {s[2:] for s in seen} == {(32, 32)}
    # Where two windows meet their weights add up to 1 but for rounding.
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("refine", ["none", "guided"])
@pytest.mark.parametrize("input_size", [None, (150, 100)])
def test_bands_of_rows_are_rows_of_the_whole(refine, input_size):
    """Height and width change by a factor that is no whole number, and scales come on top."""
    options = LabelOptions(
        window=(24, 32), overlap=0.3, tta=Augmentation((0.7, 1.0), flip=True),
        refine=refine, input_size=input_size,
    )  # fmt: skip
    predictor = Predictor(load_model(PLAIN), CPU, options)
    inside = predictor._inside if input_size else None
    whole, banded = (
        Views(predictor._logits_at, 11, options, inside, band_bytes=most)
        for most in (1 << 30, 4 * 11 * 90 * 37)
    )
    size = (230, 90)
    image = torch.from_numpy(street(5, *size)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        ((_, expected),) = whole.scores(image, size)
        parts = list(banded.scores(image, size))
    assert [rows for rows, _ in parts] == [(r, min(r + 37, 230)) for r in range(0, 230, 37)]
    found = torch.cat([scores for _, scores in parts], dim=2)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert whole.bands(size) == [(0, 230)]


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, in bytes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.untyped_storage().nbytes())
        return made


def test_memory_does_not_grow_with_the_height_of_an_image():
    """2000 x 3000 pixels, 9 classes: scores of the whole take 216 MB, of a band 19."""
    size, options = (3000, 2000), LabelOptions(window=(128, 500), overlap=0)
    views = Views(lambda x, size: _cheap(x), 9, options, band_bytes=16 << 20)
    image = torch.zeros((1, 3, *size), dtype=torch.uint8)
    with torch.inference_mode(), _Largest() as largest:
        ids, confidence, _ = views.labels(image, size, torch.arange(9, dtype=torch.uint8))
    assert ids.shape == confidence.shape == (1, *size)
    assert largest.most <= 28 << 20


def _cheap(x):
    return x[:, :1].float().expand(-1, 9, -1, -1)
