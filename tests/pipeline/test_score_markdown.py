"""The summary for a pull request: its tables hold together whatever names are in them."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.score_markdown import escape, markdown
from tests.pipeline.score_figures import BREAK, EVIL, agreement_figures, full_figures, scores


def tables(text):
    """Return the tables as rows of cells; a pipe counts unless it is escaped."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            found.append([re.split(r"(?<!\\)\|", line)[1:-1] for line in lines])
    return found


def test_it_tells_the_figures():
    text = markdown(full_figures(), "night against day")
    assert text.startswith("## night against day\n")
    for said in ("40.1 – 52.2", "+2.4", "+1.1 to +3.6", "❌ failed", "✅ passed", "12.3", "27.1"):
        assert said in text
    assert "1 better, 0 the same, 1 worse" in text


def test_only_what_there_is():
    text = markdown(scores().figures(), "x")
    assert len(tables(text)) == 2  # the headline and the classes
    assert "slice" not in text
    assert "gate" not in text


def test_agreement_has_no_side_that_is_right():
    text = markdown(agreement_figures(), "tonight").lower()
    assert "91.2" in text
    for word in ("accuracy", "precision", "recall", "truth"):
        assert word not in text


def test_names_break_no_table_and_hold_no_html():
    text = markdown(full_figures(), f"{EVIL}\n# heading")
    assert "<" not in text
    assert "@all" not in text
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 1
    for table in tables(text):
        assert {len(row) for row in table} == {len(table[0])}


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_text_stays_in_its_cell(name):
    line = escape(name)
    assert not re.search(r"[\r\n<>@]", line)
    assert len(re.split(r"(?<!\\)(?:\\\\)*\|", f"|{line}|")) == 3


def test_very_many_classes_fit_in_a_comment():
    figures = full_figures()
    figures["classes"] = {f"{BREAK} {k}" * 3: c for k in range(3000) for c in [{"iou": k / 3000}]}
    text = markdown(figures, "x")
    assert len(text) < 65_536
    assert "report.json" in text
