"""COCO's JSON as a stream: against json.loads, at any block size, and broken files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import coco_json, json_text
from connectors.coco_json import (
    STREAMED,
    Stream,
    _outline,
    by_image,
    facts_of,
    outline,
    scan,
    write_json,
)
from pipeline.errors import LayoutError
from pipeline.files import open_sink, open_tree

if TYPE_CHECKING:
    from pipeline.files import Tree

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ARRAYS = {key: st.lists(VALUES, max_size=4) for key in STREAMED}
OTHERS = st.dictionaries(st.text(max_size=4).filter(lambda key: key not in STREAMED), VALUES)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    parts = draw(OTHERS)
    parts |= {key: draw(values) for key, values in ARRAYS.items() if draw(st.booleans())}
    return {key: parts[key] for key in draw(st.permutations(sorted(parts)))}


def tree_of(folder: str | Path, text: str | bytes, name: str = "a.json") -> Tree:
    (Path(folder) / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_tree(str(folder))


@settings(max_examples=150, deadline=None)
@given(
    documents(),
    st.sampled_from([1, 2, 3, 7, 64, 1 << 20]),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_a_stream_is_what_json_reads(
    document: dict[str, Any], block: int, indent: int | None, ascii_: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_)
    data = text.encode("utf-8", "backslashreplace")
    with tempfile.TemporaryDirectory() as folder:
        found = list(scan(tree_of(folder, data), "a.json", block=block))
        tree = tree_of(folder, data)
        assert dict(outline(tree, "a.json")) == {
            key: None if key in STREAMED else value for key, value in document.items()
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coco_json, "_behind_annotations", lambda file, size: None)
            _outline.cache_clear()
            whole = outline(tree, "a.json")
        _outline.cache_clear()
        assert outline(tree, "a.json") == whole
        assert [key for key, _ in whole] == list(document)
    for key in STREAMED:
        assert [e.value for e in found if e.key == key] == document.get(key, [])
    rest = {key: value for key, value in document.items() if key not in STREAMED}
    assert {e.key: e.value for e in found if e.key not in STREAMED} == rest
    assert [json.loads(e.text) for e in found] == [e.value for e in found]
    assert not any("\n" in e.text for e in found)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_images_get_their_annotations(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(-5, 30), max_size=12))
    names = data.draw(st.lists(st.integers(-5, 35), max_size=40))
    images = [{"id": i, "n": n} for n, i in enumerate(ids)]
    annotations = [{"id": n, "image_id": i} for n, i in enumerate(names)]
    first = data.draw(st.booleans())
    keys = ["images", "annotations"] if first else ["annotations", "images"]
    parts = {"images": images, "annotations": annotations}
    text = json.dumps({key: parts[key] for key in keys})
    with tempfile.TemporaryDirectory() as folder:
        tree_of(folder, json.dumps({"annotations": annotations[::-1]}), "b.json")
        tree = tree_of(folder, text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("connectors.coco_sort._BUCKET_BYTES", 64)
            patch.setattr("connectors.coco_sort._BATCH", 3)
            groups = list(by_image(tree, "a.json", ["b.json"], block=16))
    found = groups[: len(ids)]
    assert [g.image for g in found] == images
    for g, image in zip(found, images, strict=True):
        twice = ids.count(image["id"]) > 1
        assert (g.problem is not None) == twice
        if not twice:
            own = [a for a in annotations if a["image_id"] == image["id"]]
            assert [json.loads(t) for t in g.annotations] == own
            assert [json.loads(t) for t in g.beside[0]] == own[::-1]
    lost = [a for a in annotations if a["image_id"] not in ids]
    assert sum(g.count for g in groups[len(ids) :]) == 2 * len(lost)
    assert len(groups) - len(ids) == len({a["image_id"] for a in lost})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=2), min_size=1, max_size=5),
    OTHERS,
    OTHERS,
    st.sampled_from([None, 2]),
    st.sampled_from([5, 64, 1 << 20]),
)
def test_the_end_of_a_file_tells_its_facts(
    annotations: list[dict[str, Any]],
    before: dict[str, Any],
    behind: dict[str, Any],
    indent: int | None,
    tail: int,
) -> None:
    """Annotations may hold text that looks like the end of the file."""
    own = [a | {"image_id": 1, "t": '], "categories": []}'} for a in annotations]
    behind = {key: value for key, value in behind.items() if key not in before}
    document = before | {"images": [], "annotations": own} | behind
    with tempfile.TemporaryDirectory() as folder:
        tree = tree_of(folder, json.dumps(document, indent=indent))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coco_json, "_TAIL", tail)
            _outline.cache_clear()
            found = outline(tree, "a.json")
    expected = document | {"images": None, "annotations": None}
    assert found == tuple(expected.items())


def test_the_annotations_are_not_read_for_the_facts(tmp_path: Path) -> None:
    text = '{"images": [], "annotations": [BROKEN, {"image_id": 1, "s": {}}], "a": [1], "b": 2}'
    assert outline(tree_of(tmp_path, text), "a.json") == (
        ("images", None),
        ("annotations", None),
        ("a", [1]),
        ("b", 2),
    )


def test_digits_stay(tmp_path: Path) -> None:
    own = '{"image_id":1, "area": 702.10574999999980, "x": 1e2}'
    text = f'{{"annotations": [{own}], "images": [{{"id": 1}}], "z": {{"a": [1.50]}}}}'
    tree = tree_of(tmp_path, text)
    (group,) = by_image(tree, "a.json")
    assert group.annotations == [own]
    assert facts_of(tree, "a.json") == {"z": {"a": [1.5]}}
    texts = Stream([own.encode(), b"{}"])
    write_json(
        open_sink(str(tmp_path)), "b.json", [("z", "é"), ("annotations", texts), ("i", Stream([]))]
    )
    assert (
        tmp_path / "b.json"
    ).read_text() == f'{{"z": "é", "annotations": [{own}, {{}}], "i": []}}'


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 0.99])
def test_cut_off(tmp_path: Path, keep: float) -> None:
    text = json.dumps({"images": [{"id": n} for n in range(50)], "annotations": [{"é": 1}] * 50})
    tree = tree_of(tmp_path, text[: int(keep * len(text))])
    with pytest.raises(LayoutError, match=r"a\.json: byte \d+: .*cut off"):
        list(by_image(tree, "a.json", block=32))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "cut off"),
        ("[]", "detection results"),
        ('"a"', "'{' expected"),
        ('{"images": {}}', "byte 11: '\\[' expected"),
        ('{"images": null}', "expected"),
        ('{"images": [{}}', "expected"),
        ('{"images": [1 2]}', "expected"),
        ('{"images": [1,]}', "not JSON"),
        ('{"images": []} x', "after the end"),
        ('{"images": [], "images": []}', "second 'images'"),
        ("{images: []}", "key expected"),
        ('{"a": tru}', "not JSON"),
        ('{"a": "é', "not JSON, or cut off"),
        (b'{"a": "\xff\xfe"}', "not UTF-8"),
        ('{"a": ' + "[" * 200_000, "without end"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_broken_files(tmp_path: Path, text: str | bytes, cause: str) -> None:
    tree = tree_of(tmp_path, text)
    with pytest.raises(LayoutError, match=cause):
        list(scan(tree, "a.json"))


def test_an_element_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LIMIT", 1000)
    tree = tree_of(tmp_path, '{"images": ["' + "x" * 100_000 + '"]}')
    with pytest.raises(LayoutError, match="up to 1000"):
        list(scan(tree, "a.json", block=100))


def test_byte_order_mark(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, b"\xef\xbb\xbf" + b'{"images": [1], "a": 2.5}')
    assert [e[:2] for e in scan(tree, "a.json", block=1)] == [("images", 1), ("a", 2.5)]


def test_bad_elements_are_told(tmp_path: Path) -> None:
    images = [{"id": 1}, 7, {"id": "a"}, {"id": True}, {}, {"id": 1 << 80}]
    annotations = [{"image_id": 1}, 5, {}, {"image_id": None}, {"image_id": 2.0}]
    tree = tree_of(tmp_path, json.dumps({"images": images, "annotations": annotations}))
    groups = list(by_image(tree, "a.json"))
    assert [g.problem is None for g in groups] == [True] + 9 * [False]
    assert [len(g.annotations) for g in groups] == [1, 0, 0, 0, 0, 0, 1, 1, 1, 1]
