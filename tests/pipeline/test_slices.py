"""Slices: what each image is counted in, whose scores they have, and broken tables."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

import pipeline.metrics.slices as module
from pipeline.errors import InputError, UnknownName, UsageError
from pipeline.metrics.attributes import read_attributes
from pipeline.metrics.slices import slices
from pipeline.record import File, Record, to_table
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment
from tests.pipeline.tallies import Population, keys_of, space_of
from tests.pipeline.test_scoring import masks_of, stores

SPACE = space_of(3)


def sliced(measure, tallies, rows, keys=None, *, space=SPACE, chunks=1):
    """Slice in chunks, each in a worker of its own, merged after pickling."""
    keys = keys_of(np.random.default_rng(0), len(tallies)) if keys is None else keys
    total = measure.start(space)
    for part in np.array_split(np.arange(len(tallies)), chunks):
        worker = pickle.loads(pickle.dumps(measure)).start(space)
        worker.update(
            tallies[part], keys[part], {c: [rows[c][i] for i in part] for c in measure.columns}
        )
        total.merge(pickle.loads(pickle.dumps(worker)))
    return total.figures()


def drawn(images, seed=0):
    return Population.of(3).draw(np.random.default_rng(seed), images)


def by_value(found, by):
    return {s["value"]: s for s in found if s["by"] == by}


def test_a_slice_has_the_scores_of_its_images():
    tallies = drawn(80)
    rows = {"split": ["train", "val", "val", None] * 20, "dataset": ["toy"] * 80}
    found = sliced(slices(), tallies, rows, chunks=5)
    assert [s["miou"] for s in found] == sorted(s["miou"] for s in found)
    total = tallies.sum(axis=0)
    overall = np.mean(total[0] / (total[1] + total[2] - total[0]))
    assert {v: s["images"] for v, s in by_value(found, "split").items()} == {
        "train": 20, "val": 40, "(unknown)": 20,
    }  # fmt: skip
    for value, part in by_value(found, "split").items():
        own = tallies[[(v or "(unknown)") == value for v in rows["split"]]].sum(axis=0)
        iou = own[0] / (own[1] + own[2] - own[0])
        assert part["miou"] == pytest.approx(iou.mean())
        assert part["pixel_accuracy"] == pytest.approx(own[0].sum() / own[1].sum())
        assert part["pixels"] == own[1].sum()
        assert part["difference"] == pytest.approx(iou.mean() - overall)
        assert part["worst_class"] == f"c{np.argmin(iou)}"
        low, high = part["miou_interval"]
        assert low < part["miou"] < high
        assert not part["few"]
    assert by_value(found, "dataset")["toy"]["difference"] == 0


def test_order_and_chunks_change_nothing(monkeypatch):
    monkeypatch.setattr(module, "MOST_VALUES", 8)
    tallies, rng = drawn(300), np.random.default_rng(4)
    keys, rows = keys_of(rng, 300), {"dataset": [f"d{n % 23:02d}" for n in range(300)]}
    measure = slices(["dataset"])
    once = sliced(measure, tallies, rows, keys)
    order = rng.permutation(300)
    mixed = {"dataset": [rows["dataset"][i] for i in order]}
    assert sliced(measure, tallies[order], mixed, keys[order], chunks=60) == once
    assert {s["value"] for s in once} == {*(f"d{n:02d}" for n in range(8)), "other"}
    assert sum(s["images"] for s in once) == 300


def test_bands_of_size_and_shape():
    sizes = [(300, 300), (500, 375), (375, 500), (1024, 2048), (1000, 1000), (4000, 6000)]
    rows = {"height": [h for h, _ in sizes], "width": [w for _, w in sizes]}
    found = sliced(slices(["size", "aspect"]), drawn(6), rows)
    assert {v: s["images"] for v, s in by_value(found, "size").items()} == {
        "under 0.1 megapixels": 1, "0.1 to 0.3 megapixels": 2, "1 to 3 megapixels": 2,
        "10 megapixels and more": 1,
    }  # fmt: skip
    assert {v: s["images"] for v, s in by_value(found, "aspect").items()} == {
        "squarish (0.7 to 1.4)": 4, "wide (1.4 to 1.9)": 1, "very wide (1.9 on)": 1,
    }  # fmt: skip
    assert all(s["few"] for s in found)


def test_brightness_reads_the_images_and_counts_those_it_cannot(tmp_path):
    paths, held = [], []
    for level in (10, 10, 100, 250):
        path = tmp_path / f"{len(paths)}.png"
        cv2.imwrite(str(path), np.full((90, 120, 3), level, np.uint8))
        paths.append(str(path))
        held.append(None)
    held[1], paths[1] = (tmp_path / "1.png").read_bytes(), "/gone/1.png"  # embedded
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths += [str(tmp_path / "bad.png"), str(tmp_path / "missing.png"), None]
    held += [None, None, None]
    rows = {"image.path": paths, "image.bytes": held}
    found = sliced(slices(["brightness"]), drawn(7), rows)
    assert {s["value"]: s["images"] for s in found} == {
        "darkest (under 40)": 2, "middling (80 to 120)": 1, "brightest (160 on)": 1,
        "(unknown)": 3,
    }  # fmt: skip


def test_images_that_hold_a_class():
    tallies = drawn(40)
    tallies[:30, :, 1] = 0
    found = sliced(slices(["class:c1", "class:c0"]), tallies, {})
    assert {s["value"]: s["images"] for s in found if s["by"] == "class"} == {
        "c1": int((tallies[:, 1, 1] > 0).sum()), "c0": 40,
    }  # fmt: skip
    with pytest.raises(UnknownName, match="no class is called 'cat'"):
        slices(["class:cat"]).start(SPACE)


def store_of(path, names):
    store = Store.create(path, [SPACE])
    rows = [
        Record(n, "toy", "val", File(f"/i/{n}.png"), "f", 10 + k, 20, "toy")
        for k, n in enumerate(names)
    ]
    return store.commit([write_fragment(store.sink(), "data/0.parquet", to_table(rows))])


def test_a_condition_is_that_of_where(tmp_path):
    names = [f"{'night' if n % 3 == 0 else 'day'}/{n:02d}" for n in range(20)]
    store = store_of(tmp_path / "truth", sorted(names))
    rows = {"image_id": names, "dataset": ["toy"] * 20, "split": ["val"] * 20}
    condition = "dark: image_id LIKE 'night/%' AND height > 0"
    found = by_value(sliced(slices([condition], store), drawn(20), rows, chunks=4), "dark")
    assert {v: s["images"] for v, s in found.items()} == {"yes": 7, "no": 13}
    with pytest.raises(UsageError, match="--slice 'nothing"):
        slices(["bad: nothing = 3"], store)
    with pytest.raises(UsageError, match="needs the store"):
        slices([condition])


def test_a_users_table(tmp_path):
    table = tmp_path / "weather.csv"
    table.write_text(
        'weather,image_id,note\r\nrain,a,\r\n"sun, dry",b,x\r\nrain,c,x\r\n\r\nfog,q,x\r\n',
        encoding="utf-8-sig",
    )
    found = sliced(slices([str(table)]), drawn(5), {"image_id": list("abcde")}, chunks=2)
    weather = by_value(found, "weather")
    assert {v: s["images"] for v, s in weather.items()} == {
        "rain": 2, "sun, dry": 1, "(not listed)": 2, "(no such image)": 0,
    }  # fmt: skip
    assert weather["(no such image)"]["ids"] == 1
    assert weather["(no such image)"]["miou"] is None
    assert {v: s["images"] for v, s in by_value(found, "note").items()}["(empty)"] == 1
    assert found[-1]["miou"] is None


def test_the_most_frequent_values_of_a_table_are_told_apart(tmp_path):
    table = tmp_path / "t.csv"
    lines = [f"{n}\tv{n % 300 if n < 600 else 299:03d}" for n in range(1000)]
    table.write_text("image_id\tkind\n" + "\n".join(lines))
    found = read_attributes(str(table))
    assert found.values[0][0] == "v299"
    assert found.values[0][1:4] == ("v000", "v001", "v002")
    assert len(found.values[0]) == 201
    rows = found.rows(["0", "250", "999", "x"])
    assert found.named(0, rows) == ["v000", "other", "v299", "(not listed)"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "line 1: the heading has no column 'image_id'"),
        (b"image,weather\na,rain\n", "line 1: the heading has no column 'image_id'"),
        (b"image_id\na\n", "line 1: there is no column beside the ids"),
        (b"image_id,w,w\na,b,c\n", "line 1: a column has no name, or that of another: 'w'"),
        (b"image_id,w\na,rain\nb\n", "line 3: 1 cells, the heading has 2"),
        (b"image_id,w\na,rain,b\n", "line 2: 3 cells, the heading has 2"),
        (b"image_id,w\na,rain\nb,sun\na,fog\n", "line 4: the image of line 2 is listed again"),
        (b'image_id,w\na,"rain\n', "unexpected end of data"),
        (b"image_id,w\n\xff\xfe,rain\n", "is no UTF-8 text"),
        (b"image_id,w\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(10_001)),
         "line 10002: column 1 beside the ids has more than 10,000 values"),
    ],
)  # fmt: skip
def test_a_broken_table_names_its_line(tmp_path, data, said):
    table = tmp_path / "t.csv"
    table.write_bytes(data)
    with pytest.raises(InputError) as caught:
        slices([str(table)])
    assert said in str(caught.value)
    assert caught.value.path == str(table)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        slices([str(tmp_path / "none.csv")])


@pytest.mark.parametrize("asked", [["weather"], ["split"] * 2 + ["split: height > 3"]])
def test_what_is_no_slicing_is_refused(tmp_path, asked):
    with pytest.raises(UsageError, match=r"choose from: .*class:NAME|two slicings"):
        slices(asked, store_of(tmp_path / "truth", ["a"]))


def test_memory_is_bounded_whatever_the_values():
    """A thousand values in 150 classes: as many slices as fit, the rest in one, none lost."""
    space, images = space_of(150), 1000
    gathering = slices(["dataset"]).start(space)
    tallies = np.ones((images, 3, 150), np.int64)
    rows = {"dataset": [f"d{n:04d}" for n in range(images)]}
    gathering.update(tallies, keys_of(np.random.default_rng(0), images), rows)
    assert len(gathering.parts) <= 201
    assert len(gathering.parts) * 200 * 3 * 150 * 8 <= (256 << 20) * 1.1
    assert sum(s["images"] for s in gathering.figures()) == images


@pytest.mark.parametrize("condition", ["image_id > 1", "height / (width - 32) = 1"])
def test_a_condition_that_a_row_cannot_be_asked_is_the_users_mistake(tmp_path, condition):
    truth, _ = stores(tmp_path, masks_of(2))
    with pytest.raises(UsageError, match="--slice"):
        slices([f"odd: {condition}"], truth)


def test_slices_of_a_condition_have_a_name(tmp_path):
    truth, _ = stores(tmp_path, masks_of(1))
    with pytest.raises(UsageError, match="name the slices"):
        slices([": height > 1"], truth)
