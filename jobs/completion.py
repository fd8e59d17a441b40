"""What the shell completes: verbs, options, formats, label spaces, recipes, methods, models.

Imported when a shell asks (`_SEGMILL_COMPLETE`) and for `--install-completion`, never by a verb. Of
the verbs only the one on the command line is imported; what an option's values are is told here by
the parameter's name, so that a new verb completes as the others do.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo

from jobs import VERBS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_CHOICES: Final = re.compile(r"[a-z0-9-]+(\|[a-z0-9-]+)+")


def _formats() -> Iterable[str]:
    from connectors import CONNECTORS

    return CONNECTORS


def _label_spaces() -> Iterable[str]:
    from pipeline.label_space import LABEL_SPACES

    return ("keep", "native", *LABEL_SPACES)


def _recipes() -> Iterable[str]:
    import pipeline

    folder = Path(pipeline.__file__).parent / "training/recipes"
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _methods() -> Iterable[str]:
    from pipeline.training.methods import METHODS

    return METHODS


def _models() -> Iterable[str]:
    from pipeline.models import KINDS

    return [f"{kind}:" for kind in KINDS]


def _splits() -> Iterable[str]:
    from pipeline.record import SPLITS

    return SPLITS


_COMPLETERS: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "format_": _formats,
    "from_": _formats,
    "label_space": _label_spaces,
    "method": _methods,
    "model": _models,
    "recipe": _recipes,
    "runner": lambda: ("auto", "local", "ray"),
    "split": _splits,
    "to": _formats,
    "val_split": _splits,
    "verb": lambda: VERBS,
}
"""The values of a parameter, by its name in the verb's function."""


def complete(args: Sequence[str]) -> None:
    """Answer the shell, or install or show the script that asks; leaves by SystemExit."""
    words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()
    verb = next((word for word in words[1:2] if word in VERBS), None)
    root(verb)(list(args), prog_name="segmill")


def root(verb: str | None) -> typer.Typer:
    """Return all verbs as one app, in which `verb` alone has its options."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(_nothing)
    for name, line in VERBS.items():
        inner: typer.Typer | None = None
        if name == verb:
            inner = import_module(f"jobs.{name.replace('-', '_')}").APP
        if inner is None:
            app.command(name, help=line)(_nothing)
            continue
        for command in inner.registered_commands:
            if command.callback is not None:
                _describe(command.callback)
        if inner.registered_callback or len(inner.registered_commands) != 1:
            app.add_typer(inner, name=name, help=line)
            continue
        only = inner.registered_commands[0]
        assert only.callback is not None
        app.command(name, help=line, context_settings=only.context_settings)(only.callback)
    return app


def _nothing() -> None:
    """Stand for a verb that is not on the command line."""


def _describe(callback: Callable[..., Any]) -> None:
    """Give a verb's parameters what their values are completed by."""
    hints = get_type_hints(callback, include_extras=True)
    for name, hint in hints.items():
        if get_origin(hint) is not Annotated:
            continue
        for said in hint.__metadata__:
            if isinstance(said, ParameterInfo) and said.autocompletion is None:
                said.autocompletion = _completer(name, said.metavar)
    callback.__annotations__ = hints  # else they are text, and made anew by each who asks


def _completer(name: str, metavar: str | None) -> Callable[[str], list[str]] | None:
    """Return what completes a parameter: by its name, or by a metavar like `full|reduced`."""
    values = _COMPLETERS.get(name)
    if values is None and metavar and _CHOICES.fullmatch(metavar):
        words = metavar.split("|")
        values = lambda: words  # noqa: E731
    if values is None:
        return None
    known = values

    def found(incomplete: str) -> list[str]:
        return [value for value in known() if value.startswith(incomplete)]

    return found
