"""The pages: what they hold, that nothing in them is trusted, and that a browser likes them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline.files import open_sink
from pipeline.label_space import LabelClass, LabelSpace, label_space
from pipeline.masks import encode, rle_encode
from pipeline.record import ClassPixels, File, Instance, Provenance, Record, to_table
from pipeline.report import pictures
from pipeline.report.examples import examples
from pipeline.report.gallery import write_gallery
from pipeline.report.score_page import score_page
from pipeline.runner import LocalRunner
from pipeline.scoring import score
from pipeline.store import Store
from pipeline.tables.fragment import write_fragment

CAMVID = label_space("camvid-11")
EVIL = '<img src=x onerror="document.documentElement.dataset.evil=1">'
EVIL_SPACE = LabelSpace(
    "</script><script>document.documentElement.dataset.evil=2</script>",
    (LabelClass(0, EVIL, (200, 40, 40)), LabelClass(1, "</script>'\"&", (40, 40, 200))),
    255,
)
ONE = LocalRunner(1)


def make_row(root, name, mask, space=CAMVID, *, sure=None, photo=True):
    """Return a record, and write its image (grey noise) under the root."""
    height, width = mask.shape
    path = root / "images" / f"{zlib.crc32(name.encode())}.png"
    if photo:
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3))
        cv2.imwrite(str(path), noise.astype(np.uint8))
    ids, counts = np.unique(mask, return_counts=True)
    held = zip(ids.tolist(), counts.tolist(), strict=True)
    confidence = None
    if sure is not None:
        confidence = File(None, encode(np.full(mask.shape, round(255 * sure), np.uint8)))
    return Record(
        name, "toy", "val", File(str(path)), "f", height, width, space.name,
        mask=File(None, encode(mask, space.palette())),
        confidence=confidence,
        classes=tuple(ClassPixels(i, n, sure) for i, n in held),
        provenance=Provenance("truth" if sure is None else "model", "toy", "d" * 16),
    )  # fmt: skip


def store_of(path, records, *spaces):
    store = Store.create(path, spaces or [CAMVID])
    return store.commit([write_fragment(store.sink(), "data/a.parquet", to_table(records))])


def pair_of_stores(root, names, space=CAMVID, shape=(30, 44)):
    rng, truth, pred = np.random.default_rng(1), [], []
    for n, name in enumerate(names):
        mask = rng.integers(0, len(space.train_ids), shape).astype(np.uint8)
        wrong = rng.random(shape) < 0.1 * (n + 1)
        other = np.where(wrong, (mask + 1) % len(space.train_ids), mask).astype(np.uint8)
        mask[:2] = space.ignore_index
        truth.append(make_row(root, name, mask, space))
        pred.append(make_row(root, name, other, space, sure=0.5 + 0.05 * (n % 10)))
    return store_of(root / "truth", truth, space), store_of(root / "pred", pred, space)


class Page(HTMLParser):
    """Collects tags, attributes and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_data(self, data):
        self.text += data


def page_of(truth, pred, **facts):
    scores = score(truth, pred, runner=ONE, extremes=2)
    shown = [examples(truth, pred, images, scores.space) for images in (scores.worst, scores.best)]
    html = score_page(scores, title=f"{EVIL} title", facts=facts, worst=shown[0], best=shown[1])
    return scores, html.decode()


# --- the page of scores ---------------------------------------------------------------------------


def test_the_score_page_tells_the_scores(tmp_path):
    scores, html = page_of(*pair_of_stores(tmp_path, ["a", "b", "c", "d"]), command="segmill x")
    page = Page(html)
    assert f"{100 * scores.tally.miou:.1f}" in page.text
    for name in scores.class_names:
        assert name in page.text
    assert "segmill x" in page.text
    assert [i.pair.truth.image_id for i in scores.worst] == ["d", "c"]
    assert page.tags.count("article") == 4
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    rebuilt = np.zeros_like(scores.matrix.counts)
    for i, j, n in data["cells"]:
        rebuilt[i, j] = n
    np.testing.assert_array_equal(rebuilt, scores.matrix.counts)
    assert data["names"][:-1] == list(scores.class_names)


def test_the_score_page_needs_nothing_but_itself(tmp_path):
    _, html = page_of(*pair_of_stores(tmp_path, ["a", "b"]))
    page = Page(html)
    links = [v for _, name, v in page.attributes if name in {"src", "href", "srcset", "action"}]
    assert links
    assert all(v.startswith(("data:", "#")) for v in links)
    assert "@import" not in html
    assert not re.search(r"url\((?!data:)", html)
    assert not re.search(r"https?://", html)


def test_nothing_in_the_score_page_is_trusted(tmp_path):
    pair = pair_of_stores(tmp_path, [EVIL, "b</script>"], EVIL_SPACE)
    _, html = page_of(*pair, **{EVIL: EVIL})
    page = Page(html)
    assert EVIL in page.text
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.tags.count("script") == 2
    assert html.count("</script>") == 2
    sources = [v for tag, name, v in page.attributes if tag == "img" and name == "src"]
    assert sources
    assert all(v.startswith("data:image/") for v in sources)


def test_the_pictures_are_those_of_the_masks(tmp_path):
    truth, pred = pair_of_stores(tmp_path, ["a"])
    scores = score(truth, pred, runner=ONE)
    (example,) = examples(truth, pred, scores.worst, CAMVID)
    drawn = np.asarray(Image.open(io.BytesIO(_bytes(example.truth))).convert("RGBA"))[..., :3]
    (row,) = truth.records()
    ids = np.asarray(Image.open(io.BytesIO(row.mask.bytes)))
    colours = np.frombuffer(CAMVID.palette(), np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(drawn, colours[ids])
    assert example.photo is not None
    assert (example.height, example.width) == ids.shape


def _bytes(uri):
    return base64.b64decode(uri.partition(",")[2])


def test_an_image_that_is_gone_leaves_a_gap_not_an_error(tmp_path):
    truth, pred = pair_of_stores(tmp_path, ["a", "b"])
    shutil.rmtree(tmp_path / "images")
    _, html = page_of(truth, pred)
    assert html.count("image not found") == 2


def test_the_page_says_what_was_left_out(tmp_path):
    truth, pred = pair_of_stores(tmp_path, ["a", "b", "c"])
    rows = list(pred.records())
    small = encode(np.zeros((2, 2), np.uint8), CAMVID.palette())
    rows = [replace(rows[0], mask=File(None, small)), rows[1]]
    scores, html = page_of(truth, store_of(tmp_path / "less", rows))
    assert (scores.failed, scores.unpredicted) == (1, 1)
    text = " ".join(Page(html).text.split())
    assert "Images that could not be scored: 1, listed below" in text
    assert "Images of the truth without a prediction: 1." in text
    assert "2x2 pixels" in text


@pytest.mark.parametrize("side", [10, 44, 320])
def test_thumbnails_fit(side):
    mask = np.zeros((30, 44), np.uint16)
    mask[3:, 5:] = 700
    space = label_space("nyu-894")
    image = Image.open(io.BytesIO(pictures.labels_png(pictures.shrink_labels(mask, side), space)))
    assert max(image.size) == min(side, 44)
    assert image.convert("RGB").getpixel((image.width - 1, image.height - 1)) == (
        pictures.colour_of(space, 700)
    )


def test_void_is_clear_where_it_should_be():
    mask = np.array([[0, 11], [3, 11]], np.uint8)
    image = Image.open(io.BytesIO(pictures.labels_png(mask, CAMVID, clear_void=True)))
    assert np.asarray(image.convert("RGBA"))[..., 3].tolist() == [[255, 0], [255, 0]]


# --- the gallery ----------------------------------------------------------------------------------


def items_of(folder):
    text = (folder / "items.js").read_text()
    body = text.removeprefix("window.SEGMILL_ITEMS = ").rstrip().removesuffix(";")
    return json.loads(re.sub(r",\n\]$", "\n]", body))


def test_the_gallery_shows_every_row(tmp_path):
    _, pred = pair_of_stores(tmp_path, [f"n{k:02d}" for k in range(40)])
    sums = write_gallery(
        pred, open_sink(str(tmp_path / "page")), runner=LocalRunner(2), title="x", side=32
    )
    assert (sums.rows, sums.inputs, sums.done, sums.failed) == (40, 40, 40, 0)
    items = items_of(tmp_path / "page")
    assert [i["id"] for i in items] == [f"n{k:02d}" for k in range(40)]
    for item in items:
        for kind in ("image", "mask", "confidence"):
            assert Image.open(tmp_path / "page" / item[kind]).size[0] <= 32
        assert sum(share for _, share, _ in item["classes"]) == pytest.approx(1, abs=1e-3)
    assert items[3]["mean"] == pytest.approx(0.65)


def test_the_gallery_is_the_same_whatever_the_workers(tmp_path):
    _, pred = pair_of_stores(tmp_path, [f"n{k:02d}" for k in range(70)], shape=(6, 8))
    pages = []
    for workers in (1, 3):
        folder = tmp_path / f"page{workers}"
        write_gallery(pred, open_sink(str(folder)), runner=LocalRunner(workers), title="x")
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        pages.append({str(p.relative_to(folder)): p.read_bytes() for p in files})
    assert pages[0] == pages[1]


def test_a_limit_takes_the_first_rows_and_a_sample_others(tmp_path):
    _, pred = pair_of_stores(tmp_path, [f"n{k:02d}" for k in range(30)], shape=(6, 8))
    chosen = []
    for sample in (False, True, True):
        folder = tmp_path / f"page{len(chosen)}"
        sums = write_gallery(
            pred, open_sink(str(folder)), runner=ONE, title="x", limit=5, sample=sample
        )
        assert (sums.rows, sums.inputs) == (30, 5)
        chosen.append([i["id"] for i in items_of(folder)])
    assert chosen[0] == [f"n{k:02d}" for k in range(5)]
    assert chosen[1] == chosen[2] != chosen[0]


def test_bad_rows_are_shown_as_missing_and_counted(tmp_path):
    mask = np.zeros((8, 10), np.uint8)
    rows = [
        make_row(tmp_path, "good", mask),
        make_row(tmp_path, "image gone", mask, photo=False),
        replace(make_row(tmp_path, "torn mask", mask), mask=File(None, b"\x89PNG")),
    ]
    sums = write_gallery(
        store_of(tmp_path / "s", rows), open_sink(str(tmp_path / "page")), runner=ONE, title="x"
    )
    assert (sums.inputs, sums.done, sums.failed) == (3, 1, 2)
    good, gone, torn = items_of(tmp_path / "page")
    assert good["error"] is None
    assert gone["image"] is None
    assert gone["mask"]
    assert torn["mask"] is None
    assert torn["image"]
    assert len(sums.messages) == 2


def test_rows_of_objects_are_painted(tmp_path):
    space = LabelSpace("things", (LabelClass(1, "cat", (250, 10, 10)),), 255)
    binary = np.zeros((8, 10), np.uint8)
    binary[2:6, 3:9] = 1
    row = replace(
        make_row(tmp_path, "cats", binary, space),
        mask=None,
        classes=None,
        instances=(Instance(1, 1, None, 24.0, rle=rle_encode(binary)),),
    )
    store = store_of(tmp_path / "s", [row], space)
    write_gallery(store, open_sink(str(tmp_path / "page")), runner=ONE, title="x")
    (item,) = items_of(tmp_path / "page")
    drawn = np.asarray(Image.open(tmp_path / "page" / item["mask"]).convert("RGBA"))
    np.testing.assert_array_equal(drawn[..., 3] > 0, binary > 0)
    assert drawn[3, 4, :3].tolist() == [250, 10, 10]


def test_nothing_in_the_gallery_is_trusted(tmp_path):
    _, pred = pair_of_stores(tmp_path, [EVIL, "b</script>", "../../up"], EVIL_SPACE)
    folder = tmp_path / "page"
    write_gallery(pred, open_sink(str(folder)), runner=ONE, title=EVIL)
    html = (folder / "index.html").read_text()
    page = Page(html)
    assert page.tags.count("img") == 0
    assert page.tags.count("script") == 3
    assert not [a for a in page.attributes if a[1].startswith("on")]
    for path in folder.rglob("*"):
        assert re.fullmatch(r"(index\.html|items\.js|thumbs(/\d{3}(/\d{6}(-p)?\.(jpg|png))?)?)",
                            str(path.relative_to(folder)))  # fmt: skip


# --- the commands ---------------------------------------------------------------------------------


def run(capsys, *words):
    """Return a verb's exit code and its summary."""
    code = 0
    try:
        main([*words, "--json"])
    except SystemExit as end:
        code = int(end.code or 0)
    out = capsys.readouterr().out
    return code, json.loads(out.splitlines()[-1]) if out.strip() else {}


def test_evaluate_writes_its_report(tmp_path, capsys):
    import pyarrow.parquet as pq

    truth, pred = pair_of_stores(tmp_path, ["a", "b", "c"])
    out = tmp_path / "report"
    code, summary = run(
        capsys, "evaluate", "--truth", truth.url, "--pred", pred.url, "--out", str(out),
        "--split", "val",
    )  # fmt: skip
    assert code == 0
    assert summary["inputs"] == summary["done"] + summary["skipped"] + summary["failed"] == 3
    expected = score(truth, pred, runner=ONE)
    assert summary["miou"] == expected.tally.miou
    assert summary["classes"]["Sky"]["iou"] == expected.tally.iou[0]
    report = json.loads((out / "report.json").read_text())
    assert report["miou"] == summary["miou"]
    assert pq.read_table(out / "per_image.parquet")["image_id"].to_pylist() == ["a", "b", "c"]
    lines = (out / "confusion.csv").read_text().splitlines()
    assert [int(v) for v in lines[1].split(",")[1:]] == expected.matrix.counts[0].tolist()
    assert "--split val" in Page((out / "index.html").read_text()).text


def test_evaluate_prints_a_table_for_people(tmp_path, capsys):
    truth, pred = pair_of_stores(tmp_path, ["a"])
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--truth", truth.url, "--pred", pred.url, "--out", str(tmp_path / "r")])
    assert not end.value.code
    out = capsys.readouterr().out
    assert "mIoU" in out
    assert "Pedestrian" in out


def test_failures_past_the_limit_are_exit_code_three(tmp_path, capsys):
    truth, pred = pair_of_stores(tmp_path, ["a", "b"])
    rows = list(pred.records())
    rows[0] = replace(rows[0], mask=File(None, b"torn"))
    pred = store_of(tmp_path / "torn", rows)
    words = ["evaluate", "--truth", truth.url, "--pred", pred.url, "--out", str(tmp_path / "r")]
    assert run(capsys, *words)[0] == 3
    code, summary = run(capsys, *words, "--max-errors", "1")
    assert (code, summary["failed"], summary["done"]) == (0, 1, 1)


def test_an_unknown_split_is_a_usage_error(tmp_path, capsys):
    truth, pred = pair_of_stores(tmp_path, ["a"])
    words = ["evaluate", "--truth", truth.url, "--pred", pred.url, "--out", str(tmp_path / "r")]
    assert run(capsys, *words, "--split", "vla")[0] == 2
    assert not (tmp_path / "r" / "index.html").exists()


def test_gallery_counts_what_it_shows(tmp_path, capsys):
    _, pred = pair_of_stores(tmp_path, ["a", "b", "c"])
    code, summary = run(
        capsys, "gallery", pred.url, "--out", str(tmp_path / "page"), "--where", "image_id > 'a'"
    )
    assert (code, summary["inputs"], summary["rows"]) == (0, 2, 2)
    assert (tmp_path / "page" / "index.html").exists()


# --- a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
        "google-chrome"
    )  # fmt: skip
    if found is None:
        pytest.skip("no chromium: apt-get install chromium, to look for errors in its console")
    return found


def open_page(chromium, profile, path, script=""):
    """Return the page's text after its scripts ran, and what they wrote to the console."""
    html = path.read_text()
    tried = path.with_name("tried.html")
    tried.write_text(html.replace("</body>", f"<script>{script}</script></body>"))
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr "
        "--virtual-time-budget=2000 --dump-dom --window-size=900,1200"
    )
    command = [chromium, *flags.split(), f"--user-data-dir={profile}", tried.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


TRY_SCORES = """
document.querySelectorAll("#table thead button").forEach((b) => b.click());
document.querySelector("input[value=column]").click();
const canvas = document.getElementById("matrix");
canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
document.getElementById("theme").click();
document.querySelector(".enlarge").click();
"""

TRY_GALLERY = """
const set = (id, value, kind) => {
  const input = document.getElementById(id);
  input.value = value;
  input.dispatchEvent(new Event(kind));
};
set("split", "val", "change");
set("sort", "low", "change");
set("sure", 60, "input");
const view = document.querySelector(".view");
view.value = "mask";
view.dispatchEvent(new Event("input"));
document.getElementById("theme").click();
document.querySelector(".item").click();
document.getElementById("next").click();
"""


def test_a_browser_finds_nothing_to_complain_about(chromium, tmp_path):
    names = [EVIL, "b</script>", *(f"n{k}" for k in range(6))]
    truth, pred = pair_of_stores(tmp_path, names, EVIL_SPACE)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "index.html").write_text(page_of(truth, pred)[1])
    write_gallery(pred, open_sink(str(tmp_path / "page")), runner=ONE, title=EVIL)
    profile = tmp_path / "profile"
    dom, console = open_page(chromium, profile, tmp_path / "scores/index.html", TRY_SCORES)
    assert console == []
    assert re.search(r"truth .* → predicted .*: [\d,]+ pixels", dom)
    assert re.search(r"<dialog[^>]* open", dom)
    assert 'data-theme="dark"' in dom
    assert "data-evil" not in dom
    dom, console = open_page(chromium, profile, tmp_path / "page/index.html", TRY_GALLERY)
    assert console == []
    assert "6 shown" in dom
    assert dom.count('class="item"') == 6
    assert re.search(r"<dialog[^>]* open", dom)
    assert 'data-view="mask"' in dom
    assert "data-evil" not in dom
