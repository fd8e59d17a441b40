"""Measures of objects are refused on stores that hold none, before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.label_space import LabelSpace, label_space
from pipeline.metrics.calibration import Calibration
from pipeline.metrics.cityscapes import cityscapes
from pipeline.metrics.objects import objects
from pipeline.metrics.objects_held import check_confidence, check_objects
from pipeline.metrics.panoptic import panoptic
from pipeline.record import to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from tests.connectors.trees import make_record

if TYPE_CHECKING:
    from pathlib import Path

SPACE = label_space("cityscapes-19")


def store(path: Path, *instances: Any) -> Store:
    """Return a store with a row for each value of the column."""
    made = Store.create(path, [SPACE])
    record = make_record(np.zeros((4, 4), np.uint8), SPACE, "a", "val")
    rows = [replace(record, image_id=str(n), instances=i) for n, i in enumerate(instances)]
    return made.commit([write_fragment(made.sink(), "data/a.parquet", to_table(rows))])


def test_stores_without_objects_are_refused(tmp_path: Path) -> None:
    none, empty = store(tmp_path / "none", None, None), store(tmp_path / "some", None, ())
    for measure in (cityscapes(), objects(), panoptic()):
        check_objects([measure], SPACE, empty, empty)
        with pytest.raises(UsageError, match=f"truth tells of objects.*{measure.name}"):
            check_objects([measure], SPACE, none, empty)
    check_objects([cityscapes()], SPACE, empty, none)  # its AP is left out
    check_objects([], SPACE, none, none)
    with pytest.raises(UsageError, match=r"none: no row of the prediction .* objects, panoptic"):
        check_objects([cityscapes(), objects(), panoptic()], SPACE, empty, none)
    stuff = tuple(replace(c, isthing=False) for c in SPACE.classes)
    check_objects([panoptic()], LabelSpace("stuff", stuff, 255), none, none)


def test_a_store_without_any_confidence_is_refused(tmp_path: Path) -> None:
    none = store(tmp_path / "none", None, ())
    check_confidence([cityscapes()], none)
    with pytest.raises(UsageError, match=r"no prediction has a confidence map.*--confidence"):
        check_confidence([Calibration()], none)
