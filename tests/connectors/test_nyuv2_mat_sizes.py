"""nyuv2-mat holds one size: what becomes of images of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from connectors.nyuv2 import NYUV2_MAT
from connectors.nyuv2_hdf5 import NAME
from pipeline.errors import InputError
from pipeline.files import open_sink, open_tree
from pipeline.label_space import label_space
from tests.connectors.trees import make_record, rewrite

if TYPE_CHECKING:
    from pathlib import Path

FULL = label_space("nyu-894")


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    shapes = [(5, 7), (5, 7), (7, 5), (2, 2)]
    made = [
        make_record(np.zeros(shape, np.uint16), FULL, f"a{n}", "train")
        for n, shape in enumerate(shapes)
    ]
    with pytest.raises(InputError, match=r"2 of 4 images are not .* 7x5 pixels \(a2: 5x7\)"):
        rewrite(NYUV2_MAT, made, tmp_path, FULL)
    assert list(tmp_path.iterdir()) == []


def test_a_few_images_of_another_size_are_left_out_and_counted(tmp_path: Path) -> None:
    sizes = {"odd": (4, 4), "a": (5, 7), "b": (5, 7), "odd2": (7, 5), "c": (5, 7)}
    sink, tree = open_sink(str(tmp_path)), open_tree(str(tmp_path))
    made = [make_record(np.zeros(s, np.uint16), FULL, n, "train") for n, s in sizes.items()]
    loss = NYUV2_MAT.finish(sink, [NYUV2_MAT.write(sink, r, FULL) for r in made], FULL, {})
    assert loss is not None
    assert loss.attributes == {"images_of_another_size": 2}
    assert [s.image_id for s in NYUV2_MAT.list(tree, ())] == ["a", "b", "c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAME, "splits.mat"]
