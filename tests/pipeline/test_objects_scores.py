"""COCO's AP and AR against pycocotools' COCOeval on the same objects."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings

from connectors.coco import COCO_INSTANCES
from pipeline import masks
from pipeline.errors import InputError
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.metrics.objects import objects
from tests.pipeline.label_pairs import (
    blob,
    dealings,
    figures_of,
    in_parts,
    instance,
    moved,
    pair_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.metrics.measure import LabelPair
    from pipeline.record import Instance

SPACE = label_space("coco-80")
SHAPE = (120, 150)
CATEGORIES = (1, 3, 17, 90)
STATS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def image(seed: int) -> tuple[list[Instance], list[Instance]]:
    """Return truth with crowds and areas of its own, and predictions, many with equal scores."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for n in range(int(rng.integers(0, 12))):
        shape, category = blob(SHAPE, rng, int(rng.choice([12, 30, 70, 140]))), _any(rng)
        if not shape.any():
            continue
        area = float(shape.sum()) * (1.0 if rng.random() < 0.7 else 0.5)
        truth.append(instance(shape, category, n + 1, iscrowd=bool(rng.random() < 0.2), area=area))
        for _ in range(int(rng.integers(0, 4))):
            said = category if rng.random() < 0.8 else _any(rng)
            found.append((moved(shape, rng, 5), said))
    found += [(blob(SHAPE, rng, 40), _any(rng)) for _ in range(4)]
    scores = rng.choice(np.linspace(0.05, 0.95, 10), len(found))
    return truth, [
        instance(shape, category, n, float(score), area=None)
        for n, ((shape, category), score) in enumerate(zip(found, scores, strict=True))
    ]


def _any(rng: np.random.Generator) -> int:
    return int(rng.choice(CATEGORIES[:3]))  # truth and predictions never have the last


def pair(truth: list[Instance], found: list[Instance], name: str) -> LabelPair:
    blank = np.full(SHAPE, SPACE.ignore_index, SPACE.dtype)
    return pair_of(blank, blank, SPACE, truth, found, name)


def judge(images: Sequence[tuple[tuple[int, int], list[Instance], list[Instance]]]) -> Any:
    """Run COCOeval on all images at once, (size, truth, predictions); ids count from 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": SPACE.by_id[i].name} for i in SPACE.train_ids],
    }
    results = []
    for n, (size, truth, found) in enumerate(images, 1):
        coco.dataset["images"].append({"id": n, "height": size[0], "width": size[1]})
        for one in (*truth, *found):
            code = {"size": list(size), "counts": one.rle}
            entry = {"image_id": n, "category_id": one.category, "segmentation": code}
            if one.score is not None:
                results.append(entry | {"score": one.score})
                continue
            number = len(coco.dataset["annotations"]) + 1
            said = {"id": number, "iscrowd": int(one.iscrowd), "area": one.area}
            coco.dataset["annotations"].append(entry | said | {"bbox": [0, 0, 1, 1]})
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(results), "segm")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run


def check(ours: dict[str, Any], run: Any) -> None:
    for name, value in zip(STATS, run.stats, strict=True):
        assert (-1 if ours[name] is None else ours[name]) == pytest.approx(value, abs=1e-12), name
    for k, category in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, k, 0, 2]
        recall = run.eval["recall"][:, k, 0, 2]
        scores = ours["classes"][SPACE.by_id[category].name]
        known = precision[precision > -1]
        if not known.size:
            assert (scores["ap"], scores["ar100"], scores["objects"]) == (None, None, 0)
            continue
        assert scores["ap"] == pytest.approx(known.mean(), abs=1e-12)
        assert scores["ap50"] == pytest.approx(precision[0].mean(), abs=1e-12)
        assert scores["ar100"] == pytest.approx(recall.mean(), abs=1e-12)


@pytest.fixture(scope="module")
def images() -> list[tuple[list[Instance], list[Instance]]]:
    return [image(seed) for seed in range(25)] + [([], [])]


@pytest.fixture(scope="module")
def pairs(images: list[Any]) -> list[LabelPair]:
    # Ids of different lengths: as numbers they stand in COCO's order, as text they do not.
    return [pair(truth, found, str(n)) for n, (truth, found) in enumerate(images, 1)]


def test_scores_are_those_of_cocoeval(images: list[Any], pairs: list[LabelPair]) -> None:
    ours = figures_of(objects(), pairs, SPACE)
    check(ours, judge([(SHAPE, *sides) for sides in images]))
    assert 0.1 < ours["ap"] < 0.9
    assert ours["classes"][SPACE.by_id[90].name]["ap"] is None


def test_more_than_a_hundred_predictions() -> None:
    """Only the hundred most certain of a class in an image count."""
    rng = np.random.default_rng(0)
    shapes = [blob(SHAPE, rng, 25) for _ in range(4)]
    shapes = [s for s in shapes if s.any()]
    truth = [instance(s, 1, n + 1) for n, s in enumerate(shapes)]
    found = [
        instance(moved(shapes[n % len(shapes)], rng, 6), 1, n, float(rng.random()))
        for n in range(130)
    ]
    ours = figures_of(objects(), [pair(truth, found, "1")], SPACE)
    check(ours, judge([(SHAPE, truth, found)]))
    assert ours["ar1"] < ours["ar10"] <= ours["ar100"]


def test_real_annotations(shared_data: Any) -> None:
    """COCO's own objects, crowds among them, found with their neighbours' masks and by halves."""
    tree = open_tree(str(shared_data / "coco/instances"))
    records = [COCO_INSTANCES.read(tree, sample) for sample in COCO_INSTANCES.list(tree, ("val",))]
    assert sum(len(r.instances or ()) for r in records) > 50
    rng = np.random.default_rng(1)
    pairs, held = [], []
    for n, record in enumerate(records, 1):
        shape = (record.height, record.width)
        truth = list(record.instances or ())
        found = []
        for k, one in enumerate(truth):
            pixels = masks.rle_decode(one.rle or "", *shape).astype(bool)
            found.append(
                instance(moved(pixels, rng, 8), one.category, k, float(rng.random()), area=None)
            )
        blank = np.full(shape, SPACE.ignore_index, SPACE.dtype)
        pairs.append(pair_of(blank, blank, SPACE, truth, found, str(n)))
        held.append((shape, truth, found))
    ours = figures_of(objects(), pairs, SPACE)
    check(ours, judge(held))
    assert ours["ap"] > 0.1


@pytest.fixture(scope="module")
def whole(pairs: list[LabelPair]) -> dict[str, Any]:
    return figures_of(objects(), pairs[:12], SPACE)


@settings(max_examples=12, deadline=None)
@given(dealing=dealings(12))
def test_parts_add_up(
    pairs: list[LabelPair], whole: dict[str, Any], dealing: tuple[list[int], list[int]]
) -> None:
    assert in_parts(objects(), pairs[:12], *dealing) == whole


def test_images_figures_and_nothing_at_all() -> None:
    gathering = objects().start(SPACE)
    assert {gathering.figures()[name] for name in STATS} == {None}
    one = np.zeros(SHAPE, np.bool_)
    one[10:40, 10:40] = True
    truth = [instance(one, 1, 1), instance(~one, 1, 2), instance(one, 3, 3, iscrowd=True)]
    found = gathering.update(pair(truth, [instance(one, 1, 1)], "a"))
    assert found == {"objects": 2, "objects_found": 1}
    assert {f.name for f in objects().image_columns} == found.keys()
    assert gathering.figures()["unscored"] == 1
    assert gathering.figures()["ar100"] == 0.5


@pytest.mark.parametrize(
    ("truth", "found", "said"),
    [
        (None, [], "truth.*no objects"),
        ([], None, "prediction.*no objects"),
        ([{"rle": None}], [], "object 7 has no mask"),
        ([], [{"rle": "0"}], "run lengths"),
        ([], [{"score": float("inf")}], "score inf"),
        ([], [{"category": 999}], "classes 999"),
    ],
)
def test_what_is_broken_is_named_and_leaves_nothing_behind(
    truth: Any, found: Any, said: str
) -> None:
    sound = instance(np.ones(SHAPE, np.bool_), 1, 7, 0.5)
    sides = [None if s is None else [sound, *(replace(sound, **o) for o in s)]
             for s in (truth, found)]  # fmt: skip
    gathering = objects().start(SPACE)
    before = gathering.figures()
    with pytest.raises(InputError, match=said):
        gathering.update(pair(*sides, "the image"))
    assert gathering.figures() == before
