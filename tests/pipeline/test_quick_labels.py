"""What conversion does for speed gives what the plain way gives."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from connectors.cityscapes_objects import classes_of
from pipeline import images, instances, masks
from pipeline.errors import BadAnnotation, CorruptImage
from pipeline.labels import png
from pipeline.record import Instance

SHAPE = (23, 17)


def _random_masks(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(SHAPE) < rng.random() for _ in range(count)]


def _rle(binary: np.ndarray) -> str:
    return str(coco.encode(np.asfortranarray(binary.astype(np.uint8)))["counts"], "ascii")


@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_texts_decoded_together_are_pycocotools_masks(seed: int, count: int) -> None:
    binaries = _random_masks(seed, count)
    texts = [_rle(b) for b in binaries]
    instances._KEPT.clear()
    masks.rle_unpack_ahead(texts)
    assert all(text in instances._KEPT for text in texts)
    for binary, text in zip(binaries, texts, strict=True):
        assert np.array_equal(masks.rle_decode(text, *SHAPE), binary)


def test_a_malformed_text_among_others_is_refused_by_itself() -> None:
    good = _rle(_random_masks(1, 1)[0])
    instances._KEPT.clear()
    masks.rle_unpack_ahead([good, "", "\x7f", good + "P"])
    masks.rle_check(good, *SHAPE)
    for bad in ("", "\x7f", good + "P"):
        with pytest.raises(BadAnnotation):
            masks.rle_check(bad, *SHAPE)


def test_texts_do_not_run_into_each_other() -> None:
    """The last letter of a text says that its number goes on: the next text is another's."""
    open_end = "o"
    good = _rle(_random_masks(2, 1)[0])
    with pytest.raises(ValueError, match="compressed text"):
        instances._unpacked([open_end, good])


def test_few_run_lengths_are_kept() -> None:
    for n in range(2000):
        masks.rle_encode_at(np.ones((1, 1), bool), (n % 40, n // 40), (40, 50))
    assert len(instances._KEPT) <= instances._MOST_KEPT


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_covered_objects_are_counted(seed: int, count: int) -> None:
    binaries = _random_masks(seed, count)
    objects = [Instance(n, 1, None, None, rle=_rle(b)) for n, b in enumerate(binaries, 1)]
    drawing = masks.Drawing.of(objects, *SHAPE)
    canvas = np.zeros(SHAPE, int)
    for n, binary in sorted(enumerate(binaries, 1), key=lambda item: (-item[1].sum(), item[0])):
        canvas[binary] = n
    assert np.array_equal(drawing.map(range(1, count + 1), 0, np.uint8), canvas)
    hidden = sum((canvas == n).sum() < b.sum() for n, b in enumerate(binaries, 1))
    assert drawing.covered() == hidden


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_cell_read_again_within_quickly_is_its_pixels(dtype: type) -> None:
    ids = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    with png.quickly():
        cell = masks.encode(ids)
        found = masks.decode(cell)
        found[:] = 0  # writable, and nobody else's
        assert np.array_equal(masks.decode(cell), ids)
        assert masks.recode(cell) is cell
        copy = bytes(bytearray(cell))
        assert png.written(copy) is None
        assert np.array_equal(masks.decode(copy), ids)
    assert png.written(cell) is None
    assert np.array_equal(np.array(Image.open(io.BytesIO(cell))), ids)


def test_classes_of_instance_ids_are_those_of_the_rule() -> None:
    values = np.arange(65536).astype(np.uint16).reshape(256, 256)
    expected = [min(v, 255) if v < 1000 else v // 1000 for v in range(65536)]
    assert classes_of(values).ravel().tolist() == expected


def test_damaged_rgb_pngs_are_what_libpng_makes_of_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    whole, dice = file.getvalue(), random.Random(0)
    assert np.array_equal(images.decode(whole, "a.png"), pixels)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        data[dice.randrange(33, len(data) - 12)] ^= 1 << dice.randrange(8)
        try:
            expected = imagecodecs.png_decode(bytes(data))
        except imagecodecs.PngError:
            refused += 1
            with pytest.raises(CorruptImage):
                images.decode(bytes(data), "a.png")
        else:
            assert np.array_equal(images.decode(bytes(data), "a.png"), expected)
    assert refused > 20


def test_converting_imports_no_arrow_and_starts_no_algebra() -> None:
    """Cold start: both cost more than the conversion of a hundred small images."""
    code = (
        "import sys, os; from jobs.__main__ import main\n"
        "try: main(['convert', 'nowhere', 'out', '--from', 'voc', '--to', 'coco-instances'])\n"
        "except SystemExit: pass\n"
        "import connectors.dataset, connectors.writing, connectors.voc, connectors.coco\n"
        "print({'pyarrow', 'torch', 'ray', 'PIL.Image'} & sys.modules.keys(),"
        " os.environ['OPENBLAS_NUM_THREADS'])"
    )
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.split("\n")[-2] == "set() 1", done.stdout + done.stderr
