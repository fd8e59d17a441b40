"""Panoptic quality against the official code, on files of the official form, and by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from connectors.cityscapes import CITYSCAPES
from connectors.coco_panoptic import COCO_PANOPTIC
from pipeline.errors import InputError
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.metrics.panoptic import panoptic
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
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.metrics.measure import LabelPair
    from pipeline.record import Instance

SPACE = label_space("coco-panoptic-133")
THINGS = (1, 3, 17, 44)
STUFF = (92, 100, 149, 187)
SHAPE = (64, 80)


def official(pairs: list[Any], truth: Path, predicted: Path, space: LabelSpace) -> dict[str, Any]:
    """Return what the official code finds, by the keys of our figures."""
    script = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPanopticSemanticLabeling", reason="the judge"
    )
    categories = {
        i: {"id": i, "isthing": int(bool(space.by_id[i].isthing))} for i in space.train_ids
    }
    stat = script.pq_compute_single_core(0, pairs, str(truth), str(predicted), categories)
    found = script.average_pq(stat, categories)
    whole = {k: found["All"][k] for k in ("pq", "sq", "rq")}
    parts = {n: {k: found[n.title()][k] for k in whole} for n in ("things", "stuff")}
    classes = {}
    for i, scores in found["per_class"].items():
        counts = {k: getattr(stat[i], k) for k in ("tp", "fp", "fn")}
        known = any(counts.values())
        name = space.by_id[i].name
        classes[name] = {k: v if known else None for k, v in scores.items()} | counts
    return whole | parts | {"classes": classes}


def check(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, dict):
            check(ours[key], value)
        elif value is None:
            assert ours[key] is None, key
        else:
            assert abs(ours[key] - value) <= 1e-12, key


@dataclass
class Scene:
    """Segments that are drawn over one another, and what the official JSON says of them."""

    ids: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(SHAPE, np.uint32))
    infos: dict[int, dict[str, Any]] = field(default_factory=dict)

    def draw(self, where: NDArray[np.bool_], category: int, *, crowd: bool = False) -> None:
        number = 256 * category + len(self.infos) + 1
        self.infos[number] = {"id": number, "category_id": category, "iscrowd": int(crowd)}
        self.ids[where] = number

    def listed(self) -> list[dict[str, Any]]:
        areas = {n: int((self.ids == n).sum()) for n in self.infos}
        return [info | {"area": areas[n]} for n, info in self.infos.items() if areas[n]]

    def mask(self) -> NDArray[np.uint8]:
        lut = {n: info["category_id"] for n, info in self.infos.items()} | {0: SPACE.ignore_index}
        return np.vectorize(lut.get)(self.ids).astype(SPACE.dtype)

    def things(self) -> list[Instance]:
        return [
            instance(self.ids == i["id"], i["category_id"], i["id"], iscrowd=bool(i["iscrowd"]))
            for i in self.listed()
            if i["category_id"] in THINGS
        ]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        rgb = np.stack([self.ids >> shift & 255 for shift in (0, 8, 16)], axis=2)
        Image.fromarray(rgb.astype(np.uint8)).save(folder / name)
        return {"image_id": name, "file_name": name, "segments_info": self.listed()}


def scenes(seed: int) -> tuple[Scene, Scene]:
    """Return truth with void and crowds, and a prediction that is half right."""
    rng = np.random.default_rng(seed)
    truth, predicted = Scene(), Scene()
    for k, category in enumerate(STUFF[: 2 + seed % 3]):
        where = np.zeros(SHAPE, np.bool_)
        where[:, 25 * k : 25 * k + 20] = True  # void lies between
        truth.draw(where, category)
        predicted.draw(np.roll(where, int(rng.integers(-6, 7)), 1), category)
    for _ in range(9):
        shape, category = blob(SHAPE, rng, 22), int(rng.choice(THINGS))
        truth.draw(shape, category, crowd=bool(rng.random() < 0.25))
        for _ in range(int(rng.integers(0, 3))):
            said = category if rng.random() < 0.8 else int(rng.choice(THINGS))
            predicted.draw(moved(shape, rng, 3), said)
    return truth, predicted


def pair(truth: Scene, predicted: Scene, name: str = "image") -> LabelPair:
    sides = (truth.mask(), predicted.mask(), SPACE, truth.things(), predicted.things())
    return pair_of(*sides, image_id=name)


@pytest.fixture(scope="module")
def made() -> list[tuple[Scene, Scene]]:
    return [scenes(seed) for seed in range(12)]


def test_quality_is_that_of_the_official_code(made: list[Any], tmp_path: Path) -> None:
    saved = [
        (t.save(tmp_path / "truth", f"{n}.png"), p.save(tmp_path / "pred", f"{n}.png"))
        for n, (t, p) in enumerate(made)
    ]
    theirs = official(saved, tmp_path / "truth", tmp_path / "pred", SPACE)
    ours = figures_of(panoptic(), [pair(t, p) for t, p in made], SPACE)
    check(ours, theirs)
    assert 0.2 < ours["pq"] < 0.9
    crowds = [i["category_id"] for t, _ in made for i in t.listed() if i["iscrowd"]]
    assert len(crowds) > 10  # in some images, several of a class


def test_records_are_scored_as_they_are_written(tmp_path: Path) -> None:
    """Objects that overlap or leave their class in the mask, and pixels of things without one."""
    rng = np.random.default_rng(8)
    sides: list[list[Any]] = [[], []]
    pairs = []
    for n in range(8):
        truth, predicted = scenes(100 + n)
        held = []
        for side, scene in zip(sides, (truth, predicted), strict=True):
            objects = [
                instance(blob(SHAPE, rng, 25), int(rng.choice((*THINGS, 92))), k + 1)
                for k in range(6)
            ]
            objects += [replace(t, id=k + 50) for k, t in enumerate(scene.things()) if k % 3]
            objects.append(replace(objects[-1], id=99, extra='{"part_of": 1}'))
            record = make_record(scene.mask(), SPACE, f"{n:012}", "val")
            side.append(replace(record, instances=tuple(objects)))
            held.append(objects)
        pairs.append(pair_of(truth.mask(), predicted.mask(), SPACE, *held, image_id=str(n)))
    for name, records in zip(("truth", "pred"), sides, strict=True):
        rewrite(COCO_PANOPTIC, records, tmp_path / name, SPACE)
    folders = [tmp_path / name / "annotations/panoptic_val2017" for name in ("truth", "pred")]
    said = [json.loads(f.with_suffix(".json").read_text())["annotations"] for f in folders]
    listed = [sorted(one, key=lambda a: a["file_name"]) for one in said]
    theirs = official(list(zip(*listed, strict=True)), *folders, SPACE)
    ours = figures_of(panoptic(), pairs, SPACE)
    check(ours, theirs)
    assert ours["things"]["pq"] > 0.05


def test_cityscapes_under_its_own_scripts(tmp_path: Path) -> None:
    from tests.pipeline.test_cityscapes_scores import SPACE as STREETS
    from tests.pipeline.test_cityscapes_scores import labels, objects, scene

    convert = pytest.importorskip(
        "cityscapesscripts.preparation.createPanopticImgs", reason="the judge"
    ).convert2panoptic
    said, pairs = [], []
    for side in range(2):
        records = []
        for n in range(4):
            values = np.roll(scene(n), (2 * side, 3 * side), (0, 1))
            record = make_record(labels(values), STREETS, f"aachen/aachen_000000_{n:06}", "val")
            records.append(replace(record, instances=tuple(objects(values))))
        root = tmp_path / str(side)
        rewrite(CITYSCAPES, records, root, STREETS)
        convert(str(root / "gtFine"), str(root), False, ["val"])
        said.append(json.loads((root / "cityscapes_panoptic_val.json").read_text())["annotations"])
    for n in range(4):
        one, two = scene(n), np.roll(scene(n), (2, 3), (0, 1))
        pairs.append(pair_of(labels(one), labels(two), STREETS, objects(one), objects(two)))
    folders = [tmp_path / f"{side}/cityscapes_panoptic_val" for side in range(2)]
    theirs = official(list(zip(*said, strict=True)), *folders, STREETS)
    ours = figures_of(panoptic(), pairs, STREETS)
    check(ours, theirs)
    assert 0.1 < ours["pq"] < 0.9


def _brute(truth: list[Any], predicted: list[Any], void: set[int]) -> dict[int, list[float]]:
    """Count (IoU, tp, fp, fn) by class from segments (class, pixels, crowd), as the paper says."""
    counts: dict[int, list[float]] = {}
    left = list(truth)
    for category, pixels, _ in predicted:
        row = counts.setdefault(category, [0.0, 0, 0, 0])
        for one in left:
            iou = len(pixels & one[1]) / len((pixels - void) | one[1])
            if one[0] == category and not one[2] and iou > 0.5:
                row[0] += iou
                row[1] += 1
                left.remove(one)
                break
        else:
            out = set(void).union(*(o[1] for o in truth if o[0] == category and o[2]))
            row[2] += len(pixels & out) * 2 <= len(pixels)
    for category, _, crowd in left:
        counts.setdefault(category, [0.0, 0, 0, 0])[3] += not crowd
    return counts


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 6))] * 2), st.integers(0, 3)
)
def test_small_masks_by_hand(maps: tuple[Any, Any], crowds: int) -> None:
    """0 is void; 1 and 2 are stuff; 3 and 4 are persons, 5 and 6 cars, the later ones crowds."""
    lut = np.array([SPACE.ignore_index, 92, 100, 1, 1, 3, 3], np.uint8)
    crowded = {4: bool(crowds & 1), 6: bool(crowds & 2)}
    listed, sides = [], []
    for m, flags in zip(maps, (crowded, {}), strict=True):
        pixels = {n: set(np.flatnonzero(m == n).tolist()) for n in range(1, 7)}
        listed.append([(int(lut[n]), p, flags.get(n, False)) for n, p in pixels.items() if p])
        sides.append(
            [instance(m == n, lut[n].item(), n, iscrowd=flags.get(n, False)) for n in range(3, 7)]
        )
    ours = figures_of(panoptic(), [pair_of(lut[maps[0]], lut[maps[1]], SPACE, *sides)], SPACE)
    theirs = _brute(*listed, set(np.flatnonzero(maps[0] == 0).tolist()))
    for category in (92, 100, 1, 3):
        scores = ours["classes"][SPACE.by_id[category].name]
        iou, tp, fp, fn = theirs.get(category, [0.0, 0, 0, 0])
        assert (scores["tp"], scores["fp"], scores["fn"]) == (tp, fp, fn)
        if tp + fp + fn == 0:
            assert scores["pq"] is None
        else:
            assert scores["pq"] == pytest.approx(iou / (tp + fp / 2 + fn / 2), abs=1e-12)


@pytest.fixture(scope="module")
def pairs(made: list[tuple[Scene, Scene]]) -> list[LabelPair]:
    return [pair(t, p) for t, p in made]


@pytest.fixture(scope="module")
def whole(pairs: list[LabelPair]) -> dict[str, Any]:
    return figures_of(panoptic(), pairs, SPACE)


@settings(max_examples=12, deadline=None)
@given(dealing=dealings(12))
def test_parts_add_up(
    pairs: list[LabelPair], whole: dict[str, Any], dealing: tuple[list[int], list[int]]
) -> None:
    assert in_parts(panoptic(), pairs, *dealing) == whole


def test_images_figures_and_nothing_at_all() -> None:
    truth, _ = scenes(1)
    gathering = panoptic().start(SPACE)
    assert {gathering.figures()[k] for k in ("pq", "sq", "rq")} == {None}
    found = gathering.update(pair(truth, truth))
    assert found == {"panoptic_pq": 1.0, "panoptic_missed": 0, "panoptic_wrong": 0}
    empty = Scene()
    segments = sum(not i["iscrowd"] for i in truth.listed())
    found = gathering.update(pair(truth, empty))
    assert found == {"panoptic_pq": 0.0, "panoptic_missed": segments, "panoptic_wrong": 0}
    found = gathering.update(pair(empty, truth))  # void truth: every prediction is ignored
    assert found == {"panoptic_pq": None, "panoptic_missed": 0, "panoptic_wrong": 0}
    assert {f.name for f in panoptic().image_columns} == found.keys()


def test_classes_that_say_nothing_are_things_where_objects_use_them() -> None:
    classes = (LabelClass(0, "a", (0, 0, 0)), LabelClass(1, "b", (1, 1, 1)))
    space = LabelSpace("own", classes, 255)
    ids = np.zeros((8, 8), np.uint8)
    ids[:, 4:] = 1
    left, right = (ids == 1), (ids == 1)
    left, right = left.copy(), right.copy()
    left[4:], right[:4] = False, False
    two = [instance(left, 1, 1), instance(right, 1, 2)]
    found = figures_of(panoptic(), [pair_of(ids, ids, space, two, two)], space)
    assert found["classes"]["b"]["tp"] == 2
    assert found["classes"]["a"]["tp"] == 1
    assert (found["things"]["pq"], found["stuff"]["pq"]) == (1.0, 1.0)
    found = figures_of(panoptic(), [pair_of(ids, ids, space, [], [])], space)
    assert found["classes"]["b"]["tp"] == 1
    assert found["things"]["pq"] is None


@pytest.mark.parametrize("side", [0, 1])
def test_unknown_objects_are_refused_where_classes_have_objects(side: int) -> None:
    ids = np.full(SHAPE, 92, np.uint8)
    held: list[Any] = [[], []]
    held[side] = None
    with pytest.raises(InputError, match=f"image .{['truth', 'prediction'][side]}.*no objects"):
        figures_of(panoptic(), [pair_of(ids, ids, SPACE, *held)], SPACE)
    stuff = tuple(replace(c, isthing=False) for c in SPACE.classes)
    space = LabelSpace("stuff", stuff, SPACE.ignore_index)
    assert figures_of(panoptic(), [pair_of(ids, ids, space, *held)], space)["pq"] == 1.0


def test_broken_objects_leave_nothing_behind() -> None:
    ids = np.full(SHAPE, 1, np.uint8)
    sound = instance(ids == 1, 1)
    gathering = panoptic().start(SPACE)
    before = gathering.figures()
    for bad in (replace(sound, rle="zz"), replace(sound, rle="5"), replace(sound, category=999)):
        with pytest.raises(InputError, match=r"image \(prediction\)"):
            gathering.update(pair_of(ids, ids, SPACE, [sound], [bad]))
    assert gathering.figures() == before
