"""Gates: what fails, what is refused, and that no text runs as code."""

from __future__ import annotations

import builtins
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.metrics.gates import HEADLINE, SECTIONS, check, parse

FIGURES = {
    "miou": 0.5,
    "pixel_accuracy": 0.9,
    "dice": None,
    "failed": 3,
    "coverage": math.nan,
    "classes": {"car": {"iou": 0.4}, "traffic light": {"iou": 0.2}, "gone": {"iou": None}},
    "intervals": {"miou": [0.45, 0.55]},
    "boundary": {"boundary_iou": 0.3},
    "slices": [{"by": "split", "value": "val", "miou": 0.35, "miou_interval": [0.3, 0.4]}],
    "baseline": {
        "agreement": 0.97,
        "miou": {"this": 0.51, "baseline": 0.53, "p": 0.01},
        "classes": {"car": {"this": 0.4, "baseline": 0.3, "p": 0.2}},
    },
}


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("miou < 0.4", False),
        ("miou < 0.6", True),
        ("miou < baseline - 0.005", True),  # 0.51 of the shared images, beside 0.53
        ("miou < baseline - 0.03", False),
        ("classes.car.iou < baseline", False),
        ("classes['traffic light'].iou <= 0.2", True),
        ("intervals.miou.low < 0.45", False),
        ("intervals.miou.high - intervals.miou.low > 0.05", True),
        ("boundary.boundary_iou * 2 > 0.5 and failed > 2", True),
        ("failed >= 3 and failed != 3", False),
        ("not (miou > 0.4 or failed > 100)", False),
        ("0.1 < miou < 0.2", False),
        ("0.1 < miou < 0.6", True),
        ("slices['split=val'].miou < 0.4", True),
        ("slices['split=val'].miou_interval.low > 0.35", False),
        ("baseline.miou.p < 0.05 and miou < baseline", True),
        ("baseline.agreement < 0.9", False),
        ("-miou > -0.6 / 2 + +0.1", False),
    ],
)
def test_gates_say_what_their_text_says(text, fails):
    (found,) = check([parse(text)], FIGURES)
    assert found["fails"] is fails
    assert found["gate"] == text
    assert "why" not in found


def test_both_sides_of_the_comparison_that_decided_are_told():
    first, second = check([parse("miou < baseline - 0.005"), parse("failed > 5 or miou < 0.6")],
                          FIGURES)  # fmt: skip
    assert (first["value"], first["limit"]) == (0.51, pytest.approx(0.525))
    assert (second["value"], second["limit"]) == (0.5, 0.6)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("classes.gone.iou < 0.1", "classes.gone.iou has no value"),
        ("classes.nobody.iou > 0.1", "classes.nobody.iou has no value"),
        ("coverage < 0.1", "coverage has no value"),
        ("not dice > 0.1", "dice has no value"),
        ("miou < 0.1 and dice < 0.1", "dice has no value"),
        ("miou > 0.1 or dice < 0.1", "dice has no value"),
        ("panoptic.pq < 0.1", "panoptic.pq has no value"),
        ("classes.gone.iou < baseline", "baseline.classes.gone"),
        ("miou / (failed - 3) < 0.1", "division by zero"),
        ("boundary.classes < 1", "boundary.classes has no value"),
    ],
)
def test_what_has_no_value_fails_and_says_so(text, why):
    (found,) = check([parse(text)], FIGURES)
    assert found["fails"] is True
    assert why in found["why"]


@pytest.mark.parametrize(
    ("text", "why", "at"),
    [
        ("mio < 0.5", "no figure is called 'mio'; known: miou", "mio"),
        ("miou <", "syntax", None),
        ("", "syntax", None),
        ("miou", "a comparison is wanted", "miou"),
        ("0.2 < classes.cat.iou", "no class is called 'cat'; known: car, é", "classes"),
        ("classes['é'].iou < oops", "no figure is called 'oops'", "oops"),
        ("classes.car.colour < 1", "one of iou, recall", "classes"),
        ("classes < 1", "name a figure of it", "classes"),
        ("churn.car.iou < 1", "one of kept, gained", "churn"),
        ("miou.x < 1", "has no parts", "miou"),
        ("dice < baseline", "`baseline` is", "dice"),
        ("miou - pixel_accuracy < baseline", "one figure on the left", "miou"),
        ("miou is 3", "compare by", "miou"),
        ("miou < 1e999", "too large", "1e999"),
        ("miou < True", "neither a figure", "True"),
        ("miou ** 2 < 1", "neither a figure", "miou"),
        ("miou < classes['car'][0]", "a figure is written", "classes"),
        ("  miou < f()", "neither a figure", "f()"),
        ("miou < 1\n", "one line", None),
        ("(" * 150 + "miou" + ")" * 150 + " < 1", "at most", None),
    ],
)
def test_what_is_no_gate_is_refused_with_its_place(text, why, at):
    with pytest.raises(UsageError) as caught:
        parse(text, ["car", "é"])
    said = str(caught.value)
    assert why in said
    if at is not None:
        _, shown, caret = said.split("\n")
        assert shown[caret.index("^") :].startswith(at)


def test_a_gate_tells_what_must_be_measured():
    gate = parse("boundary.boundary_iou < 0.1 or miou < baseline")
    assert gate.sections == ("boundary", "baseline")
    assert pickle.loads(pickle.dumps(gate)) == gate


WORDS = st.sampled_from(
    [*HEADLINE[:4], *SECTIONS, "__import__", "('os')", ".system", "('false')", "eval", "(", ")",
     "exec", "lambda: 0", "[0]", "['car']", ".iou", ".__class__", ".__subclasses__()", "{}", ":=",
     "<", ">", "==", "+", "-", "*", "/", "**", "and", "or", "not", "if", "else", "for", "in", "1",
     "0.5", "'x'", "f'{miou}'", ",", "await", "yield", "9" * 30, "\\", "#", "open", "print"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=14).map(" ".join),
                 st.lists(WORDS, max_size=14).map("".join)))  # fmt: skip
def test_no_text_runs_as_code(text):
    """Whatever the text, it is refused or it is a condition on figures; nothing is called."""
    called = []
    watched = {name: getattr(builtins, name) for name in ("eval", "exec", "open", "print")}

    def trap(*arguments, **named):
        called.append(arguments)

    try:
        for name in watched:
            setattr(builtins, name, trap)
        try:
            found = check([parse(text)], FIGURES)
        except UsageError:
            found = []
    finally:
        for name, function in watched.items():
            setattr(builtins, name, function)
    assert not called
    for gate in found:
        assert isinstance(gate["fails"], bool)


@given(st.lists(st.sampled_from(["-", "not ", "(", "+"]), max_size=290).map("".join))
def test_deep_nesting_is_read_or_refused(prefix):
    closing = ")" * prefix.count("(")
    for text in (f"{prefix}miou{closing} < 1", f"{prefix}miou < 1{closing}"):
        try:
            found = check([parse(text)], FIGURES)
        except UsageError:
            continue
        assert isinstance(found[0]["fails"], bool)


@pytest.mark.parametrize("text", ["miou < 1e308 * 1e308 - 1e308 * 1e308", "miou > 1e308 + 1e308"])
def test_a_number_that_leaves_all_bounds_passes_no_gate(text):
    (found,) = check([parse(text)], {"miou": 0.5})
    assert found["fails"]
    assert found["why"] == "a number that is too large"
