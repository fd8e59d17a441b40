"""Store, files, corrected as by hand, store again: the same images, with the corrected labels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest

from connectors import connector
from connectors.origins import Origins
from pipeline import masks
from pipeline.errors import LayoutError
from pipeline.files import open_tree
from pipeline.label_space import label_space
from pipeline.metrics.pairing import pair_rows
from pipeline.record import from_batch
from pipeline.store import Store
from pipeline.tables.rows import list_rows
from tests.connectors.makers import makers
from tests.connectors.trees import put
from tests.jobs.calls import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.record import Record

SPACE = label_space("camvid-11")
CAR = SPACE.by_name["Car"].id
LEFT, TOP, RIGHT, BOTTOM = 1, 2, 5, 4
"""What is drawn by hand, in pixels; RIGHT and BOTTOM are not part of it."""


def in_cvat(root: Path, shape: tuple[int, int]) -> None:
    tree = ElementTree.parse(root / "annotations.xml")
    points = f"{LEFT},{TOP};{RIGHT},{TOP};{RIGHT},{BOTTOM};{LEFT},{BOTTOM}"
    said = {"label": "Car", "points": points, "occluded": "0", "z_order": "99"}
    for image in tree.getroot().findall("image"):
        ElementTree.SubElement(image, "polygon", said)
    tree.write(root / "annotations.xml")


def in_label_studio(root: Path, shape: tuple[int, int]) -> None:
    tasks = json.loads((root / "tasks.json").read_text())
    corners = [(LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM)]
    points = [[100 * x / shape[1], 100 * y / shape[0]] for x, y in corners]
    for number, task in enumerate(tasks):
        task["data"]["image"] = f"/data/upload/1/{number:08x}-{number}.png"
        task["annotations"][0]["result"].append(
            {
                "id": "new", "type": "polygonlabels", "from_name": "polygon", "to_name": "image",
                "value": {"points": points, "closed": True, "polygonlabels": ["Car"]},
                "original_width": shape[1], "original_height": shape[0], "image_rotation": 0,
            }
        )  # fmt: skip
    (root / "tasks.json").unlink()
    put(root, "project-1-at-2026-11-24.json", json.dumps(tasks))


def in_a_text_editor(root: Path, shape: tuple[int, int]) -> None:
    """The middles of the outline's pixels."""
    index = [SPACE.by_id[i].name for i in SPACE.train_ids].index("Car")
    right, bottom = RIGHT - 1, BOTTOM - 1
    corners = [(LEFT, TOP), (right, TOP), (right, bottom), (LEFT, bottom)]
    text = " ".join(f"{(x + 0.5) / shape[1]} {(y + 0.5) / shape[0]}" for x, y in corners)
    for path in root.glob("labels/*/*.txt"):
        path.write_text(f"{index} {text}\n")


CORRECT: dict[str, Callable[[Path, tuple[int, int]], None]] = {
    "cvat": in_cvat,
    "label-studio": in_label_studio,
    "yolo-seg": in_a_text_editor,
}


def rows_of(store: Path) -> dict[str, Record]:
    batches = Store.open(str(store)).scan()
    return {r.image_id: r for batch in batches for r in from_batch(batch)}


def ids_of(record: Record) -> NDArray[Any]:
    assert record.mask is not None
    return masks.decode(record.mask.bytes or b"")


@pytest.mark.parametrize("name", sorted(CORRECT))
def test_corrected_labels_are_truth_of_the_same_images(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, night, out = tmp_path / "set", tmp_path / "night", tmp_path / "out"
    makers()["camvid-11"]().make_tree(root)
    local = ["--runner", "local"]
    call(capsys, "ingest", root, night, "--format", "camvid-11", *local)
    before = rows_of(night)
    chosen = sorted(before)[:2]
    listed = ", ".join(f"'{image}'" for image in chosen)
    where = ["--where", f"image_id IN ({listed})"]
    summary, _ = call(capsys, "export", night, out, "--format", name, *where, *local)
    assert summary["done"] == 2
    CORRECT[name](out, ids_of(before[chosen[0]]).shape)
    fixed = tmp_path / "fixed"
    summary, _ = call(capsys, "ingest", out, fixed, "--format", name, *local)
    assert (summary["inputs"], summary["done"], summary["failed"]) == (2, 2, 0)

    after = rows_of(fixed)
    assert sorted(after) == chosen
    for image, row in after.items():
        old = before[image]
        same = ("dataset", "split", "fingerprint", "height", "width", "label_space")
        assert [getattr(row, key) for key in same] == [getattr(old, key) for key in same]
        assert row.image.path == old.image.path
        assert (row.provenance.kind, row.provenance.model) == ("truth", name)
        wanted = ids_of(old).copy()
        if name == "yolo-seg":  # nothing else is left in its file
            wanted[:] = SPACE.ignore_index
        wanted[TOP:BOTTOM, LEFT:RIGHT] = CAR
        np.testing.assert_array_equal(ids_of(row), wanted)

    pairs = pair_rows(list_rows(Store.open(str(fixed))), list_rows(Store.open(str(night))))
    assert (pairs.by_path, pairs.unpredicted) == (2, 0)
    call(capsys, "store", "merge", night, fixed, tmp_path / "all")
    merged = rows_of(tmp_path / "all")
    assert sorted(merged) == sorted(before)
    for image, row in merged.items():
        expected = after.get(image, before[image])
        np.testing.assert_array_equal(ids_of(row), ids_of(expected))
        assert row.provenance.model == (name if image in chosen else "camvid-11")


@pytest.mark.parametrize("name", sorted(CORRECT))
def test_untouched_labels_come_back_as_far_as_the_format_goes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, night, out = tmp_path / "set", tmp_path / "night", tmp_path / "out"
    makers()["camvid-11"]().make_tree(root)
    local = ["--runner", "local"]
    call(capsys, "ingest", root, night, "--format", "camvid-11", *local)
    summary, _ = call(capsys, "export", night, out, "--format", name, *local)
    call(capsys, "ingest", out, tmp_path / "again", "--format", name, *local)
    before, after = rows_of(night), rows_of(tmp_path / "again")
    changed = sum(int((ids_of(before[i]) != ids_of(after[i])).sum()) for i in before)
    told = summary["loss"]["attributes"].get("pixels_changed_by_polygons", 0)
    assert changed == told
    if name != "yolo-seg":
        assert changed == 0


@pytest.mark.parametrize("name", sorted(CORRECT))
def test_bad_samples_are_counted_and_listed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    makers()["camvid-11"]().make_tree(root)
    call(capsys, "convert", root, out, "--from", "camvid-11", "--to", name, "--runner", "local")
    assert not (out / "segmill-origins.jsonl").exists()
    images = sorted(out.glob("images/*/*.png"))
    images[0].write_bytes(images[0].read_bytes()[:40])
    store = tmp_path / "store"
    words = ["ingest", out, store, "--format", name, "--runner", "local", "--max-errors", "5"]
    summary, _ = call(capsys, *words)
    assert summary["inputs"] == summary["done"] + summary["failed"] == len(images)
    assert summary["failed"] == 1
    spaces = connector(name).label_spaces(open_tree(str(out)))
    assert spaces == (SPACE,)


def test_origins_are_found_by_name(tmp_path: Path) -> None:
    names = [f"train/{n} \u00e9.png" for n in range(300)]
    lines = [json.dumps([n, "d", f"s3://b/{n}", f"{at}"]) for at, n in enumerate(names)]
    put(tmp_path, "segmill-origins.jsonl", "\n".join(lines))
    origins = Origins(open_tree(str(tmp_path)), "")
    for at, name in enumerate(names):
        found = origins.find(name)
        assert found is not None
        assert (found.path, found.fingerprint) == (f"s3://b/{name}", str(at))
    assert origins.find("train/x.png") is None
    put(tmp_path, "segmill-origins.jsonl", '["a", "b"]\n')
    with pytest.raises(LayoutError, match="line 1"):
        Origins(open_tree(str(tmp_path)), "")
