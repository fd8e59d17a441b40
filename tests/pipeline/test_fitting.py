"""Of all measures those are taken that the stores can answer; the others say why not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.label_space import label_space
from pipeline.masks import encode
from pipeline.metrics import MEASURES, measures
from pipeline.metrics.fitting import fitting
from pipeline.record import File
from tests.pipeline.test_scoring import CAMVID, masks_of, record, store_of

CITYSCAPES = label_space("cityscapes-19")


def one(path, confidence):
    """Return a store of one row."""
    ((name, (mask, _)),) = masks_of(1).items()
    return store_of(path, [record(name, mask, confidence=confidence)])


def test_a_confidence_map_in_the_cell_is_enough_for_calibration(tmp_path):
    sure = one(tmp_path / "sure", File(None, encode(np.full((24, 32), 200, np.uint8))))
    unsure = one(tmp_path / "unsure", None)
    taken, left_out = fitting(measures(["all"]), MEASURES, CAMVID, unsure, sure)
    assert [m.name for m in taken] == ["boundary", "calibration"]
    assert set(left_out) == {"cityscapes", "objects", "panoptic"}
    taken, left_out = fitting(measures(["all"]), MEASURES, CAMVID, sure, unsure)
    assert [m.name for m in taken] == ["boundary"]
    assert "no prediction has a confidence map" in left_out["calibration"]
    assert "'Sky'" in left_out["cityscapes"]


def test_what_is_named_is_not_left_out(tmp_path):
    store = one(tmp_path / "store", None)
    with pytest.raises(UsageError, match="tells of objects"):
        fitting(measures(["all"]), MEASURES.keys() - {"objects"}, CITYSCAPES, store, store)
