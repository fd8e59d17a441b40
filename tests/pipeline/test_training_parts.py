from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from pipeline import masks
from pipeline.errors import StoreError, UnknownName, UsageError
from pipeline.label_space import label_space
from pipeline.training.augment import augmented, jittered, pasted
from pipeline.training.batches import Epoch, prefetched, train_batches
from pipeline.training.data import Channels, Reader, repeated, shuffled
from pipeline.training.example import Example
from pipeline.training.losses import criterion
from pipeline.training.recipe import Augment, Jitter, LossTerm, read_recipe, shipped_recipes
from pipeline.training.schedule import Clock, MovingAverage
from pipeline.training.weighting import class_weights
from tests.streets import HERE, SPACE, make_streets, recipe, run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_streets(tmp_path_factory.mktemp("streets"))


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid_and_say_how_to_run(name):
    assert read_recipe(name, seed=7).seed == 7
    text = shipped_recipes()[name].read_text()
    assert text.startswith("#")
    assert f"--recipe {name}" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: zoo:enet\nepochs: 1\naugment: {crop: [8, 8]}\nlr: 3", "lr: Extra inputs"),
        ("model: zoo:enet\nepochs: 0\naugment: {crop: [8, 8]}", "epochs: .*greater than 0, not 0"),
        ("model: zoo:enet\naugment: {crop: [8, 8]}", "epochs, minutes or both"),
        ("model: zoo:enet\nepochs: 1\naugment: {crop: [8, 8], scale: [2, 1]}", "augment: .*least"),
        ("epochs: 1\naugment: {crop: [8, 8]}", "model: Field required"),
        ("- a\n- b", "mapping"),
        ("a: [1", "not YAML"),
    ],
)
def test_a_wrong_recipe_is_told_by_key(text, words, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_recipe(str(tmp_path / "r.yaml"))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UnknownName, match="streetscenes"):
        read_recipe("streetscene")
    with pytest.raises(UsageError, match="no such recipe file"):
        read_recipe("recipes/mine.yaml")


# --- losses and schedule -------------------------------------------------------------------------


def test_coarse_logits_are_brought_to_the_labels_size():
    logits, labels = torch.randn(1, 3, 4, 5), torch.zeros(1, 16, 20, dtype=torch.int32)
    full = F.interpolate(logits, (16, 20), mode="bilinear")
    want = F.cross_entropy(full, labels.long())
    loss = criterion([LossTerm(name="cross-entropy")], 65535, None)
    assert torch.allclose(loss(logits, labels), want)


def test_class_weights():
    pixels = np.array([600, 300, 100, 0])
    home = np.array([1000, 500, 1000, 0])
    # frequencies 0.6, 0.6, 0.1: median 0.6
    median = class_weights("median-frequency", pixels, home)
    assert np.allclose(median, [1, 1, 6, 1])
    enet = class_weights("enet", pixels, home)
    assert np.allclose(enet, [1 / math.log(1.62), 1 / math.log(1.32), 1 / math.log(1.12), 1])
    root = class_weights("inverse-sqrt", pixels, home)
    shown = pixels > 0
    assert root is not None
    assert root[shown].mean() == pytest.approx(1)
    ratio = np.sqrt(pixels[shown].max() / pixels[shown].min())
    assert root[shown].max() / root[shown].min() == pytest.approx(ratio)
    assert class_weights("none", pixels, home) is None


def test_the_clock_keeps_time_for_the_last_validation():
    assert Clock(total_steps=10, budget=None).progress(5) == pytest.approx(0.55)
    fresh = Clock(None, budget=100.0, before=96.0)
    assert fresh.progress(0) >= 1
    timed = Clock(None, budget=100.0, before=75.0, validation=20.0)
    assert timed.progress(0) == pytest.approx(75 / 80, abs=1e-3)
    both = Clock(total_steps=4, budget=100.0, before=10.0)
    assert both.progress(3) == pytest.approx(3.5 / 4)


def test_moving_average():
    module = torch.nn.BatchNorm1d(2)
    average = MovingAverage(module, decay=0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.num_batches_tracked.fill_(7)
    average.update(module, step=100)
    assert average.module.weight.tolist() == [2.0, 2.0]
    assert average.module.num_batches_tracked == 7


# --- augmentation and data -----------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    st.integers(0, 1000),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_a_crop_has_its_size_and_only_known_values(shape, crop, scale, seed, kind):
    rng = np.random.default_rng(seed)
    void = 255 if kind is np.uint8 else 65535
    labels = rng.integers(0, 5, shape).astype(kind)
    image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    how = Augment(crop=crop, scale=scale, jitter=Jitter(brightness=0.5, contrast=0.5))
    depth = rng.uniform(0.5, 9, shape).astype(np.float32)
    example = Example(image, labels, depth)
    out, ids, far = augmented(example, how, void, np.random.default_rng(seed)).arrays
    assert out.shape == (*crop, 3)
    assert (far.shape, far.dtype) == (crop, np.float32)
    assert set(np.unique(far)) <= {*np.unique(depth), 0}, "metres stay as they are"
    assert (ids.shape, ids.dtype) == (crop, kind)
    assert set(np.unique(ids)) <= {*np.unique(labels), void}
    again = augmented(example, how, void, np.random.default_rng(seed)).arrays
    assert all(np.array_equal(a, b) for a, b in zip((out, ids, far), again, strict=True))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5)])
def test_labels_stay_on_their_pixels(scale):
    """The image's colour is its label, in large patches: so it is after scale, crop and mirror."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 6, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    image = np.repeat(labels[..., None] * 40, 3, axis=2)
    how = Augment(crop=(48, 60), scale=scale, flip=0.5)
    for _ in range(20):
        out, ids, depth = augmented(
            Example(image, labels, labels.astype(np.float32) + 1), how, 255, rng
        ).arrays
        assert np.array_equal(depth, np.where(ids == 255, 0, ids + 1.0)), "it moves with labels"
        agree = (np.abs(out[..., 1].astype(int) - ids * 40) < 20)[ids != 255]
        assert agree.mean() > (0.999 if scale == (1.0, 1.0) else 0.85)
        assert (ids != 255).mean() > 0.99


def test_a_focused_crop_shows_the_rare_class():
    labels = np.zeros((90, 120), np.uint8)
    labels[70, 100] = 1
    labels[:5] = 255
    image = np.zeros((90, 120, 3), np.uint8)
    seen = {}
    for focus in (0.0, 1.0):
        how, rng = Augment(crop=(20, 20), flip=0.5, focus=focus), np.random.default_rng(0)
        crops = [augmented(Example(image, labels), how, 255, rng).labels for _ in range(300)]
        seen[focus] = np.mean([(ids == 1).any() for ids in crops])
    assert seen[0.0] < 0.1
    assert 0.45 < seen[1.0] < 0.65, "the crop lies over class 0 or class 1, evenly drawn"
    void = np.full((30, 30), 255, np.uint8)
    focused = Augment(crop=(8, 8), focus=1.0)
    assert (augmented(Example(image[:30, :30], void), focused, 255, rng).labels == 255).all()


def test_pasted_things_bring_their_pixels():
    rng = np.random.default_rng(0)
    mine, theirs = (rng.integers(0, 4, (9, 9)).astype(np.uint8) for _ in range(2))
    image, other = (np.repeat(ids[..., None], 3, 2) + 100 for ids in (mine, theirs + 10))
    one, two = (
        Example(i, t, i[..., 0] / np.float32(8)) for i, t in ((image, mine), (other, theirs))
    )
    out, ids, depth = pasted(one, two, np.array([2, 3], np.uint8)).arrays
    assert np.array_equal(depth, out[..., 0] / np.float32(8))
    over = theirs >= 2
    assert np.array_equal(ids, np.where(over, theirs, mine))
    assert np.array_equal(out[over], other[over])
    assert np.array_equal(out[~over], image[~over])


def test_batches_are_pasted_by_the_seed(store):
    reader = Reader(store, "train", Channels(SPACE))

    def labels(share):
        how = recipe(augment={"crop": [32, 40], "paste": share})
        return [b.labels for b in train_batches(reader, how, Epoch(1, steps=2), HERE, None)]

    plain, mixed, again = labels(0.0), labels(1.0), labels(1.0)
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))
    mixed, plain = torch.cat(mixed), torch.cat(plain)
    assert torch.equal(mixed[0], plain[0]), "the first has none before it"
    changed = mixed[1:] != plain[1:]
    assert changed.any()
    assert torch.equal(mixed[1:][changed], plain[:-1][changed])


def test_images_of_rare_classes_come_again(store):
    even = Reader(store, "train", Channels(SPACE))
    more = Reader(store, "train", Channels(SPACE), oversample=1.0)
    share = even.survey.images / even.survey.labelled
    rows = list(more.rows())
    assert [row.repeats for row in even.rows()] == [1.0] * len(rows)
    for row in rows:
        ids = np.unique(even.load(row).labels)
        best = max(np.sqrt(1 / share[c]) for c in ids[ids != 255])
        assert row.repeats == pytest.approx(best)
    drawn = [r.image_id for s in range(200) for r in repeated(iter(rows), np.random.default_rng(s))]
    for row in rows:
        assert drawn.count(row.image_id) / 200 == pytest.approx(row.repeats, abs=0.12)
    assert more.samples == int(sum(row.repeats for row in rows))
    assert even.samples == len(rows)


def test_jitter_is_brightness_contrast_saturation():
    image = np.random.default_rng(0).integers(60, 160, (8, 9, 3), dtype=np.uint8)
    rng = np.random.default_rng(5)
    b, c, s = rng.uniform(0.7, 1.3), rng.uniform(0.8, 1.2), rng.uniform(0.5, 1.5)
    out = jittered(
        image,
        Jitter(brightness=0.3, contrast=0.2, saturation=0.5),
        np.random.default_rng(5),
    )
    luma = image @ np.array([0.299, 0.587, 0.114])
    want = luma[..., None] + s * (image - luma[..., None])
    want = b * (luma.mean() + c * (want - luma.mean()))
    assert np.abs(out - np.clip(want, 0, 255)).max() <= 1


@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_shuffling_loses_nothing(rows, most, seed):
    class Line(str):
        size = 1

    lines = [Line(i) for i in range(rows)]
    found = list(shuffled(iter(lines), np.random.default_rng(seed), most))
    assert sorted(found, key=int) == lines
    assert found == list(shuffled(iter(lines), np.random.default_rng(seed), most))


def test_masks_become_channels(store):
    target = label_space("unified")
    channels = Channels(target)
    reader = Reader(store, "train", channels)
    row = next(reader.rows())
    example = reader.load(row)
    ids = masks.decode(row.cell)
    for source in SPACE.classes:
        there = example.labels[ids == source.id]
        if source.id in SPACE.train_ids and there.size:
            assert len(set(there)) == 1
            name = target.by_id[target.train_ids[there[0]]].name if there[0] != 255 else "void"
            assert name != "void"
    assert (example.labels[ids == SPACE.ignore_index] == channels.void).all()


def test_the_survey_counts_without_reading_masks(store):
    reader = Reader(store, "train", Channels(SPACE))
    all_ids = [masks.decode(r.cell) for r in reader.rows()]
    for channel, i in enumerate(SPACE.train_ids):
        assert reader.survey.pixels[channel] == sum((m == i).sum() for m in all_ids)
        homes = [(m != SPACE.ignore_index).sum() for m in all_ids if (m == i).any()]
        assert reader.survey.home[channel] == sum(homes)
    assert (reader.survey.labelled, reader.survey.unlabelled) == (10, 0)


def test_workers_share_the_rows(store):
    reader = Reader(store, "train", Channels(SPACE))
    parts = [[r.image_id for r in reader.rows(rank, 3)] for rank in range(3)]
    assert [len(p) for p in parts] == [4, 3, 3]
    assert sorted(parts[0] + parts[1] + parts[2]) == [r.image_id for r in reader.rows()]


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_are_the_same_whatever_the_threads(store, threads):
    def batches(count):
        place = replace(HERE, threads=count)
        reader = Reader(store, "train", Channels(SPACE))
        return list(train_batches(reader, recipe(), Epoch(2, steps=5), place, None))

    for one, other in zip(batches(1), batches(threads), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.images.shape == (4, 32, 40, 3)


def test_embedded_images_are_read_from_the_store(tmp_path):
    store = make_streets(tmp_path, 4, 2, embed=True)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert run(store, tmp_path / "m", epochs=1).unreadable == 0


def test_prefetching_ends_with_its_consumer():
    closed = []

    def numbers():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    ready = prefetched(numbers())
    assert [next(ready) for _ in range(3)] == [0, 1, 2]
    ready.close()
    assert closed

    def failing():
        yield 1
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        list(prefetched(failing()))
