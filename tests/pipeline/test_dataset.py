"""A store as data for one's own loop: every row once, in an order that the seed alone decides."""

from __future__ import annotations

import io
import json
import pickle
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from pipeline import masks
from pipeline.dataset import StoreDataset
from pipeline.errors import CorruptImage, RemapError, StoreError, UsageError
from pipeline.label_space import LabelClass, LabelSpace, find_remap, label_space
from pipeline.pseudo.view import View
from pipeline.record import ClassPixels, File, to_table
from pipeline.store import Store
from pipeline.tables.fragment import Fragment, write_fragment
from pipeline.training.data import Channels, Reader
from pipeline.training.order import Draw, Part, _among, windows
from tests.streets import SIZE, SPACE, street

ROWS = 23
ALIEN = LabelSpace("alien", (LabelClass(0, "tentacle", (1, 2, 3)),), 255)


def add(store: Store, name: str, records, remove=()) -> Store:
    return store.commit([write_fragment(store.sink(), f"data/t/{name}.parquet", records)], remove)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Give 23 training rows in fragments of 5, one validation row, and one without a mask."""
    root = tmp_path_factory.mktemp("streets")
    made = Store.create(root / "store", [SPACE])
    rows = [street(root, "train", i, embed=i % 3 == 0) for i in range(ROWS)]
    rows.append(street(root, "val", 0))
    rows.append(replace(street(root, "bare", 0), mask=None, classes=None, split="unlabelled"))
    for at in range(0, len(rows), 5):
        made = add(made, f"part-{at}", to_table(rows[at : at + 5]))
    return made


def training(store: Store, **options) -> StoreDataset:
    columns = options.pop("columns", ("image_id", "image", "mask"))
    return StoreDataset(store.url, columns=columns, where="split = 'train'", **options)


def ids_of(dataset: StoreDataset) -> list[str]:
    return [sample["image_id"] for sample in dataset]


def direct(store: Store) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the masks and images by the store's records and Pillow."""
    out = {}
    for record in store.records("split = 'train'"):
        raw = record.image.bytes or Path(record.image.path).read_bytes()
        pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
        ids = np.asarray(Image.open(io.BytesIO(record.mask.bytes)))
        table = np.full(256, 255, np.uint8)
        table[list(SPACE.train_ids)] = np.arange(len(SPACE.train_ids))
        out[record.image_id] = pixels, table[ids]
    return out


class TestOrder:
    @given(
        st.lists(st.integers(1, 9), min_size=1, max_size=12),
        st.integers(1, 5),
        st.booleans(),
        st.booleans(),
        st.integers(1, 400),
    )
    @settings(max_examples=60, deadline=None)
    def test_the_ranks_together_see_every_row_once(self, lengths, world, shuffle, even, most):
        parts = [
            Part(Fragment(str(i), n, 10 * n), np.arange(n, dtype=np.int32), 10 * n)
            for i, n in enumerate(lengths)
        ]
        seen, counts = [], []
        for rank in range(world):
            found = list(windows(parts, Draw(4, 2, rank, world, shuffle, even), most))
            starts = [w.start for w in found]
            assert starts == np.cumsum([0, *(len(w.rows) for w in found)])[:-1].tolist()
            mine = [
                (w.pieces[i].path, int(row))
                for w in found
                for i, row in zip(w.source, w.rows, strict=True)
            ]
            counts.append(len(mine))
            seen += mine
        assert len(set(seen)) == len(seen)
        assert max(counts) - min(counts) <= (0 if even else 1)
        left_out = sum(lengths) - len(seen)
        assert left_out == (sum(lengths) % world if even else 0)

    def test_epochs_and_seeds_differ_and_repeat(self, store):
        dataset = training(store, seed=3)
        first = ids_of(dataset)
        assert first == ids_of(dataset)
        dataset.set_epoch(1)
        second = ids_of(dataset)
        assert sorted(first) == sorted(second)
        assert first != second
        assert ids_of(training(store, seed=4)) not in (first, second)
        plain = ids_of(training(store, shuffle=False))
        listed = [r.image_id for f in store.fragments() for r in store.rows(f)]
        assert plain == [name for name in listed if name.startswith("train")]
        assert first != plain

    def test_a_small_window_mixes_less_but_loses_nothing(self, store):
        found = ids_of(training(store, seed=3, window=1))
        assert sorted(found) == sorted(ids_of(training(store)))
        near = [abs(int(a[-3:]) - int(b[-3:])) for a, b in pairwise(found)]
        assert np.median(near) <= 4  # one fragment's rows follow each other
        assert found != sorted(found)

    def test_what_an_even_share_leaves_out_changes_with_the_epoch(self, store):
        left = set()
        for epoch in range(6):
            seen = []
            for rank in range(3):
                dataset = training(store, rank=rank, world=3, even=True)
                dataset.set_epoch(epoch)
                assert len(dataset) == 7
                seen += ids_of(dataset)
            assert len(set(seen)) == 21
            left.add(frozenset(set(ids_of(training(store))) - set(seen)))
        assert len(left) > 1


class TestSamples:
    def test_they_equal_what_the_store_and_pillow_say(self, store):
        expected = direct(store)
        dataset = training(store, columns=("image_id", "image", "mask", "height", "extra"))
        assert len(dataset) == len(expected) == ROWS
        for sample in dataset:
            image, mask = expected.pop(sample["image_id"])
            np.testing.assert_array_equal(sample["image"], image)
            np.testing.assert_array_equal(sample["mask"], mask)
            assert list(sample) == ["image_id", "image", "mask", "height", "extra"]
            assert sample["height"] == SIZE[0]
        assert not expected
        assert dataset.classes == tuple(SPACE.by_id[i].name for i in SPACE.train_ids)
        assert dataset.void == 255

    def test_they_equal_what_training_here_reads(self, store):
        reader = Reader(store, "train", Channels(SPACE))
        size = (20, 30)
        theirs = {row.image_id: reader.load(row, size) for row in reader.rows()}
        for sample in training(store, size=size):
            example = theirs.pop(sample["image_id"])
            np.testing.assert_array_equal(sample["image"], example.image)
            np.testing.assert_array_equal(sample["mask"], example.labels)
        assert not theirs

    def test_rows_without_a_mask_come_where_none_is_asked_for(self, store):
        found = StoreDataset(store.url, columns=("image_id", "image"), shuffle=False)
        assert len(found) == ROWS + 2
        assert {s["image_id"] for s in found} >= {"bare-000", "val-000"}
        assert len(StoreDataset(store.url)) == ROWS + 1

    def test_columns_of_the_record_need_no_pixels(self, store):
        found = list(training(store, columns=("image_id", "classes", "provenance"), shuffle=False))
        expected = {r.image_id: r for r in store.records("split = 'train'")}
        for sample in found:
            record = expected[sample["image_id"]]
            assert sample["classes"][0]["pixels"] == record.classes[0].pixels
            assert sample["provenance"]["kind"] == "truth"

    def test_an_image_is_turned_as_its_labels_lie(self, tmp_path):
        """Labels of datasets lie on the stored pixels, those of `label` on the upright ones."""
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[0, 0] = 255
        picture, exif = Image.fromarray(pixels), Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "turned.png"
        picture.save(path, exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        rows = []
        for name, shape, extra in (("stored", (4, 6), None), ("upright", (6, 4), 6)):
            ids = np.full(shape, 3, np.uint8)
            row = street(tmp_path, name, 0)
            rows.append(
                replace(
                    row,
                    image=File(str(path)),
                    mask=File(bytes=masks.encode(ids)),
                    classes=masks.class_pixels(ids, SPACE),
                    height=shape[0],
                    width=shape[1],
                    extra=extra and json.dumps({"orientation": extra}),
                )
            )
        made = add(Store.create(tmp_path / "s", [SPACE]), "a", to_table(rows))
        for columns in (("image_id", "image", "mask"), ("image_id", "image")):
            found = {s["image_id"]: s["image"] for s in StoreDataset(made.url, columns=columns)}
            np.testing.assert_array_equal(found["stored-000"], pixels)
            np.testing.assert_array_equal(found["upright-000"], upright)

    def test_classes_are_remapped_on_the_fly(self, store):
        target = label_space("cityscapes-19")
        lut = find_remap(SPACE, target).lut
        found = training(store, label_space="cityscapes-19")
        channel = {i: at for at, i in enumerate(target.train_ids)}
        masks_here = {r.image_id: masks.decode(r.mask.bytes) for r in store.records() if r.mask}
        for sample in found:
            ids = masks_here[sample["image_id"]]
            expected = np.vectorize(lambda i: channel.get(int(lut[i]), 255))(ids)
            np.testing.assert_array_equal(sample["mask"], expected)
        assert len(found.classes) == 19

    def test_a_transform_sees_the_columns_and_decides_the_sample(self, store):
        dataset = training(store, transform=lambda s: (s["image"].mean(), s["image_id"]))
        mean, name = next(iter(dataset))
        assert name.startswith("train-")
        assert 0 < mean < 255


class TestViews:
    @pytest.fixture
    def soft(self, tmp_path):
        rng = np.random.default_rng(1)
        rows, cells = [], {}
        for i in range(4):
            row = street(tmp_path, "soft", i)
            ids = masks.decode(row.mask.bytes)
            sure = rng.integers(0, 256, ids.shape).astype(np.uint8)
            kept = File(bytes=masks.encode(sure)) if i else None  # the first is truth
            rows.append(replace(row, confidence=kept))
            cells[row.image_id] = ids, sure if i else np.full_like(sure, 255), bool(i)
        return add(Store.create(tmp_path / "s", [SPACE]), "a", to_table(rows)), cells

    def test_pixels_less_sure_are_void_and_weigh_nothing(self, soft):
        store, cells = soft
        columns = ("image_id", "mask", "confidence", "weights")
        table = Channels(SPACE).lut(SPACE)
        for sample in StoreDataset(store.url, columns=columns, view="0.6"):
            ids, sure, judged = cells[sample["image_id"]]
            kept = (sure >= 0.6 * 255) if judged else np.ones(ids.shape, bool)
            np.testing.assert_array_equal(sample["confidence"], sure)
            np.testing.assert_array_equal(sample["mask"], np.where(kept, table[ids], 255))
            weights = kept & (ids != SPACE.ignore_index)
            np.testing.assert_array_equal(sample["weights"], weights.astype(np.float32))

    def test_a_size_takes_weights_and_confidence_by_nearest(self, soft):
        store, _ = soft
        dataset = StoreDataset(
            store.url, columns=("image", "confidence", "weights"), view=View.parse("0.5"),
            size=(16, 24),
        )  # fmt: skip
        for batch in dataset.loader(4):
            assert batch["image"].shape == (4, 16, 24, 3)
            assert batch["weights"].shape == batch["confidence"].shape == (4, 16, 24)
            assert set(batch["weights"].unique().tolist()) <= {0.0, 1.0}


class TestLoading:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_three_ranks_see_every_row_once(self, store, workers):
        seen = []
        for rank in range(3):
            loader = training(store, rank=rank, world=3, seed=1).loader(4, workers=workers)
            mine = [name for batch in loader for name in batch["image_id"]]
            assert len(mine) == len(loader.dataset)
            seen += mine
        assert sorted(seen) == sorted(ids_of(training(store)))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_torchs_own_loader_sees_every_row_once(self, store, workers):
        loader = DataLoader(training(store), batch_size=4, num_workers=workers)
        seen = [name for batch in loader for name in batch["image_id"]]
        assert sorted(seen) == sorted(ids_of(training(store)))

    def test_batches_are_the_same_for_any_number_of_workers_and_threads(self, store):
        found = []
        for workers, threads in ((0, 1), (0, 3), (2, 1), (1, 2)):
            loader = training(store, seed=5, window=4000).loader(
                4, workers=workers, threads=threads
            )
            found.append(list(loader))
            assert loader.epoch == 1
        for other in found[1:]:
            assert [b["image_id"] for b in other] == [b["image_id"] for b in found[0]]
            for mine, theirs in zip(found[0], other, strict=True):
                assert torch.equal(mine["image"], theirs["image"])
                assert torch.equal(mine["mask"], theirs["mask"])
        assert [len(b["mask"]) for b in found[0]] == [4, 4, 4, 4, 4, 3]

    @pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (0, 2), (2, 1)])
    def test_a_stopped_epoch_goes_on_to_the_sample(self, store, before, after):
        whole = [n for b in training(store, seed=2).loader(3) for n in b["image_id"]]
        first = training(store, seed=2).loader(3, workers=before)
        seen = []
        for batch in first:
            seen += batch["image_id"]
            if len(seen) == 9:
                state = json.loads(json.dumps(first.state_dict()))
                break
        again = training(store, seed=2).loader(3, workers=after)
        again.load_state_dict(state)
        assert len(again) == 5
        seen += [n for batch in again for n in batch["image_id"]]
        assert seen == whole
        assert (again.epoch, again.seen) == (1, 0)

    def test_far_images_are_asked_for_as_many_at_once_as_there_are_threads(
        self, tmp_path, monkeypatch
    ):
        rows = [street(tmp_path, "train", i) for i in range(8)]
        made = add(Store.create(tmp_path / "s", [SPACE]), "a", to_table(rows))
        together = threading.Barrier(4)

        def far(path: str) -> bytes:
            together.wait(30)  # BrokenBarrierError unless four are under way
            return Path(path).read_bytes()

        monkeypatch.setattr("pipeline.dataset.read_url", far)
        loader = training(made).loader(2, threads=4)
        assert sum(len(batch["mask"]) for batch in loader) == 8

    def test_another_size_of_batch_goes_on_at_the_same_row(self, store):
        whole = ids_of(training(store, seed=2))
        again = training(store, seed=2).loader(5)
        again.load_state_dict(again.state_dict() | {"seen": 4})
        assert [n for batch in again for n in batch["image_id"]] == whole[4:]

    def test_a_state_after_the_last_batch_begins_the_next_epoch(self, store):
        loader = training(store).loader(8)
        for _ in loader:
            state = loader.state_dict()
        assert state["seen"] == ROWS
        again = training(store).loader(8)
        again.load_state_dict(state)
        assert list(again) == []
        assert again.epoch == 1
        assert sum(len(b["mask"]) for b in again) == ROWS

    def test_a_loop_left_in_the_middle_goes_on_there(self, store):
        loader = training(store).loader(4, drop_last=True)
        seen = next(iter(loader))["image_id"]
        seen += [n for batch in loader for n in batch["image_id"]]
        assert len(set(seen)) == len(seen) == 20

    def test_a_state_of_another_order_is_refused(self, store):
        state = training(store, seed=2).loader(3).state_dict()
        for options, word in (({"seed": 3}, "seed"), ({"seed": 2, "rank": 0, "world": 2}, "world")):
            with pytest.raises(UsageError, match=word):
                training(store, **options).loader(3).load_state_dict(state)

    def test_sizes_that_differ_are_explained(self, store):
        dataset = training(
            store, transform=lambda s: {"image": s["image"][: int(s["image_id"][-1]) + 1]}
        )
        with pytest.raises(UsageError, match="size="):
            list(dataset.loader(4))


class TestBadRows:
    @pytest.fixture
    def broken(self, tmp_path):
        rows = [street(tmp_path, "train", i, embed=True) for i in range(6)]
        rows[1] = replace(rows[1], image=File(rows[1].image.path, b"not an image"))
        rows[4] = replace(rows[4], image=File(str(tmp_path / "absent.png")))
        return add(Store.create(tmp_path / "s", [SPACE]), "a", to_table(rows))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_they_raise_what_is_wrong(self, broken, workers):
        loader = StoreDataset(broken.url, shuffle=False).loader(2, workers=workers)
        with pytest.raises(CorruptImage, match="train-001"):
            list(loader)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_or_are_left_out_and_named(self, broken, workers):
        loader = training(broken, on_error="skip").loader(1, workers=workers)
        seen = [n for batch in loader for n in batch["image_id"]]
        assert len(seen) + len(loader.failures) == len(loader.dataset) == 6
        assert sorted(seen) == ["train-000", "train-002", "train-003", "train-005"]
        assert any("absent.png" in why for why in loader.failures.values())

    @pytest.mark.parametrize("bad", [(), (0,), (0, 1, 2, 3), (5,), (3, 4, 5)])
    def test_even_ranks_get_as_many_batches_whatever_is_broken(self, tmp_path, bad):
        """A rank that had fewer would leave the others waiting in DistributedDataParallel."""
        rows = [street(tmp_path, "train", i, embed=True) for i in range(12)]
        for at in bad:
            rows[at] = replace(rows[at], image=File(rows[at].image.path, b"no image"))
        made = add(Store.create(tmp_path / "s", [SPACE]), "a", to_table(rows))
        options = {"even": True, "on_error": "skip", "shuffle": False, "world": 2}
        batches, failed = [], 0
        for rank in range(2):
            loader = training(made, rank=rank, **options).loader(2, drop_last=True)
            batches.append(list(loader))
            failed += len(loader.failures)
            assert (loader.epoch, loader.seen) == (1, 0)
        assert [len(b) for b in batches] == [3, 3]
        assert failed == len(bad)
        seen = {name for b in batches for batch in b for name in batch["image_id"]}
        assert len(seen) == 12 - len(bad)

    def test_a_rank_that_can_read_nothing_says_so(self, tmp_path):
        row = street(tmp_path, "train", 0)
        row = replace(row, image=File(row.image.path, b"no image"))
        made = add(Store.create(tmp_path / "s", [SPACE]), "a", to_table([row]))
        with pytest.raises(StoreError, match=r"no row of this rank's can be read.*train-000"):
            list(training(made, even=True, on_error="skip").loader(1))
        assert list(training(made, on_error="skip").loader(1)) == []


class TestOpening:
    def test_many_rows_are_looked_up_as_a_set_would(self):
        rng = np.random.default_rng(1)
        known = np.sort(rng.integers(0, 2**64 - 1, 500, np.uint64))
        asked = np.concatenate([known[::7], rng.integers(0, 2**64 - 1, 500, np.uint64)])
        there = set(known.tolist())
        assert _among(asked, known).tolist() == [k in there for k in asked.tolist()]
        assert not _among(asked, known[:0]).any()

    def test_a_version_stays_pinned_while_others_commit(self, tmp_path):
        made = Store.create(tmp_path / "s", [SPACE])
        made = add(made, "a", to_table([street(tmp_path, "train", i) for i in range(3)]))
        dataset = training(made)
        old = made.fragments()
        new = replace(street(tmp_path, "train", 9), classes=(ClassPixels(3, 1),))
        add(made, "b", to_table([new]), old)
        assert dataset.version == 1
        assert len(ids_of(dataset)) == 3
        assert ids_of(training(made)) == ["train-009"]
        assert len(training(made, version=1)) == 3

    def test_it_pickles_with_its_epoch_and_version(self, store):
        dataset = training(store, seed=9, label_space="cityscapes-19", view="0.5")
        dataset.set_epoch(4)
        again = pickle.loads(pickle.dumps(dataset))
        assert ids_of(again) == ids_of(dataset)
        assert again.version == dataset.version

    def test_a_bucket_is_read_by_processes_that_are_not_forked(self, bucket, tmp_path):
        made = Store.create(f"{bucket}/labels", [SPACE])
        for part in range(2):
            rows = [street(tmp_path, "train", 4 * part + i, embed=True) for i in range(4)]
            made = add(made, f"part-{part}", to_table(rows))
        here = training(made, seed=5)
        assert sorted(ids_of(here)) == [f"train-{i:03}" for i in range(8)]
        loader = training(made, seed=5).loader(3, workers=1)
        assert loader.context == "spawn"
        assert [n for batch in loader for n in batch["image_id"]] == ids_of(here)

    @pytest.mark.parametrize(
        ("options", "error", "word"),
        [
            ({"columns": ("image", "pixels")}, UsageError, "choose from"),
            ({"columns": ("weights",)}, UsageError, "view="),
            ({"rank": 2, "world": 2}, UsageError, "world - 1"),
            ({"label_space": ALIEN}, RemapError, "alien"),
            ({"version": 99}, StoreError, "99"),
            ({"view": "2"}, UsageError, "2"),
        ],
    )
    def test_what_makes_no_sense_is_said_at_once(self, store, options, error, word):
        with pytest.raises(error, match=word):
            training(store, **options)

    def test_a_condition_that_no_row_meets_is_an_error(self, store):
        with pytest.raises(StoreError, match="split = 'tset'"):
            StoreDataset(store.url, where="split = 'tset'")
        with pytest.raises(UsageError, match="nonsense"):
            StoreDataset(store.url, where="nonsense = 1")
