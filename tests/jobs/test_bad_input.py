"""One bad input of each kind among good ones: named, counted, in the errors table; others done."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipeline.store import Store
from pipeline.streetscenes import write_dataset
from tests.jobs.calls import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def header_bomb(path: Path) -> None:
    """Write a PNG that promises 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resize(path: Path) -> None:
    Image.open(path).resize((20, 10), Image.Resampling.NEAREST).save(path)


def odd_ids(path: Path) -> None:
    ids = np.array(Image.open(path))
    ids[0, 0] = 77
    Image.fromarray(ids).save(path)


def colours(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def as_jpeg(path: Path) -> None:
    Image.open(path).convert("L").save(path, format="JPEG")


IMAGE_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, "CorruptImage"),
    "zero bytes": (lambda p: p.write_bytes(b""), "CorruptImage"),
    "text": (lambda p: p.write_text("I am no image"), "CorruptImage"),
    "listed but missing": (lambda p: p.unlink(), "MissingFile"),
    "50,000 x 50,000": (header_bomb, "ImageTooLarge"),
}
MASK_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "mask truncated": (cut, "CorruptMask"),
    "mask missing": (lambda p: p.unlink(), "MissingFile"),
    "mask of another size": (resize, "SizeMismatch"),
    "mask with ids of no class": (odd_ids, "LabelOutOfRange"),
    "mask in colours of no class": (colours, "UnknownColour"),
    "mask as JPEG": (as_jpeg, "CorruptMask"),
}


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", 6, height=48, width=64, seed=1, splits=(1, 0, 0))
    return tmp_path / "data"


def check(summary: dict, store: Path, bad: str, error: str, err: str) -> None:
    assert summary["inputs"] == summary["done"] + summary["skipped"] + summary["failed"] == 6
    assert (summary["done"], summary["failed"]) == (5, 1)
    rows = Store.open(store).failures().to_pylist()
    assert [(r["image_id"], r["error"]) for r in rows] == [(bad, error)]
    assert bad in rows[0]["message"]
    assert ";" in rows[0]["message"], "cause; mend"
    assert "Traceback" not in err
    assert Store.open(store).count() == 5


@pytest.mark.parametrize("fault", [*IMAGE_FAULTS, *MASK_FAULTS])
def test_ingest_goes_on(data, tmp_path, capsys, fault):
    image = sorted((data / "train").iterdir())[2]
    if fault in IMAGE_FAULTS:
        spoil, error = IMAGE_FAULTS[fault]
        spoil(image)
    else:
        spoil, error = MASK_FAULTS[fault]
        spoil(data / "trainannot" / image.name)
    summary, err = call(
        capsys, "ingest", data, tmp_path / "s", "--format", "camvid-11", "--runner", "local", code=3
    )
    check(summary, tmp_path / "s", image.stem, error, err)


@pytest.mark.parametrize("fault", [f for f in IMAGE_FAULTS if f != "listed but missing"])
def test_label_goes_on(data, tmp_path, capsys, fault):
    image = sorted((data / "train").iterdir())[2]
    spoil, error = IMAGE_FAULTS[fault]
    spoil(image)
    summary, err = call(
        capsys, "label", data / "train", tmp_path / "s", "--runner", "local",
        "--model", "zoo:enet?label_space=camvid-11&seed=0", code=3,
    )  # fmt: skip
    check(summary, tmp_path / "s", image.stem, error, err)


def test_label_of_a_manifest_that_names_a_missing_image(data, tmp_path, capsys):
    images = sorted((data / "train").iterdir())
    (tmp_path / "list.txt").write_text("".join(f"{p}\n" for p in [*images[:5], data / "gone.png"]))
    summary, _ = call(
        capsys, "label", tmp_path / "list.txt", tmp_path / "s", "--runner", "local",
        "--model", "zoo:enet?label_space=camvid-11&seed=0", code=3,
    )  # fmt: skip
    rows = Store.open(tmp_path / "s").failures().to_pylist()
    assert summary["done"] == 5
    assert [r["error"] for r in rows] == ["MissingFile"]
    assert "gone.png" in rows[0]["message"]


@pytest.mark.parametrize("fault", ["truncated", "mask missing"])
def test_convert_goes_on(data, tmp_path, capsys, fault):
    image = sorted((data / "train").iterdir())[2]
    spoil, error = (IMAGE_FAULTS | MASK_FAULTS)[fault]
    spoil(image if fault in IMAGE_FAULTS else data / "trainannot" / image.name)
    summary, _ = call(
        capsys, "convert", data, tmp_path / "out", "--from", "camvid-11", "--to", "maskdir", code=3
    )
    assert (summary["inputs"], summary["done"], summary["failed"]) == (6, 5, 1)
    text = (tmp_path / "out" / "segmill-errors.jsonl").read_text()
    assert error in text
    assert image.stem in text


def test_a_colour_of_no_class(tmp_path, capsys):
    from pipeline.label_space import label_space

    road = label_space("camvid-32").by_name["Road"].colour
    for part in ("701_StillsRaw_full", "LabeledApproved_full"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for name, colour in (("a", road), ("b", (1, 2, 3))):
        Image.new("RGB", (40, 30)).save(tmp_path / "data/701_StillsRaw_full" / f"{name}.png")
        label = Image.new("RGB", (40, 30), colour)
        label.save(tmp_path / "data/LabeledApproved_full" / f"{name}_L.png")
    summary, _ = call(
        capsys, "ingest", tmp_path / "data", tmp_path / "s", "--format", "camvid", code=3
    )
    assert (summary["done"], summary["failed"]) == (1, 1)
    row = Store.open(tmp_path / "s").failures().to_pylist()[0]
    assert (row["image_id"], row["error"]) == ("b", "UnknownColour")
    assert "1,2,3" in row["message"].replace(", ", ",")


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("ingest", "nowhere", "S", "--format", "camvid-11"), 1, "nowhere"),
        (("ingest", "DATA", "S", "--format", "pascal"), 2, "choose from"),
        (("ingest", "DATA", "S", "--format", "voc"), 1, "DATA"),
        (("ingest", "DATA", "DATA", "--format", "camvid-11"), 1, "no label store"),
        (("ingest", "DATA", "S", "--format", "camvid-11", "--split", "holdout"), 2, "holdout"),
        (("export", "nowhere", "OUT", "--format", "voc"), 1, "no label store"),
        (("export", "GOOD", "OUT", "--format", "voc", "--version", "77"), 1, "77"),
        (("export", "GOOD", "OUT", "--format", "voc", "--where", "nope = 1"), 2, "nope"),
        (("export", "GOOD", "OUT", "--format", "voc", "--label-space", "x"), 2, "choose from"),
        (("evaluate", "--truth", "nowhere", "--pred", "GOOD", "--out", "OUT"), 1, "no label store"),
        (("store", "info", "nowhere"), 1, "no label store"),
        (("store", "restore", "GOOD", "77"), 1, "77"),
        (("gallery", "nowhere", "--out", "OUT"), 1, "no label store"),
        (("train", "nowhere", "--recipe", "streetscenes", "--out", "OUT"), 1, "no label store"),
        (("lable", "x"), 2, "label"),
    ],
)
def test_wrong_calls_get_one_line(data, tmp_path, capsys, args, code, text):
    if "GOOD" in args:
        call(capsys, "ingest", data, tmp_path / "good", "--format", "camvid-11")
    known = {"DATA": data, "S": tmp_path / "s", "GOOD": tmp_path / "good", "OUT": tmp_path / "out"}
    said, err = call(capsys, *(known.get(a, a) for a in args), code=code)
    assert (str(data) if text == "DATA" else text) in err
    assert len(err.strip().splitlines()) == 1, err
    if args[0] != "lable":
        assert err.strip().endswith(said["error"])
        assert said["verb"].split()[0] == args[0]


def test_a_store_of_a_newer_schema(data, tmp_path, capsys):
    from deltalake import DeltaTable

    call(capsys, "ingest", data, tmp_path / "s", "--format", "camvid-11")
    table = DeltaTable(str(tmp_path / "s"))
    table.alter.set_table_properties({"segmill.schema_version": "9"}, raise_if_not_exists=False)
    _, err = call(capsys, "store", "info", tmp_path / "s", code=1)
    assert "upgrade segmill" in err
