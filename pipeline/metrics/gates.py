"""Conditions that fail a job: `miou < baseline - 0.005`.

A gate is a condition on the figures of a report; where it is true, the gate fails. A figure that is
not there, or has no value, fails it too: nothing passes because nothing was measured.

The grammar is a small part of Python's expressions, read by Python's parser and interpreted here:
figures, numbers, `+ - * /`, comparisons, `and`, `or`, `not` and brackets. Nothing is called.

- A figure is a path into `report.json`: `miou`, `classes.car.iou`, `intervals.miou.low`,
  `boundary.boundary_iou`. A name with spaces or dots stands in quotes:
  `classes["traffic light"].iou`.
- `baseline` alone is the baseline's value of the figure on the comparison's left side. Both are
  then of the images that both predictions have.
- `slices["split=val"].miou` is a figure of a slice.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

HEADLINE: Final = (
    "miou", "pixel_accuracy", "mean_accuracy", "fwiou", "coverage", "dice", "mean_dice", "kappa",
    "pixels", "void_pixels", "inputs", "done", "skipped", "failed", "unpredicted", "unlabelled",
    "unused_predictions", "agreement", "images_changed", "images_same",
)  # fmt: skip
"""Figures of the whole report."""
SECTIONS: Final = (
    "classes", "baseline", "intervals", "slices", "boundary", "calibration", "panoptic",
    "cityscapes", "objects", "churn",
)  # fmt: skip
"""Parts of the report that hold figures."""

CLASS_FIGURES: Final = (
    "iou", "recall", "precision", "dice", "truth", "predicted", "intersection",
)  # fmt: skip
"""Figures of a class: of `classes.NAME`."""

CHURN_FIGURES: Final = ("kept", "gained", "lost", "churn")
"""Figures of `churn.NAME`, of labels against labels."""

OF_TRUTH: Final = frozenset(
    ("pixel_accuracy", "mean_accuracy", "fwiou", "coverage", "dice", "mean_dice", "kappa",
     "intervals", "baseline", "slices")
)  # fmt: skip
"""What only labels against truth have."""
OF_AGREEMENT: Final = frozenset(("agreement", "images_changed", "images_same", "churn"))
"""What only labels against labels have."""

_LONGEST: Final = 300  # characters; bounds how deep brackets nest, too
_BY_ZERO: Final = "a division by zero"
_TOO_LARGE: Final = "a number that is too large"
_BOUNDS: Final = {"low": 0, "high": 1}
_Path: TypeAlias = tuple[str, ...]
_BASELINE: Final = ("baseline",)
_OPERATORS: Final[Mapping[type, Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Final[Mapping[type, Callable[[float, float], bool]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition that was parsed; picklable, as its text is all that it holds."""

    text: str
    paths: tuple[_Path, ...]
    """The figures that it asks for, in their order; `("baseline",)` for the bare word."""

    @property
    def sections(self) -> tuple[str, ...]:
        """The parts of the report that it needs, such as `baseline` or `boundary`."""
        return tuple(dict.fromkeys(path[0] for path in self.paths if path[0] in SECTIONS))


def parse(text: str, classes: Iterable[str] | None = None) -> Gate:
    """Read a gate; with `classes`, the names of the scored classes, those are checked too.

    >>> parse("miou < baseline - 0.005 or classes['traffic light'].iou < 0.4").sections
    ('baseline', 'classes')

    Raises:
        UsageError: the text is no such condition, or asks for a figure that no report has; the
            message points at the place.
    """
    known = None if classes is None else tuple(classes)
    parser = _Parser(text, known)
    parser.condition(parser.tree())
    return Gate(text, tuple(dict.fromkeys(parser.paths)))


def check(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each gate says of a report's figures.

    `value` and `limit` are the two sides of the comparison that decided it; `why` says what has no
    value, which fails the gate.
    """
    return [_check(gate, figures) for gate in gates]


def _check(gate: Gate, figures: Mapping[str, Any]) -> dict[str, Any]:
    report = _Report(figures)
    fails = report.true(_Parser(gate.text, None).tree())
    shown = next((c for c in report.compared if c[2] == fails), report.compared[0])
    found = {
        "gate": gate.text,
        "value": _plain(shown[0]),
        "limit": _plain(shown[1]),
        "fails": fails or bool(report.missing),
    }
    return {**found, "why": "; ".join(report.missing)} if report.missing else found


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(slots=True)
class _Parser:
    """Checks a gate's syntax tree: what it does not know of is refused."""

    text: str
    classes: tuple[str, ...] | None
    paths: list[_Path] = field(default_factory=list)

    def tree(self) -> ast.expr:
        """Return the syntax tree."""
        if len(self.text) > _LONGEST:
            raise UsageError(
                f"--fail-if: a gate is at most {_LONGEST} characters long; give several gates"
            )
        if not self.text.isprintable():  # line breaks would shift the caret
            raise UsageError(f"--fail-if {self.text!r}: a gate is one line of text")
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes in quoted names
                return ast.parse(self.text.lstrip(" "), mode="eval").body
        except SyntaxError as error:
            shift = len(self.text) - len(self.text.lstrip(" "))
            self._fault(shift + max(0, (error.offset or 1) - 1), error.msg or "not a condition")
        except (ValueError, RecursionError, MemoryError):
            raise UsageError(f"--fail-if {self.text!r}: not a condition that can be read") from None

    def condition(self, node: ast.expr) -> None:
        """Check what must be true or false."""
        match node:
            case ast.BoolOp(values=values):
                for value in values:
                    self.condition(value)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.condition(operand)
            case ast.Compare():
                self._comparison(node)
            case _:
                self._refuse(node, "a comparison is wanted here, as `miou < 0.5`")

    def _comparison(self, node: ast.Compare) -> None:
        for op in node.ops:
            if type(op) not in _COMPARISONS:
                self._refuse(node, "compare by <, <=, >, >=, == or !=")
        sides = [node.left, *node.comparators]
        for side in sides:
            self._number(side)
        if any(path == _BASELINE for side in sides for path in figures_in(side)):
            left = set(figures_in(node.left))
            if len(left) != 1 or _BASELINE in left or not _has_baseline(next(iter(left))):
                self._refuse(
                    node,
                    "`baseline` is the baseline's value of the one figure on the left: "
                    f"{', '.join(_COMPARED)} or a class's iou",
                )

    def _number(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                if not _finite(value):
                    self._refuse(node, "the number is too large")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                self._number(left)
                self._number(right)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                self._number(operand)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                self._figure(node)
            case _:
                self._refuse(node, "neither a figure, a number nor + - * / of such")

    def _figure(self, node: ast.expr) -> None:
        path = path_of(node)
        if path is None:
            self._refuse(
                node, 'a figure is written classes.car.iou or classes["traffic light"].iou'
            )
        first = path[0]
        if first not in (*HEADLINE, *SECTIONS):
            self._refuse(
                node, f"no figure is called {first!r}; known: {', '.join((*HEADLINE, *SECTIONS))}"
            )
        if len(path) > 1 and first in HEADLINE:
            self._refuse(node, f"{first} is a number and has no parts")
        if len(path) == 1 and first in SECTIONS and path != _BASELINE:
            self._refuse(node, f"{first} is a part of the report; name a figure of it")
        if first == "classes" and (len(path) != 3 or path[2] not in CLASS_FIGURES):
            self._refuse(
                node, f"a class's figure is classes.NAME and one of {', '.join(CLASS_FIGURES)}"
            )
        if first == "churn" and (len(path) != 3 or path[2] not in CHURN_FIGURES):
            self._refuse(node, f"what changed is churn.NAME and one of {', '.join(CHURN_FIGURES)}")
        self._class(node, path)
        self.paths.append(path)

    def _class(self, node: ast.expr, path: _Path) -> None:
        """Check the name of a class, where the report lists all that are scored."""
        at = 1 if path[0] == "classes" else 2
        if path[0] not in _ALL_CLASSES or path[at - 1 : at] != ("classes",) or self.classes is None:
            return
        name = path[at] if len(path) > at else ""
        if name not in self.classes:
            self._refuse(node, f"no class is called {name!r}; known: {', '.join(self.classes)}")

    def _refuse(self, node: ast.expr, why: str) -> NoReturn:
        # Columns count bytes of UTF-8.
        stripped = self.text.lstrip(" ")
        before = len(stripped.encode()[: node.col_offset].decode(errors="ignore"))
        self._fault(len(self.text) - len(stripped) + before, why)

    def _fault(self, column: int, why: str) -> NoReturn:
        # Of an error a job prints one line: there the number says what the caret does here.
        place = f"at character {column + 1}"
        raise UsageError(f"--fail-if: {why}, {place}\n  {self.text}\n  {' ' * column}^")


_ALL_CLASSES: Final = ("classes", "baseline", "intervals", "boundary", "calibration")
_COMPARED: Final = ("miou", "pixel_accuracy", "mean_accuracy", "fwiou")


def _has_baseline(path: _Path) -> bool:
    return (len(path) == 1 and path[0] in _COMPARED) or (
        len(path) == 3 and path[0] == "classes" and path[2] == "iou"
    )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def path_of(node: ast.expr) -> _Path | None:
    """Return the path that a tree of names, attributes and quoted keys spells; None for others."""
    match node:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(value=value, attr=name):
            inner = path_of(value)
        case ast.Subscript(value=value, slice=ast.Constant(value=str() as name)):
            inner = path_of(value)
        case _:
            return None
    return None if inner is None else (*inner, name)


def figures_in(node: ast.expr) -> Iterator[_Path]:
    """Yield the paths of the figures in an expression."""
    path = path_of(node)
    if path is not None:
        yield path
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from figures_in(child)


@dataclass(slots=True)
class _Report:
    """Evaluates a checked tree; what has no value is nan, and is noted."""

    figures: Mapping[str, Any]
    compared: list[tuple[float, float, bool]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left: _Path | None = None
    """In a comparison with the baseline, the figure that is compared."""

    def true(self, node: ast.expr) -> bool:
        """Return whether a condition holds; every part is evaluated, so that no hole is hidden."""
        match node:
            case ast.BoolOp(op=op, values=values):
                found = [self.true(value) for value in values]
                return all(found) if isinstance(op, ast.And) else any(found)
            case ast.UnaryOp(operand=operand):
                return not self.true(operand)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [left, *comparators]
                paired = any(path == _BASELINE for side in sides for path in figures_in(side))
                inner = replace(self, left=next(figures_in(left)) if paired else None)
                numbers = [inner.number(side) for side in sides]
                steps = zip(ops, numbers, numbers[1:], strict=False)
                return min([self._compare(op, a, b) for op, a, b in steps])  # none left out
        raise AssertionError(ast.dump(node))

    def _compare(self, op: ast.cmpop, a: float, b: float) -> bool:
        holds = _COMPARISONS[type(op)](a, b)
        self.compared.append((a, b, holds))
        return holds

    def number(self, node: ast.expr) -> float:
        """Return the value of an expression; nan where a figure lacks."""
        match node:
            case ast.Constant(value=value):
                return float(value)  # type: ignore[arg-type]
            case ast.UnaryOp(op=op, operand=operand):
                value = self.number(operand)
                return -value if isinstance(op, ast.USub) else value
            case ast.BinOp(left=left, op=op, right=right):
                return self._combine(op, self.number(left), self.number(right))
        path = path_of(node)
        assert path is not None
        return self._figure(path)

    def _combine(self, op: ast.operator, a: float, b: float) -> float:
        if isinstance(op, ast.Div) and b == 0:
            return self._lack(_BY_ZERO)
        value = _OPERATORS[type(op)](a, b)
        if math.isfinite(a) and math.isfinite(b) and not math.isfinite(value):
            return self._lack(_TOO_LARGE)
        return value

    def _figure(self, path: _Path) -> float:
        wanted = path
        if self.left is not None and path in (_BASELINE, self.left):
            side = "baseline" if path == _BASELINE else "this"
            figure = self.left if len(self.left) == 1 else self.left[:2]
            wanted = ("baseline", *figure, side)
        value: Any = self.figures
        for part in wanted:
            value = _part_of(value, part)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return self._lack(".".join(wanted))
        return float(value)

    def _lack(self, what: str) -> float:
        said = what if what in (_BY_ZERO, _TOO_LARGE) else f"{what} has no value"
        if said not in self.missing:
            self.missing.append(said)
        return math.nan


def _part_of(value: Any, name: str) -> Any:
    """Return a part of a report's figures; None where there is none."""
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, list | tuple):
        if name in _BOUNDS and len(value) == 2:
            return value[_BOUNDS[name]]
        for entry in value:
            if isinstance(entry, dict) and f"{entry.get('by')}={entry.get('value')}" == name:
                return entry
    return None
