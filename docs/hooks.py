"""mkdocs: links to files of the repository outside `docs/` become their names, as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_OUT = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Turn `[text](../FILE)` into text and, where it doesn't say so already, the name of the file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    root = Path(config["config_file_path"]).parent

    def named(link: re.Match[str]) -> str:
        text, place = link.groups()
        if not (root / place).exists():
            raise FileNotFoundError(f"a page links to {place}, which is not there")
        return text if place in text else f"{text} (`{place}`)"

    return _OUT.sub(named, markdown)
