from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RemapError, UnknownName, UsageError
from pipeline.label_space import (
    LABEL_SPACES,
    LabelClass,
    LabelSpace,
    find_remap,
    label_space,
    voc_colour,
)
from pipeline.loss import Loss
from pipeline.masks import class_pixels
from pipeline.record import ClassPixels

# Name: listed classes, output channels, ignore index, pixel type.
BUILT_IN = {
    "ade20k-150": (151, 150, 0, np.uint8),
    "camvid-11": (12, 11, 11, np.uint8),
    "camvid-32": (32, 31, 30, np.uint8),
    "cityscapes-19": (20, 19, 255, np.uint8),
    "cityscapes-34": (34, 19, 0, np.uint8),
    "coco-80": (81, 80, 255, np.uint8),
    "coco-panoptic-133": (134, 133, 255, np.uint8),
    "coco-stuff": (184, 171, 255, np.uint8),
    "nyu-13": (14, 13, 0, np.uint8),
    "nyu-40": (41, 40, 0, np.uint8),
    "nyu-894": (895, 894, 0, np.uint16),
    "sunrgbd-37": (38, 37, 0, np.uint8),
    "unified": (195, 194, 255, np.uint8),
    "voc-21": (22, 21, 255, np.uint8),
}


def remap(source: str, target: str):
    return find_remap(label_space(source), label_space(target))


def mapped(source: str, target: str) -> dict[str, str | None]:
    """Return what each class of the source becomes by name; None for void."""
    table = remap(source, target)
    void = table.target.ignore_index
    return {
        c.name: None if (to := int(table.lut[c.id])) == void else table.target.by_id[to].name
        for c in table.source.classes
    }


def space_of(*names: str, name: str = "mine", ignore: int = 255) -> LabelSpace:
    classes = tuple(LabelClass(i, n, voc_colour(i)) for i, n in enumerate(names))
    return LabelSpace(name, classes, ignore)


def test_every_built_in_space_has_its_classes() -> None:
    assert set(BUILT_IN) <= set(LABEL_SPACES)
    for name, (listed, channels, ignore, dtype) in BUILT_IN.items():
        space = label_space(name)
        found = (len(space.classes), len(space.train_ids), space.ignore_index, space.dtype)
        assert (name, *found) == (name, listed, channels, ignore, dtype)
        assert space.by_id[ignore].void
        assert np.flatnonzero(space.allowed()).tolist() == sorted({*space.ids, ignore})
        assert len(space.allowed()) == 2 ** (8 * np.dtype(dtype).itemsize)


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_a_space_survives_json_and_pickling(name: str) -> None:
    space = label_space(name)
    space.palette(), space.allowed()
    for copy in (LabelSpace.from_json(space.to_json()), pickle.loads(pickle.dumps(space))):
        assert copy == space
        assert hash(copy) == hash(space)
        assert copy.to_json() == space.to_json()


def test_known_ids() -> None:
    assert label_space("voc-21").by_name["tvmonitor"].id == 20
    assert label_space("coco-80").by_name["toothbrush"].id == 90
    assert label_space("coco-panoptic-133").by_name["rug-merged"].id == 200
    assert label_space("cityscapes-34").by_name["bicycle"].id == 33
    assert label_space("cityscapes-19").by_name["bicycle"].id == 18
    assert label_space("ade20k-150").by_id[150].name == "flag"
    assert label_space("nyu-40").by_id[24].name == "refridgerator"  # the authors' spelling
    assert label_space("camvid-11").by_id[10].name == "Bicyclist"
    assert label_space("cityscapes-34").by_name["car"].isthing is True
    assert label_space("cityscapes-34").by_name["road"].isthing is False
    assert label_space("camvid-11").by_name["Car"].isthing is None


def test_the_voc_palette_is_the_formula() -> None:
    def formula(index: int) -> tuple[int, ...]:  # VOCdevkit's labelcolormap, bit by bit
        colour = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                if index & (1 << (3 * place + channel)):
                    colour[channel] |= 1 << (7 - place)
        return tuple(colour)

    palette = label_space("voc-21").palette()
    assert len(palette) == 768
    assert [tuple(palette[3 * i : 3 * i + 3]) for i in range(256)] == [
        formula(i) for i in range(256)
    ]
    assert formula(15) == (192, 128, 128)


def test_palettes_hold_the_classes_colours() -> None:
    for name in LABEL_SPACES:
        space = label_space(name)
        palette = space.palette()
        assert len(palette) == 768
        for c in space.classes:
            if c.id < 256:
                assert tuple(palette[3 * c.id : 3 * c.id + 3]) == c.colour
    assert space_of("a").palette()[765:] == bytes(3)  # an ignore index without a class is black


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UnknownName, match=r"'voc'.*camvid-11, .*voc-21"):
        label_space("voc")


@pytest.mark.parametrize(
    ("classes", "ignore", "says"),
    [
        ([(0, "a"), (0, "b")], 255, "id 0"),
        ([(0, "a"), (1, "a")], 255, "name a"),
        ([(-1, "license plate")], 255, r"\[-1\]"),
        ([(65536, "a")], 255, r"\[65536\]"),
        ([(0, "a")], -1, r"\[-1\]"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(classes, ignore, says) -> None:
    with pytest.raises(UsageError, match=says):
        LabelSpace("mine", tuple(LabelClass(i, n, (0, 0, 0)) for i, n in classes), ignore)


@pytest.mark.parametrize(
    ("name", "said", "says"),
    [
        ("mine\n", "a", "line breaks"),
        ("mi\rne", "a", "line breaks"),
        (" mine", "a", "spaces"),
        ("mine\ud800", "a", "surrogate"),
        ("mine", "a\udfff", "surrogate"),
    ],
)
def test_names_that_no_file_can_hold(name: str, said: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LabelSpace(name, (LabelClass(0, said, (0, 0, 0)),), 255)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "a", "ignore_index": 1}', "null"])
def test_text_that_is_no_space_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a label space"):
        LabelSpace.from_json(text)


def test_a_colour_out_of_range_is_refused() -> None:
    value = json.loads(space_of("a").to_json())
    value["classes"][0]["colour"] = [0, 0, 256]
    with pytest.raises(UsageError, match=r"0\.\.255"):
        LabelSpace.from_json(json.dumps(value))


def test_identity() -> None:
    for name in LABEL_SPACES:
        table = remap(name, name)
        assert table.via == ()
        assert [int(table.lut[i]) for i in table.source.ids] == list(table.source.ids)


def test_camvid_32_to_11_is_the_measured_table() -> None:
    table = mapped("camvid-32", "camvid-11")
    merged = {
        "Wall": "Building", "LaneMkgsDriv": "Road", "Truck_Bus": "Car", "VegetationMisc": "Tree",
        "TrafficLight": "SignSymbol", "Misc_Text": "SignSymbol",
    }  # fmt: skip
    eleven = {label_space("camvid-11").by_id[i].name for i in range(11)}
    assert {k: v for k, v in table.items() if v} == merged | {n: n for n in eleven}
    # Measured as void, and those that the measured frames did not show.
    for name in ("Child", "OtherMoving", "Archway", "CartLuggagePram", "Void"):
        assert table[name] is None
    for name in ("SUVPickupTruck", "MotorcycleScooter", "Bridge", "Train", "Animal"):
        assert table[name] is None


def test_cityscapes_train_ids() -> None:
    ids = remap("cityscapes-34", "cityscapes-19").lut[:34].tolist()
    official = [
        255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8,
        9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18,
    ]  # fmt: skip
    assert ids == official
    back = remap("cityscapes-19", "cityscapes-34")
    assert back.via == ()
    assert [ids[int(back.lut[i])] for i in range(19)] == list(range(19))
    assert int(back.lut[255]) == 0


def test_nyu_tables_agree() -> None:
    fine, middle = remap("nyu-894", "nyu-40"), remap("nyu-40", "nyu-13")
    whole = remap("nyu-894", "nyu-13")
    assert whole.via == ("nyu-40",)
    np.testing.assert_array_equal(whole.lut, middle.lut[fine.lut])
    assert remap("sunrgbd-37", "nyu-40").lut[:38].tolist() == list(range(38))
    assert remap("nyu-40", "sunrgbd-37").lut[:41].tolist() == [*range(38), 0, 0, 0]


def test_nyu_40_is_the_authors_mapping(shared_data) -> None:
    matlab = pytest.importorskip("scipy.io").loadmat(
        shared_data / "nyudv2/official_meta/classMapping40.mat"
    )
    official = matlab["mapClass"].ravel().tolist()
    assert remap("nyu-894", "nyu-40").lut[1:895].tolist() == official


def test_equal_names_serve_both_ways() -> None:
    assert remap("coco-80", "coco-panoptic-133").via == ()
    back = mapped("coco-panoptic-133", "coco-80")
    assert sum(name is not None for name in back.values()) == 80
    assert mapped("camvid-11", "camvid-32")["Car"] == "Car"


def test_the_way_by_unified() -> None:
    table = remap("ade20k-150", "cityscapes-19")
    assert table.via == ("unified", "cityscapes-34")
    names = mapped("ade20k-150", "cityscapes-19")
    assert names["road, route"] == "road"
    assert names["car, auto, automobile, machine, motorcar"] == "car"
    assert names["bed"] is None
    assert mapped("camvid-32", "cityscapes-34")["LaneMkgsDriv"] == "road"
    assert mapped("cityscapes-34", "camvid-32")["road"] == "Road"
    assert mapped("cityscapes-34", "voc-21")["sky"] == "background"
    assert mapped("voc-21", "cityscapes-34")["background"] is None  # it may be anything


def test_every_pair_of_built_in_spaces_maps_or_says_why_not() -> None:
    for source in LABEL_SPACES:
        for target in LABEL_SPACES:
            if (source, target) == ("nyu-13", "camvid-11"):  # no class in common
                with pytest.raises(RemapError, match="label spaces that work: ade20k-150"):
                    remap(source, target)
                continue
            table = remap(source, target)
            assert len(table.lut) == 2 ** (8 * np.dtype(table.source.dtype).itemsize)
            assert table.lut.dtype == table.target.dtype
            assert table.target.allowed()[table.lut].all()
            assert int(table.lut[table.source.ignore_index]) == table.target.ignore_index


def test_a_users_space_maps_by_names() -> None:
    mine = space_of("sky", "Building", "car", "moon")
    found = find_remap(mine, label_space("cityscapes-19"))
    assert found.lut[:5].tolist() == [10, 2, 13, 255, 255]
    with pytest.raises(RemapError, match=r"mine.*ade20k-150"):
        find_remap(space_of("sky", "sparrow"), label_space("nyu-13"))
    with pytest.raises(RemapError, match="no built-in space works"):
        find_remap(space_of("p", "q"), space_of("x", "y", name="yours"))


def test_a_space_that_a_dataset_brings_has_a_table_by_its_name() -> None:
    """mapFromADE.txt has numbers; what the classes are called does not matter."""
    numbered = tuple(LabelClass(i, f"n{i}", (0, 0, 0), void=not i) for i in (0, 312, 2978, 3000))
    space, target = LabelSpace("ade20k-full-5f0c", numbered, 0), label_space("ade20k-150")
    remap = find_remap(space, target)
    assert {i: int(remap.lut[i]) for i in (0, 312, 2978, 3000)} == {0: 0, 312: 2, 2978: 1, 3000: 0}
    unified = find_remap(space, label_space("unified"))
    assert unified.via == ("ade20k-150",)
    by_id = label_space("unified").by_id
    assert by_id[int(unified.lut[2978])].name == "wall"
    with pytest.raises(RemapError):
        find_remap(LabelSpace("ade20k-fuller", numbered, 0), target)


def test_a_space_that_borrows_a_built_in_name_is_not_trusted_with_its_tables() -> None:
    impostor = space_of("p", "q", name="camvid-32")
    with pytest.raises(RemapError):
        find_remap(impostor, label_space("camvid-11"))


PAIRS = st.tuples(st.sampled_from(LABEL_SPACES), st.sampled_from(LABEL_SPACES)).filter(
    lambda pair: pair != ("nyu-13", "camvid-11")
)


@settings(max_examples=60, deadline=None)
@given(pair=PAIRS, data=st.data())
def test_pixels_are_conserved(pair: tuple[str, str], data: st.DataObject) -> None:
    table = remap(*pair)
    height, width = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    values = data.draw(
        st.lists(
            st.sampled_from([*table.source.ids, table.source.ignore_index]),
            min_size=height * width,
            max_size=height * width,
        )
    )
    mask = np.array(values, dtype=table.source.dtype).reshape(height, width)
    before = class_pixels(mask, table.source)
    out = table.apply(mask)
    assert out.shape == mask.shape
    assert out.dtype == table.target.dtype
    after = {c.id: c.pixels for c in class_pixels(out, table.target)}
    expected: dict[int, int] = {}
    for c in before:
        to = int(table.lut[c.id])
        expected[to] = expected.get(to, 0) + c.pixels
    assert after == expected
    loss = table.loss(before)
    assert loss.pixels == mask.size
    kept_void = int((mask == table.source.ignore_index).sum())
    assert after.get(table.target.ignore_index, 0) == kept_void + sum(loss.to_void.values())
    named = {c.name for c in table.source.classes}
    assert set(loss.to_void) <= named
    assert {s for group in loss.merged.values() for s in group} <= named


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("camvid-11", "camvid-32"),
        ("cityscapes-19", "cityscapes-34"),
        ("coco-80", "coco-panoptic-133"),
        ("coco-80", "coco-stuff"),
        ("sunrgbd-37", "nyu-40"),
    ],
)
def test_a_space_inside_another_comes_back_whole(narrow: str, wide: str) -> None:
    there, back = remap(narrow, wide), remap(wide, narrow)
    ids = list(there.source.train_ids)
    assert back.lut[there.lut[ids]].tolist() == ids


@pytest.mark.parametrize("name", ["camvid-11", "camvid-32", "cityscapes-34", "coco-80", "nyu-40"])
def test_classes_alone_in_their_unified_class_come_back(name: str) -> None:
    there, back = remap(name, "unified"), remap("unified", name)
    middles = there.lut[list(there.source.ids)].tolist()
    for c in there.source.classes:
        middle = int(there.lut[c.id])
        if middle != 255 and middles.count(middle) == 1:
            assert int(back.lut[middle]) == c.id, c.name


def test_a_wide_mask_of_a_narrow_space() -> None:
    table = remap("camvid-32", "camvid-11")
    assert table.apply(np.array([[17, 300]], dtype=np.uint16)).tolist() == [[3, 11]]


def test_a_wide_space() -> None:
    table = remap("nyu-894", "nyu-40")
    assert table.apply(np.array([[5, 894, 60000]], dtype=np.uint16)).dtype == np.uint8
    assert remap("nyu-40", "nyu-894").apply(np.array([[1]], dtype=np.uint8)).dtype == np.uint16


def test_loss_adds_up_and_speaks() -> None:
    table = remap("camvid-32", "camvid-11")
    of = {c.name: c.id for c in table.source.classes}
    first = table.loss([ClassPixels(of["Car"], 60), ClassPixels(of["Child"], 40)])
    second = table.loss([ClassPixels(of["Truck_Bus"], 50), ClassPixels(of["Void"], 50)])
    assert not second.any  # renamed and void before: nothing was mixed or lost
    total = first + second
    assert total.any
    assert total.to_dict() == {
        "pixels": 200,
        "void_share": 0.2,
        "to_void": {"Child": 40},
        "merged": {"Car": ["Car", "Truck_Bus"]},
        "attributes": {},
    }
    total += Loss(attributes={"polygons": 3})
    assert total.lines() == [
        "20.00% of pixels turned into void:",
        "  Child: 40 pixels",
        "merged into Car: Car, Truck_Bus",
        "not expressible: polygons (3)",
    ]
    assert first.to_void == {"Child": 40}
    assert first.pixels == 100  # sums leave their parts alone
    assert Loss().lines() == []
    assert Loss().void_share == 0.0


def test_tables_are_well_formed() -> None:
    folder = files("connectors") / "label_spaces"
    for path in folder.iterdir():
        if not path.name.endswith(".tsv"):
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        width = 3 if "_to_" in path.name else 7
        assert text.endswith("\n")
        assert "\r" not in text
        assert {line.count("\t") for line in lines[:-1]} == {width - 1}, path.name
        source, _, target = path.name[:-4].partition("_to_")
        if target:
            rows = [line.split("\t") for line in lines[1:-1]]
            assert len({row[0] for row in rows}) == len(rows), path.name
            assert {row[1] for row in rows} - {""} <= label_space(target).by_name.keys()
            if source in LABEL_SPACES:
                assert {row[0] for row in rows} <= label_space(source).by_name.keys()


def test_nothing_is_read_before_it_is_asked_for() -> None:
    code = (
        "import sys, pipeline.label_space as m; "
        "assert not ({'connectors', 'pyarrow', 'cv2'} & set(sys.modules)); "
        "assert m.label_space.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
