"""Where the classes of the full ADE20K releases come from: index files, hostile ones, and scans."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from connectors.ade20k_full import ADE20K_FULL
from connectors.ade20k_index import read_pickle
from pipeline.errors import BadAnnotation, LabelOutOfRange, LayoutError
from pipeline.files import open_tree
from tests.connectors.ade20k_tree import BASE, NAMES, TOP, only, put_image_2021, street
from tests.connectors.trees import put, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Return a dataset of one image, training/a."""
    put_image_2021(tmp_path / "one", f"{BASE}training/a", street(1))
    return tmp_path / "one"


class Attack:
    """Makes a file when it is unpickled by anyone who trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


class Opened(Attack):
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("attack", [Attack, Opened])
def test_pickle_that_would_run_code(one: Path, tmp_path: Path, attack: type[Attack]) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps({"objectnames": ["a"], "x": attack(mark)})
    pickle.loads(data)
    assert mark.exists(), "the pickle is no danger, so this test shows nothing"
    mark.unlink()
    put(one, f"{TOP}index_ade20k.pkl", data)
    with pytest.raises(LayoutError, match=r"index_ade20k\.pkl.*no plain data"):
        ADE20K_FULL.label_spaces(open_tree(str(one)))
    with pytest.raises(LayoutError, match="no plain data"):
        list(ADE20K_FULL.list(open_tree(str(one)), ()))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04]",
        b"not a pickle",
        pickle.dumps([1]),
        pickle.dumps({"objectnames": 3}),
        pickle.dumps({"objectnames": ["a", 3]}),
        pickle.dumps({"objectnames": ["a"] * 7000}),
        pickle.dumps({"objectnames": np.zeros(3, "i4,f8")}),
        b"cnumpy\nndarray\n(tX\x01\x00\x00\x00xb.",  # sets the state of a class
        b"c_codecs\nencode\n}b.",  # sets the state of a function
        b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
    ],
)
def test_damaged_index(one: Path, data: bytes) -> None:
    put(one, f"{TOP}index_ade20k.pkl", data)
    with pytest.raises(LayoutError, match=r"index_ade20k\.pkl"):
        ADE20K_FULL.label_spaces(open_tree(str(one)))


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    "kind", [list, lambda n: np.array(n, object), np.array], ids=["list", "objects", "array"]
)
def test_index_as_lists_or_arrays(
    one: Path, protocol: int, kind: Callable[[list[str]], Any]
) -> None:
    names = [f"name {n}" for n in range(1, 2500)]
    index = {
        "objectnames": kind(names),
        "filename": np.array(["a.jpg"], object),
        "objectPresence": np.zeros((2499, 5)),
        "proportionClassIsPart": np.float64(0.5),
    }
    put(one, f"{TOP}index_ade20k.pkl", pickle.dumps(index, protocol))
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(one)))
    assert [c.name for c in space.classes[1:]] == names
    assert only(one).label_space == space.name


def test_index_of_matlab(one: Path) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    names = np.array([f"name {n}" for n in range(1, 2500)] + ["name 1"], object)
    savemat(one / TOP / "index_ade20k.mat", {"index": {"objectnames": names, "filename": names}})
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(one)))
    assert (space.by_id[2420].name, space.by_id[2500].name) == ("name 2420", "name 1 #2500")
    put(one, f"{TOP}index_ade20k.mat", b"MATLAB 5.0 MAT-file")
    with pytest.raises(LayoutError, match=r"index_ade20k\.mat"):
        ADE20K_FULL.label_spaces(open_tree(str(one)))


def test_written_index_is_plain(one: Path, tmp_path: Path) -> None:
    record, target = only(one), tmp_path / "two"
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(one)))
    rewrite(ADE20K_FULL, [record], target, space)
    path = target / TOP / "index_ade20k.pkl"
    index = pickle.loads(path.read_bytes())
    with path.open("rb") as file:
        assert read_pickle(file, "x") == index
    assert index["filename"] == ["a.jpg"]
    assert index["folder"] == [f"{BASE}training"]
    assert index["scene"] == ["outdoor/urban/street"]
    assert {n: name for n, name in enumerate(index["objectnames"], 1) if name} == NAMES
    assert (target / index["folder"][0] / index["filename"][0]).exists()
    assert not (target / TOP / "classes.tsv").exists()


def test_scan_takes_names_from_the_annotations(one: Path) -> None:
    """Numbers that masks cannot hold, broken files and names without text are left out."""
    put_image_2021(one, f"{BASE}training/b", street(1))
    path = one / f"{BASE}training/b.json"
    note = json.loads(path.read_text())
    for item, number in zip(note["annotation"]["object"], (7000, 10**9, -3, 0, 5, 6), strict=True):
        item["name_ndx"] = number
        item["name"] = "sky"
    note["annotation"]["object"][-1]["name"] = "a\ud800"
    path.write_text(json.dumps(note))
    put(one, f"{BASE}training/c.json", "{")
    tree = open_tree(str(one))
    (space,) = ADE20K_FULL.label_spaces(tree)
    assert {c.id: c.name for c in space.classes} == NAMES | {
        0: "other (unlabelled)", 5: "sky", 6: "a?", 2420: "sky #2420",
    }  # fmt: skip
    samples = list(ADE20K_FULL.list(tree, ()))
    assert [s.image_id for s in samples] == ["a", "b", "c"]
    assert len(ADE20K_FULL.read(tree, samples[0]).instances or ()) == 6
    with pytest.raises(LabelOutOfRange, match="7000"):
        ADE20K_FULL.read(tree, samples[1])
    put(one, f"{BASE}training/b.json", "[]")
    with pytest.raises(BadAnnotation):
        ADE20K_FULL.read(tree, samples[1])
    assert 5 not in ADE20K_FULL.label_spaces(open_tree(str(one)))[0].ids, "the scan is stale"


def test_scan_does_not_read_what_an_index_says(one: Path) -> None:
    put(one, f"{TOP}index_ade20k.pkl", pickle.dumps({"objectnames": ["", "b", "b"]}))
    (space,) = ADE20K_FULL.label_spaces(open_tree(str(one)))
    assert {c.id: c.name for c in space.classes if c.id} == {2: "b", 3: "b #3"}
