"""The page of scores: what each section shows, that it trusts no name, that a browser likes it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from pipeline.report import charts
from pipeline.report.score_page import score_page
from tests.pipeline.score_figures import (
    BREAK,
    EVIL,
    PNG,
    agreement_figures,
    confused,
    example,
    full_figures,
    scores,
)

SECTIONS = (
    "gates", "baseline", "slices", "boundary", "calibration", "panoptic", "objects", "cityscapes",
    "confused", "worst", "best",
)  # fmt: skip


class Page(HTMLParser):
    """Collects tags, attributes, ids and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._hidden = [], [], "", False
        self.feed(text)
        self.ids = [v for _, name, v in self.attributes if name == "id"]
        self.shown = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        self._hidden = tag in {"script", "style"}

    def handle_endtag(self, tag):
        self._hidden = False
        self.text += " "  # cells stand apart

    def handle_data(self, data):
        if not self._hidden:
            self.text += data


def html_of(figures=None, **pictures):
    made = {"command": f"segmill evaluate --pred {BREAK}", EVIL: EVIL}
    return score_page(scores(), title=EVIL, facts=made, figures=figures, **pictures).decode()


def full_page():
    return html_of(
        full_figures(),
        worst=[example(EVIL), example("gone", photo=False)],
        best=[example(BREAK)],
        confused=confused(EVIL),
    )


@pytest.fixture(scope="module")
def full():
    return full_page()


# --- what it shows --------------------------------------------------------------------------------


def test_sections_are_there_only_with_their_figures(full):
    bare = Page(html_of())
    assert not set(SECTIONS) & set(bare.ids)
    assert set(SECTIONS) <= set(Page(full).ids)
    figures = full_figures()
    for key in ("slices", "boundary", "calibration", "panoptic", "objects", "cityscapes", "gates"):
        less = Page(html_of({k: v for k, v in figures.items() if k != key}))
        assert set(SECTIONS[:8]) - set(less.ids) == {key}


def test_the_contents_lead_to_every_section(full):
    page = Page(full)
    links = [v[1:] for tag, name, v in page.attributes if tag == "a" and name == "href"]
    assert set(SECTIONS) <= set(links) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    "said",
    [
        "(90 %: 40.1 – 52.2)",  # the interval of mIoU
        "+2.4 points against",
        "(+1.1 to +3.6)",
        "1 of 2 gates failed",
        "only 2 images",
        "✕ failed",
        "has no value",
        "+4.2",  # classes against the baseline
        "−6.2",
        "0.046",  # p, adjusted
        "both give 87.3 % of the pixels the same class",
        "60.0 30.0 10.0 +28.6",  # churn: kept, gained, lost; (30 - 10) / (60 + 10)
        "few images",
        "10.0 – 15.0",
        "Boundary IoU 27.1 %, boundary F1 – %, at a tolerance of 2 % of the diagonal",
        "Expected calibration error 3.1 points",
        "+3.0 points",  # mean confidence less accuracy
        "41.1",  # PQ
        "23.4",  # AP
        "61.3",  # kappa
        "image not found",
        "25.0 % of <script>alert(1)</script>",  # 100 of 400 pixels taken for road
    ],
)
def test_the_page_says(full, said):
    assert said in Page(full).shown


def test_gates_that_fail_come_first(full):
    text = Page(full).shown
    assert text.index("✕ failed") < text.index("✓ passed")


def test_a_difference_that_may_be_chance_says_so():
    figures = full_figures()
    figures["baseline"]["miou"] |= {"interval": [-0.01, 0.05]}
    assert "which may be chance" in Page(html_of(figures)).shown


@pytest.mark.parametrize(
    ("interval", "colours"), [([-0.01, 0.05], False), ([0.01, 0.05], True), (None, False)]
)
def test_only_differences_beyond_chance_are_coloured(interval, colours):
    figures = full_figures()
    figures["baseline"]["miou"] |= {"difference": 0.0321, "interval": interval}
    row = re.search(r'<td class="num ([a-z]+)"[^>]*>(?:<b>)?\+3\.2', html_of(figures))
    assert row is not None
    assert (row[1] == "better") == colours


def test_agreement_calls_neither_side_right():
    html = html_of(agreement_figures(), worst=[example("a")], confused=confused("b"))
    text = Page(html).shown.lower()
    assert "91.2 % of pixels agree" in text
    assert "earlier labels" in text
    for word in ("accuracy", "precision", "correct", "truth", "prediction", "error", "wrong"):
        assert not re.search(rf"\b{word}\b", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    assert (data["truth"], data["predicted"]) == ("earlier labels", "new labels")


def test_two_hundred_examples_stay_below_fifteen_megabytes():
    """With pictures as large as those of street photos of 480 x 360 pixels were measured to be."""
    from pipeline.report.examples import _MANY, SIDE

    assert (SIDE, _MANY) == (480, 60)  # measured: 27 kB a photo, 18 kB its three overlays
    photo = "data:image/webp;base64," + "A" * (27_000 * 4 // 3)
    small = "data:image/png;base64," + "A" * (6_000 * 4 // 3)
    many = []
    for k in range(100):
        one = example(f"image {k}")
        many.append(type(one)(one.score, 360, 480, photo, small, small, small))
    page = html_of(worst=many, best=many)
    assert len(page) < 15_000_000
    assert page.count(photo) == 200  # each photo once


# --- names are not trusted ------------------------------------------------------------------------


def test_names_are_shown_not_run(full):
    page = Page(full)
    assert page.shown.count(EVIL) > 10
    assert "onerror=" in page.shown
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.tags.count("script") == 2
    assert full.count("</script>") == 2
    sources = [v for tag, name, v in page.attributes if name == "src"]
    assert set(sources) == {PNG}


def test_the_page_asks_for_nothing(full):
    page = Page(full)
    links = [v for _, n, v in page.attributes if n in {"src", "href", "srcset", "action"}]
    assert all(v.startswith(("data:", "#")) for v in links)
    assert not re.search(r"https?://|@import|url\((?!data:)", full)


def test_controls_have_names(full):
    """What a screen reader needs of every picture, slider, table and plot."""
    tags = re.findall(r"<(img|svg|input|canvas)\b([^>]*)>", full)
    assert len(tags) > 20
    for tag, attributes in tags:
        if tag == "img":
            assert "alt=" in attributes
        elif tag in {"svg", "canvas"}:
            assert "aria-label" in attributes
        elif 'class="slider"' in attributes:
            assert "aria-label=" in attributes
    boxes = re.findall(r'<div class="scroll[^>]*>', full)
    assert all('tabindex="0"' in b or 'id="matrix-box"' in b for b in boxes)


# --- plots ----------------------------------------------------------------------------------------


def parsed(svg):
    """Return the plot as XML: what is not well-formed raises."""
    assert isinstance(svg, Markup)
    return ElementTree.fromstring(str(svg))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 64), st.none() | st.floats(0, 1)), min_size=2, max_size=30),
    st.text("<&>\"'é x{}", max_size=30),
)
def test_curves_hold_any_values(points, name):
    points = sorted(points, key=lambda p: p[0])
    svg = parsed(
        charts.curves([x for x, _ in points], {name: [y for _, y in points]},
                      x_name=name, y_name=name, says=name)
    )  # fmt: skip
    drawn = svg.find("polyline").get("points").split()
    assert len(drawn) == sum(y is not None for _, y in points)
    _, _, width, height = map(float, svg.get("viewBox").split())
    for point in drawn:
        x, y = map(float, point.split(","))
        assert -0.1 <= x <= width + 0.1
        assert -0.1 <= y <= height + 0.1


@settings(max_examples=80, deadline=None)
@given(st.floats(-1, 1), st.floats(1e-6, 1))
def test_ticks_cover_the_range_in_round_steps(low, span):
    marks = charts.ticks(low, low + span)
    assert marks[0] <= low + 1e-6 * span
    assert marks[-1] >= low + span - 1e-6 * span
    assert 2 <= len(marks) <= 9
    steps = {round((b - a) / (marks[1] - marks[0]), 6) for a, b in pairwise(marks)}
    assert steps == {1.0}


def test_whiskers_lie_where_their_values_are():
    rows = [
        charts.Whisker("up", 0.02, [0.01, 0.03]),
        charts.Whisker(EVIL, -0.02, [-0.05, 0.01]),
        charts.Whisker("unknown", None, None),
    ]
    svg = parsed(charts.whiskers(rows, name="points", says="x"))
    first, second = svg.findall("circle")
    zero = next(float(e.get("x1")) for e in svg.findall("line") if e.get("class") == "zero")
    assert float(first.get("cx")) - zero == pytest.approx(zero - float(second.get("cx")), abs=0.21)
    assert first.get("class") == "dot up sure"
    assert second.get("class") == "dot down unsure"
    lines = [e for e in svg.findall("line") if e.get("class").startswith("whisker")]
    widths = [float(e.get("x2")) - float(e.get("x1")) for e in lines]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.5)


def test_reliability_draws_bins_with_pixels_only():
    bins = full_figures()["calibration"]["bins"]
    svg = parsed(charts.reliability(bins, EVIL))
    assert [e.get("class") for e in svg.findall("rect")] == ["fill", "gap"]
    assert svg.get("aria-label") == EVIL


# --- a browser ------------------------------------------------------------------------------------

TRY = """
document.querySelectorAll("table.sortable thead button").forEach((b) => b.click());
document.querySelector("input[value=column]").click();
document.getElementById("matrix").dispatchEvent(
  new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
const slider = document.querySelector(".slider");
slider.value = 25;
slider.dispatchEvent(new Event("input", {bubbles: true}));
const alpha = document.querySelector(".alpha");
alpha.value = 40;
alpha.dispatchEvent(new Event("input", {bubbles: true}));
document.getElementById("theme").click();
document.querySelector(".enlarge").click();
document.documentElement.dataset.wide = document.documentElement.scrollWidth > innerWidth;
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_runs_the_page_without_complaint(full, width, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium, to look for errors in its console")
    path = tmp_path / "page.html"
    path.write_text(full.replace("</body>", f"<script>{TRY}</script></body>"))
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr "
        f"--virtual-time-budget=2000 --dump-dom --window-size={width},1200"
    )
    command = [chromium, *flags.split(), f"--user-data-dir={tmp_path}/profile", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    dom = done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "data-evil" not in dom
    assert 'data-theme="dark"' in dom
    assert 'data-wide="false"' in dom
    assert "--cut: 25%" in dom
    assert "--alpha: 0.4" in dom
    assert re.search(r"<dialog[^>]* open", dom)
    assert dom.count('class="photo"') == 2 * 3 + 3  # each photo thrice, and once more enlarged
    assert re.search(r"truth .* → predicted .*: [\d,]+ pixels", dom, re.S)
