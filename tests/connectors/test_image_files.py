"""Images put into a dataset: bytes kept where they may be, pixels where not."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from connectors.camvid import CAMVID_11
from connectors.image_files import put_image
from pipeline.errors import CorruptImage, MissingFile, SizeMismatch, UnsafePath
from pipeline.files import open_sink, open_tree
from pipeline.label_space import label_space
from pipeline.record import File
from tests.connectors.trees import grey, make_record, photo, put, rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.record import Record

SHAPE = (6, 10)


def record_with(data: bytes | None, path: str | None = None) -> Record:
    record = make_record(np.zeros(SHAPE, np.uint8), label_space("camvid-11"), "a", "train")
    return replace(record, image=File(path, data))


def encoded(mode: str, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    gradient = np.linspace(0, 255, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    Image.fromarray(gradient.astype(np.uint8)).convert(mode).save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "formats", "name"),
    [
        (encoded("RGB", "JPEG"), ("jpeg", "png"), "x.jpg"),
        (encoded("CMYK", "JPEG"), ("jpeg",), "x.jpg"),
        (encoded("L", "PNG"), ("png",), "x.png"),
        (encoded("RGBA", "PNG"), ("png",), "x.png"),
        (encoded("RGB", "BMP"), ("png", "bmp"), "x.bmp"),
        (encoded("RGB", "TIFF"), ("tiff",), "x.tif"),
    ],
)
def test_bytes_stay_as_they_are(
    tmp_path: Path, data: bytes, formats: tuple[str, ...], name: str
) -> None:
    put(tmp_path, "misleading.png", data)
    record = record_with(None, str(tmp_path / "misleading.png"))
    assert put_image(open_sink(str(tmp_path)), "x", record, formats) == (name, {})
    assert (tmp_path / name).read_bytes() == data


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_other_formats_become_png_with_the_same_pixels(tmp_path: Path, kind: str) -> None:
    data = encoded("RGB", kind, **({"lossless": True} if kind == "WEBP" else {}))
    name, loss = put_image(open_sink(str(tmp_path)), "x", record_with(data), ("jpeg", "png"))
    assert (name, loss) == ("x.png", {})
    with Image.open(tmp_path / "x.png") as one, Image.open(io.BytesIO(data)) as two:
        assert np.array_equal(np.array(one), np.array(two))


def test_jpeg_of_high_quality_where_nothing_else_will_do(tmp_path: Path) -> None:
    data = encoded("RGB", "PNG")
    name, loss = put_image(open_sink(str(tmp_path)), "x", record_with(data), ("jpeg",))
    assert (name, loss) == ("x.jpg", {"images_reencoded": 1})
    with Image.open(tmp_path / "x.jpg") as one, Image.open(io.BytesIO(data)) as two:
        assert abs(np.array(one).astype(int) - np.array(two)).max() < 12


def test_image_is_turned_when_its_labels_are(tmp_path: Path) -> None:
    """A model labels upright pixels; formats whose readers do not turn images get them upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("RGB", "PNG", exif=exif)
    record = replace(record_with(data), extra=json.dumps({"orientation": 6}))
    name, loss = put_image(open_sink(str(tmp_path)), "x", record, ("png",))
    assert loss == {}
    with Image.open(tmp_path / name) as one, Image.open(io.BytesIO(data)) as two:
        assert one.size == SHAPE
        assert np.array_equal(np.array(one), np.rot90(np.array(two), -1))


@pytest.mark.parametrize(("shape", "turned"), [(SHAPE, False), (SHAPE[::-1], True)])
def test_labels_may_lie_on_either_grid(
    tmp_path: Path, shape: tuple[int, int], turned: bool
) -> None:
    """Truth lies on the stored pixels; labels made on upright ones are told by their shape."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path, "train.txt", "train/a.png trainannot/a.png")
    put(tmp_path, "train/a.png", encoded("RGB", "PNG", exif=exif))
    put(tmp_path, "trainannot/a.png", grey(np.full(shape, 4)))
    tree = open_tree(str(tmp_path))
    (sample,) = CAMVID_11.list(tree, ())
    record = CAMVID_11.read(tree, sample)
    assert (record.height, record.width) == shape
    assert record.extras() == ({"orientation": 6} if turned else {})
    rewrite(CAMVID_11, [record], tmp_path / "target", label_space("camvid-11"))
    with Image.open(tmp_path / "target/train/a.png") as image:
        assert image.size == shape[::-1]


def test_images_that_cannot_be_put(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path))
    with pytest.raises(MissingFile, match="ingest"):
        put_image(sink, "x", record_with(None), ("png",))
    with pytest.raises(MissingFile, match="gone"):
        put_image(sink, "x", record_with(None, str(tmp_path / "gone.png")), ("png",))
    for data in (b"", b"text", photo(SHAPE)[:-20]):
        with pytest.raises(CorruptImage):
            put_image(sink, "x", record_with(data), ("png",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("through", ["", "link/", "x/../"])
def test_an_image_is_not_written_over_itself(tmp_path: Path, through: str) -> None:
    data = encoded("RGB", "PNG")
    put(tmp_path, "x/a.png", data)
    (tmp_path / "link").symlink_to(".")
    record = record_with(None, f"{tmp_path}/{through}x/a.png")
    for sink in (open_sink(str(tmp_path)), open_sink(f"{tmp_path}/link")):
        for formats in (("png",), ("bmp", "png")):
            with pytest.raises(UnsafePath, match="its source"):
                put_image(sink, "x/a", record, formats)
    assert put_image(open_sink(str(tmp_path)), "y/a", record, ("png",)) == ("y/a.png", {})


def test_an_image_that_was_replaced_does_not_go_with_its_labels(tmp_path: Path) -> None:
    put(tmp_path, "a.png", photo((SHAPE[0] + 1, SHAPE[1])))
    record = record_with(None, str(tmp_path / "a.png"))
    with pytest.raises(SizeMismatch, match="10x7 pixels, its labels are for 10x6"):
        put_image(open_sink(str(tmp_path / "out")), "x", record, ("png",))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("formats", [("png",), ("jpeg",)])
def test_a_hidden_image_is_not_written(tmp_path: Path, formats: tuple[str, ...]) -> None:
    record = record_with(encoded("RGB", "PNG"))
    with pytest.raises(UnsafePath, match="hidden"):
        put_image(open_sink(str(tmp_path)), "images/.a", record, formats)
