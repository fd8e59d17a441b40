"""Views of an image averaged: scales, mirrors, models; every option with every other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.labelling import label_digest
from pipeline.models import load_model
from pipeline.models.ensemble import uri_of
from pipeline.predict.options import LabelOptions, check_model
from pipeline.predict.predictor import Picture, Predictor
from pipeline.predict.tta import Augmentation
from tests.pipeline.predicting import (
    CPU,
    ENET,
    OTHER,
    PLAIN,
    assert_labels,
    labels_of,
    softmax_by_hand,
    street,
)

BOTH = uri_of([PLAIN, OTHER])


def test_what_a_user_writes():
    assert Augmentation.parse("flip") == Augmentation((1.0,), flip=True)
    assert Augmentation.parse("1.25, 0.75,1,flip") == Augmentation((0.75, 1.0, 1.25), flip=True)
    assert Augmentation.parse("1") == Augmentation()
    for text in ("0.75,1.0,flip", "0.3333333", "2"):
        assert Augmentation.parse(str(Augmentation.parse(text))) == Augmentation.parse(text)
    for bad in ("", "flop", "0", "-1", "nan", "inf", "9", "1;flip"):
        with pytest.raises(UsageError, match="--tta"):
            Augmentation.parse(bad)


@pytest.mark.parametrize("uri", [PLAIN, ENET])
def test_a_mirror_symmetric_image_gets_symmetric_labels(uri):
    """To the bit; without the mirrored view it does not, on the same image."""
    half = street(1, 64, 48)
    image = np.concatenate([half, half[:, ::-1]], axis=1)
    (found,) = labels_of(uri, [image], tta=Augmentation(flip=True))
    assert np.array_equal(found.ids, found.ids[:, ::-1])
    assert np.array_equal(found.confidence, found.confidence[:, ::-1])
    (plain,) = labels_of(uri, [image])
    assert not np.array_equal(plain.confidence, plain.confidence[:, ::-1])


def test_scales_and_mirrors_are_the_mean_of_their_probabilities():
    image = street(2, 64, 128)
    (found,) = labels_of(PLAIN, [image], tta=Augmentation((0.5, 1.0), flip=True))
    views = [softmax_by_hand(PLAIN, image, inside) for inside in ((32, 64), (64, 128))]
    mirrored = np.ascontiguousarray(image[:, ::-1])
    views += [softmax_by_hand(PLAIN, mirrored, inside).flip(2) for inside in ((32, 64), (64, 128))]
    assert_labels(found, torch.stack(views).mean(0))


def test_an_ensemble_is_the_mean_of_its_members():
    """ENet has a normalisation and a multiple of its own; logits come at different sizes."""
    members = [PLAIN, OTHER, ENET]
    image = street(3, 64, 96)
    (found,) = labels_of(uri_of(members), [image])
    each = [softmax_by_hand(uri, image, (64, 96)) for uri in members]
    assert_labels(found, torch.stack(each).mean(0))


def test_the_order_of_an_ensemble_does_not_matter_and_its_members_do():
    one, other = load_model(BOTH), load_model(uri_of([OTHER, PLAIN]))
    assert one.digest == other.digest
    assert one.digest not in {load_model(PLAIN).digest, load_model(OTHER).digest}
    assert one.digest != load_model(uri_of([PLAIN, ENET])).digest
    assert uri_of([PLAIN]) == PLAIN
    image = street(4, 64, 64)
    (a,), (b,) = labels_of(BOTH, [image]), labels_of(uri_of([OTHER, PLAIN]), [image])
    assert np.array_equal(a.confidence, b.confidence)


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"voc-21.*one label space"):
        load_model(uri_of(["zoo:enet?label_space=voc-21", ENET]))
    with pytest.raises(UsageError, match="the same model"):
        load_model(uri_of([ENET, PLAIN, ENET]))
    with pytest.raises(UsageError, match="--weights"):
        load_model(BOTH, weights="some.pt")
    with pytest.raises(UsageError, match="has no"):
        uri_of([ENET, "run:a|b"])


def test_members_of_different_sizes_need_a_size():
    model = load_model(BOTH)
    model.architecture.options["members"][0]["preprocessing"]["size"] = [32, 64]
    with pytest.raises(UsageError, match=r"None, \[32, 64\]\).*--input-size or --window"):
        check_model(model, LabelOptions())
    check_model(model, LabelOptions(input_size=(32, 64)))
    check_model(model, LabelOptions(window=(32, 64)))


CHOICES = {
    "window": {"window": (32, 32), "overlap": 0.5},
    "tta": {"tta": Augmentation((0.75, 1.0), flip=True)},
    "refine": {"refine": "guided"},
    "input_size": {"input_size": (48, 80)},
    "ensemble": {},
}


@pytest.mark.parametrize("pair", [*combinations(CHOICES, 2), tuple(CHOICES)], ids="-".join)
def test_options_combine_and_batches_do_not_matter(pair):
    """Sizes that are no multiple of anything; at most one pixel in 1,000 differs, by rounding."""
    images = [street(s, 61, 83) for s in range(3)] + [street(9, 40, 50)]
    options = {k: v for name in pair for k, v in CHOICES[name].items()}
    uri = BOTH if "ensemble" in pair else PLAIN
    together = labels_of(uri, images, batch_size=7, **options)
    alone = [labels_of(uri, [image], batch_size=1, **options)[0] for image in images]
    plain = [labels_of(PLAIN, [image])[0] for image in images]
    for image, a, b, c in zip(images, together, alone, plain, strict=True):
        assert a.ids.shape == a.confidence.shape == image.shape[:2]
        assert (a.ids != b.ids).mean() <= 1e-3
        assert np.abs(a.confidence.astype(int) - b.confidence).max() <= 1
        assert not np.array_equal(a.confidence, c.confidence), "the options did something"


def test_images_decoded_at_half_size_get_labels_of_their_own_size():
    half, size = street(7, 45, 60), (90, 121)
    options = LabelOptions(window=(32, 32), tta=Augmentation((0.5, 1.0)), refine="guided")
    predictor = Predictor(load_model(PLAIN), CPU, options)
    (found,) = predictor.predict([Picture(half, size, "half.jpg")])
    assert found.ids.shape == found.confidence.shape == size
    (small,) = predictor.predict([Picture(half, half.shape[:2], "half.jpg")])
    assert (found.ids[::2, :120:2] == small.ids).mean() > 0.9


def test_each_option_is_part_of_the_digest_and_defaults_are_not():
    assert LabelOptions().output_identity() == ["fp32", "native", "confidence=False"]
    tta = Augmentation((1.0,), flip=True)
    changed = [
        LabelOptions(window=(64, 64)),
        LabelOptions(window=(64, 96)),
        LabelOptions(window=(64, 64), overlap=0.5),
        LabelOptions(tta=tta),
        LabelOptions(tta=Augmentation((0.5, 1.0))),
        LabelOptions(refine="guided"),
        LabelOptions(refine="densecrf"),
        LabelOptions(window=(64, 64), tta=tta),
    ]
    digests = {label_digest("m", o) for o in [LabelOptions(), *changed]}
    assert len(digests) == len(changed) + 1
    same = LabelOptions(window=(64, 64), overlap=0.25)
    assert label_digest("m", same) == label_digest("m", changed[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": (8, 64)}, "--window is 16 to"),
        ({"overlap": 0.5}, "give --window"),
        ({"window": (64, 64), "overlap": 1.0}, "--overlap is a share"),
        ({"window": (64, 64), "overlap": float("nan")}, "--overlap is a share"),
        ({"refine": "magic"}, "none, guided, densecrf"),
    ],
)
def test_odd_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        LabelOptions(**options)
