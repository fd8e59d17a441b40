"""Cityscapes' scores against the official scripts, run on files that our connector writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from connectors.cityscapes import CITYSCAPES
from pipeline import masks
from pipeline.errors import InputError, UsageError
from pipeline.label_space import label_space
from pipeline.metrics.cityscapes import MEAN_SIZES, cityscapes
from tests.connectors.trees import make_record, rewrite
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
    from numpy.typing import NDArray

    from pipeline.metrics.measure import LabelPair
    from pipeline.record import Instance

SPACE = label_space("cityscapes-34")
SHAPE = (96, 144)
STUFF = (0, 4, 7, 8, 9, 11, 13, 17, 20, 21, 23, 26, 24)
"""Void ids among them, and groups: pixels of car and person of no single object."""


def scripts(name: str) -> Any:
    return pytest.importorskip(f"cityscapesscripts.evaluation.{name}", reason="the judge")


@pytest.fixture(autouse=True)
def numpy_as_the_scripts_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts (2.3.0) call np.in1d, which NumPy 2.4 no longer has."""

    def in1d(values: Any, test: Any, invert: bool = False) -> Any:
        return np.isin(np.ravel(values), test, invert=invert)

    monkeypatch.setattr(np, "in1d", in1d, raising=False)


def scene(seed: int) -> NDArray[np.uint16]:
    """Return instanceIds [H, W]: regions, then objects of every size, a caravan among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array(STUFF), (6, 9))
    values = np.kron(coarse, np.ones((16, 16))).astype(np.uint16)
    for n in range(14):
        category = int(rng.choice([24, 25, 26, 26, 26, 27, 28, 29, 31, 33]))
        values[blob(SHAPE, rng, int(rng.integers(8, 50)))] = category * 1000 + n
    return values


def labels(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.where(values >= 1000, values // 1000, values).astype(np.uint8)


def objects(values: NDArray[np.uint16]) -> list[Instance]:
    """Return the objects of instanceIds; a class's pixels without a number are a group."""
    things = {i for i in SPACE.ids if SPACE.by_id[i].isthing}
    return [
        instance(values == v, v if v < 1000 else v // 1000, v, iscrowd=v < 1000)
        for v in np.unique(values).tolist()
        if v >= 1000 or v in things
    ]


def prediction(values: NDArray[np.uint16], seed: int) -> tuple[NDArray[np.uint8], list[Instance]]:
    """Return a labelling that is half right: moved, doubled, of other classes, on void."""
    rng = np.random.default_rng(seed)
    ids = labels(np.roll(values, (3, -4), (0, 1)))
    noise = rng.random(ids.shape) < 0.1
    ids[noise] = rng.choice(np.array([0, 7, 24, 26, 29, 30, 33], np.uint8), int(noise.sum()))
    found = []
    for v in np.unique(values[values >= 1000]).tolist():
        for _ in range(int(rng.integers(0, 3))):
            category = v // 1000 if rng.random() < 0.8 else 26
            found.append((moved(values == v, rng, 4), category))
    found += [(blob(values.shape, rng, 30), int(rng.choice([24, 26, 29]))) for _ in range(5)]
    found.append((np.zeros(values.shape, np.bool_), 26))
    scores = rng.choice(np.linspace(0.1, 0.9, 12), len(found))  # some are equal
    kept = [
        instance(shape, category, n, float(score))
        for n, ((shape, category), score) in enumerate(zip(found, scores, strict=True))
    ]
    return ids, kept


def pairs(seeds: range) -> list[tuple[NDArray[np.uint16], LabelPair]]:
    made = []
    for seed in seeds:
        values = scene(seed)
        ids, found = prediction(values, seed + 1000)
        made.append(
            (values, pair_of(labels(values), ids, SPACE, objects(values), found, f"c/i{seed}"))
        )
    return made


def write(root: Path, made: list[tuple[NDArray[np.uint16], LabelPair]]) -> list[str]:
    """Write truth through the connector; return the labelIds files in the pairs' order."""
    records = [
        replace(
            make_record(pair.truth, SPACE, f"aachen/aachen_000000_{n:06}", "val"),
            instances=tuple(objects(values)),
            dataset="cityscapes",
        )
        for n, (values, pair) in enumerate(made)
    ]
    rewrite(CITYSCAPES, records, root, SPACE)
    return sorted(map(str, root.glob("gtFine/val/*/*_labelIds.png")))


def official_pixels(root: Path, truth: list[str], made: list[Any]) -> dict[str, Any]:
    script = scripts("evalPixelLevelSemanticLabeling")
    script.args.quiet, script.args.JSONOutput = True, False
    predicted = []
    for n, (_, pair) in enumerate(made):
        predicted.append(str(root / f"pred{n}.png"))
        Image.fromarray(pair.predicted).save(predicted[-1])
    return dict(script.evaluateImgLists(predicted, truth, script.args))


def official_objects(
    root: Path, truth: list[str], made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    script = scripts("evalInstanceLevelSemanticLabeling")
    # Its file of matches cannot be written: NumPy 2 counts in int64, which is no JSON.
    monkeypatch.setattr(script, "writeDict2JSON", lambda content, name: None)
    script.args.quiet, script.args.JSONOutput = True, False
    script.args.gtInstancesFile = str(root / "instances.json")
    script.args.predictionPath = str(root)
    lists = []
    for n, (_, pair) in enumerate(made):
        lines = []
        for k, one in enumerate(pair.predicted_row["instances"]):
            pixels = masks.rle_decode(one["rle"], *pair.truth.shape)
            Image.fromarray(pixels).save(root / f"o{n}_{k}.png")
            lines.append(f"o{n}_{k}.png {one['category']} {one['score']!r}\n")
        lists.append(str(root / f"pred{n}.txt"))
        Path(lists[-1]).write_text("".join(lines))
    files = [path.replace("labelIds", "instanceIds") for path in truth]
    return dict(script.evaluateImgLists(lists, files, script.args)["averages"])


def same(ours: float | None, theirs: float) -> bool:
    return np.isnan(theirs) if ours is None else abs(ours - theirs) <= 1e-12


def check_pixels(found: dict[str, Any], official: dict[str, Any]) -> None:
    for name, iou in found["iou_categories"].items():
        assert same(iou, official["categoryScores"][name]), name
    for name, iou in found["iiou_classes"].items():
        assert same(iou, official["classInstScores"][name]), name
    for name, iou in found["iiou_categories"].items():
        assert same(iou, official["categoryInstScores"][name]), name
    assert same(found["mean_iou_categories"], official["averageScoreCategories"])
    assert same(found["mean_iiou_classes"], official["averageScoreInstClasses"])
    assert same(found["mean_iiou_categories"], official["averageScoreInstCategories"])


def check_objects(found: dict[str, Any], official: dict[str, Any]) -> None:
    assert same(found["ap"], official["allAp"])
    assert same(found["ap50"], official["allAp50%"])
    assert set(found["classes"]) == set(MEAN_SIZES)
    for name, scores in found["classes"].items():
        assert same(scores["ap"], official["classes"][name]["ap"]), name
        assert same(scores["ap50"], official["classes"][name]["ap50%"]), name


@pytest.fixture(scope="module")
def made() -> list[tuple[NDArray[np.uint16], LabelPair]]:
    return pairs(range(6))


def test_scores_are_those_of_the_official_scripts(
    made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = figures_of(cityscapes(), [pair for _, pair in made], SPACE)
    truth = write(tmp_path, made)
    check_pixels(found, official_pixels(tmp_path, truth, made))
    check_objects(found["instances"], official_objects(tmp_path, truth, made, monkeypatch))
    assert 0.05 < found["instances"]["ap"] < 0.95
    assert found["instances"]["images"] == 6
    # No motorcycle is in truth: the official nan is None, and in no mean.
    assert found["iiou_classes"]["motorcycle"] is None
    assert found["instances"]["classes"]["motorcycle"] == {"ap": None, "ap50": None}


def test_real_labels(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(shared_data.glob("cityscapes/gtFine/val/*/*_instanceIds.png"))[:2]
    made = []
    for n, path in enumerate(files):
        with Image.open(path) as image:
            values = np.array(image).astype(np.uint16)[::3, ::3]
        ids, found = prediction(values, n)
        made.append((values, pair_of(labels(values), ids, SPACE, objects(values), found)))
    found = figures_of(cityscapes(), [pair for _, pair in made], SPACE)
    truth = write(tmp_path, made)
    check_pixels(found, official_pixels(tmp_path, truth, made))
    check_objects(found["instances"], official_objects(tmp_path, truth, made, monkeypatch))


def test_overlapping_objects_are_scored_as_they_are_written(tmp_path: Path) -> None:
    """Objects that overlap, or leave their class in the mask, keep what instanceIds give them."""
    rng = np.random.default_rng(5)
    made = []
    for n in range(3):
        ids = labels(scene(n))
        boxes = [blob(SHAPE, rng, 40) for _ in range(8)]
        found = [instance(b, int(rng.choice([24, 26])), k) for k, b in enumerate(boxes)]
        found += [instance(boxes[0], 26, 98, iscrowd=True), instance(boxes[1], 7, 99)]
        made.append((found, pair_of(ids, np.roll(ids, 2, 1), SPACE, found, None)))
    records = [
        replace(
            make_record(pair.truth, SPACE, f"aachen/aachen_000000_{n:06}", "val"),
            instances=tuple(found),
        )
        for n, (found, pair) in enumerate(made)
    ]
    rewrite(CITYSCAPES, records, tmp_path, SPACE)
    truth = sorted(map(str, tmp_path.glob("gtFine/val/*/*_labelIds.png")))
    assert len(truth) == 3
    ours = figures_of(cityscapes(), [pair for _, pair in made], SPACE)
    check_pixels(ours, official_pixels(tmp_path, truth, made))
    assert "instances" not in ours  # the predictions have none


@settings(max_examples=15, deadline=None)
@given(dealing=dealings(6))
def test_parts_add_up(made: list[Any], dealing: tuple[list[int], list[int]]) -> None:
    whole = figures_of(cityscapes(), [pair for _, pair in made], SPACE)
    assert in_parts(cityscapes(), [pair for _, pair in made], *dealing) == whole


def test_truth_as_its_own_prediction_is_perfect() -> None:
    values = scene(3)
    ids = labels(values)
    perfect = [replace(o, score=0.5) for o in objects(values)]
    found = figures_of(cityscapes(), [pair_of(ids, ids, SPACE, objects(values), perfect)], SPACE)
    for scores in (found["iou_categories"], found["iiou_classes"], found["iiou_categories"]):
        assert {s for s in scores.values() if s is not None} == {1.0}
    assert found["instances"]["ap"] == pytest.approx(1.0, abs=1e-12)


def test_only_void_and_nothing_at_all() -> None:
    void = np.zeros(SHAPE, np.uint8)
    found = figures_of(cityscapes(), [pair_of(void, void + 7, SPACE, [], [])], SPACE)
    flat = [v for k in ("iou_categories", "iiou_classes") for v in found[k].values()]
    assert flat
    assert set(flat) == {None}
    assert found["mean_iou_categories"] is None
    assert (found["instances"]["ap"], found["instances"]["images"]) == (None, 1)


def test_an_object_without_a_score_is_sure_and_is_counted() -> None:
    ids = np.full(SHAPE, 26, np.uint8)
    whole = instance(ids == 26, 26, 26001)
    found = figures_of(cityscapes(), [pair_of(ids, ids, SPACE, [whole], [whole])], SPACE)
    assert found["instances"]["classes"]["car"]["ap"] == pytest.approx(1.0)
    assert found["instances"]["unscored"] == 1


def test_predictions_that_are_all_ignored_find_nothing() -> None:
    """The official script fails on these; nothing found is an AP of zero."""
    ids = np.zeros(SHAPE, np.uint8)
    ids[:20, :20] = 26
    car = instance(ids == 26, 26, 26001)
    elsewhere = instance(ids == 0, 26, 1, 0.5)
    found = figures_of(cityscapes(), [pair_of(ids, ids, SPACE, [car], [elsewhere])], SPACE)
    assert found["instances"]["classes"]["car"] == {"ap": 0.0, "ap50": 0.0}


@pytest.mark.parametrize(
    ("truth", "predicted", "said"),
    [
        (None, [], "no objects"),
        ([], [{"rle": "0"}], "run lengths"),
        ([], [{"rle": "\x00"}], "run lengths"),
        ([{"rle": "zzzz"}], [], "run length"),
        ([], [{"score": float("nan")}], "score nan"),
        ([{"category": 77}], [], "classes 77"),
        ([], [{"category": -1}], "classes -1"),
    ],
)
def test_what_is_broken_is_named_and_leaves_nothing_behind(
    truth: Any, predicted: Any, said: str
) -> None:
    ids = np.full(SHAPE, 26, np.uint8)
    sound = instance(ids == 26, 26, 26001, 0.5)
    held = [None if side is None else [replace(sound, **o) for o in side]
            for side in (truth, predicted)]  # fmt: skip
    gathering = cityscapes().start(SPACE)
    before = gathering.figures()
    with pytest.raises(InputError, match=said) as raised:
        gathering.update(pair_of(ids, ids, SPACE, *held, image_id="the image"))
    assert raised.value.path.startswith("the image (")
    assert gathering.figures() == before


def test_other_classes_are_refused_before_work_starts() -> None:
    with pytest.raises(UsageError, match="cityscapes-19"):
        cityscapes().start(label_space("voc-21"))
    assert cityscapes().start(label_space("cityscapes-19")).figures()["mean_iiou_classes"] is None
