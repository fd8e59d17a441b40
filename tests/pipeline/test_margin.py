"""The margin to the next class: what the models give, and how it is kept."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import masks
from pipeline.errors import CorruptMask, UsageError
from pipeline.labels.margin import margin_of, with_margin
from pipeline.predict.decide import Frame, decide
from pipeline.predict.options import LabelOptions
from pipeline.segmenter import SegmenterFactory
from pipeline.trees.listing import list_images
from tests.samples import write_scenes

URI = "zoo:enet?label_space=camvid-11&seed=3"


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (37, 53), np.uint8) for _ in range(2)]


def test_a_cell_with_a_margin_is_the_same_picture_to_every_reader(maps):
    confidence, margin = maps
    plain = masks.encode(confidence)
    cell = with_margin(plain, margin)
    assert np.array_equal(margin_of(cell), margin)
    assert np.array_equal(masks.decode(cell), confidence)
    with Image.open(BytesIO(cell)) as picture:
        assert picture.mode == "L"
        assert np.array_equal(np.array(picture), confidence)
    assert margin_of(plain) is None


def test_a_damaged_margin_is_told(maps):
    cell = with_margin(masks.encode(maps[0]), maps[1])
    with pytest.raises(CorruptMask):
        margin_of(cell[:-40])
    with pytest.raises(CorruptMask):
        margin_of(b"nothing")
    at = cell.index(b"maGN") + 60
    with pytest.raises(CorruptMask, match=r"x \(margin\)"):
        margin_of(cell[:at] + bytes([cell[at] ^ 255]) + cell[at + 1 :], "x")


@pytest.mark.parametrize("most", [1, 1 << 30])
def test_the_margin_is_the_difference_of_the_two_best_probabilities(most):
    logits = 3 * torch.randn((2, 7, 24, 32), generator=torch.Generator().manual_seed(1))
    frame = Frame((24, 32), (24, 32), (24, 32))
    ids = torch.arange(7, dtype=torch.uint8)
    found = decide(logits, frame, ids, most, margin=True)
    best = logits.double().softmax(1).topk(2, dim=1).values
    assert (found.margin.double() - 255 * (best[:, 0] - best[:, 1])).abs().max() < 0.501
    plain = decide(logits, frame, ids, most)
    assert plain.margin is None
    assert torch.equal(plain.ids, found.ids)
    assert torch.equal(plain.confidence, found.confidence)


@pytest.mark.parametrize("tta", [None, "flip"])
def test_labels_keep_the_margin_that_was_asked_for(tmp_path, tta):
    write_scenes(tmp_path / "images", 2)

    def cells(**options):
        parsed = LabelOptions.parse(
            batch_size="2", input_size=None, window=None, tta=tta, min_confidence=None, **options
        )
        segmenter = SegmenterFactory(URI, options=parsed)()
        made = segmenter(list(list_images(str(tmp_path / "images"))))
        return {s.image_id: r.confidence.bytes for s, r in made}

    plain, kept = cells(confidence=True), cells(confidence=True, margin=True)
    for name, cell in kept.items():
        assert np.array_equal(masks.decode(cell), masks.decode(plain[name]))
        assert margin_of(plain[name]) is None
        # The second best class has no more than what the best one leaves, and no more than it.
        sure, ahead = masks.decode(cell).astype(int), margin_of(cell).astype(int)
        assert (ahead <= sure).all()
        assert (ahead >= 2 * sure - 256).all()
        assert ahead.any()


def test_a_margin_needs_a_cell_to_lie_in_and_is_part_of_what_was_made():
    with pytest.raises(UsageError, match="--confidence"):
        LabelOptions(margin=True)
    kept = LabelOptions(confidence=True, margin=True).output_identity()
    assert kept != LabelOptions(confidence=True).output_identity()
