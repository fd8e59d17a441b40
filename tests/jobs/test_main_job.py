"""The main job on real street images: dataset, store, model, labels, mIoU."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.store import Store
from tests.jobs.calls import call

FRAMES = 12


@pytest.fixture(scope="module")
def camvid(shared_data, tmp_path_factory):
    """Give real CamVid in SegNet's layout, cut to the first frames of each split."""
    source = shared_data / "camvid" / "segnet" / "CamVid"
    root = tmp_path_factory.mktemp("CamVid")
    for split in ("train", "val", "test"):
        lines = (source / f"{split}.txt").read_text().splitlines()[:FRAMES]
        (root / f"{split}.txt").write_text("".join(line + "\n" for line in lines))
        for part in (split, f"{split}annot"):
            (root / part).mkdir()
            for line in lines:
                name = Path(line.split()[0]).name
                shutil.copyfile(source / part / name, root / part / name)
    return root


def miou_by_hand(truth: list[np.ndarray], predicted: list[np.ndarray]) -> float:
    """Mean IoU over the 11 classes of one confusion matrix; 11 is void. NumPy alone."""
    matrix = np.zeros((12, 12), np.int64)
    for t, p in zip(truth, predicted, strict=True):
        matrix += np.bincount(t.ravel() * 12 + p.ravel(), minlength=144).reshape(12, 12)
    matrix = matrix[:11]  # pixels that truth calls void don't count
    hit = np.diag(matrix)
    union = matrix.sum(1) + matrix[:, :11].sum(0) - hit
    return float((hit[union > 0] / union[union > 0]).mean())


def test_all_of_camvid_comes_back_as_it_was(shared_data, tmp_path, capsys):
    source = shared_data / "camvid" / "segnet" / "CamVid"
    summary, _ = call(capsys, "ingest", source, tmp_path / "s", "--format", "camvid-11")
    assert (summary["inputs"], summary["done"]) == (701, 701)
    summary, _ = call(capsys, "export", tmp_path / "s", tmp_path / "o", "--format", "camvid-11")
    assert summary["done"] == 701
    compared = 0
    for split in ("train", "val", "test"):
        listed = (tmp_path / "o" / f"{split}.txt").read_bytes()
        assert listed == (source / f"{split}.txt").read_bytes()
        for path in (source / f"{split}annot").iterdir():
            there = np.asarray(Image.open(tmp_path / "o" / f"{split}annot" / path.name))
            np.testing.assert_array_equal(np.asarray(Image.open(path)), there)
            image = tmp_path / "o" / split / path.name
            assert image.read_bytes() == (source / split / path.name).read_bytes()
            compared += 1
    assert compared == 701


@pytest.mark.slow
def test_train_label_evaluate_and_check_by_hand(camvid, tmp_path, capsys):
    truth, model, labels = tmp_path / "truth", tmp_path / "model", tmp_path / "labels"
    call(capsys, "ingest", camvid, truth, "--format", "camvid-11")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: zoo:enet\nepochs: 1\nbatch: 4\naugment: {crop: [96, 128], scale: [0.3, 0.5]}\n"
    )
    trained, _ = call(
        capsys, "train", truth, "--recipe", recipe, "--out", model, "--runner", "local"
    )
    assert Path(trained["paths"]["model"], "model.json").exists()
    labelled, _ = call(
        capsys, "label", camvid / "test", labels, "--model", f"run:{model}", "--runner", "local"
    )
    assert labelled["done"] == FRAMES
    scores, _ = call(
        capsys, "evaluate", "--truth", truth, "--pred", labels, "--split", "test",
        "--out", tmp_path / "report",
    )  # fmt: skip
    assert (scores["inputs"], scores["done"]) == (FRAMES, FRAMES)

    predicted = {
        r.image_id: np.asarray(Image.open(io.BytesIO(r.mask.bytes))).astype(np.int64)
        for r in Store.open(labels).records()
    }
    names = sorted(predicted)
    annotated = [
        np.asarray(Image.open(camvid / "testannot" / f"{n}.png")).astype(np.int64) for n in names
    ]
    by_hand = miou_by_hand(annotated, [predicted[n] for n in names])
    assert scores["miou"] == pytest.approx(by_hand, abs=1e-12)
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["miou"] == pytest.approx(by_hand, abs=1e-12)
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000


def test_voc_comes_back_with_objects_and_lists(shared_data, tmp_path, capsys):
    source = shared_data / "voc2012" / "VOCdevkit"
    call(capsys, "ingest", source, tmp_path / "s", "--format", "voc")
    call(capsys, "export", tmp_path / "s", tmp_path / "o", "--format", "voc")
    old, new = source / "VOC2012", tmp_path / "o" / "VOCdevkit" / "VOC2012"
    compared = 0
    for folder in ("SegmentationClass", "SegmentationClassAug", "SegmentationObject"):
        for path in (old / folder).glob("*.png"):
            there = Image.open(new / folder / path.name)
            assert there.mode == "P"
            np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(there))
            compared += 1
    assert compared >= 27
    for path in (old / "ImageSets" / "Segmentation").iterdir():
        listed = (new / "ImageSets" / "Segmentation" / path.name).read_text().split()
        assert listed == path.read_text().split()


def test_converting_starts_fast_and_alone(camvid, tmp_path):
    """A hundred images take neither Ray, torch nor Arrow; --help takes no library at all."""
    import subprocess
    import sys

    code = (
        "import sys; from jobs.__main__ import main\n"
        "main({args!r})\n"
        "print(sorted({{m.split('.')[0] for m in sys.modules}} & {{'ray', 'torch', 'pyarrow'}}))"
    )
    convert = ["convert", str(camvid), str(tmp_path / "o"), "--from", "camvid-11", "--to", "voc"]
    for args, loaded in ((["--help"], "[]"), (convert, "[]")):
        script = code.format(args=args).replace("main([", "try: main([", 1)
        script = script.replace("])\n", "])\nexcept SystemExit: pass\n", 1)
        out = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        assert out.stdout.splitlines()[-1] == loaded, out.stderr
