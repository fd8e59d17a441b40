"""The pages of a night and of all nights: what they say, and that nothing on them is trusted."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.refresh.drift import Changes, Composition, Example
from pipeline.refresh.pages import write_pages
from pipeline.refresh.record import (
    Attempt,
    Condition,
    Images,
    Model,
    Night,
    Nights,
    Published,
    RolledBack,
    Step,
)
from pipeline.report.changed import changed_pictures
from pipeline.report.history_page import history_page
from pipeline.report.night_page import VERDICTS, colours_of, night_page
from pipeline.training.data import Channels
from tests.pipeline.pseudo_world import SPACE, image, record, store_of

EVIL = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"
START = datetime(2026, 11, 20, 2, tzinfo=UTC)


class Reader(HTMLParser):
    """Collects a page's tags and its text, outside of style and script."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def a_model(miou, night, name="run:models/x"):
    scores = {
        "miou": miou,
        "miou_interval": [miou - 0.02, miou + 0.02],
        "classes": dict.fromkeys(SPACE.class_names, miou),
        "images": 12,
    }
    return Model(uri=name, digest="d" * 40, label_digest="l" * 40, night=night, scores=scores)


def drift_of(names=SPACE.class_names):
    rng = np.random.default_rng(3)
    size = len(names)
    pixels = rng.integers(100, 900, size)
    before = Composition(names, pixels, pixels * 180, 50, 30)
    after = Composition(names, pixels[::-1].copy(), pixels * 170, 90, 34, changed={7: 30, 9: 4})
    moved = rng.integers(1, 60, (size + 1,) * 2)
    examples = [Example(0.5, "a", "toy", "a.png")]
    changes = Changes(names, moved, 30, 12, 345, examples)
    return {
        "before": before.figures(),
        "after": after.figures(9),
        "changes": changes.figures(),
    }


def a_night(number, status="published", **more):
    began = START + timedelta(days=number)
    name = f"{began:%Y-%m-%d}"
    known = {
        "id": name,
        "status": status,
        "began": began,
        "ended": began + timedelta(minutes=75),
        "images": Images(listed=1234, same=1200, new=30, changed=4),
        "challenger": a_model(0.40 + number / 100, name),
        "champion": a_model(0.39, "2026-11-19"),
        "steps": [
            Step(
                name="find", began=began, ended=began + timedelta(seconds=71), figures={"new": 30}
            ),
            Step(name="label", began=began + timedelta(seconds=71)),
        ],
        "gate": [
            Condition(
                name="mIoU, against the champion",
                kind="relative",
                figure=-0.031,
                interval=(-0.05, -0.012),
                limit=-0.005,
                passed=False,
                why="it is worse",
            ),
            Condition(name="mIoU", kind="absolute", figure=0.41, limit=0.3, passed=True),
        ],
        "checks": [Condition(name="churn", kind="drift", figure=None, limit=0.3, passed=False)],
        "drift": drift_of(),
        "sums": {"inputs": 34, "done": 33, "skipped": 0, "failed": 1},
    }
    if status == "published":
        known["published"] = Published(
            store="stores/night", version=number + 2, tag=f"night-{name}", rows=1234
        )
    return Night(**(known | more))


@pytest.mark.parametrize("status", sorted(VERDICTS))
def test_the_verdict_comes_first_whatever_it_is(status):
    night = a_night(0, status, reasons=["mIoU fell", "Road vanished"])
    text = Reader(night_page(night)).text
    verdict = text.index(VERDICTS[status][0], text.index("All nights"))
    assert verdict < text.index("mIoU fell") < text.index("Road vanished") < text.index("Gate")
    if status != "published":
        assert "stores/night" not in text
    if status in ("rejected", "failed"):
        assert "Last night’s labels stay in force" in text


def test_a_night_without_anything_has_a_page():
    for status in VERDICTS:
        text = Reader(night_page(Night(id="2026-11-20", status=status))).text
        assert "None" not in text
        assert "nan" not in text


def test_the_page_says_what_the_record_holds():
    night = a_night(1, attempts=[Attempt(began=START, host="box", pid=1)])
    text = Reader(night_page(night, colours=colours_of(SPACE))).text
    for said in (
        "−3.1 points", "−5.0 to −1.2", "✕ failed", "it is worse", "unknown", "41.0 %",
        "1 min 11 s", "not ended", "1 h 15 min", "labelling: failed 1", "night-2026-11-21",
        "killed, or still running", "2 nights ago",
        "Labels last changed as a bar Images tonight 4", "345 kept last night’s",
    ):  # fmt: skip
        assert said in text, said
    changes = night.drift["changes"]
    for name in SPACE.class_names:
        assert f"{100 * changes['classes'][name]['churn']:.1f}" in text
        assert f"{100 * night.drift['after']['classes'][name]['share']:.1f}" in text


def test_a_rollback_is_said_before_anything():
    back = RolledBack(at=START + timedelta(days=3), to="2026-11-19", version=9)
    text = Reader(night_page(a_night(0, rolled_back=back))).text
    assert "Published, rolled back" in text
    assert "those of night 2026-11-19 are in force since, as version 9" in text
    nothing = back.model_copy(update={"to": None})
    assert (
        "no night’s labels are in force" in Reader(night_page(a_night(0, rolled_back=nothing))).text
    )


def hostile():
    names = (EVIL, *SPACE.class_names[1:])
    drift = drift_of(names)
    drift["changes"]["most"][0]["image_id"] = EVIL
    return a_night(
        0,
        "rejected",
        reasons=[EVIL],
        challenger=a_model(0.4, EVIL, EVIL),
        steps=[Step(name=EVIL, began=START, figures={EVIL: EVIL})],
        gate=[Condition(name=EVIL, kind="fail-if", passed=False, why=EVIL)],
        drift=drift,
        sums={EVIL: 3},
        paths={EVIL: EVIL},
        webhook=EVIL,
    )


def test_nothing_on_the_pages_is_trusted():
    for page in (
        night_page(hostile(), title=EVIL, colours={EVIL: "#123456"}),
        history_page([hostile(), a_night(1, id=EVIL)], title=EVIL),
    ):
        read = Reader(page)
        assert EVIL.encode() not in page
        assert all("onerror" not in attributes for _, attributes in read.tags)
        assert not [t for t, a in read.tags if t == "img" and a.get("src") == "x"]
        assert EVIL in read.text
    links = [a["href"] for t, a in Reader(history_page([a_night(1, id=EVIL)])).tags if t == "a"]
    assert all(h.startswith("nights/") and h.endswith("/index.html") for h in links)
    assert not any(c in h for h in links for c in "<>\"'& ")


def test_the_pages_ask_for_nothing_and_can_be_used_by_keyboard():
    for page in (night_page(a_night(0)), history_page([a_night(0), a_night(1)])):
        tags = Reader(page).tags
        for tag, attributes in tags:
            assert tag not in ("link",) or attributes["href"] == "data:,"
            source = attributes.get("src")
            assert source is None or source.startswith("data:")
            if tag == "svg":
                assert attributes["aria-label"]
            if "scroll" in (attributes.get("class") or "").split():
                assert attributes["tabindex"] == "0"
                assert attributes.get("aria-label") or attributes.get("aria-labelledby")
        ids = [a["id"] for _, a in tags if "id" in a]
        assert len(ids) == len(set(ids))


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_are_of_images_that_both_nights_hold(tmp_path):
    rng = np.random.default_rng(0)
    made = {n: (image(rng), image(rng)) for n in "abc"}
    old = store_of(tmp_path / "old", [record(n, o[1], o[2]) for n, (o, _) in made.items()])
    new = store_of(
        tmp_path / "new",
        [
            record("a", *made["a"][1][1:]),
            record("b", made["b"][1][1][:16], made["b"][1][2][:16]),  # of another size: left out
            record("d", *made["c"][1][1:]),
        ],
    )
    changes, lut = Changes.empty(SPACE), Channels(SPACE).lut(SPACE)
    for name, (before, after) in made.items():
        changes.add(lut, before[1], after[1], Example(0, name, "toy", f"/images/{name}.png"))
    found = changed_pictures(old, new, changes.figures()["most"], SPACE)
    assert [p.image_id for p in found] == ["a"]
    [picture] = found
    assert picture.photo is None  # the file is gone: the labels are shown all the same
    assert picture.share == pytest.approx(float((made["a"][0][1] != made["a"][1][1]).mean()))
    page = night_page(a_night(0), pictures=found)
    sources = [a.get("src") for t, a in Reader(page).tags if t == "img"]
    assert [picture.old, picture.new, picture.where] == sources


# --- the history ----------------------------------------------------------------------------------


def in_force(page):
    rows = re.findall(r'<a href="nights/([^/]+)/index.html">.*?</tr>', page.decode())
    marked = re.search(r'<a href="nights/([^/]+)/[^>]*>(?:(?!</tr>).)*class="force"',
                       page.decode(), re.DOTALL)  # fmt: skip
    return rows, marked and marked[1]


def test_the_history_leads_to_each_night_and_says_what_is_in_force():
    nights = [a_night(0), a_night(1), a_night(2, "rejected", reasons=["churn", "mIoU"])]
    page = history_page(nights[::-1])
    names, force = in_force(page)
    assert names == ["2026-11-22", "2026-11-21", "2026-11-20"]  # the newest first
    assert force == "2026-11-21"
    text = Reader(page).text
    assert "churn (and 1 more)" in text
    assert "2 published, 1 rejected, 0 rolled back" in text
    assert history_page(nights) == page


def test_a_night_that_was_taken_back_is_not_in_force():
    back = RolledBack(at=START, to="2026-11-20", version=9)
    page = history_page([a_night(0), a_night(1, rolled_back=back)])
    assert in_force(page)[1] == "2026-11-20"
    assert "↩ rolled back to 2026-11-20" in Reader(page).text
    every = history_page([a_night(0, rolled_back=RolledBack(at=START, to=None, version=2))])
    assert in_force(every)[1] is None
    assert "before the first night" in Reader(every).text


def test_plots_make_out_what_was_turned_down():
    nights = [a_night(k, "rejected" if k == 2 else "published") for k in range(5)]
    page = history_page(nights).decode()
    plot = page[page.index('aria-label="mIoU') : page.index("</svg>")]
    assert plot.count('class="band l0"') == 1
    titles = re.findall(r"<title>([^<]*)</title>", plot)
    assert titles[2] == "tonight’s model at 11-22: 42 %, rejected"
    assert titles[7].startswith("in force at 11-22: 41 %")
    assert len(titles) == 10


def test_no_nights_and_many_nights_have_a_page():
    assert "No night yet" in Reader(history_page([])).text
    many = history_page([a_night(k, drift={}) for k in range(400)])
    assert len(in_force(many)[0]) == 400
    assert len(many) < 600_000


# --- in the work directory ------------------------------------------------------------------------


def test_pages_are_written_beside_the_records(tmp_path):
    nights = Nights(str(tmp_path / "work"))
    for night in (a_night(0), a_night(1)):
        nights.write(night)
    # The store is not there: the figures are in the record, and the page needs no more.
    last = nights.read("2026-11-21")
    assert write_pages(nights, last) is None
    assert (tmp_path / "work/nights/2026-11-21/index.html").is_file()
    assert last.paths["page"].endswith("work/nights/2026-11-21/index.html")
    history, page = tmp_path / "work/index.html", tmp_path / "work/nights/2026-11-21/index.html"
    assert links_of(history) == [f"nights/2026-11-{day}/index.html" for day in (21, 20)]
    assert (page.parent / links_of(page)[0]).resolve() == history.resolve()


def links_of(path):
    return [a["href"] for t, a in Reader(path.read_bytes()).tags if t == "a"]


def test_a_page_that_fails_is_told_and_raises_nothing(tmp_path):
    nights = Nights(str(tmp_path / "work"))
    odd = a_night(0, drift={"changes": {"images": 3, "classes": "no such thing"}})
    nights.write(odd)
    assert write_pages(nights, odd).startswith("pages: ")
