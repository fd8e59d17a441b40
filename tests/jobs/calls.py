"""Calling verbs in this process, as the command line does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobs.__main__ import main

if TYPE_CHECKING:
    import pytest


def call(
    capsys: pytest.CaptureFixture[str], *args: object, code: int = 0
) -> tuple[dict[str, Any], str]:
    """Run a verb with --json; return its summary ({} without one) and what it said on stderr."""
    capsys.readouterr()
    try:
        main([*map(str, args), "--json"])
        found: object = 0
    except SystemExit as ended:
        found = ended.code or 0
    out, err = capsys.readouterr()
    assert found == code, f"exit code {found}, not {code}: {err}"
    return (json.loads(out.splitlines()[-1]) if out.strip() else {}), err
