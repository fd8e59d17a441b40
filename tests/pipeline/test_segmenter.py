from __future__ import annotations

import io
import os
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from pipeline import files, masks
from pipeline.errors import InputError, ModelError, UsageError, WorkerDied
from pipeline.files import open_tree
from pipeline.images import decode
from pipeline.labelling import label_digest
from pipeline.models import load_model
from pipeline.models.loaded import LoadedModel
from pipeline.predict.options import LabelOptions
from pipeline.run import Run, Shard, ShardWriter
from pipeline.segmenter import Segmenter, SegmenterFactory, keep_freed_memory, pick_device
from pipeline.spent import BESIDE, OWN
from pipeline.store import Store
from pipeline.streetscenes import scene
from pipeline.trees.listing import list_images
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


def test_an_image_that_is_written_to_after_it_was_listed_fails_alone(tmp_path):
    """Its label would stand under the fingerprint of other pixels."""
    write_scenes(tmp_path, 4)
    listed = list(list_images(str(tmp_path)))
    written, swapped = (tmp_path / f"000{n}.jpg" for n in (1, 2))
    with written.open("r+b") as file:  # in place
        file.write(written.read_bytes())
    os.utime(swapped, ns=(1, 1))  # another file under the name
    segmenter = SegmenterFactory(URI, options=LabelOptions())
    found = {s.image_id: r for s, r in segmenter()(listed)}
    bad = {k: str(v) for k, v in found.items() if isinstance(v, InputError)}
    assert set(bad) == {"0001", "0002"}
    assert all("changed after it was listed" in text for text in bad.values())
    again = {s.image_id: r for s, r in segmenter()(list(list_images(str(tmp_path))))}
    assert not [r for r in again.values() if isinstance(r, InputError)]


def test_an_image_that_is_replaced_while_it_is_read_keeps_its_own_fingerprint(tmp_path):
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"old pixels")
    (entry,) = open_tree(str(tmp_path)).walk(suffixes=(".bin",))
    second.write_bytes(b"new")

    class Swapping(io.FileIO):
        def read(self, *_: object) -> bytes:
            os.replace(second, first)
            return super().read()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open_local", Swapping)
        assert files.read_listed(str(first), entry.fingerprint) == b"old pixels"
    with pytest.raises(InputError, match="changed after it was listed"):
        files.read_listed(str(first), entry.fingerprint)


def test_a_list_with_fingerprints_of_its_own_is_believed(tmp_path):
    write_scenes(tmp_path, 2)
    given = "".join(f"{tmp_path}/000{n}.jpg,1-2\n" for n in range(2))
    (tmp_path / "list.csv").write_text("path,fingerprint\n" + given)
    samples = list(list_images(str(tmp_path / "list.csv")))
    assert {s.fingerprint for s in samples} == {"1-2"}
    segmenter = SegmenterFactory(URI, options=LabelOptions())()
    assert not [r for _, r in segmenter(samples) if isinstance(r, InputError)]


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
    same += [LabelOptions(compile=True)]
    assert {label_digest(digest, o) for o in same} == {plain}
    others = [
        LabelOptions(precision="bf16"),
        LabelOptions(input_size=(64, 64)),
        LabelOptions(confidence=True),
        LabelOptions(pad_limit=0.1),
        LabelOptions(decode="reduced"),
    ]
    assert len({label_digest(digest, o) for o in others} | {plain}) == 6
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
    with pytest.raises(UsageError, match="--decode"):
        LabelOptions(decode="half")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--pad-limit"):
        LabelOptions(pad_limit=-0.1)


@pytest.fixture
def photos(tmp_path):
    """Two JPEGs several times larger than the model's input; one lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, seed, more in (("a", 1, {}), ("b", 2, {"exif": exif})):
        rgb, _ = scene(seed, 361, 483)
        Image.fromarray(rgb).save(tmp_path / f"{name}.jpg", quality=95, **more)
    return tmp_path


class Colours(torch.nn.Module):
    """Classes by colour: unlike a random network's, its labels follow what is to be seen."""

    def forward(self, x):
        smooth = F.avg_pool2d(x, 5, 1, 2)
        tones = torch.linspace(-2, 2, 11).view(1, 11, 1, 1)
        return -4 * (smooth.mean(1, keepdim=True) - tones) ** 2


def test_reduced_decoding_gives_label_maps_of_the_images_own_size(photos):
    plain = load_model(URI)
    model = LoadedModel(Colours(), plain.label_space, plain.preprocessing, "test", "d")
    found = {}
    for how in ("full", "reduced"):
        options = LabelOptions(input_size=(88, 120), decode=how)
        segmenter = Segmenter(model, torch.device("cpu"), options)
        found[how] = {s.image_id: r for s, r in segmenter(list(list_images(str(photos))))}
    for image_id, size in (("a", (361, 483)), ("b", (483, 361))):
        one, other = found["reduced"][image_id], found["full"][image_id]
        assert (one.height, one.width) == (other.height, other.width) == size
        a, b = masks.decode(one.mask.bytes), masks.decode(other.mask.bytes)
        assert a.shape == size
        assert len(np.unique(b)) > 3
        assert (a == b).mean() > 0.9
        assert one.extras() == other.extras()


def test_reduced_decoding_leaves_the_input_s_size_and_is_for_jpegs_alone(photos):
    data = (photos / "b.jpg").read_bytes()
    sizes = {(240, 180): (242, 181), (60, 45): (61, 46), (61, 45): (121, 91), (1, 1): (61, 46),
             (242, 181): (483, 361), (900, 900): (483, 361)}  # fmt: skip
    upright = (photos / "a.jpg").read_bytes()
    whole = Image.fromarray(decode(upright, "a.jpg"))
    for least, size in sizes.items():
        pixels = decode(data, "b.jpg", at_least=least)
        assert pixels.shape == (*size, 3), least
        pixels = decode(upright, "a.jpg", at_least=least[::-1])
        assert pixels.shape == (*size[::-1], 3), least
        scale = round(483 / size[0])
        judge = whole.crop((0, 0, size[0] * scale, size[1] * scale)).resize(
            size, Image.Resampling.BOX
        )
        inside = np.asarray(judge, int)[:-1, :-1] - pixels[:-1, :-1]
        assert np.abs(inside).mean() < 3
    png = photos / "c.png"
    Image.open(photos / "a.jpg").save(png)
    assert decode(png.read_bytes(), "c.png", at_least=(8, 8)).shape == (361, 483, 3)
    with pytest.raises(InputError):
        decode(data[: len(data) // 2], "b.jpg", at_least=(60, 45))


def test_images_far_away_are_labelled_as_those_here(scenes, memory):
    for path in scenes.iterdir():
        memory.pipe_file(f"/far/{path.name}", path.read_bytes())
    near = label_all(scenes)
    segmenter = SegmenterFactory(URI)()
    samples = list(list_images("memory://far"))
    memory.rm("/far/0003.jpg")
    found = {s.image_id: r for s, r in segmenter(samples)}
    assert isinstance(found.pop("0003"), InputError)
    assert {k: r.mask.bytes for k, r in found.items()} == {
        k: r.mask.bytes for k, r in near.items() if k != "0003"
    }


def test_a_shard_s_seconds_are_told_by_stage_once(scenes):
    segmenter = SegmenterFactory(URI)()
    samples = list(list_images(str(scenes)))
    start = time.perf_counter()
    assert len(list(segmenter(samples))) == 7
    wall = time.perf_counter() - start
    spent = segmenter.spent.take()
    assert set(spent) == {*OWN, *BESIDE}
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent[stage] for stage in OWN) <= wall
    assert segmenter.spent.take() == {}


def test_a_worker_books_each_stage_of_a_shard_once(scenes, tmp_path):
    segmenter = SegmenterFactory(URI)()
    samples = list(list_images(str(scenes)))
    store = Store.create(str(tmp_path / "store"), [segmenter._space])
    run = Run.begin(store, "label", kind="model", identity=["x"])
    worker = ShardWriter(lambda: segmenter, store.sink(), run)()
    for part, first in ((samples[:4], {"startup"}), (samples[4:], set())):
        start = time.perf_counter()
        shelved = worker(Shard.of(part))
        wall = time.perf_counter() - start
        assert shelved.done == len(part)
        stages = {*OWN, "label", "write", "other"}
        assert set(shelved.seconds) == stages | {*BESIDE, "idle"} | first
        own = sum(shelved.seconds[stage] for stage in stages)
        assert own <= wall
        assert shelved.seconds["label"] >= 0, "no second is booked twice"


def test_one_process_loads_a_model_once():
    factory = SegmenterFactory(URI)
    assert factory.load() is SegmenterFactory(URI).load()
    assert factory()._model is factory.load()


def test_a_caller_that_gives_up_leaves_no_threads(scenes):
    segmenter = SegmenterFactory(URI)()
    records = segmenter(list(list_images(str(scenes))))
    next(records)
    records.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("segmill-images")]


def test_a_lost_device_is_blamed_on_no_image(scenes):
    segmenter = SegmenterFactory(URI)()

    def start(images):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    segmenter.predictor.start = start
    with pytest.raises(WorkerDied, match=r"illegal memory access was encountered\)"):
        list(segmenter(list(list_images(str(scenes)))))


def test_freed_memory_is_kept_where_glibc_is():
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_a_model_that_changed_since_the_plan_is_refused():
    """Else its labels would stand in the store under the digest of the old one."""
    digest = load_model(URI).digest
    assert SegmenterFactory(URI, digest=digest)()
    with pytest.raises(ModelError, match="changed since the run began"):
        SegmenterFactory(URI, digest="0" * 64)()


def test_a_gpu_that_was_given_and_is_not_there_is_no_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WorkerDied, match=r"sees none on .*--gpus-per-actor 0"):
        SegmenterFactory(URI, options=LabelOptions(device="cuda"))()
    assert pick_device("auto").type == "cpu"
