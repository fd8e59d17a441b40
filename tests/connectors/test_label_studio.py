"""Label Studio: the conformance suite, its run lengths judged bit by bit, bad input."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from connectors.label_studio import LABEL_STUDIO
from connectors.label_studio_rle import decode, encode
from pipeline import masks
from pipeline.errors import BadAnnotation, InputError, LayoutError
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.record import Instance, Provenance
from tests.connectors.conformance import Conformance, Made
from tests.connectors.trees import make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

SHAPE = (10, 14)
CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="tag" toName="image"><Label value="cat" background="#FF0000"/>
<Label value="a &amp; b" background="green"/></BrushLabels>
<PolygonLabels name="p" toName="image"><Label value="cat"/><Label value="void"/></PolygonLabels>
</View>"""


class Bits:
    """A string of bits, read and written as the format's description says."""

    def __init__(self, text: str = "") -> None:
        self.text, self.at = text, 0

    def read(self, count: int) -> int:
        found, self.at = self.text[self.at : self.at + count], self.at + count
        assert len(found) == count
        return int(found, 2)

    def write(self, value: int, count: int) -> None:
        self.text += f"{value:0{count}b}"

    def packed(self) -> list[int]:
        text = self.text + "0" * (-len(self.text) % 8)
        return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def unpacked(data: list[int]) -> list[int]:
    """Return the words of run lengths."""
    bits = Bits("".join(f"{byte:08b}" for byte in data))
    count, width = bits.read(32), bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < count:
        repeated = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        words += (
            [bits.read(width)] * length if repeated else [bits.read(width) for _ in range(length)]
        )
    assert len(words) == count
    return words


def literal(alpha: NDArray[Any], sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Return run lengths without a run: words one by one, eight at a time, of every colour."""
    words = [w for a in alpha.ravel().tolist() for w in (a // 2, 7, 255 - a, a)]
    bits = Bits()
    bits.write(len(words), 32)
    bits.write(7, 5)
    for size in sizes:
        bits.write(size - 1, 4)
    for at in range(0, len(words), 8):
        bits.write(0, 1)
        bits.write(0, 2)
        bits.write(len(words[at : at + 8]) - 1, sizes[0])
        for word in words[at : at + 8]:
            bits.write(word, 8)
    return bits.packed()


regions = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


@settings(max_examples=50, deadline=None)
@given(regions)
def test_run_lengths_are_those_of_the_description(region: NDArray[np.bool_]) -> None:
    data = encode(region)
    words = np.array(unpacked(data), np.uint8).reshape(*region.shape, 4)
    for channel in range(4):
        np.testing.assert_array_equal(words[..., channel], region * 255)
    np.testing.assert_array_equal(decode(data, region.shape, "x"), region)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)),
       st.sampled_from([(3, 4, 8, 16), (4, 1, 1, 1), (9, 2, 16, 5)]))  # fmt: skip
def test_words_without_runs_and_half_covered_pixels(
    alpha: NDArray[np.uint8], sizes: tuple[int, ...]
) -> None:
    found = decode(literal(alpha, sizes), alpha.shape, "x")
    np.testing.assert_array_equal(found, alpha >= 128)


@pytest.mark.parametrize("pixels", [1, 2, 3, 4, 5, 64, 65, 16384, 16385, 40000])
def test_long_runs_are_cut(pixels: int) -> None:
    region = np.zeros((1, pixels + 2), np.bool_)
    region[0, 1 : pixels + 1] = True
    assert unpacked(encode(region))[4:-4] == [255] * (4 * pixels)
    np.testing.assert_array_equal(decode(encode(region), region.shape, "x"), region)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40), regions, st.data())
def test_hostile_run_lengths_are_refused_or_read(
    noise: list[int], region: NDArray[np.bool_], data: st.DataObject
) -> None:
    good = encode(region)
    cut = data.draw(st.integers(0, len(good)))
    for hostile in (noise, good[:cut] + noise, good[:7] + noise):
        with contextlib.suppress(BadAnnotation):
            assert decode(hostile, region.shape, "x").shape == region.shape


def brush(label: str, rle: list[Any], **more: Any) -> dict[str, Any]:
    return framed("brushlabels", {"format": "rle", "rle": rle, "brushlabels": [label]}, **more)


def framed(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "x", "type": kind, "value": value, "from_name": "tag", "to_name": "image",
        "original_width": SHAPE[1], "original_height": SHAPE[0], "image_rotation": 0,
    } | more  # fmt: skip


def polygon(label: str, points: list[Any], **more: Any) -> dict[str, Any]:
    percent = [[100 * x / SHAPE[1], 100 * y / SHAPE[0]] for x, y in points]
    value = {"points": percent, "closed": True, "polygonlabels": [label]}
    return framed("polygonlabels", value, **more)


def annotated(name: str, *results: Any, **more: Any) -> dict[str, Any]:
    data = {"image": f"/data/local-files/?d=sets/images/{name}", "note": "x"}
    return {"id": 1, "data": data, "annotations": [{"result": list(results)}]} | more


SQUARE = [[1, 1], [9, 1], [9, 6], [1, 6]]


class TestLabelStudio(Conformance):
    connector = LABEL_STUDIO
    own_classes = True

    def make_tree(self, root: Path) -> Made:
        ring = np.zeros(SHAPE, np.uint8)
        ring[0:4, 2:7] = 200
        ring[1:3, 3:6] = 100
        box = {"x": 10, "y": 20, "width": 50, "height": 40, "rotation": 0}
        first = [
            brush("a & b", literal(ring), meta={"text": ["half"]}),
            polygon("cat", SQUARE, origin="manual"),
            framed("rectanglelabels", box | {"rectanglelabels": ["cat"]}),
            framed("choices", {"choices": ["night"]}),
            brush("void", encode(np.eye(*SHAPE) > 0)),
        ]
        stale = {"result": [brush("void", [])], "updated_at": "2026-01-01T00:00:00Z"}
        fresh = {"result": [polygon("cat", SQUARE)], "updated_at": "2026-02-01T00:00:00Z"}
        gone = {"result": "nothing", "was_cancelled": True, "updated_at": "2026-03-01"}
        untouched = [{"result": [brush("cat", [1])], "model_version": "m"}]
        tasks = [
            annotated("b.png", *first),
            annotated("street/a.png", annotations=[fresh, stale, gone]),
            annotated("val/c.png"),
            annotated("unlabelled/d.png", annotations=[], predictions=untouched),
        ]
        put(root, "project-1.json", json.dumps(tasks, indent=1))
        put(root, "label_config.xml", CONFIG)
        for name in ("b", "street/a", "val/c", "unlabelled/d"):
            put(root, f"images/{name}.png", photo(SHAPE))
        one, two = np.full((2, *SHAPE), 2, np.uint8)
        one[ring == 200] = 1
        one[1:6, 1:9] = two[1:6, 1:9] = 0
        one[np.eye(*SHAPE) > 0] = 2
        none = np.empty(0)
        ids: dict[str, NDArray[Any]] = {
            "train/b": one,
            "train/street/a": two,
            "val/c": none,
            "unlabelled/d": none,
        }
        splits = {"train": ["b", "street/a"], "val": ["c"], "unlabelled": ["d"]}
        return Made(splits, ids, "b", "images/b.png")

    def test_results_of_other_kinds_come_back(self, root: Path, made: Made, tmp_path: Path) -> None:
        tree = open_tree(str(root))
        rewrite(LABEL_STUDIO, self.records(tree), tmp_path / "b", self.space(tree))
        first, second, third, fourth = json.loads((tmp_path / "b/tasks.json").read_text())
        results = first["annotations"][0]["result"]
        assert [r["type"] for r in results] == [
            "brushlabels", "polygonlabels", "rectanglelabels", "brushlabels", "choices",
        ]  # fmt: skip
        assert results[0]["meta"] == {"text": ["half"]}
        assert results[1]["value"]["points"] == polygon("cat", SQUARE)["value"]["points"]
        assert first["data"]["note"] == "x"
        assert len(second["annotations"][0]["result"]) == 1
        assert third["annotations"] == [{"result": []}]
        assert "annotations" not in fourth


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [LABEL_STUDIO.read(tree, sample) for sample in LABEL_STUDIO.list(tree, ())]


def test_json_min_is_read_as_json_is(tmp_path: Path) -> None:
    results = [brush("cat", encode(np.ones(SHAPE, np.bool_))), polygon("void", SQUARE)]
    flat = [r["value"] | {k: r[k] for k in ("original_width", "original_height")} for r in results]
    full = [annotated("a.png", *results)]
    least = {"image": "/data/upload/3/1f2e3d4c-a.png", "note": "x", "id": 4, "annotator": 1,
             "annotation_id": 5, "lead_time": 2.5, "tag": flat[:1], "p": flat[1:]}  # fmt: skip
    found = []
    for folder, tasks in (("json", full), ("min", [least])):
        put(tmp_path, f"{folder}/x.json", json.dumps(tasks))
        put(tmp_path, f"{folder}/label_config.xml", CONFIG)
        put(tmp_path, f"{folder}/images/a.png", photo(SHAPE))
        found += read_all(tmp_path / folder)
    one, two = found
    assert one.mask is not None
    assert two.mask is not None
    assert one.mask.bytes == two.mask.bytes
    assert [(i.category, i.rle) for i in one.instances or ()] == [
        (i.category, i.rle) for i in two.instances or ()
    ]
    assert one.extras() == two.extras() == {"data": {"note": "x"}}


def test_labels_of_models_are_predictions_and_no_truth(tmp_path: Path) -> None:
    space = label_space("camvid-11")
    ids = np.arange(140, dtype=np.uint8).reshape(SHAPE) % 12
    made = make_record(ids, space, "x", "train")
    made = replace(made, provenance=Provenance("model", "fpn"))
    rewrite(LABEL_STUDIO, [made], tmp_path, space)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert "annotations" not in task
    assert task["predictions"][0]["model_version"] == "fpn"
    (back,) = read_all(tmp_path)
    assert (back.mask, back.instances) == (None, None)
    # Somebody accepts the prediction: Label Studio makes an annotation of it.
    task["annotations"] = [{"result": task.pop("predictions")[0]["result"]}]
    put(tmp_path, "tasks.json", json.dumps([task]))
    for name in ("classes.tsv", "label_config.xml", ""):
        (back,) = read_all(tmp_path)
        assert back.mask is not None
        np.testing.assert_array_equal(masks.decode(back.mask.bytes or b""), ids)
        assert LABEL_STUDIO.label_spaces(open_tree(str(tmp_path))) == (space,)
        (tmp_path / name).unlink() if name else None


def test_losses_are_counted(tmp_path: Path) -> None:
    space = label_space("camvid-11")
    ids = np.zeros(SHAPE, np.uint8)
    ids[3:6], ids[7:] = 4, 11
    rle = masks.rle_encode((ids == 4).astype(np.uint8))
    objects = (Instance(1, 4, None, None, True, rle, 0.5), Instance(3, 4, None, None))
    record = replace(make_record(ids, space, "x", "test"), instances=objects)
    (written,) = rewrite(LABEL_STUDIO, [record], tmp_path, space)
    assert written.loss == {
        "crowds": 1, "scores": 1, "objects_from_mask_regions": 1, "objects_of_no_place": 1,
    }  # fmt: skip


FULL = encode(np.ones(SHAPE, np.bool_))


@pytest.mark.parametrize(
    ("task", "cause"),
    [
        (annotated("b.png", brush("cat", FULL[:-3])), "cut off"),
        (annotated("b.png", brush("cat", encode(np.ones((3, 3), np.bool_)))), "of 36 values"),
        (annotated("b.png", brush("cat", [300])), "no list of bytes"),
        (annotated("b.png", brush("cat", ["a"])), "no list of bytes"),
        (annotated("b.png", brush("cat", [])), "cut off"),
        (annotated("b.png", brush("dog", FULL)), "'dog' is not a class"),
        (annotated("b.png", brush("cat", FULL, original_width=3)), "labelled on 3x10"),
        (annotated("b.png", brush("cat", FULL, image_rotation=90)), "turned by 90"),
        (annotated("b.png", polygon("cat", SQUARE[:2])), "3 points"),
        (annotated("b.png", polygon("cat", [[20, 20], [30, 20], [30, 30]])), "outside"),
        (annotated("b.png", polygon("cat", [[1, 1], [9, 1], [9, float("nan")]])), "number"),
        (annotated("b.png", framed("polygonlabels", {"points": 3, "polygonlabels": ["cat"]})),
         "3 points"),
        (annotated("b.png", brush("cat", FULL) | {"value": {"rle": FULL, "brushlabels": []}}),
         "0 labels"),
        (annotated("gone.png"), "no such file"),
        (annotated("../../secret.png"), "outside its root"),
        (annotated("a.png"), "second task"),
        ({"data": {}}, "without an image"),
        ({"data": {"image": "http://["}}, "no such file"),
        ({"data": {"image": "a\ud800.png"}}, "no Unicode text"),
        ({"data": {"image": "a\0.png"}}, "outside its root"),
        ({"data": {"image": "x" * 5000 + ".png"}}, "too long"),
        ([3], "without an image"),
    ],
)  # fmt: skip
def test_a_bad_task_is_its_image_s_error(tmp_path: Path, task: Any, cause: str) -> None:
    good = annotated("a.png", polygon("cat", SQUARE))
    put(tmp_path, "secret.png", photo(SHAPE))
    put(tmp_path, "set/x.json", json.dumps([good, task]))
    put(tmp_path, "set/label_config.xml", CONFIG)
    for name in ("a", "b"):
        put(tmp_path, f"set/images/{name}.png", photo(SHAPE))
    tree = open_tree(str(tmp_path / "set"))
    first, second = LABEL_STUDIO.list(tree, ())
    assert LABEL_STUDIO.read(tree, first).instances
    with pytest.raises(InputError, match=cause):
        LABEL_STUDIO.read(tree, second)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_loses_its_end_only(tmp_path: Path, keep: float) -> None:
    tasks = [annotated(f"{n}.png", polygon("cat", SQUARE)) for n in range(8)]
    text = json.dumps(tasks)
    put(tmp_path, "x.json", text[: int(keep * len(text))])
    put(tmp_path, "label_config.xml", CONFIG)
    for n in range(8):
        put(tmp_path, f"images/{n}.png", photo(SHAPE))
    tree = open_tree(str(tmp_path))
    *whole, last = LABEL_STUDIO.list(tree, ())
    assert len(whole) == int(keep * len(text) / (len(text) / 8))
    assert all(LABEL_STUDIO.read(tree, s).instances for s in whole)
    with pytest.raises(BadAnnotation, match="byte"):
        LABEL_STUDIO.read(tree, last)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;&a;">]><View><Label value="&b;"/></View>'


@pytest.mark.parametrize(
    ("tasks", "config", "cause"),
    [
        ("{}", CONFIG, "'\\['"),
        ("", CONFIG, "cut off"),
        ("[]", BOMB, "Entit"),
        ("[]", "<View/>", "no <Label>"),
        ("[]", "<View", "not an XML"),
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, tasks: str, config: str, cause: str
) -> None:
    put(tmp_path, "x.json", tasks)
    put(tmp_path, "label_config.xml", config)
    with pytest.raises(LayoutError, match=cause):
        read_all(tmp_path)
