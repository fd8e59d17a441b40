"""Label spaces of several sources brought into one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import RemapError
from pipeline.label_space import label_space
from pipeline.labels.relabel import Relabeller, target_space

VOC = label_space("voc-21")
SWAPPED = replace(VOC, classes=VOC.classes[::-1])


def test_two_spaces_of_one_name_must_be_equal() -> None:
    assert set(Relabeller.to(VOC, [VOC, VOC]).remaps) == {"voc-21"}
    assert target_space("keep", None, [VOC, VOC]) == VOC
    with pytest.raises(RemapError, match="called 'voc-21'"):
        Relabeller.to(VOC, [VOC, SWAPPED])
    for choice in ("keep", "native"):
        with pytest.raises(RemapError, match="called 'voc-21'"):
            target_space(choice, "voc-21", [VOC, SWAPPED])
