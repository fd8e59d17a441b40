from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from pipeline import masks
from pipeline.errors import InputError, ModelError, UsageError
from pipeline.images import list_images
from pipeline.labelling import label_digest
from pipeline.models import load_model
from pipeline.predict.options import LabelOptions
from pipeline.segmenter import SegmenterFactory
from tests.samples import write_scenes

URI = "zoo:enet?label_space=camvid-11&seed=3"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 7)
    return root


def label_all(root, **options):
    segmenter = SegmenterFactory(URI, options=LabelOptions(**options))()
    samples = list(list_images(str(root)))
    found = {s.image_id: r for s, r in segmenter(samples)}
    assert len(found) == len(samples)
    return found


def test_labels_are_what_plain_torch_says(scenes):
    """An independent few lines: decode by Pillow, normalise, forward, soft-max, arg-max."""
    model = load_model(URI)
    found = label_all(scenes, batch_size=3, confidence=True)
    for image_id, record in found.items():
        rgb = cv2.imread(str(scenes / f"{image_id}.jpg"))[..., ::-1].astype(np.float32) / 255
        mean, std = model.preprocessing.mean, model.preprocessing.std
        tensor = torch.from_numpy((rgb - mean) / std).float().permute(2, 0, 1)[None]
        with torch.inference_mode():
            logits = model.module(tensor)
            p = F.interpolate(logits, rgb.shape[:2], mode="bilinear").softmax(1)
        top, best = p.max(1)
        ids = masks.decode(record.mask.bytes)
        two = p[0].topk(2, dim=0).values
        tied = (two[0] - two[1]).numpy() < 1e-4
        assert ((ids == best[0].numpy()) | tied).all()
        confidence = masks.decode(record.confidence.bytes).astype(int)
        assert np.abs(confidence - np.round(255 * top[0].numpy())).max() <= 1
        assert {c.id: c.pixels for c in record.classes} == {
            int(i): int((ids == i).sum()) for i in np.unique(ids)
        }
        for c in record.classes:
            assert c.confidence == pytest.approx(confidence[ids == c.id].mean() / 255, abs=1e-4)


def test_the_batch_size_does_not_matter(scenes):
    """At most one pixel in 100,000 may differ by rounding."""
    one, many = label_all(scenes, batch_size=1), label_all(scenes, batch_size=5)
    differ = total = 0
    for image_id, record in one.items():
        a, b = masks.decode(record.mask.bytes), masks.decode(many[image_id].mask.bytes)
        differ, total = differ + int((a != b).sum()), total + a.size
    assert differ <= total * 1e-5


def test_mixed_sizes_and_bad_images_side_by_side(tmp_path):
    write_scenes(tmp_path, 2)
    Image.new("RGB", (50, 31), (9, 9, 9)).save(tmp_path / "small.png")
    Image.new("L", (33, 64)).save(tmp_path / "grey.png")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = (tmp_path / "0000.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    found = label_all(tmp_path, batch_size=4)
    bad = {k for k, v in found.items() if isinstance(v, InputError)}
    assert bad == {"text", "empty", "torn"}
    assert {k: (v.height, v.width) for k, v in found.items() if k not in bad} == {
        "0000": (72, 96), "0001": (72, 96), "small": (31, 50), "grey": (64, 33),
    }  # fmt: skip
    for key in set(found) - bad:
        assert masks.decode(found[key].mask.bytes).shape == (found[key].height, found[key].width)


def test_orientation_is_applied_once_and_recorded(tmp_path):
    image = Image.new("RGB", (40, 24), (10, 200, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    record = label_all(tmp_path)["turned"]
    assert (record.height, record.width) == (40, 24)
    assert record.extras() == {"orientation": 6}


def test_input_size_resizes_for_the_model_and_back(scenes):
    found = label_all(scenes, input_size=(64, 64))
    assert {(r.height, r.width) for r in found.values()} == {(72, 96)}


def test_the_digest_names_what_changes_the_output():
    digest = load_model(URI).digest
    plain = label_digest(digest, LabelOptions())
    same = [LabelOptions(batch_size=3), LabelOptions(threads=5), LabelOptions(device="cpu")]
    assert {label_digest(digest, o) for o in same} == {plain}
    others = [
        LabelOptions(precision="bf16"),
        LabelOptions(input_size=(64, 64)),
        LabelOptions(confidence=True),
    ]
    assert len({label_digest(digest, o) for o in others} | {plain}) == 4
    other = load_model("zoo:enet?label_space=camvid-11&seed=4").digest
    assert label_digest(other, LabelOptions()) != plain


def test_bf16_labels_nearly_the_same(scenes):
    full, half = label_all(scenes), label_all(scenes, precision="bf16")
    for image_id in full:
        a = masks.decode(full[image_id].mask.bytes)
        assert (a == masks.decode(half[image_id].mask.bytes)).mean() > 0.5


def test_odd_options_are_refused():
    with pytest.raises(UsageError, match="--precision"):
        LabelOptions(precision="int8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--batch-size"):
        LabelOptions(batch_size=0)


def test_a_model_that_changed_since_the_plan_is_refused():
    """Else its labels would stand in the store under the digest of the old one."""
    digest = load_model(URI).digest
    assert SegmenterFactory(URI, digest=digest)()
    with pytest.raises(ModelError, match="changed since the run began"):
        SegmenterFactory(URI, digest="0" * 64)()
