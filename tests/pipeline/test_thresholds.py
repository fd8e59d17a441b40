"""Pixels too unsure become void, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UnknownName, UsageError
from pipeline.label_space import label_space
from pipeline.predict.options import LabelOptions
from pipeline.predict.thresholds import Thresholds
from pipeline.predict.tta import Augmentation
from tests.pipeline.predicting import PLAIN, labels_of, street

SPACE = label_space("camvid-11")


def test_what_a_user_writes(tmp_path):
    assert Thresholds.parse("0.6") == Thresholds(0.6)
    assert Thresholds.parse("Car=0.7, 0.5 ,Sky=1") == Thresholds(0.5, (("Car", 0.7), ("Sky", 1.0)))
    file = tmp_path / "least.txt"
    file.write_text("# from val\n0.5\n\ndoor, double door=0.9\na=b=0.1\n")
    assert Thresholds.parse(str(file)) == Thresholds(
        0.5, (("door, double door", 0.9), ("a=b", 0.1))
    )
    file.write_bytes(b"\xff\xfe0.5")
    for bad in ("", "x", "Car=", "1.5", "-0.1", "nan", "0.5,0.6", "Car=1,Car=0.5", str(file)):
        with pytest.raises(UsageError, match="--min-confidence"):
            Thresholds.parse(bad)


def test_thresholds_by_channel():
    least = Thresholds(0.5, (("Car", 0.0),)).by_channel(SPACE)
    assert len(least) == 11
    assert least[SPACE.by_name["Car"].id] == 0
    assert sorted(set(least)) == [0, 0.5]
    with pytest.raises(UnknownName, match=r"Cat.*Pedestrian"):
        Thresholds(0.0, (("Cat", 0.5),)).by_channel(SPACE)
    with pytest.raises(UnknownName, match="Void"):
        Thresholds(0.0, (("Void", 0.5),)).by_channel(SPACE)


@pytest.mark.parametrize("tta", [Augmentation(), Augmentation(flip=True)], ids=str)
def test_unsure_pixels_become_void_and_keep_their_confidence(tta):
    images = [street(s, 48, 64) for s in range(2)]
    plain = labels_of(PLAIN, images, tta=tta)
    # The class of most pixels gets a threshold of its own, the middle of its confidence.
    common = int(np.bincount(plain[0].ids.ravel()).argmax())
    own = float(np.median(plain[0].confidence[plain[0].ids == common]) + 0.5) / 255
    every = float(np.median(plain[0].confidence) + 0.5) / 255 * 0.8
    thresholds = Thresholds(every, ((SPACE.by_id[common].name, own),))
    cut = labels_of(PLAIN, images, tta=tta, min_confidence=thresholds)
    for a, b in zip(plain, cut, strict=True):
        assert np.array_equal(a.confidence, b.confidence)
        least = np.where(a.ids == common, own, every)
        # The cell holds round(255 p): within half a level it does not say which side p was on.
        near = np.abs(a.confidence / 255 - least) <= 0.5 / 255 + 1e-6
        expected = np.where(a.confidence / 255 < least, SPACE.ignore_index, a.ids)
        assert ((b.ids == expected) | near).all()
        assert ((b.ids == a.ids) | (b.ids == SPACE.ignore_index)).all()
        assert 0 < (b.ids == SPACE.ignore_index).mean() < 1


def test_thresholds_are_part_of_the_digest():
    plain = LabelOptions().output_identity()
    assert LabelOptions(min_confidence=Thresholds(0.0, (("Car", 0.0),))).output_identity() == plain
    one = Thresholds(0.5, (("Car", 0.7), ("Sky", 0.2)))
    other = Thresholds(0.5, (("Sky", 0.2), ("Car", 0.7)))
    a, b = (LabelOptions(min_confidence=t).output_identity() for t in (one, other))
    assert a == b != plain
    assert LabelOptions(min_confidence=Thresholds(0.5)).output_identity() not in (a, plain)
