"""The conformance class of each format, found in the test modules: it writes a small tree."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from tests import connectors as package
from tests.connectors.conformance import Conformance


@cache
def makers() -> dict[str, type[Conformance]]:
    """Return the first conformance class of each format, by the format's name."""
    found: dict[str, type[Conformance]] = {}
    for module in sorted(m.name for m in iter_modules(package.__path__)):
        if module.startswith("test_"):
            for thing in vars(import_module(f"{package.__name__}.{module}")).values():
                is_kind = isinstance(thing, type) and issubclass(thing, Conformance)
                if is_kind and thing is not Conformance:
                    found.setdefault(thing.connector.format, thing)
    return found
