"""Cityscapes' real files, and what the official scripts make of the tree that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from connectors.cityscapes import CITYSCAPES
from pipeline import masks
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.record import Instance, Record
from tests.connectors.trees import bare, copy_tree, make_record, rewrite

SPACE = label_space("cityscapes-34")
AACHEN = "train/aachen/aachen_000000_000019_gtFine"


@pytest.fixture(autouse=True)
def numpy_as_the_scripts_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts (2.3.0) call np.in1d, which NumPy 2.4 no longer has."""

    def in1d(values: Any, test: Any, invert: bool = False) -> Any:
        return np.isin(np.ravel(values), test, invert=invert)

    monkeypatch.setattr(np, "in1d", in1d, raising=False)


def script(name: str) -> Any:
    return pytest.importorskip(f"cityscapesscripts.{name}", reason="needs cityscapesscripts")


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image)


def with_photos(root: Path) -> Path:
    """Give every labelled frame a photo where it has none: most are not in the sample data."""
    for path in root.glob("gtFine/*/*/*_instanceIds.png"):
        below = path.relative_to(root / "gtFine").as_posix()
        photo = root / "leftImg8bit" / below.replace("_gtFine_instanceIds", "_leftImg8bit")
        if not photo.exists():
            photo.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                Image.new("RGB", image.size).save(photo)
    return root


def read_all(root: Path) -> list[Record]:
    tree = open_tree(str(root))
    return [CITYSCAPES.read(tree, sample) for sample in CITYSCAPES.list(tree, ())]


@pytest.fixture(scope="module")
def source(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine real pairs of labelIds and instanceIds, each with a photo."""
    root = tmp_path_factory.mktemp("real")
    for folder in ("gtFine", "leftImg8bit"):
        copy_tree(shared_data / "cityscapes" / folder, root / folder)
    return with_photos(root)


@pytest.fixture(scope="module")
def records(source: Path) -> list[Record]:
    return read_all(source)


@pytest.fixture(scope="module")
def target(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same written again."""
    root = tmp_path_factory.mktemp("written")
    written = rewrite(CITYSCAPES, records, root, SPACE)
    assert [w.loss for w in written] == [{}] * 9
    return root


def test_real_labels_come_back(source: Path, target: Path, records: list[Record]) -> None:
    assert [r.split for r in records] == ["train"] * 5 + ["val"] * 4
    for path in source.glob("gtFine/*/*/*.png"):
        again = target / path.relative_to(source)
        one, two = pixels(path), pixels(again)
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        np.testing.assert_array_equal(one, two)
    for one, two in zip(records, read_all(target), strict=True):
        assert bare(one) == bare(two)


def test_real_objects_are_those_of_the_official_reader(source: Path, records: list[Record]) -> None:
    reader = script("evaluation.instances2dict")
    labels = script("helpers.labels")
    for record in records[:2] + records[-2:]:
        (path,) = source.glob(f"gtFine/*/{record.image_id}_gtFine_instanceIds.png")
        (found,) = reader.instances2dict([str(path)]).values()
        expected = {
            (o["instID"], o["labelID"], o["pixelCount"])
            for name, listed in found.items()
            if labels.name2label[name].hasInstances
            for o in listed
        }
        ours = {(i.id, i.category, int(i.area or 0)) for i in record.instances or ()}
        assert ours == expected


def test_missing_photos_are_missing(shared_data: Path) -> None:
    tree = open_tree(str(shared_data / "cityscapes"))
    samples = list(CITYSCAPES.list(tree, ()))
    assert len(samples) == 9
    assert sum(sample.fingerprint == "missing" for sample in samples) == 8


@pytest.fixture
def polygons(shared_data: Path, tmp_path: Path) -> Path:
    """The sample whose polygons the official scripts drew."""
    return with_photos(copy_tree(shared_data / "cityscapes/derived_polygons", tmp_path / "derived"))


def test_polygons_draw_what_the_official_scripts_drew(polygons: Path, tmp_path: Path) -> None:
    (whole,) = read_all(polygons)
    for tail in ("labelIds", "instanceIds"):
        (polygons / f"gtFine/{AACHEN}_{tail}.png").unlink()
    (drawn,) = read_all(polygons)
    assert drawn.mask is not None
    assert whole.mask is not None
    assert (drawn.mask.bytes, drawn.instances) == (whole.mask.bytes, whole.instances)
    assert drawn.extra == whole.extra


def test_all_four_files_of_polygons_come_back(polygons: Path, tmp_path: Path) -> None:
    (record,) = read_all(polygons)
    rewrite(CITYSCAPES, [record], tmp_path / "two", SPACE)
    for tail in ("labelIds.png", "instanceIds.png", "color.png"):
        one = pixels(polygons / f"gtFine/{AACHEN}_{tail}")
        two = pixels(tmp_path / f"two/gtFine/{AACHEN}_{tail}")
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    one, two = (root / f"gtFine/{AACHEN}_polygons.json" for root in (polygons, tmp_path / "two"))
    assert one.read_bytes() == two.read_bytes()


def test_written_polygons_under_the_official_scripts(target: Path) -> None:
    """Traced polygons draw the maps, but for a sliver; each object is one polygon."""
    annotation = script("helpers.annotation")
    labels = script("preparation.json2labelImg")
    instances = script("preparation.json2instanceImg")
    for path in sorted(target.glob("gtFine/*/*/*_polygons.json"))[::4]:
        drawn = annotation.Annotation()
        drawn.fromJsonFile(str(path))
        start = str(path).removesuffix("_polygons.json")
        ids = pixels(Path(f"{start}_labelIds.png"))
        again = np.array(labels.createLabelImage(drawn, "ids"))
        assert (again != ids).mean() < 0.0005
        trained = np.array(labels.createLabelImage(drawn, "trainIds"))
        lut = np.full(256, 255)
        for label in script("helpers.labels").labels:
            if label.id >= 0:
                lut[label.id] = label.trainId
        assert (trained != lut[ids]).mean() < 0.0005
        values = np.array(instances.createInstanceImage(drawn, "ids"))
        held = pixels(Path(f"{start}_instanceIds.png"))
        assert (values >= 1000).sum() == pytest.approx((held >= 1000).sum(), rel=0.01)
        assert len(np.unique(values)) == len(np.unique(held))
        instances.createInstanceImage(drawn, "trainIds")


def test_panoptic_conversion_of_the_written_tree(
    source: Path, target: Path, tmp_path: Path
) -> None:
    convert = script("preparation.createPanopticImgs").convert2panoptic
    evaluation = script("evaluation.evalPanopticSemanticLabeling")
    made = []
    for n, root in enumerate((source, target)):
        out = tmp_path / str(n)
        two = out / "val/frankfurt"
        two.mkdir(parents=True)
        for path in sorted(root.glob("gtFine/val/frankfurt/*_instanceIds.png"))[:2]:
            (two / path.name).symlink_to(path)
        convert(str(out), str(out), False, ["val"])
        made.append(json.loads((out / "cityscapes_panoptic_val.json").read_text()))
        assert len(list(out.glob("cityscapes_panoptic_val/*.png"))) == 2
    assert made[0] == made[1]
    categories = {c["id"]: c for c in made[0]["categories"]}
    pairs = list(zip(made[0]["annotations"], made[1]["annotations"], strict=True))
    folders = [str(tmp_path / f"{n}/cityscapes_panoptic_val") for n in range(2)]
    found = evaluation.pq_compute_single_core(0, pairs, *folders, categories)
    quality, _ = found.pq_average(categories, isthing=None)
    assert quality["n"] > 10
    assert quality["pq"] == pytest.approx(1.0)


def test_pixel_level_evaluation_of_the_written_tree(source: Path, target: Path) -> None:
    evaluation = script("evaluation.evalPixelLevelSemanticLabeling")
    args = evaluation.args
    args.quiet, args.JSONOutput = True, False
    truth = sorted(map(str, target.glob("gtFine/val/*/*_labelIds.png")))
    predicted = sorted(map(str, source.glob("gtFine/val/*/*_labelIds.png")))
    scores = evaluation.evaluateImgLists(predicted, truth, args)
    seen = [score for score in scores["classScores"].values() if not np.isnan(score)]
    assert len(seen) >= 15
    assert set(seen) == {1.0}
    assert scores["averageScoreInstClasses"] == pytest.approx(1.0)


def test_instance_level_evaluation_of_the_written_tree(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects of the source, as predictions, are all found in the written tree."""
    evaluation = script("evaluation.evalInstanceLevelSemanticLabeling")
    # Its file of matches cannot be written: NumPy 2 counts in int64, which is no JSON.
    monkeypatch.setattr(evaluation, "writeDict2JSON", lambda content, name: None)
    args = evaluation.args
    args.quiet, args.JSONOutput = True, False
    args.gtInstancesFile = str(tmp_path / "instances.json")
    args.predictionPath = str(tmp_path)
    truth = sorted(map(str, target.glob("gtFine/val/*/*_instanceIds.png")))[:1]
    predicted = []
    for path in truth:
        values = pixels(source / Path(path).relative_to(target))
        lines = []
        for value in np.unique(values[values >= 1000]):
            name = f"{Path(path).stem}_{value}.png"
            Image.fromarray((values == value).astype(np.uint8)).save(tmp_path / name)
            lines.append(f"{name} {value // 1000} 1.0\n")
        predicted.append(str(tmp_path / f"{Path(path).stem}.txt"))
        Path(predicted[-1]).write_text("".join(lines))
    scores = evaluation.evaluateImgLists(predicted, truth, args)["averages"]
    classes = [c["ap50%"] for c in scores["classes"].values() if not np.isnan(c["ap50%"])]
    assert classes
    assert set(classes) == {1.0}


def test_third_party_tree(shared_data: Path, tmp_path: Path) -> None:
    """Instances without labelIds: labels follow from them, in files of the same names."""
    source = shared_data / "cityscapes/fixture_datumaro"
    records = read_all(source)
    assert [r.image_id.partition("/")[2][12:] for r in records] == [
        "000002_000045", "000001_000019", "000001_000031", "000001_000032",
    ]  # fmt: skip
    found = [[(i.id, i.category) for i in r.instances or ()] for r in records]
    assert found == [
        [(24001, 24)], [(1024, 1)], [(27001, 27), (27002, 27)], [(31001, 31)],
    ]  # fmt: skip
    written = rewrite(CITYSCAPES, records, tmp_path, SPACE)
    assert [w.loss for w in written] == [{}] * 4
    again = read_all(tmp_path)
    assert [replace(bare(r), extra=None) for r in again] == [
        replace(bare(r), extra=None) for r in records
    ]
    for path in source.glob("gtFine/*/*/*_instanceIds.png"):
        np.testing.assert_array_equal(pixels(path), pixels(tmp_path / path.relative_to(source)))


def test_official_scripts_take_names_of_other_datasets(tmp_path: Path) -> None:
    helpers = script("helpers.csHelpers")
    ids = np.full((40, 60), 7, np.uint8)
    ids[5:20, 5:20] = 26
    objects = (Instance(1, 26, None, None, rle=masks.rle_encode((ids == 26).astype(np.uint8))),)
    record = replace(make_record(ids, SPACE, "Seq05VD_f0.1/a b", "val"), instances=objects)
    rewrite(CITYSCAPES, [record], tmp_path, SPACE)
    (path,) = tmp_path.glob("gtFine/val/*/*_instanceIds.png")
    parsed = helpers.getCsFileInfo(str(path))
    assert (parsed.city, parsed.type, parsed.type2) == ("elsewhere", "gtFine", "instanceIds")
    assert helpers.getCoreImageFileName(str(path)) == path.name.removesuffix(
        "_gtFine_instanceIds.png"
    )
    (found,) = script("evaluation.instances2dict").instances2dict([str(path)]).values()
    assert [o["instID"] for o in found["car"]] == [26000]
