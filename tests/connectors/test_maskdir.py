"""maskdir: the conformance suite, both layouts, label spaces of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.class_table import parse, render
from connectors.maskdir import MASKDIR
from pipeline.errors import CorruptMask, LayoutError, MissingFile, UnknownColour, UnsafePath
from pipeline.files import open_tree
from pipeline.label_space import LABEL_SPACES, LabelClass, LabelSpace, label_space
from tests.connectors.conformance import (
    Conformance,
    Made,
    bare,
    contents,
    grey,
    make_record,
    photo,
    put,
    random_ids,
    rewrite,
)

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = "id\tname\tr\tg\tb\n0\tsky\t1\t2\t3\n7\tear th\t200\t0\t0\n9\tnothing\t0\t0\t0\t\t1\n"
SPACE = parse(CLASSES, "classes.tsv")


class TestMaskDir(Conformance):
    """Folders as splits, no splits.tsv: what people have."""

    connector = MASKDIR

    def make_tree(self, root: Path) -> Made:
        splits = {"test": ["c"], "train": ["a.1", "deep/b"], "val": ["a.1"]}
        ids = {}
        for split, names in splits.items():
            for n, name in enumerate(names):
                ids[f"{split}/{name}"] = random_ids((0, 7, 9), (9, 14), n)
                put(root, f"images/{split}/{name}.png", photo((9, 14)))
                put(root, f"masks/{split}/{name}.png", grey(ids[f"{split}/{name}"]))
        put(root, "images/README.txt", "no image")
        put(root, "classes.tsv", CLASSES)
        return Made(splits, ids, "deep/b", "images/train/deep/b.png", "masks/train/deep/b.png")
